//! What packets are chosen by beside the filter, as it is typed.

use super::UsageError;
use super::trace::Mark;
use crate::netfilter::Verdict;
use crate::predicate::{Device, Masked, Place, Predicates, User, verdict};
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;

/// Under which these options are listed.
pub(super) const HEADING: &str = "Packets, beside the filter";

/// What is asked of packets; they are shown when they meet all of it.
#[derive(Args, Debug)]
pub(super) struct PredicateArgs {
    /// That came in by this device; eth+ stands for all whose names begin with eth
    #[arg(long = "in", value_name = "DEVICE", help_heading = HEADING)]
    indev: Option<Device>,

    /// That left by this device
    #[arg(long = "out", value_name = "DEVICE", help_heading = HEADING)]
    outdev: Option<Device>,

    /// That were sent by a socket of this user
    #[arg(long, value_name = "USER", help_heading = HEADING)]
    uid: Option<User>,

    /// That met a table of this name; with --chain, that chain in it
    #[arg(long, value_name = "TABLE", help_heading = HEADING)]
    table: Option<String>,

    /// That met a chain of this name
    #[arg(long, value_name = "CHAIN", help_heading = HEADING)]
    chain: Option<String>,

    /// That met this rule, as `nftracer rules` names it; also filter:INPUT:policy:4
    #[arg(long, value_name = "TABLE:CHAIN:N", help_heading = HEADING)]
    rule: Option<Place>,
}

/// What only probes can tell.
#[derive(Args, Debug)]
pub(super) struct CgroupArgs {
    /// That were sent from this cgroup, of version 2, or one below it: a path in /sys/fs/cgroup; for ebpf
    #[arg(long, value_name = "CGROUP", help_heading = HEADING)]
    pub(super) cgroup: Option<PathBuf>,
}

/// How packets ended.
#[derive(Args, Debug)]
pub(super) struct VerdictArgs {
    /// That ended so: drop, accept, stolen or queue; several separated by commas. With eBPF, what another function of a hook drops, or user space, is a drop
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = verdict, help_heading = HEADING)]
    verdict: Vec<Verdict>,
}

/// The two meanings of `--mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkArg {
    /// How packets are chosen for the kernel's own tracing.
    Way(Mark),
    /// The mark that packets had.
    Number(Masked),
}

impl FromStr for MarkArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Way(Mark::Auto),
            "none" => Self::Way(Mark::None),
            "nft" => Self::Way(Mark::Nft),
            "rule" => Self::Way(Mark::Rule),
            _ if text.starts_with(|first: char| first.is_ascii_digit()) => Self::Number(text.parse()?),
            _ => return Err("neither auto, none, nft or rule nor a mark such as 0x10/0xff"),
        })
    }
}

/// What the values of `--mark` say: the way, and the mark that is asked for.
pub(super) fn marks(typed: &[MarkArg]) -> Result<(Mark, Option<Masked>), UsageError> {
    let (mut way, mut number) = (None, None);
    for mark in typed {
        let twice = match *mark {
            MarkArg::Way(mark) => way.replace(mark).is_some(),
            MarkArg::Number(mark) => number.replace(mark).is_some(),
        };
        if twice {
            let reason = "given twice; once for a way of marking and once for a number is all";
            return Err(UsageError::Value { option: "--mark", value: mark.to_string(), reason });
        }
    }
    Ok((way.unwrap_or_default(), number))
}

impl std::fmt::Display for MarkArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Way(mark) => f.write_str(match mark {
                Mark::Auto => "auto",
                Mark::None => "none",
                Mark::Nft => "nft",
                Mark::Rule => "rule",
            }),
            Self::Number(mark) => mark.fmt(f),
        }
    }
}

impl PredicateArgs {
    pub(super) fn predicates(self) -> Predicates {
        Predicates {
            indev: self.indev,
            outdev: self.outdev,
            uid: self.uid,
            table: self.table,
            chain: self.chain,
            rule: self.rule,
            ..Predicates::default()
        }
    }
}

impl VerdictArgs {
    pub(super) fn verdicts(self) -> Vec<Verdict> {
        self.verdict
    }
}
