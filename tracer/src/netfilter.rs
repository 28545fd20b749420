//! Netfilter's own words: families, hooks, verdicts and the kinds of steps.

use std::fmt;

/// A family of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `NFPROTO_IPV4`.
    Ipv4,
    /// `NFPROTO_IPV6`.
    Ipv6,
    /// `NFPROTO_ARP`. Its legacy tables are not traced.
    Arp,
}

impl Family {
    /// Of packets, from the kernel's number, `enum` in `include/uapi/linux/netfilter.h`.
    pub fn of_packets(number: u8) -> Option<Self> {
        match number {
            3 => Some(Self::Arp),
            number => Self::from_nfproto(number),
        }
    }

    /// Of legacy tables that can be traced, from the same number.
    pub fn from_nfproto(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::Ipv4),
            10 => Some(Self::Ipv6),
            _ => None,
        }
    }

    /// The name that nft and the JSON output use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
            Self::Arp => "arp",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The family of a table. nftables has more of them than there are families of packets with legacy tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFamily {
    /// `NFPROTO_IPV4`
    Ip,
    /// `NFPROTO_IPV6`
    Ip6,
    /// `NFPROTO_INET`
    Inet,
    /// `NFPROTO_ARP`
    Arp,
    /// `NFPROTO_BRIDGE`
    Bridge,
    /// `NFPROTO_NETDEV`
    Netdev,
}

impl TableFamily {
    /// The name that nft and the JSON output use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }

    /// Whether chains of this family see packets of another at a hook.
    pub fn sees(self, family: Family, hook: Hook) -> bool {
        match self {
            Self::Inet => family != Family::Arp,
            Self::Netdev => hook.is_of_device(),
            Self::Bridge => hook.is_of_bridge(),
            of => of == family.into(),
        }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Ip,
            Family::Ipv6 => Self::Ip6,
            Family::Arp => Self::Arp,
        }
    }
}

/// Who evaluates a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// `ip_tables` and `ip6_tables`.
    Legacy,
    /// `nf_tables`, whichever tool made the rule.
    Nft,
}

impl Engine {
    /// The name that the JSON output uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }
}

/// A netfilter hook. Those of the IP families have the kernel's numbers (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// `NF_INET_PRE_ROUTING`
    Prerouting = 0,
    /// `NF_INET_LOCAL_IN`
    Input = 1,
    /// `NF_INET_FORWARD`
    Forward = 2,
    /// `NF_INET_LOCAL_OUT`
    Output = 3,
    /// `NF_INET_POST_ROUTING`
    Postrouting = 4,
    /// `NF_INET_INGRESS`, `NF_NETDEV_INGRESS`
    Ingress = 5,
    /// `NF_NETDEV_EGRESS`
    Egress = 6,
    /// `NF_BR_PRE_ROUTING`
    BridgePrerouting = 7,
    /// `NF_BR_LOCAL_IN`
    BridgeInput = 8,
    /// `NF_BR_FORWARD`
    BridgeForward = 9,
    /// `NF_BR_LOCAL_OUT`
    BridgeOutput = 10,
    /// `NF_BR_POST_ROUTING`
    BridgePostrouting = 11,
    /// `NF_ARP_IN`
    ArpInput = 12,
    /// `NF_ARP_OUT`
    ArpOutput = 13,
    /// `NF_ARP_FORWARD`
    ArpForward = 14,
}

impl Hook {
    /// The hooks of the legacy tables, by number.
    pub const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// From the kernel's number for a hook of a legacy table.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Those of bridges, by number.
    pub const BRIDGE: [Self; 5] = [
        Self::BridgePrerouting,
        Self::BridgeInput,
        Self::BridgeForward,
        Self::BridgeOutput,
        Self::BridgePostrouting,
    ];

    /// Those of ARP, by number.
    pub const ARP: [Self; 3] = [Self::ArpInput, Self::ArpOutput, Self::ArpForward];

