//! A packet on its way: what it met so far, and what it may meet next.

use super::identity::{Facts, Identity};
use super::place::{BEGINNING, Place};
use super::{Grouped, Hold, IDLE_ROWS, Logged, Met, Placed, QUEUED_NS, Row};
use crate::netfilter::{Family, Hook, StepKind, Verdict};
use crate::packet::data::Data;
use crate::packet::{Headers, Packet, PacketView, upper};
use crate::path::{Action, Certainty, Path};
use std::rc::Rc;

/// Steps that are held back while it is not known where they stand.
const MOST_HELD: usize = 64;
/// A packet that moved among the last so many steps, and not longer ago than this, may have been on its way when they
/// ended. As many packets can be on their way as there are CPUs; logs often tell whole seconds only.
const LATELY_ROWS: u64 = 16;
const LATELY_NS: u64 = 1_000_000_000;
/// Doubts that are told of one packet.
const MOST_REASONS: usize = 8;
/// Steps of one packet; no ruleset has a longer way.
const MOST_STEPS: usize = 100_000;

/// How a step continues a packet's path.
#[derive(Clone, Debug)]
pub(super) enum Fit {
    /// In the same table. The chains that stay open, of those that are.
    SameTable {
        kept: usize,
        /// The hook of the built-in chain that this step is the first to tell, and whether the steps before can only have
        /// been at the same.
        root: Option<(Hook, bool)>,
    },
    /// In another table. Places between that other packets were seen in, and how much has to be assumed of what happened
    /// between: that NAT changed addresses or ports, that a router left the time to live as it was.
    NextTable { unseen: Vec<Place>, changes: u8 },
    /// Only if steps between were lost.
    Forced,
}

impl Fit {
    /// How much has to be assumed. A packet of which nothing has leaves no room for one of which something has: that NAT
    /// makes a packet equal to another that is on its way, or that steps were lost.
    pub(super) fn assumed(&self) -> u8 {
        match self {
            Self::SameTable { .. } => 0,
            Self::NextTable { unseen, changes } => changes + 4 * u8::from(!unseen.is_empty()),
            Self::Forced => 8,
        }
    }
}

/// A packet on its way.
#[derive(Debug)]
pub(super) struct Open {
    number: u64,
    facts: Facts,
    /// The last step.
    last: Row,
    /// The hook of the last step, and its place in the stack.
    hook: Option<Hook>,
    place: Option<Place>,
    /// Chains that are open in the current table, outermost first, with the last entry met in each.
    chains: Vec<(Rc<Met>, u32)>,
    /// Whether the first of them is a built-in chain.
    rooted: bool,
    steps: Vec<Rc<str>>,
    held: Vec<Held>,
    why: Vec<String>,
    outcome: Option<String>,
    /// The row that was its last.
    pub(super) moved: u64,
}

/// What is not given out yet.
#[derive(Debug)]
enum Held {
    Step(Placed),
    Logged(Logged),
}

