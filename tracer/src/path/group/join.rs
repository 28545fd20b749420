//! Two halves of a packet's way, put together: what legacy tables told of it, and what nftables did.
//!
//! Both come in the order in which the kernel told them, of all packets mixed. A half is a packet of the [`super::Grouper`],
//! or one of nftables' trace messages, which have an id. Two halves are of one packet when nothing that rules and
//! routers leave alone differs, when each step stands where the packet can have come to from the one before, and when NAT
//! had the chance to change what differs. Where several packets qualify alike, all are in doubt.

use super::identity::{Facts, Identity};
use super::place::builtin;
use crate::netfilter::{Family, Hook};
use crate::nftables::stands::{BaseName, Stands};
use crate::packet::ip::is_extension;
use crate::packet::{Headers, Packet, PacketView};
use crate::path::{Certainty, Path};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

/// Doubts that are told of one packet.
const MOST_REASONS: usize = 8;
/// What nftables shows of a packet: this much of the header that begins it, and of what follows if that is all of it.
const NETWORK_BYTES: usize = 40;
const TRANSPORT_BYTES: usize = 20;
/// NAT is at these priorities, whatever those of the chains are (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`).
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
/// A packet that moved not longer ago than this may have been on its way when the trace ended.
const LATELY_NS: u64 = 50_000_000;

/// Where in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The hook.
    pub hook: Hook,
    /// The turn at the hook; lower ones are earlier.
    pub priority: i32,
}

impl At {
    /// The place of a legacy table; `None` for a chain that is not a built-in one.
    pub fn of_legacy(table: &str, chain: &str) -> Option<Self> {
        let hook = builtin(table, chain)?;
        let priority = match table {
            "raw" => -300,
            "mangle" => -150,
            "nat" => nat_priority(hook),
            "security" => 50,
            _ => 0,
        };
        Some(Self { hook, priority })
    }

    /// Whether a packet can come from here to another place, or stays.
    fn leads_to(self, to: Self, loopback: bool) -> bool {
        use Hook::*;
        let later: &[Hook] = match self.hook {
            Ingress => &[Prerouting, Input, Forward, Postrouting, Egress],
            Prerouting => &[Input, Forward, Postrouting, Egress],
            Input => &[],
            Forward | Output => &[Postrouting, Egress],
            Postrouting => &[Egress],
            Egress => &[],
        };
        if self.hook == to.hook {
            return to.priority >= self.priority;
        }
        later.contains(&to.hook) || loopback && self.leaves() && to.comes_in()
    }

    fn leaves(self) -> bool {
        matches!(self.hook, Hook::Output | Hook::Postrouting | Hook::Egress)
    }

    fn comes_in(self) -> bool {
        matches!(self.hook, Hook::Ingress | Hook::Prerouting | Hook::Input)
    }

    fn crosses(self, to: Self, hooks: [Hook; 2], priority: i32) -> bool {
        let before = hooks.contains(&self.hook) && self.priority <= priority;
        before && (to.hook != self.hook || to.priority >= priority)
    }
}

/// The turn of NAT at a hook.
pub fn nat_priority(hook: Hook) -> i32 {
    match hook {
        Hook::Prerouting | Hook::Output => NAT_DESTINATION,
        _ => NAT_SOURCE,
    }
}

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

#[derive(Debug)]
struct Open<S> {
    facts: Option<Facts>,
    first: Option<Rc<Packet>>,
    legacy: Option<u64>,
    nft: Option<u64>,
    /// Halves that are not over.
    halves: usize,
    at: Option<At>,
    /// The place that it was first seen at.
    began: Option<At>,
    /// It leaves by the loopback device.
    loopback: bool,
    indev: Option<Vec<u8>>,
    inside: bool,
    gone: bool,
    queued: bool,
    moved_ns: u64,
    /// Where it has been, in order.
    places: Vec<At>,
    met: HashSet<BaseName>,
    stands: Rc<Stands>,
    steps: Vec<(u64, S)>,
    path: Path,
    /// When the half moved last that gave the verdict.
    decided_ns: u64,
}

/// Puts halves together.
#[derive(Debug)]
pub struct Join<S> {
    netns: Option<u32>,
    open: BTreeMap<u64, Open<S>>,
    by_half: HashMap<Half, (u64, u64)>,
    by_identity: HashMap<Identity, Vec<u64>>,
    count: u64,
}

impl<S> Join<S> {
    /// Has seen nothing of a namespace yet.
    pub fn new(netns: Option<u32>) -> Self {
        Self { netns, open: BTreeMap::new(), by_half: HashMap::new(), by_identity: HashMap::new(), count: 0 }
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
        Some(open.done(number))
    }

    /// Something may have been lost: all packets on their way are in doubt.
    pub fn lost(&mut self, why: &str) {
        self.open.values_mut().for_each(|open| open.doubt(why.to_owned()));
    }

