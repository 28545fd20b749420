//! What differs between two looks at one packet.

use super::{Link, PacketView, headers};
use crate::hash::KernelMap;
use crate::netfilter::Family;
use crate::text::lossy;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Bytes that are compared, from the network header on: those of the usual headers.
const COMPARED: usize = 64;

/// What is kept of a packet, to be compared with how it looks later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    family: Family,
    bytes: [u8; COMPARED],
    kept: usize,
    len: u32,
    mark: u32,
    /// Filled with zeros.
    outdev: [u8; 16],
}

/// One field that differs, with what it was and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address, `src` or `dst`.
    Address(&'static str, Option<IpAddr>, Option<IpAddr>),
    /// A port, `sport` or `dport`.
    Port(&'static str, Option<u16>, Option<u16>),
    /// The mark.
    Mark(u32, u32),
    /// The upper six bits of type of service or traffic class.
    Dscp(u8, u8),
    /// Time to live, or hop limit.
    Ttl(u8, u8),
    /// The device where it goes, filled with zeros; nothing but zeros for none.
    Out([u8; 16], [u8; 16]),
}

impl Look {
    /// At a packet.
    pub fn at(view: &PacketView<'_>) -> Self {
        let kept = view.bytes.len().min(COMPARED);
        let mut bytes = [0; COMPARED];
        bytes[..kept].copy_from_slice(&view.bytes[..kept]);
        let mut outdev = [0; 16];
        if let Some(name) = view.outdev {
            outdev.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        }
        Self { family: view.family, bytes, kept, len: view.len, mark: view.mark, outdev }
    }

    /// Whether it would be the same at this packet.
    #[inline]
    fn is_at(&self, view: &PacketView<'_>) -> bool {
        let out = view.outdev.unwrap_or_default();
        (self.len, self.mark, self.family) == (view.len, view.mark, view.family)
            && self.bytes[..self.kept] == view.bytes[..view.bytes.len().min(COMPARED)]
            && self.outdev.get(..out.len()).is_some_and(|name| name == out)
            && self.outdev.get(out.len()).is_none_or(|end| *end == 0)
    }

    fn view(&self) -> PacketView<'_> {
        let (len, mark) = (self.len, self.mark);
        PacketView { len, mark, ..bare(self.family, &self.bytes[..self.kept]) }
    }

    /// What has changed until this later look; nothing where one of them shows too little.
    pub fn changes(&self, later: &Self) -> Vec<Change> {
        if self == later {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let (one, other) = (self.view(), later.view());
        let (before, after) = (headers(&one), headers(&other));
        for (name, before, after) in [("src", before.src, after.src), ("dst", before.dst, after.dst)] {
            changes.extend((before != after).then_some(Change::Address(name, before, after)));
        }
        for (name, before, after) in
            [("sport", before.sport, after.sport), ("dport", before.dport, after.dport)]
        {
            changes.extend((before != after).then_some(Change::Port(name, before, after)));
        }
        if self.mark != later.mark {
            changes.push(Change::Mark(self.mark, later.mark));
        }
        if let (Some(before), Some(after)) = (self.dscp(), later.dscp())
            && before != after
        {
            changes.push(Change::Dscp(before, after));
        }
        if let (Some(before), Some(after)) = (before.ttl, after.ttl)
            && before != after
        {
            changes.push(Change::Ttl(before, after));
        }
        if self.outdev != later.outdev {
            changes.push(Change::Out(self.outdev, later.outdev));
        }
        changes
    }

    fn dscp(&self) -> Option<u8> {
        let &[first, second] = self.bytes[..self.kept].first_chunk()?;
        Some(match self.family {
            Family::Ipv4 => second >> 2,
            Family::Ipv6 => (first << 4 | second >> 4) >> 2,
            Family::Arp => return None,
        })
    }

    /// What has changed, for people: an end is an address with its port, and what routing always does is left out.
    pub fn told(&self, later: &Self) -> Told {
        if self == later {
            return Told::default();
        }
        let changes = self.changes(later);
        let (one, other) = (self.view(), later.view());
        let (before, after) = (headers(&one), headers(&other));
        let end = |address: Option<IpAddr>, port: Option<u16>| {
            address.map(|address| match port {
                Some(port) => SocketAddr::new(address, port).to_string(),
                None => address.to_string(),
            })
        };
        let mut told = Vec::new();
        let ends = [
            ("src", end(before.src, before.sport), end(after.src, after.sport)),
            ("dst", end(before.dst, before.dport), end(after.dst, after.dport)),
        ];
        for (name, before, after) in ends {
            if let (Some(before), Some(after)) = (before, after)
                && before != after
            {
                told.push(format!("{name} {before} -> {after}"));
            }
        }
        for change in changes {
            match change {
                Change::Mark(before, after) => told.push(format!("mark {before:#x} -> {after:#x}")),
                Change::Dscp(before, after) => told.push(format!("dscp {before} -> {after}")),
                Change::Ttl(before, after) if before != after.wrapping_add(1) => {
                    told.push(format!("ttl {before} -> {after}"));
                }
                Change::Address(..) | Change::Port(..) | Change::Ttl(..) | Change::Out(..) => {}
            }
        }
        Told(told)
    }
}

/// How packets that are on their way looked last. Mostly the next step is of the same packet, which looks the same.
#[derive(Debug, Default)]
pub struct Looks {
    last: Option<(u64, Look)>,
    others: KernelMap<u64, Look>,
}

impl Looks {
    /// What has changed since the last look at this packet; nothing at the first.
    #[inline]
    pub fn at(&mut self, packet: u64, view: &PacketView<'_>) -> Vec<Change> {
        match &self.last {
            Some((last, look)) if *last == packet && look.is_at(view) => Vec::new(),
            _ => self.look(packet, view),
        }
    }

    fn look(&mut self, packet: u64, view: &PacketView<'_>) -> Vec<Change> {
        let now = Look::at(view);
        let before = match self.last.replace((packet, now)) {
            Some((last, look)) if last == packet => Some(look),
            other => {
                self.others.extend(other);
                self.others.remove(&packet)
            }
        };
        before.map_or(Vec::new(), |before| before.changes(&now))
    }

    /// The packet is done.
    pub fn forget(&mut self, packet: u64) {
        if self.last.as_ref().is_some_and(|(last, _)| *last == packet) {
            self.last = None;
        } else {
            self.others.remove(&packet);
        }
    }
}

/// A packet of which no more than this is known.
fn bare(family: Family, bytes: &[u8]) -> PacketView<'_> {
    let link = Link::default();
    let len = bytes.len() as u32;
    PacketView { family, indev: None, outdev: None, link, len, bytes, mark: 0, owner: None }
}

