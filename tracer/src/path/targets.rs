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
            | "LED" | "LOG" | "MARK" | "NFLOG" | "NOTRACK" | "RATEEST" | "SECMARK" | "SET" | "TEE"
            | "TRACE" | "ULOG" => (true, Ends::Never),
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

/// What a target does to a packet that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// What it changes.
    pub(super) field: Field,
    /// And how.
    pub(super) change: Change,
}

/// A part of a packet that targets change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// `skb->mark`.
    Mark,
    /// One byte, counted from the network header on.
    Byte(usize),
    /// The rest of the network header, without the length in it.
    Network,
    /// All behind the network header, and the length.
    Transport,
}

/// How a field is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// `(old & !mask) ^ value`.
    Bits { mask: u32, value: u32 },
    /// Up to 255.
    Add(u8),
    /// Down to 0.
    Subtract(u8),
    /// The bits of this mask become something that the parameters do not say, or stay.
    Opaque(u32),
}

/// Where the parts of a packet are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) ipv6: bool,
    /// Length of the network header; for IPv6 of the fixed one.
    pub(super) header: usize,
    /// Transport protocol, where its header follows and is the first fragment's.
    pub(super) protocol: Option<u8>,
}

impl Layout {
    /// Of a packet that begins with its network header.
    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [first, .., _] if first >> 4 == 6 && bytes.len() >= 40 => {
                let next = bytes[6];
                let transport = matches!(next, TCP | UDP | 58 | 132);
                Self { ipv6: true, header: 40, protocol: transport.then_some(next) }
            }
            [first, ..] if bytes.len() >= 20 => {
                let first_fragment = bytes[6] & 0x1f == 0 && bytes[7] == 0;
                let header = usize::from(first & 0x0f) * 4;
                Self { ipv6: false, header, protocol: first_fragment.then_some(bytes[9]) }
            }
            _ => Self { ipv6: false, header: bytes.len(), protocol: None },
        }
    }

    /// Where the length of the packet is.
    pub(super) fn length_field(self) -> std::ops::Range<usize> {
        if self.ipv6 { 4..6 } else { 2..4 }
    }

    /// Whether the byte belongs to a checksum. The kernel adjusts them along with what they cover, or leaves them to
    /// the network card, and prints none.
    pub(super) fn is_checksum(self, byte: usize) -> bool {
        let transport = match self.protocol {
            Some(TCP) => self.header + 16..self.header + 18,
            Some(UDP) => self.header + 6..self.header + 8,
            _ => 0..0,
        };
        !self.ipv6 && (10..12).contains(&byte) || transport.contains(&byte)
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a target does to packets, from its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effects {
    /// This and nothing else.
    Known(Vec<Effect>),
    /// It may change anything.
    Unknown,
}

impl Effects {
    /// What `extension` does to a packet of this layout.
    pub(super) fn of(extension: &Extension, layout: Layout) -> Self {
        let Some(name) = extension.name.as_deref() else { return Self::Unknown };
        let parameters = Parameters(&extension.data);
        let whole_mark = opaque(Field::Mark, u32::MAX);
        let effects = match (name, extension.revision) {
            // Before revision 2 a mark was an `unsigned long`; no kernel since 2.6.36 knows those.
            ("MARK", 2) => parameters.mark().unwrap_or(vec![whole_mark]),
            ("CONNMARK", 1 | 2) => parameters.connmark(extension.revision).unwrap_or(vec![whole_mark]),
            ("SET", revision) => parameters.set(revision).unwrap_or(vec![whole_mark]),
            // It sets the mark when it finds a socket, and ends the traversal.
            ("MARK" | "CONNMARK" | "HMARK" | "TPROXY", _) => vec![whole_mark],
            ("TTL" | "HL", 0) => match parameters.ttl(layout) {
                Some(effects) => effects,
                None => return Self::Unknown,
            },
            ("DSCP", 0) => match parameters.byte(0) {
                Some(dscp) => traffic_class(layout, 0xfc, dscp << 2),
                None => return Self::Unknown,
            },
            ("TOS", 1) => match (parameters.byte(0), parameters.byte(1)) {
                (Some(value), Some(mask)) => traffic_class(layout, mask, value),
                _ => return Self::Unknown,
            },
            ("ECN", 0) => match parameters.ecn(layout) {
                Some(effects) => effects,
                None => return Self::Unknown,
            },
            ("TCPMSS" | "TCPOPTSTRIP", _) => vec![opaque(Field::Transport, 1)],
            ("CHECKSUM", _) if layout.protocol.is_none() => vec![opaque(Field::Transport, 1)],
            ("DNPT" | "SNPT", _) => vec![opaque(Field::Network, 1)],
            (
                "AUDIT" | "CHECKSUM" | "CLASSIFY" | "CONNSECMARK" | "CT" | "DNAT" | "IDLETIMER" | "LED"
                | "LOG" | "MASQUERADE" | "NETMAP" | "NFLOG" | "NFQUEUE" | "NOTRACK" | "RATEEST" | "REDIRECT"
                | "REJECT" | "SECMARK" | "SNAT" | "SYNPROXY" | "TEE" | "TRACE" | "ULOG",
                _,
            ) => Vec::new(),
            _ => return Self::Unknown,
        };
        Self::Known(effects)
    }
}

fn opaque(field: Field, mask: u32) -> Effect {
    Effect { field, change: Change::Opaque(mask) }
}

fn bits(byte: usize, mask: u8, value: u8) -> Effect {
    Effect { field: Field::Byte(byte), change: Change::Bits { mask: mask.into(), value: value.into() } }
}

/// IPv4 type of service, or IPv6 traffic class.
fn traffic_class(layout: Layout, mask: u8, value: u8) -> Vec<Effect> {
    if layout.ipv6 {
        vec![bits(0, mask >> 4, value >> 4), bits(1, mask << 4, value << 4)]
    } else {
        vec![bits(1, mask, value)]
    }
}

/// A target's parameters, in the layout of the uapi header that is named.
struct Parameters<'a>(&'a [u8]);

