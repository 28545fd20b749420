//! What the kernel's target extensions can return: whether the packet goes on, and with which verdict it ends.
//!
//! Read in `net/netfilter/xt_*.c`, `net/ipv4/netfilter/ipt_*.c` and `net/ipv6/netfilter/ip6t_*.c`. A name that is
//! not listed may do anything.

use crate::netfilter::Verdict;
use crate::ruleset::Extension;

/// What a target extension can return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// It can return `XT_CONTINUE`.
    pub(super) continues: bool,
    ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Never,
    With(&'static [Verdict]),
    Anyhow,
}

impl Outcome {
    const UNKNOWN: Self = Self { continues: true, ends: Ends::Anyhow };

    /// What `extension` can return.
    pub(super) fn of(extension: &Extension) -> Self {
        extension.name.as_deref().map_or(Self::UNKNOWN, Self::of_name)
    }

    /// Whether a traversal can end here with `verdict`.
    pub(super) fn can_end(self, verdict: Verdict) -> bool {
        match self.ends {
            Ends::Never => false,
            Ends::With(verdicts) => verdicts.contains(&verdict),
            Ends::Anyhow => true,
        }
    }

    fn of_name(name: &str) -> Self {
        use Verdict::{Accept, Drop, Queue, Stolen};
        let (continues, ends) = match name {
            "AUDIT" | "CHECKSUM" | "CLASSIFY" | "CONNMARK" | "CONNSECMARK" | "CT" | "HMARK" | "IDLETIMER"
            | "LED" | "LOG" | "MARK" | "NFLOG" | "NOTRACK" | "RATEEST" | "SECMARK" | "SET" | "TEE" | "TRACE"
            | "ULOG" => (true, Ends::Never),
            // They drop what they cannot change: no memory, or a header that is not what it should be.
            "DNPT" | "DSCP" | "ECN" | "HL" | "SNPT" | "TCPMSS" | "TCPOPTSTRIP" | "TOS" | "TTL" => {
                (true, Ends::With(&[Drop]))
            }
            // A segment that is neither a first SYN nor an ACK goes on. Before 4.15 nothing was stolen.
            "SYNPROXY" => (true, Ends::With(&[Drop, Stolen])),
            "DNAT" | "MASQUERADE" | "NETMAP" | "REDIRECT" | "SNAT" | "TPROXY" => {
                (false, Ends::With(&[Accept, Drop]))
            }
            // With --queue-bypass the verdict is still "queue"; what it becomes is decided after the table.
            "NFQUEUE" => (false, Ends::With(&[Queue])),
            "REJECT" => (false, Ends::With(&[Drop])),
            _ => (true, Ends::Anyhow),
        };
        Self { continues, ends }
    }
}
