//! A packet of which halves are not over yet.

use super::{At, Half, Joined, Seen};
use crate::netfilter::{Family, Hook};
use crate::nftables::stands::{Devices, Met, Stands};
use crate::packet::{Headers, Packet};
use crate::path::group::identity::Facts;
use crate::path::{Certainty, Path};
use std::collections::HashSet;
use std::rc::Rc;

/// Doubts that are told of one packet.
const MOST_REASONS: usize = 8;

#[derive(Debug)]
pub(super) struct Open<S> {
    pub(super) facts: Option<Facts>,
    first: Option<Rc<Packet>>,
    pub(super) legacy: Option<u64>,
    pub(super) nft: Option<u64>,
    /// Where the half of nftables began, and where it was last.
    nft_way: Option<[(At, Option<Vec<u8>>); 2]>,
    /// The half that it is the way of.
    nft_began: Option<u64>,
    /// Halves that are not over.
    pub(super) halves: usize,
    at: Option<At>,
    /// It leaves by the loopback device.
    loopback: bool,
    /// By which it came in when it was seen first.
    indev: Option<Vec<u8>>,
    /// By which it comes in, as it was said last: first the port, then the bridge.
    last_indev: Option<Vec<u8>>,
    /// By which it leaves, as it was said last.
    outdev: Option<Vec<u8>>,
    inside: bool,
    pub(super) gone: bool,
    queued: bool,
    pub(super) moved_ns: u64,
    /// Where it has been, in order.
    places: Vec<At>,
    met: HashSet<Met>,
    stands: Rc<Stands>,
    pub(super) steps: Vec<(u64, S)>,
    pub(super) path: Path,
    /// When the half moved last that gave the verdict.
    decided_ns: u64,
}

