//! What is measured: the table.

use crate::netfilter::Engine;

/// A way of tracing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) engine: Engine,
    pub(super) way: Way,
}

/// How it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all.
    Nothing,
    /// By a run of this program with these arguments.
    Nftracer(Matching, &'static [&'static str]),
    /// By a rule of a legacy table, whose target is brought by this module.
    Rule { table: &'static str, rule: &'static str, module: &'static str, logger: Logger },
    /// By `nft monitor trace`, and a rule that marks all packets.
    Monitor,
}

/// Whether the filter matches the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matching {
    Yes,
    No,
}

/// Where a rule's target tells of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logger {
    /// Lines in the kernel's log.
    KernelLog,
    /// Messages of nfnetlink_log, which a thread of ours takes and throws away.
    Netlink,
}

const EBPF: &[&str] = &["--backend", "ebpf"];
const NETLINK: &[&str] = &["--backend", "netlink"];
const LOG: &[&str] = &["--backend", "log"];

/// All ways, those that compare with each other together.
pub(super) const ROWS: [Row; 14] = [
    row("nothing", "nothing", Engine::Legacy, Way::Nothing),
    row("ebpf-idle", "nftracer, ebpf, no match", Engine::Legacy, Way::Nftracer(Matching::No, EBPF)),
    row("ebpf", "nftracer, ebpf", Engine::Legacy, Way::Nftracer(Matching::Yes, EBPF)),
    row("netlink", "nftracer, netlink", Engine::Legacy, Way::Nftracer(Matching::Yes, NETLINK)),
    row("log", "nftracer, log", Engine::Legacy, Way::Nftracer(Matching::Yes, LOG)),
    row(
        "nflog-target",
        "NFLOG target",
        Engine::Legacy,
        target("INPUT -p udp -j NFLOG", "xt_NFLOG", Logger::Netlink),
    ),
    row(
        "log-target",
        "LOG target",
        Engine::Legacy,
        target("INPUT -p udp -j LOG", "xt_LOG", Logger::KernelLog),
    ),
    row("trace-netlink", "TRACE, nfnetlink_log", Engine::Legacy, trace(Logger::Netlink)),
    row("trace-log", "TRACE, kernel log", Engine::Legacy, trace(Logger::KernelLog)),
    row("nft-nothing", "nothing", Engine::Nft, Way::Nothing),
    row("nft-ebpf-idle", "nftracer, ebpf, no match", Engine::Nft, Way::Nftracer(Matching::No, EBPF)),
    row("nft-ebpf", "nftracer, ebpf", Engine::Nft, Way::Nftracer(Matching::Yes, EBPF)),
    row("nft-netlink", "nftracer, netlink", Engine::Nft, Way::Nftracer(Matching::Yes, NETLINK)),
    row("nft-monitor", "nft monitor trace", Engine::Nft, Way::Monitor),
];

const fn row(name: &'static str, title: &'static str, engine: Engine, way: Way) -> Row {
    Row { name, title, engine, way }
}

/// One rule that logs, before all others.
const fn target(rule: &'static str, module: &'static str, logger: Logger) -> Way {
    Way::Rule { table: "filter", rule, module, logger }
}

/// One rule that traces.
const fn trace(logger: Logger) -> Way {
    Way::Rule { table: "raw", rule: "PREROUTING -p udp -j TRACE", module: "xt_TRACE", logger }
}

impl Way {
    /// Whether lines of it are in the kernel's log afterwards.
    pub(super) fn fills_log(self) -> bool {
        match self {
            Self::Nftracer(_, arguments) => arguments == LOG,
            Self::Rule { logger, .. } => logger == Logger::KernelLog,
            Self::Nothing | Self::Monitor => false,
        }
    }
}

/// The rows that were asked for, all where none was, with those that they compare with.
pub(super) fn chosen(names: &[String], fill_log: bool) -> Vec<Row> {
    let wanted = |row: &Row| names.is_empty() || names.iter().any(|name| name == row.name);
    let measured = |row: &Row| wanted(row) && (fill_log || !row.way.fills_log());
    let needed = |engine| ROWS.iter().any(|row| row.engine == engine && measured(row));
    let is_base = |row: &Row| row.way == Way::Nothing && needed(row.engine);
    ROWS.into_iter().filter(|row| measured(row) || is_base(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], fill_log: bool, expected: &str) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let found: Vec<&str> = chosen(&names, fill_log).iter().map(|row| row.name).collect();
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn rows_come_with_what_they_compare_with() {
        assert_eq!(chosen(&[], true).len(), ROWS.len());
        check(&["netlink"], true, "nothing netlink");
        check(&["nft-monitor", "log-target"], true, "nothing log-target nft-nothing nft-monitor");
        check(&["log", "netlink"], false, "nothing netlink");
        check(&["log"], false, "");
        check(
            &[],
            false,
            "nothing ebpf-idle ebpf netlink nflog-target trace-netlink \
             nft-nothing nft-ebpf-idle nft-ebpf nft-netlink nft-monitor",
        );
    }
}
