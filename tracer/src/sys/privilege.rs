//! Capabilities: which ones this process has.

use rustix::thread::{CapabilitySet, capabilities};
use std::fmt;
use std::fs;
use std::path::Path;

/// The initial user namespace, `PROC_USER_INIT_INO` in `include/linux/proc_ns.h`.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// A capability that tracing can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Loads programs and makes maps, since 5.8.
    Bpf,
    /// Attaches probes and reads kernel memory, since 5.8.
    Perfmon,
    /// All that the other two allow, and entering namespaces.
    SysAdmin,
    /// Reads rulesets.
    NetAdmin,
    /// Sees the addresses of symbols.
    Syslog,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Bpf, Self::Perfmon, Self::SysAdmin, Self::NetAdmin, Self::Syslog];

    fn bit(self) -> CapabilitySet {
        match self {
            Self::Bpf => CapabilitySet::BPF,
            Self::Perfmon => CapabilitySet::PERFMON,
            Self::SysAdmin => CapabilitySet::SYS_ADMIN,
            Self::NetAdmin => CapabilitySet::NET_ADMIN,
            Self::Syslog => CapabilitySet::SYSLOG,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bpf => "CAP_BPF",
            Self::Perfmon => "CAP_PERFMON",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::Syslog => "CAP_SYSLOG",
        })
    }
}

/// What this process may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// The effective ones among [`Capability::ALL`].
    pub effective: Vec<Capability>,
    /// Whether they count for the whole host and not only for a container's own user namespace.
    pub whole_host: bool,
}

impl Privileges {
    /// Those of the calling thread.
    pub fn gather() -> Self {
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Self {
            effective: Capability::ALL
                .into_iter()
                .filter(|wanted| effective.contains(wanted.bit()))
                .collect(),
            whole_host: in_initial_user_namespace(),
        }
    }

    /// Whether a capability is effective. `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`.
    pub fn has(&self, wanted: Capability) -> bool {
        let part_of_admin = matches!(wanted, Capability::Bpf | Capability::Perfmon);
        self.effective.contains(&wanted) || part_of_admin && self.effective.contains(&Capability::SysAdmin)
    }
}

/// A kernel without user namespaces has only the initial one.
fn in_initial_user_namespace() -> bool {
    fs::read_link("/proc/self/ns/user").map_or(true, |link| link == Path::new(INITIAL_USER_NAMESPACE))
}
