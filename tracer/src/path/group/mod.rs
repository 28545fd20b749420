//! Steps that come one by one, without a word on which packet they are of, put together to paths.
//!
//! The kernel's own tracing tells of each rule and of the packet's headers, devices and mark at that moment, not of the
//! packet's identity. A step belongs to a packet that is still on its way when
//!
//! - it is of the same namespace, family and protocol, with the same identification, sequence numbers and length;
//! - it comes next: further on in the same chain, in a chain that the last rule may have called, in one that called, or
//!   in a table that comes later in the stack;
//! - addresses and ports are the same, or NAT had the chance to change them on the way.
//!
//! Where several packets qualify alike, the one that moved last gets the step, and all are in doubt. So are packets that
//! begin elsewhere than where tracing begins ([`place::BEGINNING`]), and packets that pass a table unseen which others
//! were seen in.

mod identity;
pub mod join;
mod open;
mod place;
#[cfg(test)]
mod tests;

use super::{Action, Path};
use crate::hash::KernelMap;
use crate::netfilter::{Engine, Family, Hook, StepKind};
use crate::packet::{Packet, headers, quoted};
use crate::ruleset::Rule;
use crate::trace_line::StepName;
use identity::{Facts, Identity};
use open::{Fit, Open};
use place::{BEGINNING, Place, Table};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A packet that did not move for this long is done; logs often tell whole seconds only.
const IDLE_NS: u64 = 2_000_000_000;
/// So is one that did not move while this many other steps were told.
const IDLE_ROWS: u64 = 4096;
/// A packet that waits for a program in user space is done when it did not come back for this long.
const QUEUED_NS: u64 = 10_000_000_000;
/// Packets on their way that are remembered.
const MOST_OPEN: usize = 1024;
/// Idle packets are looked for every so many rows.
const ROWS_PER_LOOK: u64 = 64;

/// What was met, taken apart once for all steps that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// `table:chain:kind:number`
    pub name: Rc<str>,
    /// The table's name.
    pub table: Rc<str>,
    /// The chain's name.
    pub chain: Rc<str>,
    /// The word for the entry's shape.
    pub kind: StepKind,
    /// The entry's place in the chain, from 1.
    pub number: u32,
    /// Whether packets may wait here for long, because a program in user space decides on them.
    waits: bool,
    /// Which table it is, of those that the kernel knows.
    sort: Option<Table>,
    /// The hook, where the chain is a built-in one.
    root: Option<Hook>,
}

impl From<StepName<'_>> for Met {
    fn from(step: StepName<'_>) -> Self {
        let sort = Table::named(step.table);
        Self {
            name: step.to_string().into(),
            table: step.table.into(),
            chain: step.chain.into(),
            kind: step.kind,
            number: step.number,
            waits: false,
            sort,
            root: sort.and_then(|table| table.builtin(step.chain)),
        }
    }
}

impl Met {
    /// The same, with word on whether a program in user space decides there on packets, which may take long.
    #[must_use]
    pub fn waiting(self, waits: bool) -> Self {
        Self { waits, ..self }
    }

    /// Where in the stack its table is at a hook.
    fn place_at(&self, hook: Hook) -> Option<Place> {
        Some(Place::new(self.sort?, hook))
    }

    /// The hooks at which a packet with these devices can have met it.
    fn possible_hooks(&self, packet: &Packet) -> impl Iterator<Item = Hook> {
        self.sort.into_iter().flat_map(|table| table.possible_hooks(packet))
    }

    fn possible_places(&self, packet: &Packet) -> impl Iterator<Item = Place> {
        self.possible_hooks(packet).filter_map(|hook| self.place_at(hook))
    }

    /// What a step says of it where the rules themselves are not at hand.
    pub fn rule(&self, family: Family) -> Rule<'_> {
        Rule {
            engine: Engine::Legacy,
            family: family.into(),
            table: &self.table,
            chain: &self.chain,
            kind: self.kind,
            number: Some(self.number),
            handle: None,
            text: None,
            nft: None,
            owner: None,
        }
    }
}