    /// From the number that a record of nftables has for it, see [`tracer_common::place`].
    pub fn from_record(number: u8) -> Option<Self> {
        match number {
            tracer_common::place::INGRESS => Some(Self::Ingress),
            tracer_common::place::EGRESS => Some(Self::Egress),
            number => match number.checked_sub(tracer_common::place::BRIDGE) {
                Some(number) => Self::BRIDGE.iter().chain(&Self::ARP).nth(usize::from(number)).copied(),
                None => Self::from_number(number),
            },
        }
    }

    /// Whether its chains are those of devices.
    pub fn is_of_device(self) -> bool {
        matches!(self, Self::Ingress | Self::Egress)
    }

    /// Whether its chains are those of bridges.
    pub fn is_of_bridge(self) -> bool {
        use Hook::{BridgeForward, BridgeInput, BridgeOutput, BridgePostrouting, BridgePrerouting};
        matches!(self, BridgePrerouting | BridgeInput | BridgeForward | BridgeOutput | BridgePostrouting)
    }

    /// The hook of IP that a bridge asks at one of its own, with br_netfilter.
    pub fn asks(self) -> Option<Self> {
        match self {
            Self::BridgePrerouting | Self::BridgeForward => Some(self.named()),
            _ => None,
        }
    }

    /// The hook of IP that has the same name, if there is one.
    fn named(self) -> Self {
        match self {
            Self::BridgePrerouting => Self::Prerouting,
            Self::BridgeInput | Self::ArpInput => Self::Input,
            Self::BridgeForward | Self::ArpForward => Self::Forward,
            Self::BridgeOutput | Self::ArpOutput => Self::Output,
            Self::BridgePostrouting => Self::Postrouting,
            other => other,
        }
    }

    /// The name of the built-in chain at this hook, as iptables writes it.
    pub fn chain(self) -> &'static str {
        ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "INGRESS", "EGRESS"]
            [self.named() as usize]
    }

    /// The same, with the family where it is not IP.
    pub fn full_name(self) -> &'static str {
        match self {
            Self::BridgePrerouting => "bridge prerouting",
            Self::BridgeInput => "bridge input",
            Self::BridgeForward => "bridge forward",
            Self::BridgeOutput => "bridge output",
            Self::BridgePostrouting => "bridge postrouting",
            Self::ArpInput => "arp input",
            Self::ArpOutput => "arp output",
            Self::ArpForward => "arp forward",
            other => other.name(),
        }
    }

    /// The name that nft and the JSON output use.
    pub fn name(self) -> &'static str {
        ["prerouting", "input", "forward", "output", "postrouting", "ingress", "egress"]
            [self.named() as usize]
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a table or hook decided about a packet, the low byte of the kernel's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// `NF_DROP`
    Drop,
    /// `NF_ACCEPT`
    Accept,
    /// `NF_STOLEN`
    Stolen,
    /// `NF_QUEUE`
    Queue,
    /// `NF_REPEAT`
    Repeat,
    /// A number this program does not know.
    Other(u8),
}

impl Verdict {
    /// From what a hook function returned: queue numbers and error codes in the upper bits are left out.
    pub fn from_return(value: u32) -> Self {
        match value.to_le_bytes()[0] {
            0 => Self::Drop,
            1 => Self::Accept,
            2 => Self::Stolen,
            3 => Self::Queue,
            4 => Self::Repeat,
            other => Self::Other(other),
        }
    }

    /// The kernel's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Stolen => 2,
            Self::Queue => 3,
            Self::Repeat => 4,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Accept => f.write_str("accept"),
            Self::Stolen => f.write_str("stolen"),
            Self::Queue => f.write_str("queue"),
            Self::Repeat => f.write_str("repeat"),
            Self::Other(number) => write!(f, "verdict {number}"),
        }
    }
}

/// What the kernel's TRACE calls an entry.
///
/// The kernel chooses the word by shape, not by position: an unconditional entry with a negative standard verdict
/// is a `policy` in a built-in chain and a `return` in a user chain, even when a person wrote it
/// (`get_chainname_rulenum` in `net/ipv4/netfilter/ip_tables.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// An ordinary rule.
    Rule,
    /// End of a user chain, or a rule of that shape.
    Return,
    /// Policy of a built-in chain, or a rule of that shape.
    Policy,
}

impl StepKind {
    /// The word that TRACE writes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Return => "return",
            Self::Policy => "policy",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