    /// The trace ends now.
    pub fn end(&mut self, clock_ns: u64) {
        for open in self.open.values_mut() {
            let is_last = |at: At| matches!(at.hook, Hook::Input | Hook::Postrouting | Hook::Egress);
            let over = open.gone || open.at.is_some_and(is_last) && !open.inside && !open.loopback;
            if !over && clock_ns.saturating_sub(open.moved_ns) < LATELY_NS {
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

impl<S> Open<S> {
    fn new(number: u64, netns: Option<u32>, stands: &Rc<Stands>) -> Self {
        let path = Path {
            packet: number,
            family: Family::Ipv4,
            steps: Vec::new(),
            verdict: None,
            certainty: Certainty::Complete,
            why: Vec::new(),
            outcome: None,
            generation: Vec::new(),
            netns,
        };
        Self {
            facts: None,
            first: None,
            legacy: None,
            nft: None,
            halves: 0,
            at: None,
            began: None,
            loopback: false,
            indev: None,
            inside: false,
            gone: false,
            queued: false,
            moved_ns: 0,
            places: Vec::new(),
            met: HashSet::new(),
            stands: Rc::clone(stands),
            steps: Vec::new(),
            path,
            decided_ns: 0,
        }
    }

    fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if self.path.why.len() < MOST_REASONS && !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    /// Whether a half that begins can be of this packet.
    fn takes(&self, half: Half, seen: &Seen<'_>, facts: Option<&Facts>) -> bool {
        let comes_in = || seen.at.is_some_and(At::comes_in) && self.at.is_some_and(At::leaves);
        let free = match half {
            Half::Legacy(_) => self.legacy.is_none(),
            // The id changes when a packet comes in again by the loopback device, and not otherwise.
            Half::Nft(_) => self.nft.is_none() || self.loopback && comes_in(),
        };
        free && !self.gone && !self.inside && self.leads_to(seen.at) && self.ends_fit(seen.at, facts)
    }

    fn leads_to(&self, to: Option<At>) -> bool {
        self.at.zip(to).is_none_or(|(from, to)| from.leads_to(to, self.loopback))
    }

    /// Whether addresses and ports are the same, or NAT may have changed them on the way.
    fn ends_fit(&self, to: Option<At>, facts: Option<&Facts>) -> bool {
        let (Some(old), Some(new)) = (&self.facts, facts) else { return true };
        let (old, new) = (&old.headers, &new.headers);
        let Some((from, to)) = self.at.zip(to) else { return true };
        let way = [Hook::Prerouting, Hook::Output];
        let destination = from.crosses(to, way, NAT_DESTINATION);
        let leaves = from.leaves() && (to.comes_in() || to.hook == Hook::Egress);
        let source = leaves || from.crosses(to, [Hook::Postrouting, Hook::Input], NAT_SOURCE);
        let id = |headers: &Headers| headers.echo.map(|[id, _]| id);
        (destination || (new.dst, new.dport) == (old.dst, old.dport))
            && (source || (new.src, new.sport) == (old.src, old.sport))
            && (destination || source || id(new) == id(old))
    }

    fn moves(&mut self, half: Half, seen: Seen<'_>, facts: Option<Facts>, stands: &Rc<Stands>) {
        let other = || "a message of another packet may be among those of this one".to_owned();
        let elsewhere = seen.begins.is_some() || matches!(half, Half::Legacy(_));
        let same = self.facts.zip(facts).is_none_or(|(old, new)| old.identity == new.identity);
        if self.gone
            || self.inside && elsewhere
            || !same
            || !self.leads_to(seen.at)
            || !self.ends_fit(seen.at, facts.as_ref())
        {
            self.doubt(other());
        }
        if !Rc::ptr_eq(&self.stands, stands) && !self.stands.same_generation(stands) {
            self.doubt("the rules of nftables were changed while it was on its way".into());
            self.stands = Rc::clone(stands);
        }
        if let Some(view) = seen.view {
            self.path.family = view.family;
            self.loopback = view.outdev == Some(b"lo");
            self.first.get_or_insert_with(|| Rc::new(Packet::from(view)));
            if self.indev.is_none() {
                self.indev = view.indev.map(<[u8]>::to_vec);
            }
        }
        self.facts = facts.or(self.facts);
        if let Some(at) = seen.at {
            self.began.get_or_insert(at);
            self.places.push(at);
            self.at = Some(at);
        }
        self.met.extend(seen.begins);
        (self.inside, self.gone, self.queued) = (seen.inside, seen.gone, seen.queued);
        self.moved_ns = seen.clock_ns;
    }

    /// Takes what a half that is over says.
    fn take(&mut self, path: Path, moved_ns: u64) {
        path.why.into_iter().for_each(|why| self.doubt(why));
        self.path.certainty = self.path.certainty.max(path.certainty);
        self.path.outcome = self.path.outcome.take().or(path.outcome);
        self.path.generation.extend(path.generation);
        if moved_ns >= self.decided_ns {
            self.decided_ns = moved_ns;
            self.path.verdict = path.verdict;
        }
    }

    /// All that told of it, if all that it passed did.
    fn done(mut self, number: u64) -> Joined<S> {
        self.steps.sort_by_key(|(clock_ns, _)| *clock_ns);
        if self.first.is_some() {
            let indev = self.indev.as_deref();
            let silent = self.stands.silent(
                self.path.family,
                &self.places,
                self.gone || self.queued,
                &self.met,
                indev,
            );
            silent.into_iter().for_each(|why| self.doubt(why));
        }
        let steps = self.steps.into_iter().map(|(_, step)| step).collect();
        Joined { number, first: self.first, steps, path: self.path }
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

#[cfg(test)]
mod tests;
