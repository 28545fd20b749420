//! Texts about packets that were made a moment ago. Most steps of a packet show the same, and so do its devices and
//! those of the packets after it.

use super::{OwnedLink, Owner, PacketView};
use crate::netfilter::Family;

/// Texts that are kept: packets of several CPUs and both ends of a way come in turns.
const KEPT: usize = 4;

/// A part of what is known of a packet, apart from the packet.
pub(crate) trait Part: Default {
    /// Whether it is the same part of this packet.
    fn is_of(&self, packet: &PacketView<'_>) -> bool;
    /// Becomes the part of this packet.
    fn set(&mut self, packet: &PacketView<'_>);
}

/// Devices and link layer.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    indev: Option<Vec<u8>>,
    outdev: Option<Vec<u8>>,
    link: OwnedLink,
}

impl Part for Devices {
    fn is_of(&self, packet: &PacketView<'_>) -> bool {
        self.indev.as_deref() == packet.indev
            && self.outdev.as_deref() == packet.outdev
            && self.link.link() == packet.link
    }

    fn set(&mut self, packet: &PacketView<'_>) {
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        *self = Self { indev: owned(packet.indev), outdev: owned(packet.outdev), link: packet.link.into() };
    }
}

/// All the rest.
#[derive(Debug, Default)]
pub(crate) struct Content {
    family: Option<Family>,
    len: u32,
    mark: u32,
    owner: Option<Owner>,
    bytes: Vec<u8>,
}

impl Part for Content {
    fn is_of(&self, packet: &PacketView<'_>) -> bool {
        (self.len, self.mark, self.owner) == (packet.len, packet.mark, packet.owner)
            && self.family == Some(packet.family)
            && self.bytes == packet.bytes
    }

    fn set(&mut self, packet: &PacketView<'_>) {
        self.family = Some(packet.family);
        (self.len, self.mark, self.owner) = (packet.len, packet.mark, packet.owner);
        self.bytes.clear();
        self.bytes.extend_from_slice(packet.bytes);
    }
}

/// The last few texts about one part of packets.
#[derive(Debug, Default)]
pub(crate) struct Recent<P> {
    kept: Vec<(P, Vec<u8>)>,
    /// The one that was asked for last.
    last: usize,
    /// The oldest, once all places are taken.
    oldest: usize,
}

impl<P: Part> Recent<P> {
    /// The text that was asked for last.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        self.kept.get(self.last).map(|(_, text)| text.as_slice())
    }

    /// The text about a packet, by `make` if there is none yet.
    pub(crate) fn text(&mut self, packet: &PacketView<'_>, make: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        if !self.kept.get(self.last).is_some_and(|(part, _)| part.is_of(packet)) {
            let found = self.kept.iter().position(|(part, _)| part.is_of(packet));
            self.last = found.unwrap_or_else(|| self.add(packet, make));
        }
        &self.kept[self.last].1
    }

    fn add(&mut self, packet: &PacketView<'_>, make: impl FnOnce(&mut Vec<u8>)) -> usize {
        let index = self.oldest;
        self.oldest = (self.oldest + 1) % KEPT;
        if self.kept.len() == index {
            self.kept.push(Default::default());
        }
        let (part, text) = &mut self.kept[index];
        part.set(packet);
        text.clear();
        make(text);
        index
    }
}
