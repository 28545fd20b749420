//! IPv4 and IPv6 headers, and the extension headers between IPv6 and its payload.

use super::data::Data;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Numbers of protocols and IPv6 extension headers, in the kernel's spelling (`include/uapi/linux/in.h`, `in6.h`).
pub(crate) mod protocol {
    pub(crate) const HOPOPTS: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const DCCP: u8 = 33;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const ESP: u8 = 50;
    pub(crate) const AH: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DSTOPTS: u8 = 60;
    pub(crate) const SCTP: u8 = 132;
    pub(crate) const UDPLITE: u8 = 136;
}

/// The longest packet that the 16-bit length fields can state. Longer ones are TCP segments not yet cut to size
/// ("BIG TCP"), with a zero there.
const MAX_STATED_LEN: u32 = 0xffff;

/// An IPv4 header without its options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv4<'a>(pub(crate) &'a [u8; 20]);

impl Ipv4<'_> {
    /// Length with options, as the packet states it: below 20 in a malformed one.
    pub(crate) fn header_len(self) -> u32 {
        u32::from(self.0[0] & 0x0f) * 4
    }

    pub(crate) fn tos(self) -> u8 {
        self.0[1]
    }

    pub(crate) fn total_len(self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// [`Self::total_len`] of a packet's own header; `iph_totlen` in `include/linux/ip.h`.
    pub(crate) fn packet_len(self, data: Data<'_>) -> u32 {
        match self.total_len() {
            0 if data.len() > MAX_STATED_LEN && self.protocol() == protocol::TCP => data.len(),
            stated => u32::from(stated),
        }
    }

    pub(crate) fn id(self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// Flags and fragment offset.
    pub(crate) fn frag_off(self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    /// Fragment offset in units of 8 bytes; not zero in all but the first fragment.
    pub(crate) fn fragment(self) -> u16 {
        self.frag_off() & 0x1fff
    }

    pub(crate) fn ttl(self) -> u8 {
        self.0[8]
    }

    pub(crate) fn protocol(self) -> u8 {
        self.0[9]
    }

    pub(crate) fn src(self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    pub(crate) fn dst(self) -> [u8; 4] {
        [self.0[16], self.0[17], self.0[18], self.0[19]]
    }

    pub(crate) fn src_addr(self) -> Ipv4Addr {
        self.src().into()
    }

    pub(crate) fn dst_addr(self) -> Ipv4Addr {
        self.dst().into()
    }
}

/// An IPv6 header without extension headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv6<'a>(pub(crate) &'a [u8; 40]);

impl Ipv6<'_> {
    pub(crate) const LEN: u32 = 40;

    /// Version, traffic class and flow label.
    fn first_word(self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    pub(crate) fn traffic_class(self) -> u32 {
        (self.first_word() & 0x0ff0_0000) >> 20
    }

    pub(crate) fn flow_label(self) -> u32 {
        self.first_word() & 0x000f_ffff
    }

    /// With this header.
    pub(crate) fn total_len(self) -> u32 {
        u32::from(u16::from_be_bytes([self.0[4], self.0[5]])) + Self::LEN
    }

    /// [`Self::total_len`] of a packet's own header; `ipv6_payload_len` in `include/linux/ipv6.h`.
    ///
    /// Kernels before 7.0 give "BIG TCP" packets a hop-by-hop header and print the stated length, zero; later ones
    /// have no such header there and print the length of the packet.
    pub(crate) fn packet_len(self, data: Data<'_>) -> u32 {
        match self.total_len() {
            Self::LEN if data.left(Self::LEN) > MAX_STATED_LEN && self.next_header() == protocol::TCP => {
                data.len()
            }
            stated => stated,
        }
    }

    pub(crate) fn next_header(self) -> u8 {
        self.0[6]
    }

    pub(crate) fn hop_limit(self) -> u8 {
        self.0[7]
    }

    pub(crate) fn src(self) -> [u8; 16] {
        std::array::from_fn(|at| self.0[8 + at])
    }

    pub(crate) fn dst(self) -> [u8; 16] {
        std::array::from_fn(|at| self.0[24 + at])
    }

    pub(crate) fn src_addr(self) -> Ipv6Addr {
        self.src().into()
    }

    pub(crate) fn dst_addr(self) -> Ipv6Addr {
        self.dst().into()
    }
}

/// Whether another header follows after this one; `nf_ip6_ext_hdr` in `include/linux/netfilter_ipv6.h` without
/// "no next header", which nothing follows.
pub(crate) fn is_extension(number: u8) -> bool {
    use protocol::*;
    matches!(number, HOPOPTS | ROUTING | FRAGMENT | ESP | AH | DSTOPTS)
}

/// Bytes from one extension header to the next; at least 8.
pub(crate) fn extension_len(number: u8, length_field: u8) -> u32 {
    let length_field = u32::from(length_field);
    match number {
        protocol::FRAGMENT => 8,
        protocol::AH => (length_field + 2) << 2,
        _ => (length_field + 1) << 3,
    }
}
