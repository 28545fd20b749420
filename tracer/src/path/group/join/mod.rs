//! Two halves of a packet's way, put together: what legacy tables told of it, and what nftables did.
//!
//! Both come in the order in which the kernel told them, of all packets mixed. A half is a packet of the [`super::Grouper`],
//! or one of nftables' trace messages, which have an id. Two halves are of one packet when nothing that rules and
//! routers leave alone differs, when each step stands where the packet can have come to from the one before, and when NAT
//! had the chance to change what differs. Where several packets qualify alike, all are in doubt.

mod at;
mod open;
#[cfg(test)]
mod tests;

pub use at::{At, MARK, nat_priority};

use super::identity::{Facts, Identity};
use crate::netfilter::Family;
use crate::nftables::stands::{BaseName, Stands};
use crate::packet::ip::is_extension;
use crate::packet::{Packet, PacketView};
use crate::path::Path;
use open::Open;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// What nftables shows of a packet: this much of the header that begins it, and of what follows if that is all of it.
const NETWORK_BYTES: usize = 40;
const TRANSPORT_BYTES: usize = 20;
/// A packet that moved not longer ago than this may have been on its way when the trace ended.
const LATELY_NS: u64 = 50_000_000;

/// One half of a packet's way, by its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// What legacy tables told.
    Legacy(u64),
    /// What nftables told.
    Nft(u64),
}

/// What one message or row says of a packet.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Where; `None` where that is not known, or where the packet still is.
    pub at: Option<At>,
    /// The packet, where the message shows it.
    pub view: Option<PacketView<'a>>,
    /// Nanoseconds since any beginning, later with each message.
    pub clock_ns: u64,
    /// The base chain that it begins.
    pub begins: Option<BaseName>,
    /// Whether the packet is in a base chain of nftables after it.
    pub inside: bool,
    /// Whether the packet is gone after it.
    pub gone: bool,
    /// Whether it waits for a program, which may let it go on or not.
    pub queued: bool,
}

/// A packet of which all is known.
#[derive(Debug)]
pub struct Joined<S> {
    /// Its number, from 1.
    pub number: u64,
    /// As it was seen first; `None` for what is no IP packet.
    pub first: Option<Rc<Packet>>,
    /// All steps in order.
    pub steps: Vec<S>,
    /// What the halves say of it; without its steps.
    pub path: Path,
}

/// Puts halves together.
#[derive(Debug)]
pub struct Join<S> {
    netns: Option<u32>,
    /// A table of ours marks packets, so that all are seen from there on.
    is_marked: bool,
    open: BTreeMap<u64, Open<S>>,
    by_half: HashMap<Half, (u64, u64)>,
    by_identity: HashMap<Identity, Vec<u64>>,
    count: u64,
}

impl<S> Join<S> {
    /// Has seen nothing of a namespace yet. `is_marked` says whether a table of ours marks packets, at [`MARK`].
    pub fn new(netns: Option<u32>, is_marked: bool) -> Self {
        Self {
            netns,
            is_marked,
            open: BTreeMap::new(),
            by_half: HashMap::new(),
            by_identity: HashMap::new(),
            count: 0,
        }
    }

    /// Takes what a message says about a half. `stands` is what stands at the hooks now.
    pub fn meet(&mut self, half: Half, seen: Seen<'_>, stands: &Rc<Stands>) {
        let facts = seen.view.map(|view| Facts::of_view(self.netns, &shortened(view)));
        let number = match self.by_half.get(&half) {
            Some((number, _)) => *number,
            None => self.begin(half, &seen, facts.as_ref(), stands),
        };
        self.by_half.insert(half, (number, seen.clock_ns));
        let Some(open) = self.open.get_mut(&number) else { return };
        let before = open.facts.map(|facts| facts.identity);
        open.moves(half, seen, facts, stands);
        let now = open.facts.map(|facts| facts.identity);
        if before != now {
            self.forget(before, number);
            if let Some(identity) = now {
                self.by_identity.entry(identity).or_default().push(number);
            }
        }
    }

