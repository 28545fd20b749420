//! Addresses, protocol and ports of a packet, as far as its first bytes show them.

use crate::netfilter::Family;
use crate::packet::PacketView;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What sinks show of a packet's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) src: Option<IpAddr>,
    pub(super) dst: Option<IpAddr>,
    pub(super) protocol: Option<u8>,
    pub(super) sport: Option<u16>,
    pub(super) dport: Option<u16>,
    /// Total length by the IP header.
    pub(super) length: Option<u32>,
}

impl Headers {
    pub(super) fn of(view: &PacketView<'_>) -> Self {
        let headers = match view.family {
            Family::Ipv4 => ipv4(view.bytes),
            Family::Ipv6 => ipv6(view.bytes),
        };
        headers.unwrap_or_default()
    }

    /// Lower-case name of the protocol, its number where this program knows no name.
    pub(super) fn protocol_name(&self) -> Option<Cow<'static, str>> {
        let name = match self.protocol? {
            1 => "icmp",
            2 => "igmp",
            4 => "ipip",
            6 => "tcp",
            17 => "udp",
            33 => "dccp",
            41 => "ipv6",
            47 => "gre",
            50 => "esp",
            51 => "ah",
            58 => "icmpv6",
            89 => "ospf",
            112 => "vrrp",
            132 => "sctp",
            136 => "udplite",
            number => return Some(Cow::Owned(number.to_string())),
        };
        Some(Cow::Borrowed(name))
    }
}

fn ipv4(bytes: &[u8]) -> Option<Headers> {
    let (header, _) = bytes.split_first_chunk::<20>()?;
    let payload = bytes.get(usize::from(header[0] & 0x0f) * 4..);
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let headers = Headers {
        src: Some(Ipv4Addr::new(header[12], header[13], header[14], header[15]).into()),
        dst: Some(Ipv4Addr::new(header[16], header[17], header[18], header[19]).into()),
        protocol: Some(header[9]),
        length: Some(u16::from_be_bytes([header[2], header[3]]).into()),
        ..Headers::default()
    };
    Some(if later_fragment { headers } else { with_ports(headers, payload) })
}

fn ipv6(bytes: &[u8]) -> Option<Headers> {
    let (header, rest) = bytes.split_first_chunk::<40>()?;
    let address = |at: usize| -> Option<Ipv6Addr> { header.get(at..)?.first_chunk::<16>().map(|&a| a.into()) };
    let headers = Headers {
        src: address(8).map(Into::into),
        dst: address(24).map(Into::into),
        length: Some(u32::from(u16::from_be_bytes([header[4], header[5]])) + 40),
        ..Headers::default()
    };
    Some(after_extensions(headers, header[6], rest))
}

/// Follows extension headers to the transport protocol; it stays unknown when they are cut off.
fn after_extensions(headers: Headers, mut next: u8, mut bytes: &[u8]) -> Headers {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    loop {
        let length = match (next, bytes) {
            (HOP_BY_HOP | ROUTING | DESTINATION, [_, length, ..]) => usize::from(*length) * 8 + 8,
            (AUTHENTICATION, [_, length, ..]) => usize::from(*length) * 4 + 8,
            (FRAGMENT, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) & 0xfff8 != 0 => {
                return Headers { protocol: Some(bytes[0]), ..headers };
            }
            (FRAGMENT, [_, _, _, _, ..]) => 8,
            (HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT, _) => return headers,
            _ => return with_ports(Headers { protocol: Some(next), ..headers }, Some(bytes)),
        };
        next = bytes[0];
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

fn with_ports(headers: Headers, payload: Option<&[u8]>) -> Headers {
    match (headers.protocol, payload) {
        (Some(6 | 17 | 33 | 132 | 136), Some(&[a, b, c, d, ..])) => Headers {
            sport: Some(u16::from_be_bytes([a, b])),
            dport: Some(u16::from_be_bytes([c, d])),
            ..headers
        },
        _ => headers,
    }
}
