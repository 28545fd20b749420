//! What people and scripts ask of a packet first: addresses, protocol, ports, length.

use super::data::Data;
use super::ip::{Ipv4, Ipv6, extension_len, is_extension, protocol};
use super::{Link, PacketView};
use crate::netfilter::Family;
use std::borrow::Cow;
use std::net::IpAddr;

/// The fields of a packet's own headers; `None` is a field that the packet lacks or that was not copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Number of the protocol above IP, past IPv6 extension headers.
    pub protocol: Option<u8>,
    /// Source port; later fragments have none.
    pub sport: Option<u16>,
    /// Destination port; later fragments have none.
    pub dport: Option<u16>,
    /// Length with the IP header.
    pub length: Option<u32>,
    /// Identification of an IPv4 packet.
    pub id: Option<u16>,
    /// Identifier and sequence number of an ICMP or ICMPv6 echo.
    pub echo: Option<[u16; 2]>,
    /// Type and code of an ICMP or ICMPv6 message.
    pub icmp: Option<[u8; 2]>,
    /// Time to live, or hop limit.
    pub ttl: Option<u8>,
    /// Which part of a packet it is, if it is not all of it.
    pub fragment: Option<Fragment>,
    /// What an ARP packet is for, `ar_op`.
    pub arp: Option<u16>,
}

/// A part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where in the payload it begins, in bytes.
    pub offset: u16,
    /// Whether it is not the last.
    pub more: bool,
}

impl Fragment {
    fn new(offset: u16, more: bool) -> Option<Self> {
        (offset != 0 || more).then_some(Self { offset, more })
    }
}

/// Decodes the headers of a packet.
pub fn headers(view: &PacketView<'_>) -> Headers {
    let data = Data::of(view);
    let mut headers = match view.family {
        Family::Ipv4 => ipv4(data),
        Family::Ipv6 => ipv6(data),
        Family::Arp => return arp(data).unwrap_or_default(),
    }
    .unwrap_or_default();
    if let Some([sport, dport]) =
        headers.payload.and_then(|offset| ports(data, headers.fields.protocol?, offset))
    {
        headers.fields.sport = Some(sport);
        headers.fields.dport = Some(dport);
    }
    headers.fields.icmp = headers.payload.and_then(|offset| message(data, headers.fields.protocol?, offset));
    headers.fields.echo = headers.payload.and_then(|offset| echo(data, headers.fields.protocol?, offset));
    headers.fields
}

/// Number of the protocol above IP, and where its header begins; later fragments have none. `None` when the way there
/// was not copied.
pub(crate) fn upper(view: &PacketView<'_>) -> Option<(u8, Option<u32>)> {
    let data = Data::of(view);
    let network = match view.family {
        Family::Ipv4 => ipv4(data),
        Family::Ipv6 => ipv6(data),
        Family::Arp => None,
    }?;
    Some((network.fields.protocol?, network.payload))
}

/// The packet that an ICMP error is about, as far as it is quoted. Has no devices and no mark.
pub fn quoted<'a>(view: &PacketView<'a>) -> Option<PacketView<'a>> {
    let (number, offset) = upper(view)?;
    let (data, offset) = (Data::of(view), offset?);
    let &[kind] = data.header(offset).ok()?;
    let is_error = match number {
        protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        protocol::ICMPV6 => kind < 128,
        _ => false,
    };
    let start = offset.checked_add(8).filter(|_| is_error)?;
    let bytes = view.bytes.get(start as usize..).filter(|bytes| !bytes.is_empty())?;
    let len = view.len.checked_sub(start)?;
    let (indev, outdev, link) = (None, None, Link::default());
    Some(PacketView { family: view.family, indev, outdev, link, len, bytes, mark: 0, owner: None })
}

/// The protocol's name where it has a common one, otherwise its number.
pub fn protocol_name(number: u8) -> Cow<'static, str> {
    let name = match number {
        protocol::ICMP => "icmp",
        2 => "igmp",
        4 => "ipip",
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::DCCP => "dccp",
        41 => "ipv6",
        47 => "gre",
        protocol::ESP => "esp",
        protocol::AH => "ah",
        protocol::ICMPV6 => "icmpv6",
        89 => "ospf",
        103 => "pim",
        112 => "vrrp",
        protocol::SCTP => "sctp",
        protocol::UDPLITE => "udplite",
        _ => return number.to_string().into(),
    };
    name.into()
}