/// Whether a packet that a table lets go on at a hook, there or later, meets one of `places`: tables at hooks. Those of nat do
/// not count, for it is not asked about every packet.
pub fn goes_on<'a>(
    (table, hook): (&str, Hook),
    on_loopback: bool,
    mut places: impl Iterator<Item = (&'a str, Hook)>,
) -> bool {
    let Some(from) = Table::named(table).map(|table| Place::new(table, hook)) else { return false };
    let later = |to, hook| from.leads_to(Place::new(to, hook), on_loopback);
    places.any(|(table, hook)| {
        Table::named(table).is_some_and(|table| table != Table::Nat && later(table, hook))
    })
}

/// A step as the kernel told of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was met.
    pub met: Rc<Met>,
    /// The packet at that moment. Rows may share one.
    pub packet: Rc<Packet>,
    /// When, in nanoseconds since the epoch, where that is known.
    pub time_ns: Option<u64>,
    /// When, in nanoseconds since any beginning: tells for how long a packet did not move.
    pub clock_ns: Option<u64>,
    /// Inode number of the network namespace, where that is known.
    pub netns: Option<u32>,
}

/// A line of the LOG target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What the rule begins its lines with.
    pub prefix: Rc<str>,
    /// The whole line.
    pub line: Rc<str>,
}

/// What comes out.
#[derive(Clone, Debug)]
pub enum Grouped {
    /// A step of a packet. Those of one packet come in their order.
    Step(Placed),
    /// The LOG target wrote a line about a packet, by the rule of the step before.
    Logged {
        /// The packet's number.
        packet: u64,
        /// The line.
        logged: Logged,
    },
    /// All steps of a packet have been given out.
    Path(Box<Path>),
}

/// A step with its packet.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The packet's number, from 1.
    pub packet: u64,
    /// Where in the stack; `None` where that cannot be told.
    pub hook: Option<Hook>,
    /// What the entry did, where what came next tells.
    pub action: Option<Action<'static>>,
    /// What was told.
    pub row: Row,
}

/// When steps are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// When the packet's next step tells what the entry did, and where it stood if that was not known.
    #[default]
    UntilKnown,
    /// At once, in the order in which they came; what later steps would tell is left out.
    Never,
}

/// Puts steps together.
#[derive(Debug)]
pub struct Grouper {
    hold: Hold,
    /// A packet that did not move for this long is done.
    patience_ns: u64,
    open: BTreeMap<u64, Open>,
    by_identity: KernelMap<Identity, Vec<u64>>,
    /// Packets begun so far.
    count: u64,
    /// Rows so far, and when the last was.
    rows: u64,
    clock_ns: Option<u64>,
    /// Places that any packet was seen in: a set of [`Place::bit`], for each namespace and family.
    seen: KernelMap<(Option<u32>, Family), u32>,
    /// The same of tables that are known to be loaded, where that is known.
    loaded: KernelMap<(Option<u32>, Family), u32>,
    /// The last packet, with what is compared of it.
    recent: Option<(Rc<Packet>, Facts)>,
}

impl Grouper {
    /// Has seen nothing yet.
    pub fn new(hold: Hold) -> Self {
        Self {
            hold,
            patience_ns: IDLE_NS,
            open: BTreeMap::new(),
            by_identity: KernelMap::default(),
            count: 0,
            rows: 0,
            clock_ns: None,
            seen: KernelMap::default(),
            loaded: KernelMap::default(),
            recent: None,
        }
    }

    /// Takes a packet that did not move for so long for done: for rows whose times are exact.
    #[must_use]
    pub fn with_patience(self, patience_ns: u64) -> Self {
        Self { patience_ns, ..self }
    }

