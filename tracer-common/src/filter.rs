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

/// No protocol is this number: [`word::PROTOCOL`] of a packet that ends before it.
pub const MISSING: u32 = u32::MAX;
/// First bytes of a packet that a key is made from: ports behind the longest IPv4 header are at 60.
pub const HEADER_BYTES: usize = 64;

/// The first bytes of a packet. Aligned, so that a word of it is one load.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Header(pub [u8; HEADER_BYTES]);

/// Indices into [`Key::words`]. All values are numbers, not wire bytes: `10.0.0.1` is `0x0a000001`.
pub mod word {
    /// 4 or 6.
    pub const VERSION: u8 = 0;
    /// Transport protocol: IPv4's protocol; IPv6's first next header, or the one after a fragment header.
    /// [`MISSING`](super::MISSING) where the packet does not say.
    pub const PROTOCOL: u8 = 1;
    /// 1 where source and destination port are present (TCP, UDP, SCTP, not a later fragment).
    pub const HAS_PORTS: u8 = 2;
    /// Source port.
    pub const SPORT: u8 = 3;
    /// Destination port.
    pub const DPORT: u8 = 4;
    /// 1 where IPv6's first next header is a fragment header.
    pub const FRAGMENT: u8 = 5;
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

impl Key {
    /// The key of a packet, from its network header on; bytes after [`HEADER_BYTES`] do not matter.
    pub fn from_packet(bytes: &[u8]) -> Self {
        let mut header = Header([0; HEADER_BYTES]);
        header.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self::from_header(&header, bytes.len())
    }

    /// The key of a packet whose first `len` bytes, at most [`HEADER_BYTES`] of them, are in `header`.
    ///
    /// A packet that ends within its fixed IP header is of no version, and one that ends before its ports has none.
    /// Every index is a constant or masked, so nothing here can panic, and the kernel's verifier can see that.
    #[inline(always)]
    pub fn from_header(header: &Header, len: usize) -> Self {
        let mut key = Self { words: [0; word::COUNT] };
        key.fill(header, len);
        key
    }

    /// Makes this one, whose words are all 0, the key of a packet as [`Key::from_header`] does.
    #[inline(always)]
    pub fn fill(&mut self, header: &Header, len: usize) {
        match header.0[0] >> 4 {
            4 if len >= IPV4_HEADER => self.fill_ipv4(header, len),
            6 if len >= IPV6_HEADER => self.fill_ipv6(header, len),
            _ => self.set(word::PROTOCOL, MISSING),
        }
    }

    #[inline(always)]
    fn fill_ipv4(&mut self, header: &Header, len: usize) {
        let protocol = header.0[9];
        self.set(word::VERSION, 4);
        self.set(word::PROTOCOL, u32::from(protocol));
        self.set(word::SRC, word_at(header, 12));
        self.set(word::DST, word_at(header, 16));
        let later_fragment = header.0[6] & 0x1f != 0 || header.0[7] != 0;
        let transport = usize::from(header.0[0] & 0xf) << 2;
        if has_ports(protocol) && !later_fragment && len >= transport + PORTS {
            self.fill_ports(word_at(header, transport));
        }
    }

    #[inline(always)]
    fn fill_ipv6(&mut self, header: &Header, len: usize) {
        let next_header = header.0[6];
        self.set(word::VERSION, 6);
        self.set(word::PROTOCOL, u32::from(next_header));
        self.fill_address(word::SRC, header, 8);
        self.fill_address(word::DST, header, 24);
        if next_header == IPV6_FRAGMENT {
            self.set(word::FRAGMENT, 1);
            self.set(
                word::PROTOCOL,
                if len > IPV6_HEADER { u32::from(header.0[IPV6_HEADER]) } else { MISSING },
            );
        } else if has_ports(next_header) && len >= IPV6_HEADER + PORTS {
            self.fill_ports(word_at(header, IPV6_HEADER));
        }
    }

    #[inline(always)]
    fn fill_address(&mut self, first: u8, header: &Header, offset: usize) {
        self.set(first, word_at(header, offset));
        self.set(first + 1, word_at(header, offset + 4));
        self.set(first + 2, word_at(header, offset + 8));
        self.set(first + 3, word_at(header, offset + 12));
    }

    #[inline(always)]
    fn fill_ports(&mut self, ports: u32) {
        self.set(word::HAS_PORTS, 1);
        self.set(word::SPORT, ports >> 16);
        self.set(word::DPORT, ports & 0xffff);
    }

