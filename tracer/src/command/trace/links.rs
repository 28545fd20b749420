//! Which packets are of one connection, and which is another one further on its way.

use crate::hash::KernelMap;
use crate::path::connection::Connection;
use crate::path::{Belongs, Path};
use std::borrow::Cow;
use std::collections::VecDeque;
use tracer_common::choice::{Link, Tracked};

/// Packets and connections that are remembered: what comes later than so many others is taken for something new.
const REMEMBERED: usize = 1 << 16;

/// What the kernel told of packets that are followed.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// By the kernel's number of the packet.
    packets: Recent<Packet>,
    /// The story that a connection is part of, by the kernel's number of the connection.
    connections: Recent<u64>,
    /// The kernel's number of a packet on its way, by ours.
    open: KernelMap<u64, u64>,
    stories: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Packet {
    /// Our number, once it is known.
    number: Option<u64>,
    story: Option<u64>,
    /// The kernel's number of the packet that it was before.
    before: Option<u64>,
    /// What conntrack knows of its connection.
    known: Option<Connection>,
}

impl Links {
    /// Takes what the kernel told.
    pub(super) fn link(&mut self, link: &Link) {
        let known = |id: u64| (id != 0).then_some(id);
        let (connection, before) = (known(link.connection), known(link.before));
        let own = self.packets.get(link.packet).copied().unwrap_or_default();
        let before = own.before.or(before);
        let earlier = || before.and_then(|before| self.packets.get(before)?.story);
        let known = || connection.and_then(|connection| self.connections.get(connection).copied());
        let story = own.story.or_else(earlier).or_else(known).or_else(|| {
            connection.map(|_| {
                self.stories += 1;
                self.stories
            })
        });
        if let (Some(connection), Some(story)) = (connection, story)
            && self.connections.get(connection).is_none()
        {
            self.connections.insert(connection, story);
        }
        self.packets.insert(link.packet, Packet { story, before, ..own });
    }

    /// Takes what conntrack knows of a packet's connection.
    pub(super) fn tracked(&mut self, tracked: &Tracked) {
        let own = self.packets.get(tracked.packet).copied().unwrap_or_default();
        self.packets.insert(tracked.packet, Packet { known: Some(Connection::of(tracked)), ..own });
    }

    /// A packet has this number.
    pub(super) fn number(&mut self, packet: u64, number: u64) {
        if self.packets.is_empty() {
            return;
        }
        if let Some(known) = self.packets.get_mut(packet)
            && known.number != Some(number)
        {
            known.number = Some(number);
            self.open.insert(number, packet);
        }
    }

    /// A packet's path, with what it belongs to.
    pub(super) fn settled<'a>(&mut self, path: &'a Path) -> Cow<'a, Path> {
        if self.open.is_empty() {
            return Cow::Borrowed(path);
        }
        let Some(packet) = self.open.remove(&path.packet).and_then(|packet| self.packets.get(packet)) else {
            return Cow::Borrowed(path);
        };
        let continues = packet.before.and_then(|before| self.packets.get(before)?.number);
        let belongs = Belongs { connection: packet.story, continues, known: packet.known };
        Cow::Owned(Path { belongs, ..path.clone() })
    }
}

/// A map that forgets what came first.
#[derive(Debug)]
struct Recent<V> {
    all: KernelMap<u64, V>,
    order: VecDeque<u64>,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { all: KernelMap::default(), order: VecDeque::new() }
    }
}

impl<V> Recent<V> {
    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn get(&self, key: u64) -> Option<&V> {
        self.all.get(&key)
    }

    fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        self.all.get_mut(&key)
    }

    fn insert(&mut self, key: u64, value: V) {
        if self.all.insert(key, value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::Family;
    use tracer_common::choice::LINK;

    fn link(packet: u64, connection: u64, before: u64) -> Link {
        Link { kind: LINK, reserved: 0, packet, connection, before }
    }

    #[track_caller]
    fn check(links: &mut Links, packet: u64, connection: Option<u64>, continues: Option<u64>) {
        let path = Path::new(packet, Family::Ipv4, None);
        let path = links.settled(&path);
        assert_eq!(path.belongs, Belongs { connection, continues, known: None }, "packet {packet}");
    }

    #[test]
    fn a_connection_through_two_namespaces_and_back_is_one() {
        let mut links = Links::default();
        // There, in the first namespace: the connection is known from the second table on.
        links.link(&link(100, 7, 0));
        links.number(100, 1);
        // In the second one.
        links.link(&link(200, 0, 100));
        links.number(200, 2);
        links.link(&link(200, 8, 0));
        // The reply is found by the second one's connection, then goes on.
        links.link(&link(300, 8, 0));
        links.number(300, 3);
        links.link(&link(400, 7, 300));
        links.number(400, 4);
        // Another connection.
        links.link(&link(500, 9, 0));
        links.number(500, 5);
        check(&mut links, 1, Some(1), None);
        check(&mut links, 2, Some(1), Some(1));
        check(&mut links, 3, Some(1), None);
        check(&mut links, 4, Some(1), Some(3));
        check(&mut links, 5, Some(2), None);
        check(&mut links, 6, None, None);
    }

    #[test]
    fn memory_has_an_end() {
        let mut links = Links::default();
        for packet in 1..=2 * REMEMBERED as u64 {
            links.link(&link(packet, packet, 0));
            links.number(packet, packet);
            check(&mut links, packet, Some(packet), None);
        }
        assert!(links.packets.all.len() <= REMEMBERED && links.connections.order.len() <= REMEMBERED);
        assert!(links.open.is_empty());
    }
}
