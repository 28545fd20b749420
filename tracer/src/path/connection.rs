//! What conntrack knows of a packet's connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracer_common::choice::{self, has};

/// An entry of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Protocol above IP.
    pub protocol: u8,
    /// The direction of its first packet.
    pub original: Tuple,
    /// What answers look like when they come: the other way round, with what is translated.
    pub reply: Tuple,
    /// Its zone, where the kernel has any.
    pub zone: Option<u16>,
    /// Its mark, where the kernel has any.
    pub mark: Option<u32>,
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// What tells it from others between the same addresses.
    pub by: By,
}

/// Ports or what stands for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Source and destination port.
    Ports(u16, u16),
    /// The identifier of echoes.
    Id(u16),
}

impl Connection {
    /// From the kernel's record.
    pub fn of(tracked: &choice::Tracked) -> Self {
        let has = |bit| tracked.has & bit != 0;
        Self {
            protocol: tracked.original.protocol.to_le_bytes()[0],
            original: Tuple::of(&tracked.original),
            reply: Tuple::of(&tracked.reply),
            zone: has(has::ZONE).then(|| u16::try_from(tracked.zone).unwrap_or(u16::MAX)),
            mark: has(has::MARK).then_some(tracked.mark),
        }
    }
}

impl Tuple {
    fn of(tuple: &choice::Tuple) -> Self {
        const ICMP: u8 = 1;
        const ICMPV6: u8 = 58;
        let [protocol, version, ..] = tuple.protocol.to_le_bytes();
        let address = |words: [u32; 4]| -> IpAddr {
            if version == 4 {
                return Ipv4Addr::from_bits(words[0]).into();
            }
            Ipv6Addr::from_bits(words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word))).into()
        };
        let [low, high] = [tuple.ports & 0xffff, tuple.ports >> 16].map(|port| port as u16);
        let by = if matches!(protocol, ICMP | ICMPV6) { By::Id(high) } else { By::Ports(high, low) };
        Self { src: address(tuple.src), dst: address(tuple.dst), by }
    }
}

/// As the packet's own addresses are shown.
impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { src, dst, .. } = self;
        match (self.by, src) {
            (By::Id(id), _) => write!(f, "{src} > {dst} id {id}"),
            (By::Ports(0, 0), _) => write!(f, "{src} > {dst}"),
            (By::Ports(sport, dport), IpAddr::V4(_)) => write!(f, "{src}:{sport} > {dst}:{dport}"),
            (By::Ports(sport, dport), IpAddr::V6(_)) => write!(f, "[{src}]:{sport} > [{dst}]:{dport}"),
        }
    }
}

/// In one line; zone 0 and mark 0 are what every connection has at first.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, answers {}", self.original, self.reply)?;
        if let Some(zone) = self.zone.filter(|zone| *zone != 0) {
            write!(f, ", zone {zone}")?;
        }
        if let Some(mark) = self.mark.filter(|mark| *mark != 0) {
            write!(f, ", mark {mark:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::choice::TRACKED;

    fn tuple(protocol: u32, ports: u32, src: [u32; 4], dst: [u32; 4]) -> choice::Tuple {
        choice::Tuple { netns: 1, protocol, ports, reserved: 0, src, dst }
    }

    #[track_caller]
    fn check(tracked: choice::Tracked, expected: &str) {
        assert_eq!(Connection::of(&tracked).to_string(), expected);
    }

    #[test]
    fn connections_in_words() {
        let [client, node, pod] = [[0x0a01_0002, 0, 0, 0], [0x0a01_0001, 0, 0, 0], [0x0a02_0002, 0, 0, 0]];
        let (original, reply) =
            (tuple(0x411, 20_000 << 16 | 80, client, node), tuple(0x411, 8080 << 16 | 20_000, pod, client));
        let tracked = choice::Tracked {
            kind: TRACKED,
            has: has::MARK | has::ZONE,
            mark: 0,
            zone: 0,
            packet: 1,
            original,
            reply,
        };
        let words = "10.1.0.2:20000 > 10.1.0.1:80, answers 10.2.0.2:8080 > 10.1.0.2:20000";
        check(tracked, words);
        check(choice::Tracked { zone: 7, mark: 0x10, ..tracked }, &format!("{words}, zone 7, mark 0x10"));
        let (one, other) = ([0xfd00_0001, 0, 0, 2], [0xfd00_0002, 0, 0, 2]);
        let tracked = choice::Tracked {
            has: 0,
            zone: 7,
            mark: 7,
            original: tuple(0x63a, 5 << 16 | 5, one, other),
            reply: tuple(0x63a, 5 << 16 | 5, other, one),
            ..tracked
        };
        check(tracked, "fd00:1::2 > fd00:2::2 id 5, answers fd00:2::2 > fd00:1::2 id 5");
        assert_eq!(Connection::of(&tracked).zone, None);
    }
}