    #[inline(always)]
    fn set(&mut self, word: u8, value: u32) {
        self.words[usize::from(word) & (word::COUNT - 1)] = value;
    }
}

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const IPV6_FRAGMENT: u8 = 44;
/// Source and destination port.
const PORTS: usize = 4;

/// TCP, UDP and SCTP.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// Four bytes at an offset, which is rounded down to a multiple of four within the header.
#[inline(always)]
fn word_at(header: &Header, offset: usize) -> u32 {
    let at = offset & (HEADER_BYTES - 4);
    u32::from_be_bytes([header.0[at], header.0[at | 1], header.0[at | 2], header.0[at | 3]])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(ihl: u8, protocol: u8, fragment_offset: u8) -> [u8; HEADER_BYTES] {
        let mut header = core::array::from_fn(|at| 0x80 | at as u8);
        header[0] = 0x40 | ihl;
        header[6..8].copy_from_slice(&[0x40, fragment_offset]);
        header[9] = protocol;
        header
    }

    fn ipv6(next_header: u8) -> [u8; HEADER_BYTES] {
        let mut header = core::array::from_fn(|at| 0x80 | at as u8);
        header[0] = 0x60;
        header[6] = next_header;
        header
    }

    #[track_caller]
    fn check_words(bytes: &[u8], expected: &[(u8, u32)]) {
        let key = Key::from_packet(bytes);
        for &(word, value) in expected {
            assert_eq!(key.words[usize::from(word)], value, "word {word} of {bytes:02x?}");
        }
    }

    #[test]
    fn ipv4_fields() {
        check_words(
            &ipv4(5, 6, 0),
            &[
                (word::VERSION, 4),
                (word::PROTOCOL, 6),
                (word::HAS_PORTS, 1),
                (word::SPORT, 0x9495),
                (word::DPORT, 0x9697),
                (word::SRC, 0x8c8d8e8f),
                (word::DST, 0x90919293),
            ],
        );
    }

    #[test]
    fn ports_follow_the_longest_header() {
        check_words(&ipv4(15, 17, 0), &[(word::SPORT, 0xbcbd), (word::DPORT, 0xbebf)]);
    }

    #[test]
    fn ports_need_their_protocol_and_the_first_fragment_and_all_bytes() {
        check_words(&ipv4(5, 1, 0), &[(word::PROTOCOL, 1), (word::HAS_PORTS, 0)]);
        check_words(&ipv4(5, 6, 1), &[(word::PROTOCOL, 6), (word::HAS_PORTS, 0), (word::SPORT, 0)]);
        check_words(&ipv4(5, 6, 0)[..24], &[(word::HAS_PORTS, 1)]);
        check_words(&ipv4(5, 6, 0)[..23], &[(word::PROTOCOL, 6), (word::HAS_PORTS, 0)]);
        check_words(&ipv6(132)[..44], &[(word::HAS_PORTS, 1), (word::SPORT, 0xa8a9)]);
        check_words(&ipv6(132)[..43], &[(word::PROTOCOL, 132), (word::HAS_PORTS, 0)]);
    }

    #[test]
    fn ipv6_fields() {
        check_words(
            &ipv6(58),
            &[(word::VERSION, 6), (word::PROTOCOL, 58), (word::FRAGMENT, 0), (word::HAS_PORTS, 0)],
        );
        check_words(
            &ipv6(6),
            &[(word::SRC, 0x88898a8b), (word::SRC + 3, 0x94959697), (word::DST, 0x98999a9b)],
        );
    }

    #[test]
    fn behind_an_ipv6_fragment_header_there_is_a_protocol_and_no_port() {
        let mut header = ipv6(44);
        header[40] = 6;
        check_words(&header, &[(word::PROTOCOL, 6), (word::FRAGMENT, 1), (word::HAS_PORTS, 0)]);
        check_words(&header[..40], &[(word::PROTOCOL, MISSING), (word::FRAGMENT, 1)]);
    }

    #[test]
    fn what_is_no_ip_packet_has_no_version() {
        for bytes in [&[][..], &[0x45; 19], &[0x60; 39], &[0x55; 64]] {
            check_words(bytes, &[(word::VERSION, 0), (word::PROTOCOL, MISSING), (word::HAS_PORTS, 0)]);
        }
    }

    #[test]
    fn a_program_without_nodes_matches_everything() {
        assert!(Program::ANY.matches(&Key::default()));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_have_a_key(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            Key::from_packet(&bytes);
        }
    }
}
