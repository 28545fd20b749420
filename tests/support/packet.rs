//! Packets: written from a description, read back to what makes them recognisable.

use std::net::IpAddr;

use crate::lab::Family;

/// Protocol numbers.
pub mod protocol {
    /// ICMP
    pub const ICMP: u8 = 1;
    /// TCP
    pub const TCP: u8 = 6;
    /// UDP
    pub const UDP: u8 = 17;
    /// The fragment header of IPv6
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6
    pub const ICMPV6: u8 = 58;
}
use protocol::{FRAGMENT, ICMP, ICMPV6, TCP, UDP};

/// TCP flags.
pub const SYN: u8 = 0x02;
/// TCP flags.
pub const RST: u8 = 0x04;
/// TCP flags.
pub const ACK: u8 = 0x10;

/// What is above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
    },
    /// A segment.
    Tcp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Flags.
        flags: u8,
    },
    /// An echo request.
    Echo {
        /// Identifier.
        id: u16,
        /// Sequence number.
        sequence: u16,
    },
}

/// A packet to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// What is above IP.
    pub transport: Transport,
    /// Bytes of payload.
    pub payload: u16,
    /// IPv4 identification, or that of IPv6 fragments; not zero.
    pub id: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Sent as fragments with at most this much payload each (a multiple of eight).
    pub fragment: Option<u16>,
}