impl Open {
    /// `doubt` is about the row as a packet's first.
    pub(super) fn begin(
        (number, doubt): (u64, Option<&'static str>),
        row: Row,
        facts: &Facts,
        moved: u64,
        seen: &mut u32,
        hold: Hold,
        give: &mut impl FnMut(Grouped),
    ) -> Self {
        let mut open = Self {
            number,
            facts: *facts,
            last: row.clone(),
            hook: None,
            place: None,
            chains: Vec::new(),
            rooted: false,
            steps: Vec::new(),
            held: Vec::new(),
            why: Vec::new(),
            outcome: None,
            moved,
        };
        if let Some(doubt) = doubt {
            open.doubt(doubt.into());
        }
        open.enter_table(&row);
        open.take(row, facts, moved, seen, hold, give);
        open
    }

    pub(super) fn identity(&self) -> Identity {
        self.facts.identity
    }

    /// The namespace and family that it is of.
    pub(super) fn sort(&self) -> (Option<u32>, Family) {
        (self.last.netns, self.last.packet.family)
    }

    pub(super) fn doubt(&mut self, why: String) {
        if self.why.len() < MOST_REASONS && !self.why.contains(&why) {
            self.why.push(why);
        }
    }

    pub(super) fn is_idle(&self, rows: u64, clock_ns: Option<u64>, patience_ns: u64) -> bool {
        let waited = clock_ns.zip(self.last.clock_ns).map_or(0, |(now, then)| now.saturating_sub(then));
        if self.last.met.waits && clock_ns.is_some() {
            return waited > QUEUED_NS;
        }
        rows - self.moved > IDLE_ROWS || waited > patience_ns
    }

    /// Whether it may go on after the last row: it moved just before, and is not where the stack ends.
    pub(super) fn may_go_on(&self, rows: u64, clock_ns: Option<u64>, seen: u32) -> bool {
        let waited = clock_ns.zip(self.last.clock_ns).map(|(now, then)| now.saturating_sub(then));
        let moved_lately = rows - self.moved < LATELY_ROWS && waited.is_none_or(|ns| ns <= LATELY_NS);
        let is_last = |place: Place| {
            matches!(place.hook, Hook::Input | Hook::Postrouting)
                && !self.is_on_loopback()
                && !place.is_followed_at_hook(seen)
        };
        moved_lately && !(self.last.met.kind == StepKind::Policy && self.place.is_some_and(is_last))
    }

    /// Whether a step can be the packet's next.
    pub(super) fn fit(&self, row: &Row, facts: &Facts, seen: u32) -> Option<Fit> {
        if facts.identity != self.facts.identity || self.steps.len() >= MOST_STEPS {
            return None;
        }
        self.same_table(row, facts)
            .or_else(|| self.next_table(row, facts, seen))
            .or_else(|| self.forced(row, facts))
    }

    fn same_table(&self, row: &Row, facts: &Facts) -> Option<Fit> {
        let same = row.met.table == self.last.met.table
            && self.has_devices_of(&row.packet)
            && facts.same_ends(&self.facts);
        if !same {
            return None;
        }
        if let Some(at) = self.chains.iter().position(|(met, _)| met.chain == row.met.chain) {
            return (row.met.number > self.chains[at].1)
                .then_some(Fit::SameTable { kept: at + 1, root: None });
        }
        match row.met.root {
            // The way into the first chain is not known; it leads back to the built-in one, unless that could be a later
            // hook of the same table.
            Some(hook) if !self.rooted => {
                let mut possible = row.met.possible_hooks(&self.last.packet).peekable();
                let certain = possible.peek() == Some(&hook) || self.hook == Some(hook);
                (possible.any(|possible| possible == hook) && self.last.met.kind != StepKind::Policy)
                    .then_some(Fit::SameTable { kept: 0, root: Some((hook, certain)) })
            }
            Some(_) => None,
            None => match self.last.met.kind {
                StepKind::Rule => Some(Fit::SameTable { kept: self.chains.len(), root: None }),
                // Back to a chain that called before the first step was told.
                StepKind::Return if !self.rooted => Some(Fit::SameTable { kept: 0, root: None }),
                StepKind::Return | StepKind::Policy => None,
            },
        }
    }

    fn next_table(&self, row: &Row, facts: &Facts, seen: u32) -> Option<Fit> {
        let to = row.met.place_at(row.met.root?)?;
        let translated = u8::from(!facts.same_ends(&self.facts));
        let Some(from) = self.place else {
            // Where it was is not known: any place that could come before.
            let fits = self.last.met.possible_places(&self.last.packet).any(|from| {
                from.leads_to(to, self.is_on_loopback()) && facts.follow(&self.facts, Some((from, to)))
            });
            return fits.then(|| Fit::NextTable { unseen: Vec::new(), changes: translated });
        };
        let unseen = from.between(to, self.is_on_loopback(), seen)?;
        if !facts.follow(&self.facts, Some((from, to))) || !self.devices_lead_to(&row.packet, from, to) {
            return None;
        }
        let changes = translated + u8::from(from.is_routed_to(to) && !self.was_routed(row, facts));
        Some(Fit::NextTable { unseen, changes })
    }

    /// Whether it has lost one of its time to live, as at a router; a bridge leaves it.
    fn was_routed(&self, row: &Row, facts: &Facts) -> bool {
        let (before, now) = (self.facts.headers.ttl, facts.headers.ttl);
        row.packet.link.physin.is_some() || before.and_then(|ttl| ttl.checked_sub(1)) == now
    }

    /// The same packet in all respects, not before the place where it was.
    fn forced(&self, row: &Row, facts: &Facts) -> Option<Fit> {
        if row.met.sort == Some(BEGINNING)
            || !self.has_devices_of(&row.packet)
            || !facts.same_ends(&self.facts)
        {
            return None;
        }
        let mut places = row.met.possible_places(&row.packet);
        let later = match self.place {
            Some(from) => places.any(|to| from.leads_to(to, self.is_on_loopback())) && row.met.root.is_none(),
            None => false,
        };
        later.then_some(Fit::Forced)
    }

    fn has_devices_of(&self, packet: &Packet) -> bool {
        let last = &self.last.packet;
        (&last.indev, &last.outdev) == (&packet.indev, &packet.outdev)
            && (&last.link.physin, &last.link.physout) == (&packet.link.physin, &packet.link.physout)
    }

    /// Whether a packet with the devices of the last step can have those of another at a later place. A packet that this
    /// host sends may be routed anew.
    fn devices_lead_to(&self, packet: &Packet, from: Place, to: Place) -> bool {
        let last = &self.last.packet;
        match (from.hook, to.hook) {
            (Hook::Prerouting, Hook::Input | Hook::Forward) => last.indev == packet.indev,
            (Hook::Forward, Hook::Postrouting) => last.outdev == packet.outdev,
            (Hook::Output | Hook::Postrouting, Hook::Prerouting | Hook::Input) => last.outdev == packet.indev,
            (from, to) if from == to && from != Hook::Output => self.has_devices_of(packet),
            _ => true,
        }
    }

    fn is_on_loopback(&self) -> bool {
        self.last.packet.outdev.as_deref() == Some(b"lo")
    }

    /// Takes a step that fits.
    #[expect(clippy::too_many_arguments, reason = "one step, and all that it touches")]
    pub(super) fn add(
        &mut self,
        fit: Fit,
        row: Row,
        facts: &Facts,
        moved: u64,
        seen: &mut u32,
        hold: Hold,
        give: &mut impl FnMut(Grouped),
    ) {
        let action = self.action_before(&fit, &row);
        if let Some(Held::Step(step)) = self.held.iter_mut().rev().find(|held| matches!(held, Held::Step(_)))
        {
            step.action = action;
        }
        match fit {
            Fit::SameTable { kept, root } => {
                if let Some((hook, certain)) = root {
                    if certain {
                        self.tell_hook(hook);
                    }
                    self.rooted = true;
                    self.hook = Some(hook);
                    self.place = row.met.place_at(hook);
                }
                self.chains.truncate(kept);
            }
            Fit::NextTable { unseen, .. } => {
                for place in unseen {
                    self.doubt(format!("no step of {} is there, and other packets have some", place.name()));
                }
                self.enter_table(&row);
            }
            Fit::Forced => {
                self.doubt(format!("steps before {} are not there", row.met.name));
                self.enter_table(&row);
            }
        }
        self.give_held(hold, give);
        self.take(row, facts, moved, seen, hold, give);
    }

    /// What the last entry did, now that the next is known.
    fn action_before(&self, fit: &Fit, row: &Row) -> Option<Action<'static>> {
        let (last, next) = (&self.last.met, &row.met);
        match fit {
            Fit::Forced | Fit::SameTable { root: Some((_, false)), .. } => None,
            Fit::NextTable { .. } => Some(Action::Verdict(Verdict::Accept)),
            // A chain that was called would have told of its end, at least.
            Fit::SameTable { .. } if last.kind == StepKind::Rule && last.chain == next.chain => {
                Some(Action::Continue)
            }
            Fit::SameTable { .. } if last.kind != StepKind::Rule => Some(Action::Return),
            Fit::SameTable { kept, .. } if *kept < self.chains.len() => Some(Action::Return),
            // Whether to come back or not.
            Fit::SameTable { .. } => None,
        }
    }