    /// Tells that packets of a namespace and family meet this table at this hook, from now on. Where nothing is told, it is
    /// learnt from what packets meet, and tracing is taken to begin in the raw table.
    pub fn loaded(&mut self, netns: Option<u32>, family: Family, table: &str, hook: Hook) {
        let Some(place) = Table::named(table).map(|table| Place::new(table, hook)) else { return };
        for places in [&mut self.seen, &mut self.loaded] {
            *places.entry((netns, family)).or_default() |= place.bit();
        }
    }

    /// What is in doubt about a packet whose first step this is.
    fn doubt_at_beginning(&self, row: &Row) -> Option<&'static str> {
        let Some(loaded) = self.loaded.get(&(row.netns, row.packet.family)) else {
            let begins = row.met.sort == Some(BEGINNING);
            return (!begins).then_some("its first steps are not there: tracing begins in the raw table");
        };
        let place = row.met.root.and_then(|hook| row.met.place_at(hook));
        let begins = place.is_some_and(|place| place.can_be_first(*loaded));
        (!begins).then_some("its first steps are not there")
    }

    /// Takes a step. Says of which packet it is.
    pub fn add(&mut self, row: Row, give: &mut impl FnMut(Grouped)) -> u64 {
        self.rows += 1;
        self.clock_ns = row.clock_ns.or(self.clock_ns);
        if self.rows.is_multiple_of(ROWS_PER_LOOK) {
            self.close_idle(row.clock_ns, give);
        }
        let facts = self.facts(&row);
        let seen = self.seen.entry((row.netns, row.packet.family)).or_default();
        let candidates = self.by_identity.get(&facts.identity).map_or(&[][..], Vec::as_slice);
        let number = match choose(&self.open, candidates, &row, &facts, *seen) {
            Choice::One(number, fit) => {
                if let Some(open) = self.open.get_mut(&number) {
                    open.add(fit, row, &facts, self.rows, seen, self.hold, give);
                }
                number
            }
            Choice::Several(number, fit, all) => {
                for other in all {
                    if let Some(open) = self.open.get_mut(&other) {
                        open.doubt(
                            "another packet with the same headers was on its way at the same time".into(),
                        );
                    }
                }
                if let Some(open) = self.open.get_mut(&number) {
                    open.add(fit, row, &facts, self.rows, seen, self.hold, give);
                }
                number
            }
            Choice::None => {
                self.count += 1;
                let number = self.count;
                let doubt = self.doubt_at_beginning(&row);
                for other in candidates.iter().filter(|_| doubt.is_some()) {
                    if let Some(open) = self.open.get_mut(other) {
                        open.doubt(format!("packet {number} may be the rest of it"));
                    }
                }
                self.answer(number, &row);
                let seen = self.seen.entry((row.netns, row.packet.family)).or_default();
                let open = Open::begin((number, doubt), row, &facts, self.rows, seen, self.hold, give);
                self.open.insert(number, open);
                self.by_identity.entry(facts.identity).or_default().push(number);
                number
            }
        };
        if self.open.len() > MOST_OPEN {
            self.close_least_recent(number, give);
        }
        number
    }

    /// Takes a line of the LOG target. Says whether it is about a packet on its way.
    pub fn log(&mut self, packet: &Packet, logged: Logged, give: &mut impl FnMut(Grouped)) -> bool {
        let headers = headers(&packet.view());
        let mut fitting = self.open.iter().filter(|(_, open)| open.may_have_logged(packet, &headers));
        let (Some((&number, _)), None) = (fitting.next(), fitting.next()) else { return false };
        if let Some(open) = self.open.get_mut(&number) {
            open.log(logged, self.hold, give);
        }
        true
    }

    /// Closes a packet that is known to have ended.
    pub fn over(&mut self, number: u64, give: &mut impl FnMut(Grouped)) {
        self.close(number, give);
    }

    /// Steps may have been lost here: all packets on their way are in doubt.
    pub fn lost(&mut self, why: &str) {
        self.open.values_mut().for_each(|open| open.doubt(why.to_owned()));
    }

    /// Closes packets that did not move lately. `clock_ns` is as in [`Row`].
    pub fn expire(&mut self, clock_ns: u64, give: &mut impl FnMut(Grouped)) {
        self.close_idle(Some(clock_ns), give);
    }

    /// Closes all packets: no more steps will come.
    pub fn finish(&mut self, give: &mut impl FnMut(Grouped)) {
        self.by_identity.clear();
        for mut open in std::mem::take(&mut self.open).into_values() {
            let seen = self.seen.get(&open.sort()).copied().unwrap_or_default();
            if open.may_go_on(self.rows, self.clock_ns, seen) {
                open.doubt("the log ends when it may have been on its way".into());
            }
            open.close(give);
        }
    }

    fn facts(&mut self, row: &Row) -> Facts {
        match &self.recent {
            Some((packet, facts)) if Rc::ptr_eq(packet, &row.packet) => *facts,
            _ => {
                let facts = Facts::of(row);
                self.recent = Some((Rc::clone(&row.packet), facts));
                facts
            }
        }
    }

    /// A packet that this host sends may quote one that it did not let through.
    fn answer(&mut self, number: u64, row: &Row) {
        let view = row.packet.view();
        if view.indev.is_some() {
            return;
        }
        let Some(inner) = quoted(&view) else { return };
        let facts = Facts::of_view(row.netns, &inner);
        for other in self.by_identity.get(&facts.identity).into_iter().flatten() {
            if let Some(open) = self.open.get_mut(other).filter(|open| open.is_quoted_by(&facts)) {
                open.answered(number, &view);
            }
        }
    }

    fn close_idle(&mut self, clock_ns: Option<u64>, give: &mut impl FnMut(Grouped)) {
        let (rows, patience_ns) = (self.rows, self.patience_ns);
        let idle: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.is_idle(rows, clock_ns, patience_ns))
            .map(|(number, _)| *number)
            .collect();
        idle.into_iter().for_each(|number| self.close(number, give));
    }

    /// Makes room; not of the packet that moved just now.
    fn close_least_recent(&mut self, keep: u64, give: &mut impl FnMut(Grouped)) {
        let others = self.open.iter().filter(|(number, _)| **number != keep);
        if let Some((&number, _)) = others.min_by_key(|(_, open)| open.moved) {
            self.close(number, give);
        }
    }

    fn close(&mut self, number: u64, give: &mut impl FnMut(Grouped)) {
        let Some(open) = self.open.remove(&number) else { return };
        let identity = open.identity();
        if let Some(numbers) = self.by_identity.get_mut(&identity) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_identity.remove(&identity);
            }
        }
        open.close(give);
    }
}

