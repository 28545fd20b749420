//! Which ways of tracing are tried, best first.

use crate::cli::trace::{Backend, Mark};

/// A way of tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum Plan {
    /// Probes.
    Ebpf,
    /// TRACE over netlink.
    Netlink(Marking),
    /// TRACE in the kernel's log.
    Log(Marking),
}

/// How packets are chosen for the kernel's own TRACE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum Marking {
    /// By rules that are there.
    None,
    /// By a table of nftables.
    Nft,
    /// By TRACE rules.
    Rule,
}

impl Plan {
    /// The backend's name.
    pub(in crate::command) fn backend(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Netlink(_) => "netlink",
            Self::Log(_) => "log",
        }
    }

    /// `log and mark nft`
    pub(super) fn words(self) -> String {
        match self {
            Self::Ebpf => self.backend().to_owned(),
            Self::Netlink(marking) | Self::Log(marking) => {
                format!("{} and mark {}", self.backend(), marking.name())
            }
        }
    }

    /// How packets are marked, where they are.
    pub(in crate::command) fn marking(self) -> Marking {
        match self {
            Self::Ebpf => Marking::None,
            Self::Netlink(marking) | Self::Log(marking) => marking,
        }
    }
}

impl Marking {
    /// Its name on the command line.
    pub(in crate::command) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nft => "nft",
            Self::Rule => "rule",
        }
    }
}

/// The ways that are worth a try, for what was asked.
pub(super) fn plans(backend: Backend, mark: Mark) -> Vec<Plan> {
    let markings: &[Marking] = match mark {
        Mark::Auto => &[Marking::Nft, Marking::Rule],
        Mark::None => &[Marking::None],
        Mark::Nft => &[Marking::Nft],
        Mark::Rule => &[Marking::Rule],
    };
    let of = |way: fn(Marking) -> Plan| markings.iter().copied().map(way);
    match backend {
        Backend::Ebpf => vec![Plan::Ebpf],
        Backend::Netlink => of(Plan::Netlink).collect(),
        Backend::Log => of(Plan::Log).collect(),
        Backend::Auto => {
            // Who wants marks does not want probes.
            let ebpf = matches!(mark, Mark::Auto | Mark::None).then_some(Plan::Ebpf);
            ebpf.into_iter().chain(of(Plan::Netlink)).chain(of(Plan::Log)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(backend: Backend, mark: Mark, expected: &str) {
        let name = |plan: &Plan| format!("{} {}", plan.backend(), plan.marking().name());
        let names: Vec<String> = plans(backend, mark).iter().map(name).collect();
        assert_eq!(names.join(", "), expected);
    }

    #[test]
    fn the_best_comes_first() {
        check(Backend::Auto, Mark::Auto, "ebpf none, netlink nft, netlink rule, log nft, log rule");
        check(Backend::Auto, Mark::None, "ebpf none, netlink none, log none");
        check(Backend::Auto, Mark::Rule, "netlink rule, log rule");
        check(Backend::Ebpf, Mark::None, "ebpf none");
        check(Backend::Netlink, Mark::Auto, "netlink nft, netlink rule");
        check(Backend::Log, Mark::Nft, "log nft");
    }
}
