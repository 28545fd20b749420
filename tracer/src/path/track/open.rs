//! A packet on its way: what it has met, checked against what stands at the hooks.
#![forbid(unsafe_code)]

use super::header::{Datagram, Header, Piece};
use super::visit::{Connection, Place, Visit, device, hook_of, is_destination, trimmed};
use super::{Part, SOON_NS, Window};
use crate::netfilter::{Family, Hook, Verdict};
use crate::path::ending::{Device, Ending};
use crate::path::established::Established;
use crate::path::stands::Stands;
use crate::path::{Certainty, Path};
use std::collections::VecDeque;
use std::rc::Rc;

/// Steps for which a path has room from the beginning.
const USUAL_STEPS: usize = 16;
/// What became of a fragment at its destination.
pub(super) const GATHERED: &str = "put together with other fragments";
/// What became of a packet that is too long for its device, or came in fragments.
pub(super) const CUT: &str = "cut into fragments";
/// The kernel's function that puts fragments together.
const GATHERS: &str = "ip_defrag";
/// Conntrack comes after what is below this priority.
const CONNTRACK: i32 = -200;

#[derive(Debug)]
pub(super) struct Open {
    pub(super) path: Path,
    pub(super) last: Place,
    pub(super) skb: u64,
    pub(super) entry_ns: u64,
    /// What it met last was over by then.
    pub(super) exit_ns: u64,
    /// As it was seen last.
    pub(super) header: Option<Header>,
    /// See [`Visit::with_token`].
    pub(super) token: u64,
    /// The hooks where it was, by bits.
    hooks: u16,
    /// The queue that it was sent to.
    pub(super) queue: Option<u16>,
    /// Its last step decided what became of it.
    pub(super) is_decided: bool,
    /// It is among those that are looked at when they have been silent for long.
    pub(super) is_awaited: bool,
    /// It waits for a verdict from user space.
    pub(super) is_queued: bool,
    /// When it was added what the packet met last, it was known that some of what came behind was missed, or lost.
    pub(super) may_lack: bool,
    /// The datagram that it is a fragment of, while it may wait for the others.
    pub(super) piece_of: Option<Datagram>,
    /// It is in other packets, and nothing more is seen of it as itself: a fragment that came to where they are put together,
    /// behind PREROUTING and before all that comes next, or a packet that was cut behind POSTROUTING.
    pub(super) has_become: bool,
    stands: Rc<Stands>,
    /// Which of them see a packet before what it met last.
    behind: u64,
    /// Which of them it has met at the hook where it was last.
    met: u64,
    established: Option<Established>,
    /// A nat table stands at a hook where it was.
    has_nat: bool,
    /// Where it came from and where it was sent to, as far as it was seen.
    devices: [[u8; 16]; 2],
    /// Something of its way is known, that across bridges aside.
    begun: bool,
    /// Its way across bridges: with br_netfilter it meets the hooks of IP in between.
    pub(super) bridge: Option<Bridged>,
}

/// Where a packet was last at the hooks of a bridge; as [`Open`] has it for the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bridged {
    last: Place,
    behind: u64,
    met: u64,
}

/// What has become of a packet at whose place in memory another one is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is in that one, in these words.
    Became(&'static str),
    /// It is gone, and what it met last was not seen, or how it ended.
    Unknown,
}

/// What a packet waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// Its path is done.
    Nothing,
    /// A verdict from user space.
    Verdict,
    /// What it meets next.
    Stand,
}