/// Whose step it is.
enum Choice {
    None,
    One(u64, Fit),
    /// The likeliest, and all.
    Several(u64, Fit, Vec<u64>),
}

fn choose(open: &BTreeMap<u64, Open>, candidates: &[u64], row: &Row, facts: &Facts, seen: u32) -> Choice {
    let fitting = || {
        candidates.iter().filter_map(|number| {
            let open = open.get(number)?;
            Some((*number, open.fit(row, facts, seen)?, open.moved))
        })
    };
    let mut best: Option<(u64, Fit, u64)> = None;
    let mut alike = 0;
    for (number, fit, moved) in fitting() {
        let order = best.as_ref().map_or(Ordering::Less, |(_, best, _)| fit.assumed().cmp(&best.assumed()));
        match order {
            Ordering::Less => alike = 1,
            Ordering::Equal => alike += 1,
            Ordering::Greater => continue,
        }
        if order == Ordering::Less || best.as_ref().is_some_and(|(.., last)| moved > *last) {
            best = Some((number, fit, moved));
        }
    }
    match best {
        None => Choice::None,
        Some((number, fit, _)) if alike == 1 => Choice::One(number, fit),
        Some((number, fit, _)) => {
            let alike = fitting().filter(|(_, other, _)| other.assumed() == fit.assumed());
            let all = alike.map(|(number, ..)| number).collect();
            Choice::Several(number, fit, all)
        }
    }
}
