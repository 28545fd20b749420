//! The probes: which program sits where, and what it is for. The loader attaches from this table, `doctor` prints it,
//! and a test holds it against the programs in the object.
#![forbid(unsafe_code)]

use std::ffi::CStr;
use tracer_common::nft::Witness;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Entry of a kernel function.
    Entry,
    /// Return of a kernel function.
    Return,
}

/// One probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the one that does the same without a kprobe, where there is one. What happens seldom needs none; and only
    /// kprobe programs never leave out a call because another one of them is at work in a preempted task.
    pub typed: Option<&'static str>,
    /// The kernel function.
    pub symbol: &'static str,
    /// Where in it.
    pub point: Point,
    /// What is gone without it.
    pub need: Need,
}

/// What begins where an entry probe sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// A traversal of a legacy table.
    Traversal,
    /// A run through a base chain of nftables.
    Run,
}

impl Probe {
    /// What begins where it sits.
    pub fn begins(&self) -> Option<Begins> {
        match (self.point, self.symbol) {
            (Point::Entry, "ipt_do_table" | "ip6t_do_table" | "arpt_do_table") => Some(Begins::Traversal),
            (Point::Entry, "nft_do_chain") => Some(Begins::Run),
            _ => None,
        }
    }
}

/// One program at the entry and the return of several functions, in place of the probes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Name of the program in the object.
    pub name: &'static str,
    /// The kernel functions.
    pub symbols: &'static [&'static CStr],
}

/// What a probe is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Every trace.
    Always,
    /// Tracing a family; the text names it.
    Family(&'static str),
    /// Tracing nftables.
    Nftables,
    /// Tracing its rules, where they are seen in this way.
    NftRules(Witness),
    /// Tracing its base chains without their rules.
    NftEnds,
    /// Accounting for what else moves the shared sequence count; only needed where the function exists.
    IfPresent,
}

/// A legacy table is replaced. Counted by each kind of trace.
const TABLE_REPLACED: Probe = Probe {
    program: "table_replaced",
    typed: None,
    symbol: "xt_replace_table",
    point: Point::Entry,
    need: Need::Always,
};

/// Rules of nftables have changed. Counted by each kind of trace.
const COMMIT_LEAVE: Probe = Probe {
    program: "commit_leave",
    typed: None,
    symbol: "nf_tables_commit",
    point: Point::Return,
    need: Need::Nftables,
};

/// Rules of nftables are about to change. Counted by each kind of trace.
const COMMIT_ENTER: Probe = Probe {
    program: "commit_enter",
    typed: None,
    symbol: "nf_tables_commit",
    point: Point::Entry,
    need: Need::Nftables,
};

/// All probes, in the order they are placed: exits before entries, so that no entry is seen without its exit.
pub const PROBES: &[Probe] = &[
    TABLE_REPLACED,
    Probe {
        program: "counters_added",
        typed: None,
        symbol: "xt_copy_counters",
        point: Point::Entry,
        need: Need::IfPresent,
    },
    Probe {
        program: "leave",
        typed: Some("leave_typed"),
        symbol: "arpt_do_table",
        point: Point::Return,
        need: Need::IfPresent,
    },
    Probe {
        program: "arp_enter",
        typed: Some("arp_enter_typed"),
        symbol: "arpt_do_table",
        point: Point::Entry,
        need: Need::IfPresent,
    },
    Probe {
        program: "leave",
        typed: Some("leave_typed"),
        symbol: "ip6t_do_table",
        point: Point::Return,
        need: Need::Family("ip6"),
    },
    Probe {
        program: "leave",
        typed: Some("leave_typed"),
        symbol: "ipt_do_table",
        point: Point::Return,
        need: Need::Family("ip"),
    },
    Probe {
        program: "ip_enter",
        typed: Some("ip_enter_typed"),
        symbol: "ip6t_do_table",
        point: Point::Entry,
        need: Need::Family("ip6"),
    },
    Probe {
        program: "ip_enter",
        typed: Some("ip_enter_typed"),
        symbol: "ipt_do_table",
        point: Point::Entry,
        need: Need::Family("ip"),
    },
    COMMIT_LEAVE,
    COMMIT_ENTER,
    Probe {
        program: "nft_leave",
        typed: Some("nft_leave_typed"),
        symbol: "nft_do_chain",
        point: Point::Return,
        need: Need::NftEnds,
    },
    Probe {
        program: "nft_traced",
        typed: Some("nft_traced_info_typed"),
        symbol: "__nft_trace_packet",
        point: Point::Entry,
        need: Need::NftRules(Witness::TraceInfo),
    },
    Probe {
        program: "nft_traced",
        typed: Some("nft_traced_typed"),
        symbol: "__nft_trace_packet",
        point: Point::Entry,
        need: Need::NftRules(Witness::TraceArguments),
    },
    Probe {
        program: "nft_enter",
        typed: Some("nft_enter_typed"),
        symbol: "nft_do_chain",
        point: Point::Entry,
        need: Need::Nftables,
    },
];