/// Hooks that a packet passes between two others.
fn skipped(from: u8, to: u8) -> &'static [Hook] {
    match (hook_of(from), hook_of(to)) {
        (Hook::Ingress, Hook::Input | Hook::Forward) => &[Hook::Prerouting],
        (Hook::Ingress, Hook::Postrouting) => &[Hook::Prerouting, Hook::Forward],
        (Hook::Prerouting, Hook::Postrouting) => &[Hook::Forward],
        (Hook::Prerouting, Hook::Egress) => &[Hook::Forward, Hook::Postrouting],
        (Hook::Forward | Hook::Output, Hook::Egress) => &[Hook::Postrouting],
        (Hook::Output, Hook::Ingress) => &[Hook::Postrouting, Hook::Egress],
        (Hook::Output, Hook::Prerouting) => &[Hook::Postrouting, Hook::Egress, Hook::Ingress],
        (Hook::Output, Hook::Input) => &[Hook::Postrouting, Hook::Egress, Hook::Ingress, Hook::Prerouting],
        (Hook::Postrouting, Hook::Ingress) => &[Hook::Egress],
        (Hook::Postrouting, Hook::Prerouting) => &[Hook::Egress, Hook::Ingress],
        (Hook::Postrouting, Hook::Input) => &[Hook::Egress, Hook::Ingress, Hook::Prerouting],
        (Hook::Egress, Hook::Prerouting) => &[Hook::Ingress],
        (Hook::Egress, Hook::Input) => &[Hook::Ingress, Hook::Prerouting],
        (Hook::BridgePrerouting, Hook::BridgePostrouting) => &[Hook::BridgeForward],
        _ => &[],
    }
}

/// Where functions can have seen a packet after this place: hooks, each with the priorities from and to. `here` is the
/// priority of what it had to meet there next, and `first` that of what it had to meet first at a later hook.
pub(super) fn unseen(
    last: Place,
    here: Option<i32>,
    first: impl Fn(Hook) -> Option<i32>,
) -> Vec<(Hook, i32, i32)> {
    let hook = hook_of(last.hook);
    let mut unseen = vec![(hook, last.priority, here.unwrap_or(i32::MAX))];
    let mut hooks = if here.is_some() { Vec::new() } else { next_hooks(hook, last.loopback).to_vec() };
    while let Some(hook) = hooks.pop() {
        let until = first(hook);
        unseen.push((hook, i32::MIN, until.unwrap_or(i32::MAX)));
        if until.is_none() {
            // Through loopback once: what comes in there does not go out again.
            hooks.extend(next_hooks(hook, false));
        }
    }
    unseen
}

/// Hooks that follow another at once.
fn next_hooks(hook: Hook, loopback: bool) -> &'static [Hook] {
    match hook {
        Hook::Ingress => &[Hook::Prerouting],
        Hook::Prerouting => &[Hook::Input, Hook::Forward],
        Hook::Forward | Hook::Output => &[Hook::Postrouting],
        Hook::Postrouting if loopback => &[Hook::Prerouting],
        _ => &[],
    }
}

impl Open {
    pub(super) fn new(number: u64, visit: &Visit, stands: Rc<Stands>) -> Self {
        let path = Path {
            steps: Vec::with_capacity(USUAL_STEPS),
            generation: Vec::with_capacity(USUAL_STEPS),
            ..Path::new(number, visit.family, Some(visit.netns))
        };
        Self {
            path,
            last: visit.place,
            skb: visit.skb,
            entry_ns: visit.entry_ns,
            exit_ns: visit.entry_ns,
            header: None,
            token: 0,
            hooks: 0,
            queue: None,
            is_decided: false,
            is_awaited: false,
            is_queued: false,
            may_lack: false,
            piece_of: None,
            has_become: false,
            stands,
            behind: 0,
            met: 0,
            established: None,
            has_nat: false,
            devices: [[0; 16]; 2],
            begun: false,
            bridge: None,
        }
    }

    /// Makes another packet of one that is gone, as [`new`](Self::new) does, with what that one had allocated.
    pub(super) fn renew(&mut self, number: u64, visit: &Visit, stands: &Rc<Stands>) {
        let path = Path::new(number, visit.family, Some(visit.netns));
        let Path { mut steps, mut generation, .. } = std::mem::replace(&mut self.path, path);
        steps.clear();
        generation.clear();
        (self.path.steps, self.path.generation) = (steps, generation);
        if !Rc::ptr_eq(&self.stands, stands) {
            self.stands = Rc::clone(stands);
        }
        (self.last, self.skb) = (visit.place, visit.skb);
        (self.entry_ns, self.exit_ns) = (visit.entry_ns, visit.entry_ns);
        (self.header, self.established, self.bridge, self.queue) = (None, None, None, None);
        self.piece_of = None;
        (self.is_decided, self.is_awaited, self.is_queued) = (false, false, false);
        (self.has_nat, self.begun, self.may_lack, self.has_become) = (false, false, false, false);
        (self.hooks, self.behind, self.met) = (0, 0, 0);
        self.devices = [[0; 16]; 2];
    }

