//! The compiled packet filter: a decision graph over a fixed set of words taken from the packet.
//!
//! User space compiles an expression to a [`Program`]; the kernel side extracts a [`Key`] from the packet and runs
//! [`Program::matches`] on it before anything else is done for the packet.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Nodes in a program.
pub const MAX_NODES: usize = 128;
/// `next` value: the packet matches.
pub const ACCEPT: u8 = 0xff;
/// `next` value: the packet does not match.
pub const REJECT: u8 = 0xfe;

/// Indices into [`Key::words`]. All values are numbers, not wire bytes: `10.0.0.1` is `0x0a000001`.
pub mod word {
    /// 4 or 6.
    pub const VERSION: u8 = 0;
    /// Transport protocol: IPv4's protocol; IPv6's first next header, or the one after a fragment header.
    pub const PROTOCOL: u8 = 1;
    /// 1 where source and destination port are present (TCP, UDP, SCTP, not a later fragment).
    pub const HAS_PORTS: u8 = 2;
    /// Source port.
    pub const SPORT: u8 = 3;
    /// Destination port.
    pub const DPORT: u8 = 4;
    /// Source address, four words, most significant first; IPv4 uses the first.
    pub const SRC: u8 = 8;
    /// Destination address, likewise.
    pub const DST: u8 = 12;
    /// Words in a key.
    pub const COUNT: usize = 16;
}

/// What a filter can ask about a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Key {
    /// By [`word`].
    pub words: [u32; word::COUNT],
}

/// One question: is `words[word] & mask` within `low..=high`?
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Node {
    /// Index into [`Key::words`].
    pub word: u8,
    /// Next node when the answer is yes, or [`ACCEPT`], [`REJECT`]. Always larger than this node's index.
    pub yes: u8,
    /// Next node when the answer is no.
    pub no: u8,
    /// Fills to four.
    pub reserved: u8,
    /// Applied before the comparison.
    pub mask: u32,
    /// Smallest value that is a yes.
    pub low: u32,
    /// Largest value that is a yes.
    pub high: u32,
}

/// A compiled filter. With `len` 0 every packet matches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Program {
    /// Nodes in use.
    pub len: u32,
    /// Fills to eight.
    pub reserved: u32,
    /// The nodes; evaluation starts at 0.
    pub nodes: [Node; MAX_NODES],
}

impl Program {
    /// Matches every packet.
    pub const ANY: Self = Self {
        len: 0,
        reserved: 0,
        nodes: [Node { word: 0, yes: 0, no: 0, reserved: 0, mask: 0, low: 0, high: 0 }; MAX_NODES],
    };

    /// Whether a packet with this key matches.
    pub fn matches(&self, key: &Key) -> bool {
        let mut next = 0;
        if self.len == 0 {
            return true;
        }
        for _ in 0..MAX_NODES {
            let Some(node) = self.nodes.get(usize::from(next)) else { break };
            let Some(value) = key.words.get(usize::from(node.word)) else { return false };
            let value = value & node.mask;
            next = if (node.low..=node.high).contains(&value) { node.yes } else { node.no };
        }
        next == ACCEPT
    }
}
