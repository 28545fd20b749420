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
//! Where several packets qualify alike, the one that moved last gets the step, and all are in doubt. So are packets that begin
//! elsewhere than in the `raw` table, where tracing begins, and packets that pass a table unseen which others were seen
//! in.

mod identity;
mod open;
mod place;
#[cfg(test)]
mod tests;

use super::{Action, Path};
use crate::netfilter::{Engine, Family, Hook, StepKind};
use crate::packet::{Packet, headers, quoted};
use crate::ruleset::Rule;
use identity::{Facts, Identity};
use open::{Fit, Open};
use place::{Place, builtin};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// A packet that did not move for this long is done; logs often tell whole seconds only.
const IDLE_NS: u64 = 2_000_000_000;
/// So is one that did not move while this many other steps were told.
const IDLE_ROWS: u64 = 4096;
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
}

impl Met {
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
            owner: None,
        }
    }
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
    Step(Box<Placed>),
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
    by_identity: HashMap<Identity, Vec<u64>>,
    /// Packets begun so far.
    count: u64,
    /// Rows so far, and when the last was.
    rows: u64,
    clock_ns: Option<u64>,
    /// Places that any packet was seen in: a bit for each [`place::Place::index`], for each namespace and family.
    seen: HashMap<(Option<u32>, Family), u32>,
    /// The same of tables that are known to be loaded, where that is known.
    loaded: HashMap<(Option<u32>, Family), u32>,
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
            by_identity: HashMap::new(),
            count: 0,
            rows: 0,
            clock_ns: None,
            seen: HashMap::new(),
            loaded: HashMap::new(),
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
        let Some(place) = Place::new(table, hook) else { return };
        for places in [&mut self.seen, &mut self.loaded] {
            *places.entry((netns, family)).or_default() |= 1 << place.index();
        }
    }

    /// Whether a packet's first step can be this one.
    fn is_beginning(&self, row: &Row) -> bool {
        let Some(loaded) = self.loaded.get(&(row.netns, row.packet.family)) else {
            return &*row.met.table == "raw";
        };
        let hook = builtin(&row.met.table, &row.met.chain);
        let place = hook.and_then(|hook| Place::new(&row.met.table, hook));
        place.is_some_and(|place| place.can_be_first(*loaded))
    }

    /// Takes a step.
    pub fn add(&mut self, row: Row, give: &mut impl FnMut(Grouped)) {
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
                let is_beginning = self.is_beginning(&row);
                for other in candidates.iter().filter(|_| !is_beginning) {
                    if let Some(open) = self.open.get_mut(other) {
                        open.doubt(format!("packet {number} may be the rest of it"));
                    }
                }
                self.answer(number, &row);
                let seen = self.seen.entry((row.netns, row.packet.family)).or_default();
                let open = Open::begin((number, is_beginning), row, &facts, self.rows, seen, self.hold, give);
                self.open.insert(number, open);
                self.by_identity.entry(facts.identity).or_default().push(number);
                number
            }
        };
        if self.open.len() > MOST_OPEN {
            self.close_least_recent(number, give);
        }
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
    if let [only] = candidates {
        let fit = open.get(only).and_then(|open| open.fit(row, facts, seen));
        return fit.map_or(Choice::None, |fit| Choice::One(*only, fit));
    }
    let mut fitting: Vec<(u64, Fit, u64)> = candidates
        .iter()
        .filter_map(|number| {
            let open = open.get(number)?;
            Some((*number, open.fit(row, facts, seen)?, open.moved))
        })
        .collect();
    let least = fitting.iter().map(|(_, fit, _)| fit.assumed()).min();
    fitting.retain(|(_, fit, _)| Some(fit.assumed()) == least);
    let all: Vec<u64> = fitting.iter().map(|(number, ..)| *number).collect();
    match fitting.into_iter().max_by_key(|(.., moved)| *moved) {
        None => Choice::None,
        Some((number, fit, _)) if all.len() == 1 => Choice::One(number, fit),
        Some((number, fit, _)) => Choice::Several(number, fit, all),
    }
}