    /// Begins a table.
    fn enter_table(&mut self, row: &Row) {
        self.chains.clear();
        let met = &row.met;
        self.rooted = met.root.is_some();
        self.hook = met.root.or_else(|| met.sort?.only_hook(&row.packet));
        self.place = self.hook.and_then(|hook| met.place_at(hook));
    }

    fn take(
        &mut self,
        row: Row,
        facts: &Facts,
        moved: u64,
        seen: &mut u32,
        hold: Hold,
        give: &mut impl FnMut(Grouped),
    ) {
        if let Some(place) = self.place {
            *seen |= place.bit();
        }
        match self.chains.last_mut() {
            Some((met, number)) if met.chain == row.met.chain => *number = row.met.number,
            _ => self.chains.push((Rc::clone(&row.met), row.met.number)),
        }
        self.facts = *facts;
        self.moved = moved;
        self.steps.push(Rc::clone(&row.met.name));
        self.last = row.clone();
        let step = Placed { packet: self.number, hook: self.hook, action: None, row };
        match hold {
            Hold::Never => give(Grouped::Step(step)),
            Hold::UntilKnown => self.held.push(Held::Step(step)),
        }
    }

    /// The hook of all steps that were held back because of it.
    fn tell_hook(&mut self, hook: Hook) {
        let table = &self.last.met.table;
        for held in self.held.iter_mut().rev() {
            match held {
                Held::Step(step) if step.hook.is_none() && step.row.met.table == *table => {
                    step.hook = Some(hook)
                }
                Held::Step(_) => break,
                Held::Logged(_) => {}
            }
        }
    }