impl Parameters<'_> {
    fn byte(&self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    fn word(&self, offset: usize) -> Option<u32> {
        self.0.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes)
    }

    /// `struct xt_mark_tginfo2` in `linux/netfilter/xt_mark.h`.
    fn mark(&self) -> Option<Vec<Effect>> {
        let (value, mask) = (self.word(0)?, self.word(4)?);
        Some(vec![Effect { field: Field::Mark, change: Change::Bits { mask, value } }])
    }

    /// `struct xt_connmark_tginfo1` and `2` in `linux/netfilter/xt_connmark.h`.
    fn connmark(&self, revision: u8) -> Option<Vec<Effect>> {
        const RESTORE: u8 = 2;
        const SHIFT_RIGHT: u8 = 1;
        let (ctmask, nfmask) = (self.word(4)?, self.word(8)?);
        let (shift_dir, shift_bits, mode) = match revision {
            1 => (0, 0, self.byte(12)?),
            _ => (self.byte(12)?, self.byte(13)?, self.byte(14)?),
        };
        let ctmask = match shift_dir {
            SHIFT_RIGHT => ctmask.checked_shr(shift_bits.into())?,
            _ => ctmask.checked_shl(shift_bits.into())?,
        };
        let restored = (mode == RESTORE).then(|| opaque(Field::Mark, nfmask | ctmask));
        Some(restored.into_iter().collect())
    }

    /// `struct xt_set_info_target_v3` in `linux/netfilter/xt_set.h`; earlier revisions map nothing.
    fn set(&self, revision: u8) -> Option<Vec<Effect>> {
        const IPSET_FLAG_MAP_SKBMARK: u32 = 1 << 8;
        let maps = match revision {
            0..=2 => false,
            3 => self.word(12)? & IPSET_FLAG_MAP_SKBMARK != 0,
            _ => return None,
        };
        Some(maps.then(|| opaque(Field::Mark, u32::MAX)).into_iter().collect())
    }

    /// `struct ipt_TTL_info` and `struct ip6t_HL_info`.
    fn ttl(&self, layout: Layout) -> Option<Vec<Effect>> {
        let (mode, ttl) = (self.byte(0)?, self.byte(1)?);
        let change = match mode {
            0 => Change::Bits { mask: 0xff, value: ttl.into() },
            1 => Change::Add(ttl),
            2 => Change::Subtract(ttl),
            _ => return None,
        };
        let field = Field::Byte(if layout.ipv6 { 7 } else { 8 });
        Some(vec![Effect { field, change }])
    }

    /// `struct ipt_ECN_info` in `linux/netfilter_ipv4/ipt_ECN.h`.
    fn ecn(&self, layout: Layout) -> Option<Vec<Effect>> {
        let (operation, ip_ect, tcp) = (self.byte(0)?, self.byte(1)?, self.byte(2)?);
        // Bit fields begin at the low end on little-endian machines, at the high end on others.
        let (ece, cwr) =
            if cfg!(target_endian = "little") { (tcp & 1, tcp >> 1 & 1) } else { (tcp >> 7, tcp >> 6 & 1) };
        let mut effects = Vec::new();
        if operation & 0x01 != 0 {
            effects.push(bits(1, 0x03, ip_ect & 0x03));
        }
        if layout.protocol == Some(TCP) {
            let flags = layout.header + 13;
            if operation & 0x10 != 0 {
                effects.push(bits(flags, 0x40, ece << 6));
            }
            if operation & 0x20 != 0 {
                effects.push(bits(flags, 0x80, cwr << 7));
            }
        }
        Some(effects)
    }
}