    pub(super) fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    #[inline]
    fn not_seen(&mut self, hook: u8, missing: u64) {
        if missing != 0 {
            self.doubt_for(hook, missing);
        }
    }

    #[cold]
    fn doubt_for(&mut self, hook: u8, missing: u64) {
        let stands = Rc::clone(&self.stands);
        for name in stands.names(hook, missing) {
            self.doubt(format!("{name} was not seen"));
        }
    }

    /// Those of `among` that a packet must have met at a hook where it has met `met`, given what conntrack said before
    /// or after.
    fn expected(
        &self,
        hook: u8,
        (among, met): (u64, u64),
        earlier: Option<Connection>,
        later: Option<Connection>,
    ) -> u64 {
        let missing = self.stands.sure(hook) & among & !met;
        let nat = self.stands.nat(hook);
        if missing & nat == 0 || met & nat != 0 {
            return missing & !nat;
        }
        let consulted = match (earlier, later) {
            (Some(earlier), _) => earlier.undecided(hook),
            (None, Some(later)) => later.is_first(),
            (None, None) => false,
        };
        // The first that decides is the last that is asked.
        let first_nat = (missing & nat) & (missing & nat).wrapping_neg();
        let asked = if consulted { first_nat } else { 0 };
        (missing & !nat) | asked
    }

    /// What has become of this packet, if what is seen now is another one in its memory.
    #[inline]
    pub(super) fn fate(&self, visit: &Visit) -> Option<Fate> {
        let (before, later) = self.header.as_ref().zip(visit.entry.as_ref())?;
        if before.stays(later) && !self.has_other_token(visit) {
            return None;
        }
        let became = || self.becomes(before, later, visit).map(Fate::Became);
        became().or_else(|| self.is_gone(before, later, visit).then_some(Fate::Unknown))
    }

    /// The packet has ended this way; `unseen` says that what ended it should have been seen.
    pub(super) fn ended(&mut self, ending: Ending, unseen: bool) {
        if unseen {
            self.doubt("what dropped it was not seen".to_owned());
        }
        let function = ending.freed().and_then(|freed| freed.symbol.split(['+', '.']).next());
        self.has_become |= self.piece_of.is_some() && function == Some(GATHERS);
        self.path.ending = Some(ending);
    }

    /// The datagram that this is a fragment of, if it has come as far as fragments come before they are put together:
    /// `ip_local_deliver` in `net/ipv4/ip_input.c`. With conntrack no table sees them, and IPv6 knows none at its hooks.
    pub(super) fn datagram(&self) -> Option<Datagram> {
        let header = self.header.as_ref().filter(|header| header.piece != Piece::Whole)?;
        let is_there = self.path.family == Family::Ipv4
            && self.begun
            && self.bridge.is_none()
            && self.last.hook == Hook::Prerouting as u8
            && self.path.verdict == Some(Verdict::Accept);
        is_there.then_some(Datagram::of(self.path.netns?, header))
    }

    /// Whether this is what it has become, a packet that comes in by loopback and is new to the kernel program. What came in
    /// fragments leaves in fragments; where anything of them is shared, as with a copy, each is another skb (`ip_do_fragment` in
    /// `net/ipv4/ip_output.c`), and so is the whole, if conntrack puts them together again. In the same skb it would be this packet,
    /// which the kernel program has forgotten.
    pub(super) fn is_cut_into(&self, visit: &Visit) -> bool {
        let Some((before, later)) = self.header.as_ref().zip(visit.entry.as_ref()) else { return false };
        let has_its_length = match later.piece {
            Piece::First => before.len > later.len,
            Piece::Whole => before.len == later.len,
            Piece::Later(_) => false,
        };
        let datagram = self.path.netns.map(|netns| Datagram::of(netns, before));
        has_its_length
            && before.piece == Piece::Whole
            && before.id != 0
            && datagram == Some(Datagram::of(visit.netns, later))
            && (self.path.family, visit.family) == (Family::Ipv4, Family::Ipv4)
            && self.skb != visit.skb
            && self.last.loopback
            && self.last.hook == Hook::Postrouting as u8
            && self.path.verdict == Some(Verdict::Accept)
            && self.path.outcome.is_none()
    }