    /// Gives out what is known, up to the first step that stands nobody knows where yet.
    fn give_held(&mut self, hold: Hold, give: &mut impl FnMut(Grouped)) {
        let waits = self.hook.is_none() && self.held.len() < MOST_HELD && hold == Hold::UntilKnown;
        if !waits {
            self.give_all(give);
        }
    }

    fn give_all(&mut self, give: &mut impl FnMut(Grouped)) {
        let packet = self.number;
        for held in self.held.drain(..) {
            give(match held {
                Held::Step(step) => Grouped::Step(step),
                Held::Logged(logged) => Grouped::Logged { packet, logged },
            });
        }
    }

    /// Whether the rule of the last step can have written about a packet.
    pub(super) fn may_have_logged(&self, packet: &Packet, headers: &Headers) -> bool {
        self.last.met.kind == StepKind::Rule
            && self.has_devices_of(packet)
            && self.last.packet.mark == packet.mark
            && self.facts.headers == *headers
    }

    pub(super) fn log(&mut self, logged: Logged, hold: Hold, give: &mut impl FnMut(Grouped)) {
        match hold {
            Hold::Never => give(Grouped::Logged { packet: self.number, logged }),
            Hold::UntilKnown => self.held.push(Held::Logged(logged)),
        }
    }

    pub(super) fn is_quoted_by(&self, inner: &Facts) -> bool {
        inner.same_ends(&self.facts)
    }

    /// Another packet tells the sender of this one about it.
    pub(super) fn answered(&mut self, by: u64, view: &PacketView<'_>) {
        let message = upper(view).and_then(|(_, offset)| Data::of(view).header(offset?).ok());
        if let Some(&[kind, code]) = message {
            self.outcome = Some(format!("answered by packet {by} with icmp type {kind} code {code}"));
        }
    }

    /// Gives out all that is left.
    pub(super) fn close(mut self, give: &mut impl FnMut(Grouped)) {
        // The nat table lets nothing but acceptance end its built-in chains; iptables sees to that.
        let accepted = &*self.last.met.table == "nat" && self.last.met.kind == StepKind::Policy;
        let verdict = accepted.then_some(Verdict::Accept);
        if let Some(Held::Step(step)) = self.held.iter_mut().rev().find(|held| matches!(held, Held::Step(_)))
        {
            step.action = verdict.map(Action::Verdict);
        }
        self.give_all(give);
        give(Grouped::Path(Box::new(Path {
            steps: self.steps,
            verdict,
            certainty: if self.why.is_empty() { Certainty::Complete } else { Certainty::Inexact },
            why: self.why,
            outcome: self.outcome,
            ..Path::new(self.number, self.last.packet.family, self.last.netns)
        })));
    }
}