    fn begin(&mut self, half: Half, seen: &Seen<'_>, facts: Option<&Facts>, stands: &Rc<Stands>) -> u64 {
        let same = facts.and_then(|facts| self.by_identity.get(&facts.identity));
        let fitting: Vec<u64> = same
            .into_iter()
            .flatten()
            .copied()
            .filter(|number| self.open.get(number).is_some_and(|open| open.takes(half, seen, facts)))
            .collect();
        if fitting.len() > 1 {
            for number in &fitting {
                if let Some(open) = self.open.get_mut(number) {
                    open.doubt("another packet with the same headers was on its way at the same time".into());
                }
            }
        }
        let latest = fitting.into_iter().max_by_key(|number| self.open.get(number).map(|open| open.moved_ns));
        let number = latest.unwrap_or_else(|| {
            self.count += 1;
            self.open.insert(self.count, Open::new(self.count, self.netns, stands));
            self.count
        });
        if let Some(open) = self.open.get_mut(&number) {
            open.halves += 1;
            match half {
                Half::Legacy(of) => open.legacy = Some(of),
                Half::Nft(of) => open.nft = Some(of),
            }
        }
        number
    }

    /// The packet of legacy tables whose other half says that it is gone.
    pub fn gone(&self, half: Half) -> Option<u64> {
        let open = self.open.get(&self.by_half.get(&half)?.0)?;
        open.legacy.filter(|_| open.gone)
    }

    /// Keeps a step of a half until the packet is done. `clock_ns` is that of the message that told of it.
    pub fn keep(&mut self, half: Half, clock_ns: u64, step: S) {
        let number = self.by_half.get(&half).map(|(number, _)| *number);
        if let Some(open) = number.and_then(|number| self.open.get_mut(&number)) {
            open.steps.push((clock_ns, step));
        }
    }

    /// No more of a half comes. Gives the packet when all its halves are over.
    pub fn close(&mut self, half: Half, path: Path) -> Option<Joined<S>> {
        let (number, moved_ns) = self.by_half.remove(&half)?;
        let open = self.open.get_mut(&number)?;
        open.halves -= 1;
        match half {
            Half::Legacy(of) if open.legacy == Some(of) => open.legacy = None,
            Half::Nft(of) if open.nft == Some(of) => open.nft = None,
            _ => {}
        }
        open.take(path, moved_ns);
        if open.halves > 0 {
            return None;
        }
        let open = self.open.remove(&number)?;
        self.forget(open.facts.map(|facts| facts.identity), number);
        Some(open.done(number, self.is_marked))
    }

    /// Something may have been lost: all packets on their way are in doubt.
    pub fn lost(&mut self, why: &str) {
        self.open.values_mut().for_each(|open| open.doubt(why.to_owned()));
    }

    /// The trace ends now.
    pub fn end(&mut self, clock_ns: u64) {
        for open in self.open.values_mut() {
            if !open.is_over() && clock_ns.saturating_sub(open.moved_ns) < LATELY_NS {
                open.doubt("the trace ended when it may have been on its way".into());
            }
        }
    }

    fn forget(&mut self, identity: Option<Identity>, number: u64) {
        let Some(identity) = identity else { return };
        if let Some(numbers) = self.by_identity.get_mut(&identity) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_identity.remove(&identity);
            }
        }
    }
}

/// A packet with no more bytes than nftables shows of it.
fn shortened(view: PacketView<'_>) -> PacketView<'_> {
    let header = match (view.family, view.bytes) {
        (Family::Ipv4, [first, ..]) => usize::from(first & 0xf) * 4,
        (Family::Ipv6, [_, _, _, _, _, _, next, ..]) if !is_extension(*next) => NETWORK_BYTES,
        _ => usize::MAX,
    };
    let bytes = if header <= NETWORK_BYTES { header + TRANSPORT_BYTES } else { NETWORK_BYTES };
    PacketView { bytes: &view.bytes[..bytes.min(view.bytes.len())], ..view }
}
