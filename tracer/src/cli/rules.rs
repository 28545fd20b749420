//! `nftracer rules`

use super::{UsageError, netns::Netns};
use clap::Args;

/// Show the loaded rules, each numbered as a trace numbers it
#[derive(Args, Debug)]
pub(super) struct RulesArgs {
    /// Only tables of this name, of any family: raw, mangle, nat, filter, security, or any other of nftables
    #[arg(short, long, value_name = "TABLE")]
    table: Option<String>,

    /// The network namespace: a name of `ip netns`, a process id, or a path
    #[arg(long, value_name = "NAME|PID|PATH")]
    netns: Option<String>,
}

/// What `nftracer rules` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesConfig {
    /// Only this table.
    pub table: Option<String>,
    /// Of this namespace; never [`Netns::All`].
    pub netns: Netns,
}

impl RulesArgs {
    pub(super) fn config(self) -> Result<RulesConfig, UsageError> {
        Ok(RulesConfig { netns: Netns::from_option(self.netns.as_deref())?, table: self.table })
    }
}
