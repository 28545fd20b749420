//! What tells a packet from others at the same place in memory.
#![forbid(unsafe_code)]

use crate::hash::Multiply;
use crate::netfilter::Family;
use crate::packet::ip::{Ipv4, Ipv6};
use std::hash::Hasher as _;
use tracer_common::legacy::{ENTRY_BYTES, EXIT_BYTES, Traversal, fact};

const IP_MORE: u16 = 0x2000;
const IPV6_MORE: u16 = 1;
const IPV6_OFFSET: u16 = 0xfff8;

pub(super) const IPPROTO_ICMP: u8 = 1;
const IPPROTO_FRAGMENT: u8 = 44;
pub(super) const IPPROTO_ICMPV6: u8 = 58;

/// What identifies a packet by its header. But for the addresses nothing of it is ever translated: another packet at
/// the same place in memory differs in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Identification, or flow label.
    pub(super) id: u32,
    pub(super) len: u32,
    pub(super) protocol: u8,
    pub(super) piece: Piece,
    /// Source and destination; mixed to a number where they are longer than that.
    pub(super) addresses: u64,
}

/// What all fragments of a datagram of IPv4 have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Datagram {
    netns: u32,
    addresses: u64,
    id: u32,
    protocol: u8,
}

impl Datagram {
    /// The one that a packet in a namespace is, or is a fragment of.
    pub(super) fn of(netns: u32, header: &Header) -> Self {
        let Header { addresses, id, protocol, .. } = *header;
        Self { netns, addresses, id, protocol }
    }
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Whole,
    First,
    /// With its offset in bytes.
    Later(u16),
}

impl Header {
    pub(super) fn of(family: Family, copied: u32, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..usize::try_from(copied).ok()?.min(bytes.len()))?;
        Some(match family {
            Family::Ipv4 => {
                let ip = Ipv4(bytes.first_chunk()?);
                let addresses = u64::from(u32::from_ne_bytes(ip.src())) << 32;
                let addresses = addresses | u64::from(u32::from_ne_bytes(ip.dst()));
                let piece = Piece::of(ip.frag_off() & IP_MORE != 0, ip.fragment() << 3);
                let (id, len) = (ip.id().into(), ip.total_len().into());
                Self { id, len, protocol: ip.protocol(), piece, addresses }
            }
            Family::Ipv6 => {
                let ip = Ipv6(bytes.first_chunk()?);
                let addresses = mixed([ip.src(), ip.dst()].as_flattened());
                let (protocol, piece) = match ip.next_header() {
                    IPPROTO_FRAGMENT => {
                        let &[protocol, _, high, low] = bytes[40..].first_chunk()?;
                        let field = u16::from_be_bytes([high, low]);
                        (protocol, Piece::of(field & IPV6_MORE != 0, field & IPV6_OFFSET))
                    }
                    protocol => (protocol, Piece::Whole),
                };
                Self { id: ip.flow_label(), len: ip.total_len(), protocol, piece, addresses }
            }
            // Nothing of it is ever translated.
            Family::Arp => {
                let [_, _, _, _, hardware, network, _, operation, rest @ ..]: &[u8; 28] =
                    bytes.first_chunk()?;
                let addresses = mixed(rest);
                let id = rest.iter().fold(0, |id: u32, byte| id.rotate_left(5) ^ u32::from(*byte));
                let len = u16::from_be_bytes([*hardware, *network]);
                Self { id, len: len.into(), protocol: *operation, piece: Piece::Whole, addresses }
            }
        })
    }

    /// As [`of`](Self::of) at the end of a traversal that began with `entry`. Few targets change a header.
    pub(super) fn at_exit(family: Family, entry: Option<Self>, traversal: &Traversal) -> Option<Self> {
        const FIXED: usize = 48;
        let Traversal { entry: before, exit: after, entry_bytes, exit_bytes, .. } = traversal;
        let same = traversal.facts & fact::SAME_BYTES != 0
            || entry_bytes.first_chunk::<FIXED>() == exit_bytes.first_chunk::<FIXED>()
                && before.copied.min(ENTRY_BYTES as u32) == after.copied.min(EXIT_BYTES as u32);
        if same { entry } else { Self::of(family, after.copied, exit_bytes) }
    }

    /// Bytes behind a header of IPv4 without options.
    pub(super) fn payload(&self) -> u32 {
        self.len.saturating_sub(20)
    }

    /// Where these begin in the datagram.
    pub(super) fn offset(&self) -> u32 {
        if let Piece::Later(offset) = self.piece { offset.into() } else { 0 }
    }

    /// Whether this can be the same packet some time later.
    pub(super) fn stays(&self, later: &Self) -> bool {
        let what = |header: &Self| (header.id, header.len, header.protocol, header.piece);
        what(self) == what(later)
    }
}

/// A number for bytes, a different one for others in all likelihood.
fn mixed(bytes: &[u8]) -> u64 {
    let mut hasher = Multiply::default();
    hasher.write(bytes);
    hasher.finish()
}

/// Eight bytes of what follows the IP header: numbers of TCP, the first bytes of a datagram, what is behind the
/// identifier of an ICMP message. Neither translation nor checksums that devices fill in change them. 0 where there is
/// nothing of that kind.
pub(super) fn token(family: Family, copied: u32, bytes: &[u8]) -> u64 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let token = || {
        let bytes = bytes.get(..usize::try_from(copied).ok()?.min(bytes.len()))?;
        let (protocol, header, len) = match family {
            Family::Ipv4 => {
                let ip = Ipv4(bytes.first_chunk()?);
                (ip.protocol(), usize::from(bytes[0] & 15) * 4, ip.total_len().into())
            }
            Family::Ipv6 => {
                let ip = Ipv6(bytes.first_chunk()?);
                (ip.next_header(), 40, ip.total_len())
            }
            Family::Arp => return None,
        };
        let at = header
            + match protocol {
                TCP => 4,
                UDP => 8,
                IPPROTO_ICMP | IPPROTO_ICMPV6 => 6,
                _ => return None,
            };
        let is_within = at + 8 <= usize::try_from(len).ok()?;
        let token = bytes.get(at..)?.first_chunk().filter(|_| is_within)?;
        Some(u64::from_ne_bytes(*token))
    };
    token().unwrap_or(0)
}

impl Piece {
    fn of(more: bool, offset: u16) -> Self {
        match (more, offset) {
            (false, 0) => Self::Whole,
            (true, 0) => Self::First,
            (_, offset) => Self::Later(offset),
        }
    }
}