impl<S> Open<S> {
    pub(super) fn new(number: u64, netns: Option<u32>, stands: &Rc<Stands>) -> Self {
        let path = Path::new(number, Family::Ipv4, netns);
        Self {
            facts: None,
            first: None,
            legacy: None,
            nft: None,
            nft_way: None,
            nft_began: None,
            halves: 0,
            at: None,
            loopback: false,
            indev: None,
            last_indev: None,
            outdev: None,
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

    pub(super) fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if self.path.why.len() < MOST_REASONS && !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    /// Whether a half that begins can be of this packet.
    pub(super) fn takes(&self, half: Half, seen: &Seen<'_>, facts: Option<&Facts>) -> bool {
        let comes_in = || seen.at.is_some_and(At::comes_in) && self.at.is_some_and(At::leaves);
        let free = match half {
            Half::Legacy(_) => self.legacy.is_none(),
            // The id changes when a packet comes in by another device: again, or by one on top of the first.
            Half::Nft(_) => self.nft.is_none() || self.loopback && comes_in() || self.goes_up(seen),
        };
        free && !self.gone && !self.inside && self.leads_to(seen) && self.ends_fit(seen.at, facts)
    }

    fn leads_to(&self, seen: &Seen<'_>) -> bool {
        let leads = |(from, to): (At, At)| from.leads_to(to, self.loopback, self.is_elsewhere(seen));
        self.at.zip(seen.at).is_none_or(leads)
    }

    /// Whether it may have gone on to a device on top of the one by which it came.
    fn goes_up(&self, seen: &Seen<'_>) -> bool {
        let indev = seen.view.as_ref().and_then(|view| view.indev);
        let Some([(_, first), (last, device)]) = &self.nft_way else { return false };
        let Some((at, indev)) = seen.at.zip(indev).filter(|(at, _)| at.is_for_incoming()) else {
            return false;
        };
        if first.as_deref().is_some_and(|first| first != indev) {
            return last.is_for_incoming();
        }
        // A bridge asked IP with br_netfilter, as if it were the device already.
        let asked = last.hook == Hook::Prerouting && device.as_deref() == Some(indev);
        asked && at.hook != Hook::Prerouting && self.stands.is_behind_bridge(Some(indev))
    }

    /// Whether the packet is at another device than before.
    fn is_elsewhere(&self, seen: &Seen<'_>) -> bool {
        let differs = |before: &Option<Vec<u8>>, now: Option<&[u8]>| {
            before.as_deref().zip(now).is_some_and(|(before, now)| before != now)
        };
        let view = seen.view.as_ref();
        view.is_some_and(|view| differs(&self.last_indev, view.indev) || differs(&self.outdev, view.outdev))
    }

    /// Whether addresses and ports are the same, or NAT may have changed them on the way.
    fn ends_fit(&self, to: Option<At>, facts: Option<&Facts>) -> bool {
        let (Some(old), Some(new)) = (&self.facts, facts) else { return true };
        let (old, new) = (&old.headers, &new.headers);
        let Some((from, to)) = self.at.zip(to) else { return true };
        let (destination, source) = (from.crosses_destination_nat(to), from.crosses_source_nat(to));
        let id = |headers: &Headers| headers.echo.map(|[id, _]| id);
        (destination || (new.dst, new.dport) == (old.dst, old.dport))
            && (source || (new.src, new.sport) == (old.src, old.sport))
            && (destination || source || id(new) == id(old))
    }

    pub(super) fn moves(&mut self, half: Half, seen: Seen<'_>, facts: Option<Facts>, stands: &Rc<Stands>) {
        let other = || "a message of another packet may be among those of this one".to_owned();
        let elsewhere = seen.begins.is_some() || matches!(half, Half::Legacy(_));
        let same = self.facts.zip(facts).is_none_or(|(old, new)| old.identity == new.identity);
        if self.gone
            || self.inside && elsewhere
            || !same
            || !self.leads_to(&seen)
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
            self.last_indev = view.indev.map(<[u8]>::to_vec);
            self.outdev = view.outdev.map(<[u8]>::to_vec);
        }
        self.facts = facts.or(self.facts);
        if let Some(at) = seen.at {
            if let Half::Nft(of) = half {
                let now = (at, self.last_indev.clone());
                let began = self.nft_way.take().filter(|_| self.nft_began == Some(of));
                self.nft_way = Some([began.map_or_else(|| now.clone(), |[began, _]| began), now]);
                self.nft_began = Some(of);
            }
            self.places.push(at);
            self.at = Some(at);
        }
        let at_device = seen.at.filter(|at| at.hook.is_of_device()).and(seen.view);
        let device = at_device.and_then(|view| view.indev.or(view.outdev)).map(<[u8]>::to_vec);
        self.met.extend(seen.begins.map(|base| (base, device)));
        (self.inside, self.gone, self.queued) = (seen.inside, seen.gone, seen.queued);
        self.moved_ns = seen.clock_ns;
    }

    /// Whether nothing more can come of it.
    pub(super) fn is_over(&self) -> bool {
        use Hook::{ArpInput, ArpOutput, BridgePostrouting, Egress, Input, Postrouting};
        let is_last = |at: At| {
            matches!(at.hook, Input | Postrouting | Egress | BridgePostrouting | ArpInput | ArpOutput)
        };
        self.gone || self.at.is_some_and(is_last) && !self.inside && !self.loopback
    }

    /// Takes what a half that is over says.
    pub(super) fn take(&mut self, path: Path, moved_ns: u64) {
        path.why.into_iter().for_each(|why| self.doubt(why));
        self.path.certainty = self.path.certainty.max(path.certainty);
        self.path.outcome = self.path.outcome.take().or(path.outcome);
        self.path.generation.extend(path.generation);
        if moved_ns >= self.decided_ns {
            self.decided_ns = moved_ns;
            self.path.verdict = path.verdict;
        }
    }

    /// All that told of it, and what is in doubt if not all that it passed did. `is_marked` is as for [`super::Join`].
    pub(super) fn done(mut self, number: u64, is_marked: bool) -> Joined<S> {
        self.steps.sort_by_key(|(clock_ns, _)| *clock_ns);
        if self.first.is_some() {
            let devices = Devices { indev: self.indev.as_deref(), outdev: self.outdev.as_deref() };
            let silent = self.stands.silent(
                self.path.family,
                &self.places,
                self.gone || self.queued,
                &self.met,
                devices,
            );
            silent.into_iter().for_each(|why| self.doubt(why));
        }
        if is_marked && self.first.is_some() && !self.places.first().is_some_and(|at| at.can_be_first()) {
            self.doubt("its first steps are not there: packets are marked before all others".into());
        }
        let steps = self.steps.into_iter().map(|(_, step)| step).collect();
        Joined { number, first: self.first, steps, path: self.path }
    }
}