/// Those for the last rule of packets that are dropped, in the same order.
pub const LAST_RULE_PROBES: &[Probe] = &[
    TABLE_REPLACED,
    Probe {
        program: "last_counters_added",
        typed: None,
        symbol: "xt_copy_counters",
        point: Point::Entry,
        need: Need::IfPresent,
    },
    Probe {
        program: "last_leave",
        typed: Some("last_leave_typed"),
        symbol: "arpt_do_table",
        point: Point::Return,
        need: Need::IfPresent,
    },
    Probe {
        program: "last_arp_enter",
        typed: Some("last_arp_enter_typed"),
        symbol: "arpt_do_table",
        point: Point::Entry,
        need: Need::IfPresent,
    },
    Probe {
        program: "last_leave",
        typed: Some("last_leave_typed"),
        symbol: "ip6t_do_table",
        point: Point::Return,
        need: Need::Family("ip6"),
    },
    Probe {
        program: "last_leave",
        typed: Some("last_leave_typed"),
        symbol: "ipt_do_table",
        point: Point::Return,
        need: Need::Family("ip"),
    },
    Probe {
        program: "last_ip_enter",
        typed: Some("last_ip_enter_typed"),
        symbol: "ip6t_do_table",
        point: Point::Entry,
        need: Need::Family("ip6"),
    },
    Probe {
        program: "last_ip_enter",
        typed: Some("last_ip_enter_typed"),
        symbol: "ipt_do_table",
        point: Point::Entry,
        need: Need::Family("ip"),
    },
    COMMIT_LEAVE,
    COMMIT_ENTER,
    Probe {
        program: "last_nft_traced",
        typed: Some("last_nft_traced_info_typed"),
        symbol: "__nft_trace_packet",
        point: Point::Entry,
        need: Need::NftRules(Witness::TraceInfo),
    },
    Probe {
        program: "last_nft_traced",
        typed: Some("last_nft_traced_typed"),
        symbol: "__nft_trace_packet",
        point: Point::Entry,
        need: Need::NftRules(Witness::TraceArguments),
    },
];

/// What can stand at the table functions in place of [`PROBES`], in the same order.
pub const SESSIONS: &[Session] =
    &[Session { name: "arp_session", symbols: ARP }, Session { name: "ip_session", symbols: IP }];

/// What can stand there in place of [`LAST_RULE_PROBES`].
pub const LAST_RULE_SESSIONS: &[Session] =
    &[Session { name: "last_arp_session", symbols: ARP }, Session { name: "last_ip_session", symbols: IP }];

const ARP: &[&CStr] = &[c"arpt_do_table"];
const IP: &[&CStr] = &[c"ip6t_do_table", c"ipt_do_table"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_stands_for_an_entry_and_a_return() {
        for (sessions, probes) in [(SESSIONS, PROBES), (LAST_RULE_SESSIONS, LAST_RULE_PROBES)] {
            let named = |probe: &Probe| {
                let symbols = || sessions.iter().flat_map(|session| session.symbols);
                symbols().any(|symbol| symbol.to_str() == Ok(probe.symbol))
            };
            let replaced: Vec<&Probe> = probes.iter().filter(|probe| named(probe)).collect();
            let at = |point| replaced.iter().filter(|probe| probe.point == point).count();
            assert_eq!((at(Point::Entry), at(Point::Return)), (3, 3));
            let begins = probes.iter().filter(|probe| probe.begins() == Some(Begins::Traversal));
            assert!(begins.eq(replaced.iter().copied().filter(|probe| probe.point == Point::Entry)));
        }
    }
}