/// Changes in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(Vec<String>);

impl Told {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// A device's name out of its field; `None` for none.
pub fn device(name: &[u8; 16]) -> Option<String> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (end > 0).then(|| lossy(&name[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP from 10.0.0.1:4242 to 10.0.0.2:80.
    const UDP: [u8; 28] =
        [0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0x92, 0, 80, 0, 8, 0, 0];

    fn look(change: impl FnOnce(&mut [u8; 28]), mark: u32, outdev: Option<&[u8]>) -> Look {
        let mut bytes = UDP;
        change(&mut bytes);
        Look::at(&PacketView { mark, outdev, ..bare(Family::Ipv4, &bytes) })
    }

    #[test]
    fn what_is_the_same_has_not_changed() {
        let before = look(|_| {}, 1, None);
        assert_eq!(before.changes(&before), []);
        // Nor have checksums, which nobody asks for.
        assert_eq!(before.changes(&look(|bytes| bytes[10] = 1, 1, None)), []);
    }

    #[test]
    fn each_field_is_told() {
        let before = look(|_| {}, 0, None);
        let change = |bytes: &mut [u8; 28]| {
            (bytes[1], bytes[8], bytes[19], bytes[23]) = (0xb8, 63, 9, 81);
        };
        let after = look(change, 0x10, Some(b"rb"));
        let mut rb = [0; 16];
        rb[..2].copy_from_slice(b"rb");
        assert_eq!(
            before.changes(&after),
            [
                Change::Address("dst", Some([10, 0, 0, 2].into()), Some([10, 0, 0, 9].into())),
                Change::Port("dport", Some(80), Some(81)),
                Change::Mark(0, 0x10),
                Change::Dscp(0, 46),
                Change::Ttl(64, 63),
                Change::Out([0; 16], rb),
            ]
        );
        // A router takes one from what the packet has left to live.
        assert_eq!(
            before.told(&after).to_string(),
            "dst 10.0.0.2:80 -> 10.0.0.9:81, mark 0x0 -> 0x10, dscp 0 -> 46"
        );
        assert_eq!(before.told(&look(|bytes| bytes[8] = 1, 0, None)).to_string(), "ttl 64 -> 1");
        assert_eq!(device(&rb).as_deref(), Some("rb"));
    }

    #[test]
    fn each_packet_is_compared_with_itself() {
        let mut looks = Looks::default();
        let mut at = |packet, mark, outdev: Option<&[u8]>| {
            let view = PacketView { mark, outdev, ..bare(Family::Ipv4, &UDP) };
            looks.at(packet, &view).len()
        };
        assert_eq!(at(1, 0, None), 0, "the first look");
        assert_eq!(at(1, 1, None), 1);
        assert_eq!(at(2, 5, None), 0, "another packet");
        assert_eq!(at(1, 1, Some(b"rb")), 1, "the device");
        assert_eq!(at(1, 1, Some(b"rb")), 0);
        assert_eq!(at(1, 1, Some(b"rb0")), 1);
        assert_eq!(at(1, 1, Some(b"rb")), 1);
        assert_eq!(at(2, 6, None), 1);
        looks.forget(1);
        looks.forget(2);
        assert!(looks.last.is_none() && looks.others.is_empty());
    }

    #[test]
    fn any_bytes_can_be_compared() {
        for len in 0..UDP.len() {
            let short = Look::at(&bare(Family::Ipv4, &UDP[..len]));
            let _ = (short.changes(&look(|_| {}, 0, None)), look(|_| {}, 0, None).told(&short));
        }
    }
}