/// ARP for IPv4 over Ethernet; of others the operation.
fn arp(data: Data<'_>) -> Option<Headers> {
    const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let header: &[u8; 8] = data.header(0).ok()?;
    let arp = Some(u16::from_be_bytes([header[6], header[7]]));
    let address = |offset| Some(IpAddr::from(*data.header::<4>(offset).ok()?));
    let known = header[..6] == ETHERNET_AND_IPV4;
    let [src, dst] = [14, 24].map(|offset| address(offset).filter(|_| known));
    Some(Headers { src, dst, arp, length: Some(arp_len(header)), ..Headers::default() })
}

/// Length of an ARP packet by what it says of its addresses.
fn arp_len(header: &[u8; 8]) -> u32 {
    8 + 2 * (u32::from(header[4]) + u32::from(header[5]))
}

/// Fields of the network header, and where the payload begins unless it is a later fragment.
#[derive(Default)]
struct Network {
    fields: Headers,
    payload: Option<u32>,
}

fn ipv4(data: Data<'_>) -> Option<Network> {
    let ip = Ipv4(data.header(0).ok()?);
    let fields = Headers {
        src: Some(ip.src_addr().into()),
        dst: Some(ip.dst_addr().into()),
        protocol: Some(ip.protocol()),
        length: Some(ip.packet_len(data)),
        id: Some(ip.id()),
        ttl: Some(ip.ttl()),
        fragment: Fragment::new(ip.fragment() << 3, ip.frag_off() & 0x2000 != 0),
        ..Headers::default()
    };
    Some(Network { fields, payload: (ip.fragment() == 0).then_some(ip.header_len()) })
}

fn ipv6(data: Data<'_>) -> Option<Network> {
    let ip = Ipv6(data.header(0).ok()?);
    let mut fields = Headers {
        src: Some(ip.src_addr().into()),
        dst: Some(ip.dst_addr().into()),
        length: Some(ip.packet_len(data)),
        ttl: Some(ip.hop_limit()),
        ..Headers::default()
    };
    let payload = match upper_layer(data, ip.next_header()) {
        Some(upper) => {
            fields.protocol = Some(upper.protocol);
            fields.fragment = upper.fragment;
            upper.payload
        }
        None => None,
    };
    Some(Network { fields, payload })
}

/// What the extension headers lead to.
struct Upper {
    protocol: u8,
    fragment: Option<Fragment>,
    payload: Option<u32>,
}

/// Follows extension headers up to the first other one, to ESP, which hides what follows, or to a later fragment.
/// `None` when the way there was not copied.
fn upper_layer(data: Data<'_>, mut number: u8) -> Option<Upper> {
    let mut offset = Ipv6::LEN;
    let mut fragment = None;
    while is_extension(number) && number != protocol::ESP {
        let &[next, length] = data.header(offset).ok()?;
        if number == protocol::FRAGMENT {
            let &[_, _, high, low] = data.header(offset).ok()?;
            let frag_off = u16::from_be_bytes([high, low]);
            fragment = Fragment::new(frag_off & 0xfff8, frag_off & 1 != 0);
            if frag_off & 0xfff8 != 0 {
                return Some(Upper { protocol: next, fragment, payload: None });
            }
        }
        offset = offset.saturating_add(extension_len(number, length));
        number = next;
    }
    Some(Upper { protocol: number, fragment, payload: Some(offset) })
}

/// Identifier and sequence number of an echo request or reply.
fn echo(data: Data<'_>, number: u8, offset: u32) -> Option<[u16; 2]> {
    let &[kind, _, _, _, i0, i1, s0, s1] = data.header(offset).ok()?;
    let is_echo = match number {
        protocol::ICMP => matches!(kind, 0 | 8),
        protocol::ICMPV6 => matches!(kind, 128 | 129),
        _ => false,
    };
    is_echo.then(|| [u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1])])
}

/// Type and code of an ICMP message.
fn message(data: Data<'_>, number: u8, offset: u32) -> Option<[u8; 2]> {
    let is_icmp = matches!(number, protocol::ICMP | protocol::ICMPV6);
    data.header(offset).ok().copied().filter(|_| is_icmp)
}

fn ports(data: Data<'_>, number: u8, offset: u32) -> Option<[u16; 2]> {
    use protocol::*;
    if !matches!(number, TCP | UDP | UDPLITE | SCTP | DCCP) {
        return None;
    }
    let &[s0, s1, d0, d1] = data.header(offset).ok()?;
    Some([u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])])
}