impl Packet {
    /// Its family.
    pub fn family(&self) -> Family {
        if self.src.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// On the wire: one packet, or its fragments.
    pub fn bytes(&self) -> Vec<Vec<u8>> {
        let protocol = self.protocol();
        let payload = self.above_ip(protocol);
        let Some(size) = self.fragment.map(usize::from) else {
            return vec![self.datagram(protocol, &payload, None)];
        };
        let count = payload.len().div_ceil(size);
        let pieces = payload.chunks(size).enumerate();
        pieces
            .map(|(number, piece)| {
                let offset = u16::try_from(number * size / 8).unwrap_or(0);
                self.datagram(protocol, piece, Some((offset, number + 1 < count)))
            })
            .collect()
    }

    fn protocol(&self) -> u8 {
        match (self.transport, self.family()) {
            (Transport::Udp { .. }, _) => UDP,
            (Transport::Tcp { .. }, _) => TCP,
            (Transport::Echo { .. }, Family::Ipv4) => ICMP,
            (Transport::Echo { .. }, Family::Ipv6) => ICMPV6,
        }
    }

    fn above_ip(&self, protocol: u8) -> Vec<u8> {
        let payload = (0..self.payload).map(|at| at.to_le_bytes()[0]);
        let mut bytes = match self.transport {
            Transport::Udp { sport, dport } => words(&[sport, dport, 8 + self.payload, 0]),
            Transport::Tcp { sport, dport, flags } => {
                let mut bytes = words(&[sport, dport, 0x1234, self.id, 0, u16::from(flags & ACK)]);
                // MSS, SACK allowed, a timestamp, window scale: what a SYN of Linux carries.
                let options: &[u8] =
                    &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, sport.to_be_bytes()[1], 0, 0, 0, 0, 1, 3, 3, 7];
                let options = if flags & SYN == 0 { &[][..] } else { options };
                let words_long = u8::try_from((20 + options.len()) / 4).unwrap_or(5);
                bytes.extend_from_slice(&[words_long << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
                bytes.extend_from_slice(options);
                bytes
            }
            Transport::Echo { id, sequence } => {
                let kind = if protocol == ICMP { 8 } else { 128 };
                words(&[kind << 8, 0, id, sequence])
            }
        };
        bytes.extend(payload);
        let at = match self.transport {
            Transport::Udp { .. } => 6,
            Transport::Tcp { .. } => 16,
            Transport::Echo { .. } => 2,
        };
        let pseudo = if protocol == ICMP { Vec::new() } else { self.pseudo_header(protocol, bytes.len()) };
        let sum = checksum(pseudo.iter().chain(&bytes).copied());
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self, protocol: u8, length: usize) -> Vec<u8> {
        let mut bytes = octets(self.src);
        bytes.extend(octets(self.dst));
        bytes.extend(words(&[u16::from(protocol), u16::try_from(length).unwrap_or(0)]));
        bytes
    }

    fn datagram(&self, protocol: u8, payload: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        let length = |headers: usize| u16::try_from(headers + payload.len()).unwrap_or(u16::MAX);
        let mut bytes = match self.family() {
            Family::Ipv4 => {
                let flags = fragment.map_or(0, |(offset, more)| offset | if more { 0x2000 } else { 0 });
                let first = 0x4500 | u16::from(self.tos);
                words(&[first, length(20), self.id, flags, 0x4000 | u16::from(protocol), 0])
            }
            Family::Ipv6 => {
                let next = if fragment.is_some() { FRAGMENT } else { protocol };
                let extension = if fragment.is_some() { 8 } else { 0 };
                let first = 0x6000 | u16::from(self.tos) << 4;
                words(&[first, 0, length(extension), u16::from(next) << 8 | 64])
            }
        };
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        if let (Some((offset, more)), Family::Ipv6) = (fragment, self.family()) {
            bytes.extend(words(&[u16::from(protocol) << 8, offset << 3 | u16::from(more), 0, self.id]));
        }
        bytes.extend_from_slice(payload);
        bytes
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// The Internet checksum.
pub fn checksum(bytes: impl Iterator<Item = u8>) -> u16 {
    let mut sum: u32 = 0;
    for (at, byte) in bytes.enumerate() {
        sum += u32::from(byte) << if at % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !u16::try_from(sum).unwrap_or(0) {
        0 => 0xffff,
        sum => sum,
    }
}

/// What a packet is recognised by, as it looks at one moment. Every packet of the tests differs from all others of
/// its batch in one of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol above IP.
    pub protocol: u8,
    /// Source and destination port; zero where it has none. Of ARP, what is asked for, and zero.
    pub ports: [u16; 2],
    /// Length with the IP header.
    pub length: u32,
    /// IPv4 identification.
    pub id: Option<u16>,
    /// Identifier and sequence number of echo requests and replies.
    pub echo: Option<[u16; 2]>,
}

impl Identity {
    /// Without what not every source of steps knows.
    pub fn plain(mut self) -> Self {
        (self.id, self.echo) = (None, None);
        self
    }
}

/// Reads the first bytes of a packet.
pub fn identity(bytes: &[u8]) -> Option<Identity> {
    match bytes.first()? >> 4 {
        4 => ipv4(bytes),
        6 => ipv6(bytes),
        _ => arp(bytes),
    }
}

/// Of IPv4 over Ethernet.
fn arp(bytes: &[u8]) -> Option<Identity> {
    let header: &[u8; 28] = bytes.first_chunk()?;
    let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    (header[..6] == [0, 1, 8, 0, 6, 4]).then(|| Identity {
        src: address(14),
        dst: address(24),
        protocol: 0,
        ports: [u16::from_be_bytes([header[6], header[7]]), 0],
        length: 28,
        id: None,
        echo: None,
    })
}

fn ipv4(bytes: &[u8]) -> Option<Identity> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (protocol, first) = (header[9], word(bytes, 6)? & 0x1fff == 0);
    let above = if first { bytes.get(usize::from(header[0] & 15) * 4..) } else { None };
    Some(Identity {
        src: address(12),
        dst: address(16),
        protocol,
        ports: ports(protocol, above),
        length: word(bytes, 2)?.into(),
        id: word(bytes, 4),
        echo: echo(protocol, above),
    })
}

fn ipv6(bytes: &[u8]) -> Option<Identity> {
    let address = |at: usize| -> Option<IpAddr> {
        Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?))
    };
    let (mut protocol, mut at, mut first) = (*bytes.get(6)?, 40, true);
    while matches!(protocol, 0 | 43 | FRAGMENT | 60) {
        let length = if protocol == FRAGMENT { 8 } else { 8 + usize::from(*bytes.get(at + 1)?) * 8 };
        first = !(protocol == FRAGMENT && word(bytes, at + 2)? & 0xfff8 != 0);
        protocol = *bytes.get(at)?;
        at += length;
        if !first {
            break;
        }
    }
    let above = if first { bytes.get(at..) } else { None };
    Some(Identity {
        src: address(8)?,
        dst: address(24)?,
        protocol,
        ports: ports(protocol, above),
        length: u32::from(word(bytes, 4)?) + 40,
        id: None,
        echo: echo(protocol, above),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ports(protocol: u8, above: Option<&[u8]>) -> [u16; 2] {
    let read = |above| Some([word(above, 0)?, word(above, 2)?]);
    above.filter(|_| matches!(protocol, TCP | UDP)).and_then(read).unwrap_or_default()
}

fn echo(protocol: u8, above: Option<&[u8]>) -> Option<[u16; 2]> {
    let above = above?;
    let is_echo = match protocol {
        ICMP => matches!(above.first()?, 0 | 8),
        ICMPV6 => matches!(above.first()?, 128 | 129),
        _ => false,
    };
    if is_echo { Some([word(above, 4)?, word(above, 6)?]) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(src: &str, dst: &str, transport: Transport) -> Packet {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        Packet { src, dst, transport, payload: 33, id: 77, tos: 0, fragment: None }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let udp = packet("10.0.1.2", "10.0.2.2", Transport::Udp { sport: 5, dport: 6 });
        let read = identity(&udp.bytes()[0]).unwrap();
        assert_eq!((read.ports, read.length, read.id, read.protocol), ([5, 6], 61, Some(77), UDP));
        let echo = packet("fd00::1", "fd00::2", Transport::Echo { id: 3, sequence: 4 });
        let read = identity(&echo.bytes()[0]).unwrap();
        assert_eq!((read.echo, read.length, read.protocol), (Some([3, 4]), 81, ICMPV6));
    }

    #[test]
    fn later_fragments_have_no_ports() {
        for (src, dst, lengths) in
            [("10.0.1.2", "10.0.2.2", [36, 36, 29]), ("fd00::1", "fd00::2", [64, 64, 57])]
        {
            let mut udp = packet(src, dst, Transport::Udp { sport: 5, dport: 6 });
            udp.fragment = Some(16);
            let read: Vec<_> = udp.bytes().iter().map(|bytes| identity(bytes).unwrap()).collect();
            assert_eq!(read.iter().map(|read| read.length).collect::<Vec<_>>(), lengths);
            assert_eq!(read.iter().map(|read| read.ports).collect::<Vec<_>>(), [[5, 6], [0, 0], [0, 0]]);
            assert!(read.iter().all(|read| read.protocol == UDP));
        }
    }

    #[test]
    fn checksums_add_up_to_nothing() {
        let syn = packet("10.0.1.2", "10.0.2.2", Transport::Tcp { sport: 5, dport: 6, flags: SYN });
        let bytes = &syn.bytes()[0][20..];
        let pseudo = syn.pseudo_header(TCP, bytes.len());
        let sum = pseudo
            .iter()
            .chain(bytes)
            .enumerate()
            .fold(0u32, |sum, (at, byte)| sum + (u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 }));
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