    /// Whether what follows the header is that of another packet. Conntrack's helpers shift the numbers of TCP.
    fn has_other_token(&self, visit: &Visit) -> bool {
        let shifted = visit.place.connection.is_some_and(Connection::shifts_numbers);
        self.token != 0 && visit.token != 0 && self.token != visit.token && !shifted
    }

    /// Whether what is seen now is another packet for certain. One thing alone rules may change, or helpers of conntrack, and
    /// user space all of it. Fragments have other lengths than their datagram, and other bytes in the place of its first ones.
    fn is_gone(&self, before: &Header, later: &Header, visit: &Visit) -> bool {
        let by_user = !self.path.waited.is_empty() || self.path.verdict == Some(Verdict::Queue);
        let is_other_piece = before.piece != later.piece;
        let differs = [
            before.id != later.id,
            before.protocol != later.protocol,
            !is_other_piece && before.len != later.len,
            !is_other_piece && self.has_other_token(visit),
        ];
        !by_user && differs.iter().filter(|differs| **differs).count() >= 2
    }

    /// The whole packet takes the skb of the fragment that came last, and the first fragment takes that of the packet that
    /// is cut.
    fn becomes(&self, before: &Header, later: &Header, visit: &Visit) -> Option<&'static str> {
        if before.piece == later.piece || (before.id, before.protocol) != (later.id, later.protocol) {
            return None;
        }
        match (before.piece, later.piece) {
            // Without conntrack between PREROUTING and INPUT: `ip_local_deliver` in `net/ipv4/ip_input.c`. With it before
            // all tables, but behind the chains of devices.
            (Piece::First | Piece::Later(_), Piece::Whole)
                if self.path.family == Family::Ipv4
                    || self.bridge.is_some()
                    || self.last.hook == Hook::Ingress as u8 =>
            {
                Some(GATHERED)
            }
            // After POSTROUTING: `ip_finish_output` and its sibling. Only through loopback, or by a device with chains of
            // its own, is the fragment seen again.
            (Piece::Whole, Piece::First)
                if (self.last.loopback
                    || matches!(hook_of(visit.place.hook), Hook::Egress | Hook::BridgeOutput))
                    && later.len < before.len
                    && later.addresses == before.addresses =>
            {
                Some(CUT)
            }
            _ => None,
        }
    }

    /// Whether a packet that was not seen before can be seen here first, and nothing was missed of it.
    pub(super) fn can_begin(visit: &Visit, stands: &Rc<Stands>) -> bool {
        let mut open = Self::new(0, visit, Rc::clone(stands));
        open.check_beginning(visit);
        open.path.certainty == Certainty::Complete
    }

    /// A packet begins at a device's chains or at the first table of PREROUTING or OUTPUT, or something was not seen.
    pub(super) fn check_beginning(&mut self, visit: &Visit) {
        self.check_way(visit);
        self.check_ingress(visit, &[]);
    }

    /// What a packet must have met on its way to a hook, where nothing earlier of that way was seen.
    fn check_way(&mut self, visit: &Visit) {
        let place = visit.place;
        let before = self.stands.before(place.hook, place.priority)
            & self.stands.at_device(place.hook, visit.device(place.hook));
        let missing = self.expected(place.hook, (before, 0), None, place.connection);
        self.not_seen(place.hook, missing);
        // Each way it can have come by is a row of hooks.
        let ways: &[&[Hook]] = match hook_of(place.hook) {
            Hook::Prerouting | Hook::Output | Hook::Ingress => &[],
            Hook::Input | Hook::Forward => &[&[Hook::Prerouting]],
            Hook::Postrouting => &[&[Hook::Output], &[Hook::Forward, Hook::Prerouting]],
            Hook::BridgePrerouting | Hook::ArpInput | Hook::ArpOutput | Hook::ArpForward => &[],
            Hook::BridgeInput | Hook::BridgeForward => &[&[Hook::BridgePrerouting]],
            Hook::BridgePostrouting => {
                &[&[Hook::BridgeOutput], &[Hook::BridgeForward, Hook::BridgePrerouting]]
            }
            // What a bridge forwards need not come to IP, and what IP sends it was seen there.
            Hook::Egress if self.bridge.is_some() => &[],
            Hook::BridgeOutput if self.begun => &[],
            Hook::Egress | Hook::BridgeOutput if self.path.family == Family::Arp => &[&[Hook::ArpOutput]],
            // A packet that was cut after POSTROUTING was seen as a whole.
            Hook::Egress | Hook::BridgeOutput
                if visit.entry.is_some_and(|entry| entry.piece != Piece::Whole) =>
            {
                &[]
            }
            Hook::Egress | Hook::BridgeOutput => {
                &[&[Hook::Postrouting, Hook::Output], &[Hook::Postrouting, Hook::Forward, Hook::Prerouting]]
            }
        };
        let seen_at = |hook: &&Hook| self.expected(**hook as u8, (u64::MAX, 0), None, place.connection) != 0;
        let seen: Option<Vec<Hook>> = ways.iter().map(|way| way.iter().find(seen_at).copied()).collect();
        if let Some(mut seen) = seen.filter(|seen| !seen.is_empty()) {
            seen.dedup();
            let names: Vec<_> = seen.into_iter().map(Hook::chain).collect();
            self.doubt(format!("it was not seen in {}", names.join(" or ")));
        }
    }

    /// What IP takes from a device has passed the device's chains. `seen` is the device at which it has met them.
    fn check_ingress(&mut self, visit: &Visit, seen: &[u8]) {
        const INGRESS: u8 = Hook::Ingress as u8;
        let came_in = match hook_of(visit.place.hook) {
            // They know the bridge's ports.
            Hook::BridgePrerouting | Hook::BridgeInput | Hook::BridgeForward => true,
            // With br_netfilter the bridge is named as the device, and not come by yet.
            Hook::Prerouting | Hook::Input | Hook::Forward | Hook::ArpInput => self.bridge.is_none(),
            _ => false,
        };
        if came_in && self.stands.all(INGRESS) != 0 && visit.device(INGRESS) != seen {
            let missing = self.stands.at_device(INGRESS, visit.device(INGRESS)) & self.stands.sure(INGRESS);
            self.not_seen(INGRESS, missing);
        }
    }

    /// Adds what the packet met while this stood at the hooks. Says what it waits for then.
    pub(super) fn go_on(
        &mut self,
        part: Part<'_>,
        visit: &Visit,
        stands: &Rc<Stands>,
        heard_ns: u64,
    ) -> Next {
        if !Rc::ptr_eq(&self.stands, stands) {
            if let Some(Bridged { last, behind, met }) = &mut self.bridge {
                *met = stands.translate(&self.stands, last.hook, *met);
                *behind = stands.before(last.hook, last.priority);
            }
            self.met = stands.translate(&self.stands, self.last.hook, self.met);
            self.behind = stands.before(self.last.hook, self.last.priority);
            self.stands = Rc::clone(stands);
        }
        self.add(part, visit);
        self.exit_ns = visit.entry_ns.max(heard_ns);
        self.next()
    }

    fn add(&mut self, part: Part<'_>, visit: &Visit) {
        let place = &visit.place;
        let (before, bit) = self.stands.place(place.hook, place.priority, place.key);
        let before = before & self.stands.at_device(place.hook, visit.device(place.hook));
        let on_bridge = hook_of(place.hook).is_of_bridge();
        if on_bridge {
            self.cross_bridge(visit, before, bit);
        } else if !self.begun && self.bridge.is_some() {
            self.check_way(visit);
        } else if self.begun {
            let last = self.last;
            // What was missing before that has been said.
            let behind = self.behind;
            let devices = self.devices;
            let same_device = || {
                let (before, now) = (device(&devices, last.hook), visit.device(place.hook));
                (before.is_empty() && now.is_empty()) || before == now
            };
            if last.hook == place.hook && same_device() {
                let among = (before & !behind, self.met);
                let missing = self.expected(place.hook, among, last.connection, place.connection);
                self.not_seen(place.hook, missing);
                if place.priority < last.priority || self.met & bit != 0 {
                    self.doubt("it went back, or is two packets".to_owned());
                }
            } else {
                let among = self.stands.at_device(last.hook, device(&devices, last.hook)) & !behind;
                let missing = self.expected(last.hook, (among, self.met), last.connection, place.connection);
                self.not_seen(last.hook, missing);
                // Those of IP can lie within those of a bridge.
                let passed = if self.bridge.is_some() { self.hooks } else { 0 };
                let skipped = skipped(last.hook, place.hook).iter().map(|hook| *hook as u8);
                for hook in skipped {
                    if passed & 1 << hook != 0 || self.stands.sure(hook) == 0 {
                        continue;
                    }
                    // It left by the device that was known then, and came in by the one that is known now.
                    let between = if hook == Hook::Egress as u8 { &devices } else { &visit.devices };
                    let among = self.stands.at_device(hook, device(between, hook));
                    let missing = self.expected(hook, (among, 0), last.connection, place.connection);
                    self.not_seen(hook, missing);
                }
                if last.hook == Hook::Ingress as u8 {
                    self.check_ingress(visit, device(&devices, last.hook));
                }
                // What conntrack said at another hook does not tell about this one, except that it is the first packet.
                let earlier = last.connection.filter(|_| place.connection.is_none());
                let missing = self.expected(place.hook, (before, 0), earlier, place.connection);
                self.not_seen(place.hook, missing);
                self.met = 0;
            }
        }
        if let Some((last, entry)) = self.header.as_ref().zip(visit.entry.as_ref())
            && (!last.stays(entry) || self.has_other_token(visit))
        {
            self.doubt("another packet may have come to its place in memory".to_owned());
        }
        if let Some(later) = visit.established {
            self.established = Some(self.established.map_or(later, |earlier| earlier.then(later)));
        }
        self.has_nat |= self.stands.nat(place.hook) & self.stands.sure(place.hook) != 0;
        self.queue = part.queue;
        self.is_queued = false;
        self.is_decided =
            part.certainty == Certainty::Complete && part.outcome.is_none() && !part.steps.is_empty();
        if self.path.ending.is_some() {
            // Another packet was freed at its place.
            self.path.ending = None;
        }
        self.header = visit.exit;
        self.token = visit.token;
        if !on_bridge {
            self.devices = visit.devices;
            self.hooks |= 1 << place.hook;
            self.begun = true;
            self.last = *place;
            self.behind = before;
            self.met |= bit;
        }
        self.entry_ns = visit.entry_ns;
        self.path.steps.append(part.steps);
        self.path.verdict = part.verdict.or(self.path.verdict);
        self.path.certainty = self.path.certainty.max(part.certainty);
        self.path.outcome = part.outcome;
        if let Some(why) = part.why
            && !self.path.why.contains(&why)
        {
            self.path.why.push(why);
        }
        if let Some(generation) = part.generation {
            self.path.generation.push(generation);
        }
        self.path.sighting =
            part.sighting.or(self.path.sighting.take()).filter(|_| self.path.steps.is_empty());
    }

    /// Checks what the packet meets at a hook of a bridge against what it met there before.
    fn cross_bridge(&mut self, visit: &Visit, before: u64, bit: u64) {
        let place = visit.place;
        let mut here = 0;
        match self.bridge {
            Some(Bridged { last, behind, met }) if last.hook == place.hook => {
                self.not_seen(place.hook, self.stands.sure(place.hook) & before & !behind & !met);
                if place.priority < last.priority || met & bit != 0 {
                    self.doubt("it went back, or is two packets".to_owned());
                }
                here = met;
            }
            Some(Bridged { last, behind, met }) => {
                self.not_seen(last.hook, self.stands.sure(last.hook) & !behind & !met);
                for hook in skipped(last.hook, place.hook).iter().map(|hook| *hook as u8) {
                    self.not_seen(hook, self.stands.sure(hook));
                }
                self.not_seen(place.hook, self.stands.sure(place.hook) & before);
            }
            None if self.begun => {
                self.check_way(visit);
                if self.last.hook == Hook::Ingress as u8 {
                    let devices = self.devices;
                    self.check_ingress(visit, device(&devices, self.last.hook));
                }
            }
            None => {}
        }
        self.bridge = Some(Bridged { last: place, behind: before, met: here | bit });
    }

    /// What a bridge let pass has met all that stands at its hooks.
    fn check_bridge(&mut self) {
        let Some(Bridged { last, behind, met }) = self.bridge else { return };
        // With br_netfilter others are put together with the last one, before the bridge lets that pass.
        if self.header.is_some_and(|header| header.piece != Piece::Whole) {
            return;
        }
        self.not_seen(last.hook, self.stands.sure(last.hook) & !behind & !met);
        let came_up = self.begun && matches!(hook_of(self.last.hook), Hook::Input | Hook::ArpInput);
        if last.hook == Hook::BridgePrerouting as u8 && came_up {
            let hook = Hook::BridgeInput as u8;
            self.not_seen(hook, self.stands.sure(hook));
        }
    }

    /// What can still come at the hook where the packet was last.
    fn ahead(&self) -> u64 {
        if !self.begun {
            return 0;
        }
        let Place { hook, priority, connection, .. } = self.last;
        let here = self.stands.at_device(hook, device(&self.devices, hook));
        let ahead = self.stands.all(hook) & here & !self.behind & !self.met;
        let nat = match connection {
            Some(connection) => connection.may_be_first() && !connection.is_done(hook),
            None => is_destination(hook) && priority < CONNTRACK,
        };
        if nat { ahead } else { ahead & !self.stands.nat(hook) }
    }

    /// What can be seen of the packet after what it met last.
    #[inline]
    pub(super) fn next(&self) -> Next {
        match self.path.verdict {
            Some(Verdict::Drop | Verdict::Stolen) => Next::Nothing,
            Some(Verdict::Accept) if !self.is_unfinished() => Next::Nothing,
            Some(Verdict::Queue) => Next::Verdict,
            _ => Next::Stand,
        }
    }

    /// Whether it was let through, and there are tables it can still meet.
    #[inline]
    pub(super) fn is_unfinished(&self) -> bool {
        let over = matches!(self.path.verdict, Some(Verdict::Drop | Verdict::Stolen));
        !over
            && (self.stands.goes_on(self.last.hook, self.last.loopback)
                || self.ahead() != 0
                || self.bridge.is_some()
                || self.stands.has_bridges()
                || (self.stands.has_devices() && self.meets_devices()))
    }

    /// Whether there are chains of devices that it can meet next.
    fn meets_devices(&self) -> bool {
        const EGRESS: u8 = Hook::Egress as u8;
        let others = |hook: u8| self.stands.all(hook) & !self.met != 0;
        match hook_of(self.last.hook) {
            // One device can be on top of another.
            Hook::Ingress => others(Hook::Ingress as u8) || self.stands.all(EGRESS) != 0,
            Hook::Egress => others(EGRESS),
            Hook::Prerouting => self.stands.all(EGRESS) != 0,
            Hook::Forward | Hook::Output | Hook::Postrouting | Hook::ArpOutput => {
                self.stands.at_device(EGRESS, device(&self.devices, EGRESS)) != 0
            }
            _ => false,
        }
    }

    /// Whether it has to be seen again: between these hooks hardly anything drops a packet.
    fn must_go_on(&self) -> bool {
        if !self.begun {
            return false;
        }
        let (hook, loopback) = (hook_of(self.last.hook), self.last.loopback);
        let next: &[Hook] = match hook {
            Hook::Forward | Hook::Output => &[Hook::Postrouting, Hook::Egress],
            Hook::ArpOutput => &[Hook::Egress],
            Hook::Postrouting if loopback => &[Hook::Egress, Hook::Ingress, Hook::Prerouting],
            Hook::Postrouting => &[Hook::Egress],
            Hook::Egress if loopback => &[Hook::Ingress, Hook::Prerouting],
            _ => &[],
        };
        let must = |hook: u8, among| among & self.stands.sure(hook) & !self.stands.nat(hook) != 0;
        // What leaves by a loopback device comes in by it.
        let [_, outdev] = self.devices;
        let there = |hook| self.stands.at_device(hook, trimmed(&outdev));
        next.iter().any(|hook| must(*hook as u8, there(*hook as u8)))
            || (!matches!(hook, Hook::Forward | Hook::Output) && must(self.last.hook, self.ahead()))
    }

    /// The path as it is now. A packet that could have been seen again and was not may have been missed, if any
    /// traversal was missed at that time. One that had to be seen again was missed, where `hears_of_freed` says that it would
    /// be known if the kernel had freed it.
    pub(super) fn end(&mut self, windows: &VecDeque<Window>, last_missed_ns: u64, hears_of_freed: bool) {
        let is_done = self.has_become && self.ahead() == 0;
        if !is_done && self.is_unfinished() {
            // It may have waited for any time in a queue.
            let missed = match self.path.verdict {
                Some(Verdict::Queue) => last_missed_ns >= self.entry_ns,
                _ => {
                    self.may_lack
                        || windows.iter().any(|window| {
                            window.until_ns >= self.entry_ns && window.since_ns <= self.exit_ns + SOON_NS
                        })
                }
            };
            let (is_freed, is_told) =
                (matches!(self.path.ending, Some(Ending::Freed(_))), self.path.ending.is_some());
            let nothing_tells =
                if self.stands.has_witness() { hears_of_freed && !is_told } else { !is_freed };
            let is_cut = self.path.outcome.as_deref() == Some(CUT) && self.ahead() == 0;
            let unwitnessed =
                self.path.verdict == Some(Verdict::Accept) && nothing_tells && !is_cut && self.must_go_on();
            if unwitnessed {
                let chain = hook_of(self.last.hook).chain();
                self.doubt(format!("it was not seen after {chain}"));
            } else if missed {
                let chain = hook_of(self.last.hook).chain();
                self.doubt(format!("it was not seen after {chain}, when some traversals were missed"));
            }
        }
        if self.path.verdict == Some(Verdict::Accept) {
            self.check_bridge();
        }
        self.path.note = self.established.and_then(|established| established.text(self.has_nat));
    }

    /// Says how the packet ended, if that is not known from elsewhere.
    pub(super) fn tell_ending(&mut self) {
        if self.path.ending.is_none() {
            self.path.ending = self.seen_ending();
        }
    }

    /// How it ended, as far as what it met tells.
    fn seen_ending(&self) -> Option<Ending> {
        // A bridge takes a packet from its port to another one past the hooks of IP, or around them.
        let last = match &self.bridge {
            Some(bridge) if !self.begun || bridge.last.hook == Hook::BridgePostrouting as u8 => &bridge.last,
            _ => &self.last,
        };
        let hook = hook_of(last.hook);
        let is_out = matches!(hook, Hook::Postrouting | Hook::Egress);
        let came_from = |hooks: &[Hook]| hooks.iter().any(|hook| self.hooks & 1 << *hook as u8 != 0);
        match self.path.verdict? {
            // That another packet has its place now says nothing of how it left.
            _ if self.path.outcome.is_some() => None,
            Verdict::Drop => self.is_decided.then_some(Ending::Dropped),
            Verdict::Stolen => self.is_decided.then_some(Ending::Stolen),
            Verdict::Queue => Some(Ending::Queued { queue: self.queue }),
            Verdict::Accept if self.has_to_go_on(hook) => Some(Ending::Unknown),
            Verdict::Accept if is_out && came_from(&[Hook::Output]) => {
                Some(Ending::Sent(Device(self.devices[1])))
            }
            Verdict::Accept if is_out && came_from(&[Hook::Prerouting, Hook::Forward]) => {
                Some(Ending::Forwarded(Device(self.devices[1])))
            }
            Verdict::Accept => Some(Ending::Accepted(hook)),
            Verdict::Repeat | Verdict::Other(_) => None,
        }
    }

    /// Whether it can only have been seen again, unless it ended.
    fn has_to_go_on(&self, hook: Hook) -> bool {
        let stands = |hook: Hook| self.stands.sure(hook as u8) & !self.stands.nat(hook as u8) != 0;
        let is_routed = hook == Hook::Prerouting
            && stands(Hook::Input)
            && (stands(Hook::Forward) || stands(Hook::Postrouting));
        is_routed || self.must_go_on()
    }

    /// Where functions can have seen it after what it met last: up to what it had to meet next.
    pub(super) fn unseen(&self) -> Vec<(Hook, i32, i32)> {
        let ahead = self.ahead();
        let first = |hook: Hook, among: u64| {
            let hook = hook as u8;
            self.stands.first_priority(hook, among & self.stands.sure(hook) & !self.stands.nat(hook))
        };
        let here = first(hook_of(self.last.hook), ahead);
        unseen(self.last, here, |hook| first(hook, u64::MAX))
    }
}
