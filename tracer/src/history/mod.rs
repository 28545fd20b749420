//! Which version of a table a packet met.
//!
//! Every edit by iptables replaces the whole table, and an index into it means something only together with its
//! version. Three sources tell the versions apart: the tables read when the trace began, the new blob that the probe
//! on `xt_replace_table` sends with each replacement, and tables read again later, which add the texts of the rules.
//!
//! A traversal names its version by the table's replace counter and the address of its `xt_table_info`. The counter
//! moves shortly before the swap, so a traversal may have seen the new number and the old table: then the address is
//! that of the version before. Both are alive at that moment, so their addresses differ.
//!
//! Reading a table waits for a replacement that is under way, because both hold the kernel's lock of the tables. So a
//! table read while no counter moved is the one that the last replacement before left.
//!
//! Pure: records and tables in, versions out.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::fetch::Fetched;
use crate::hash::KernelMap;
use crate::netfilter::{Family, Hook};
use crate::owner::{self, Place};
use crate::path::walk::Graph;
use crate::path::walks::Walks;
use crate::ruleset::{Entry, Rule, Table};
use crate::trace_line::StepName;
use crate::xtables::{RawTable, TargetNames};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use thiserror::Error;
use tracer_common::legacy::{
    CHUNK_BYTES, Replaced, TABLE_SLOTS, TableChunk, Traversal, doubt, rank, table_class, table_slot,
};

/// Versions of a table that are kept. Only the newest two can be met; the others are for records on their way.
const KEPT: usize = 8;
/// A replacement is reported within this time, or not at all.
const LATE_NS: u64 = 100_000_000;

/// The replace counters of all slots at one moment.
pub type Counts = [u32; TABLE_SLOTS as usize];

/// One version of a table.
#[derive(Debug)]
pub struct Version {
    /// Its entries.
    pub table: Table,
    /// Prepared for walking.
    pub graph: Graph,
    /// Number of the version, from 0 for the one that was there when the trace began.
    pub generation: u32,
    /// Whether the texts of its rules have been looked for.
    pub read: bool,
    /// Walks through it that were found before.
    pub walks: RefCell<Walks>,
    /// `table@generation`
    pub tag: Rc<str>,
    /// What is said of its entries, made when they are first asked for.
    said: Vec<OnceCell<Said>>,
}

/// What is said of an entry besides what its table holds.
#[derive(Debug)]
struct Said {
    /// `table:chain:kind:number`
    name: Rc<str>,
    /// Who made it.
    owner: Option<String>,
}

/// Why a traversal's version is not known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unknown {
    /// The table appeared or changed before it could be read.
    #[error("table {0} was replaced before it could be read")]
    NeverRead(String),
    /// Records of replacements were lost.
    #[error("a replacement of table {0} was not reported")]
    NotReported(String),
    /// The copy of the new table is not usable.
    #[error("the new table {name} could not be taken over: {reason}")]
    NotCaptured {
        /// The table.
        name: String,
        /// Why.
        reason: String,
    },
    /// No version with this address was reported.
    #[error("table {0} was replaced under the packet")]
    OtherAddress(String),
    /// The kernel program could not read the version.
    #[error("which version of table {0} it met could not be read")]
    Unreadable(String),
    /// The version that it should have met has another size.
    #[error("table {0} is not as large as it was reported to be")]
    OtherSize(String),
}

/// All versions seen of all tables.
#[derive(Debug, Default)]
pub struct History {
    tables: KernelMap<u64, Line>,
    read: HashMap<(u32, Family, String), Reading>,
    /// How often something was read; a line looks for its own table only when this has changed.
    readings: u64,
    /// Whether a record was seen. What was read before counts for all traversals, also for earlier ones.
    running: bool,
    names: TargetNames,
    slots: Slots,
    loaded: KernelMap<(u32, Family), Ranks>,
    /// How often `loaded` or `announced` may have changed.
    loads: u64,
    /// Hooks of tables that were announced and not met yet, so that nothing tells their namespace.
    announced: KernelMap<Family, Ranks>,
}

/// Sets of tables by hook number: bit n stands for [`rank`] n. There are five hooks; eight bytes are compared at once.
pub type Ranks = [u8; 8];

/// Which tables have a chain at each hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Those that are there.
    pub ranks: Ranks,
    /// Those that are there or may have come.
    pub possible: Ranks,
}

/// The bit of a table at a hook.
fn bit(name: &[u8], hook: u8) -> u8 {
    let mut first = [0; 4];
    first.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    1 << rank(hook, table_class(u32::from_ne_bytes(first)))
}

fn add(ranks: &mut Ranks, table: &Table) {
    for hook in Hook::ALL.into_iter().filter(|hook| table.hook_entry[*hook as usize].is_some()) {
        ranks[hook as usize] |= bit(table.name.as_bytes(), hook as u8);
    }
}

/// A table as it was read, and the replace counters then.
#[derive(Debug)]
struct Reading {
    fetched: Rc<Version>,
    raw: RawTable,
    before: Counts,
    after: Counts,
    /// When reading it was over.
    read_ns: u64,
    /// Traversals since then have met it, if no counter tells otherwise.
    valid_ns: u64,
}

/// The versions of one `xt_table`.
#[derive(Debug, Default)]
struct Line {
    /// [`History::readings`] when it last looked.
    looked: u64,
    /// Where its hooks were added to [`History::loaded`].
    loaded: Option<(u32, Family)>,
    /// Whether the oldest versions were thrown away.
    shortened: bool,
    /// Oldest first.
    versions: Vec<Installed>,
    /// The version that the last traversal met, until anything else is reported of this table.
    same: Option<Same>,
}

/// A version that was found, and all that finding it depended on. Nearly every traversal meets what the one before it
/// met.
#[derive(Debug)]
struct Same {
    private: u64,
    replace_count: u32,
    slot: Slot,
    readings: u64,
    namespace: Option<(u32, Family)>,
    version: Rc<Version>,
}

impl Same {
    /// Whether a traversal, of which nothing is in doubt, meets this version as well.
    fn is_met(&self, traversal: &Traversal, slot: Slot, readings: u64) -> bool {
        let table = &self.version.table;
        traversal.doubts == 0
            && (traversal.private, traversal.replace_count) == (self.private, self.replace_count)
            && (slot, readings) == (self.slot, self.readings)
            && self.namespace == namespace_of(traversal)
            && (table.entries.len(), table.size) == (traversal.number as usize, traversal.size)
    }
}

fn namespace_of(traversal: &Traversal) -> Option<(u32, Family)> {
    Family::from_nfproto(traversal.family).map(|family| (traversal.netns, family))
}

/// A version that a replacement brought, or that was found by reading.
#[derive(Debug)]
struct Installed {
    count: u32,
    /// `None` for a version that was read, until a traversal tells.
    private: Option<u64>,
    /// Only a traversal since then can tell.
    valid_ns: u64,
    raw: Option<RawTable>,
    version: Result<Rc<Version>, String>,
    pending: Option<Pending>,
}

/// A blob that is coming in.
#[derive(Debug)]
struct Pending {
    header: Replaced,
    bytes: Vec<u8>,
    chunks: u32,
}

/// What was reported of all counters.
#[derive(Debug)]
struct Slots([Slot; TABLE_SLOTS as usize]);

impl Default for Slots {
    fn default() -> Self {
        Self([Slot::default(); TABLE_SLOTS as usize])
    }
}

impl Slots {
    /// The slot of a [`table_slot`].
    fn at(&mut self, number: u32) -> &mut Slot {
        &mut self.0[number as usize % self.0.len()]
    }
}

/// What was reported of the counter of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    last: u32,
    /// From this count on everything was reported; what was there before may have been replaced silently.
    sure_from: u32,
}

impl Slot {
    /// Takes a reported count. One that does not come next means that records were lost, that two tables were replaced
    /// at the same time, or that the counter has wrapped.
    fn report(&mut self, count: u32) {
        if count <= self.last {
            self.sure_from = self.last.saturating_add(1);
        } else if count != self.last + 1 {
            self.sure_from = count;
        }
        self.last = self.last.max(count);
    }
}

impl History {
    /// Takes a table that was read from the kernel, with the replace counters from before and after reading it, and
    /// the time (CLOCK_MONOTONIC) after it.
    pub fn fetched(&mut self, netns: u32, fetched: Fetched, before: Counts, after: Counts, read_ns: u64) {
        let key = (netns, fetched.table.family, fetched.table.name.clone());
        add(self.loaded.entry((netns, fetched.table.family)).or_default(), &fetched.table);
        self.loads += 1;
        self.readings += 1;
        let version = Rc::new(Version::new(fetched.table, 0, true));
        let valid_ns = if self.running { read_ns } else { 0 };
        let reading = Reading { fetched: version, raw: fetched.raw, before, after, read_ns, valid_ns };
        self.read.insert(key, reading);
    }

    /// Takes the announcement of a new version.
    pub fn replaced(&mut self, replaced: &Replaced) {
        self.running = true;
        self.loads += 1;
        self.slots.at(table_slot(replaced.table)).report(replaced.replace_count);
        let version = match replaced.chunks {
            0 => Err("it is too large to be copied".to_owned()),
            _ => Err("not all of it arrived".to_owned()),
        };
        let line = self.tables.entry(replaced.table).or_default();
        line.same = None;
        if line.loaded.is_none()
            && let Some(family) = u8::try_from(replaced.family).ok().and_then(Family::from_nfproto)
        {
            let announced = self.announced.entry(family).or_default();
            let offsets = (0..).zip(announced).zip(replaced.hook_entry);
            for ((hook, ranks), _) in offsets.filter(|(_, offset)| *offset != u32::MAX) {
                *ranks |= bit(&replaced.table_name, hook);
            }
        }
        for older in &mut line.versions {
            (older.raw, older.pending) = (None, None);
        }
        line.versions.push(Installed {
            count: replaced.replace_count,
            private: Some(replaced.private),
            valid_ns: 0,
            raw: None,
            version,
            pending: (replaced.chunks > 0).then(|| Pending {
                header: *replaced,
                bytes: Vec::new(),
                chunks: 0,
            }),
        });
        line.shorten();
    }

    /// Takes a part of a new version.
    pub fn chunk(&mut self, chunk: &TableChunk) {
        let Some(line) = self.tables.get_mut(&chunk.table) else { return };
        line.same = None;
        let Some(installed) =
            line.versions.iter_mut().rfind(|installed| installed.count == chunk.replace_count)
        else {
            return;
        };
        let Some(pending) = &mut installed.pending else { return };
        if pending.chunks != chunk.index || chunk.len as usize > CHUNK_BYTES {
            return;
        }
        pending.bytes.extend_from_slice(&chunk.bytes[..chunk.len as usize]);
        pending.chunks += 1;
        if pending.chunks < pending.header.chunks {
            return;
        }
        let Some(pending) = installed.pending.take() else { return };
        let generation = chunk.replace_count;
        let raw = RawTable::from_replaced(&pending.header, pending.bytes);
        installed.version = raw
            .and_then(|raw| {
                let table = raw.decode(&self.names)?;
                installed.raw = Some(raw);
                Ok(Rc::new(Version::new(table, generation, false)))
            })
            .map_err(|error| error.to_string());
    }

    /// The version that a traversal met.
    #[inline]
    pub fn version(&mut self, traversal: &Traversal) -> Result<Rc<Version>, Unknown> {
        let slot = *self.slots.at(table_slot(traversal.table));
        match self.tables.get(&traversal.table).and_then(|line| line.same.as_ref()) {
            Some(same) if same.is_met(traversal, slot, self.readings) => Ok(Rc::clone(&same.version)),
            _ => self.find(traversal),
        }
    }

    /// The same when it is not the version that the last traversal met.
    fn find(&mut self, traversal: &Traversal) -> Result<Rc<Version>, Unknown> {
        self.running = true;
        let name = || name_of(&traversal.table_name);
        let number = table_slot(traversal.table);
        let slot = self.slots.at(number);
        let line = self.tables.entry(traversal.table).or_default();
        line.same = None;
        let namespace = namespace_of(traversal);
        if let Some((netns, family)) = namespace {
            if line.looked != self.readings {
                let key = (netns, family, name());
                line.looked = self.readings;
                if let Some(reading) = self.read.remove(&key) {
                    reading.conclude(number, slot, traversal);
                    if let Some(early) =
                        line.take(reading, number, *slot, traversal.entry_ns, &mut self.names)
                    {
                        line.looked = 0;
                        self.read.insert(key, early);
                    }
                }
            }
            if line.loaded != namespace {
                self.loads += 1;
                let ranks = self.loaded.entry((netns, family)).or_default();
                ranks[usize::from(traversal.hook.min(4))] |= bit(&traversal.table_name, traversal.hook);
                let newest = line.versions.iter().rev().find_map(|installed| installed.version.as_ref().ok());
                if let Some(version) = newest {
                    add(ranks, &version.table);
                    line.loaded = namespace;
                }
            }
        }
        let met = line.met(traversal, *slot, name)?;
        let version = match &line.versions[met].version {
            Ok(version) => Rc::clone(version),
            Err(reason) => return Err(Unknown::NotCaptured { name: name(), reason: reason.clone() }),
        };
        let table = &version.table;
        if (table.entries.len(), table.size) != (traversal.number as usize, traversal.size) {
            return Err(Unknown::OtherSize(name()));
        }
        line.versions[met].private = Some(traversal.private);
        // What is still looked for, or proved in another way, is to be looked at again.
        if traversal.doubts == 0 && line.looked == self.readings && line.loaded == namespace {
            let (slot, readings, version) = (*slot, self.readings, Rc::clone(&version));
            let Traversal { private, replace_count, .. } = *traversal;
            line.same = Some(Same { private, replace_count, slot, readings, namespace, version });
        }
        Ok(version)
    }
}

impl Reading {
    /// Finds out that replacements from before it was read will not be reported any more.
    fn conclude(&self, number: u32, slot: &mut Slot, traversal: &Traversal) {
        let count = self.before[number as usize];
        if count == traversal.replace_count
            && count > slot.last
            && traversal.entry_ns >= self.read_ns.saturating_add(LATE_NS)
        {
            *slot = Slot { last: count, sure_from: count };
        }
    }
}

impl Line {
    /// Throws the oldest versions away where there are too many.
    fn shorten(&mut self) {
        if self.versions.len() > KEPT {
            self.versions.drain(..KEPT / 2);
            self.shortened = true;
        }
    }

    /// Which of the versions a traversal met.
    fn met(&self, traversal: &Traversal, slot: Slot, name: impl Fn() -> String) -> Result<usize, Unknown> {
        let count = traversal.replace_count;
        if traversal.doubts & doubt::UNREADABLE != 0 {
            return Err(Unknown::Unreadable(name()));
        }
        if count > slot.last {
            return Err(Unknown::NotReported(name()));
        }
        // The number was read before the address. They belong together only if the table was not replaced in between,
        // which is proved at the exit, or by all replacements until then being known.
        let replaced_since = self.versions.last().is_some_and(|newest| newest.count > count);
        let no_exit = traversal.doubts & (doubt::NO_EXIT | doubt::TOO_DEEP) != 0;
        if traversal.doubts & doubt::REPLACE_COUNT != 0 || (no_exit && replaced_since) {
            return Err(Unknown::OtherAddress(name()));
        }
        let mut candidate = self.versions.iter().rposition(|installed| installed.count <= count);
        for _ in 0..2 {
            let Some(index) = candidate else { break };
            let installed = &self.versions[index];
            if installed.count < slot.sure_from {
                return Err(Unknown::NotReported(name()));
            }
            match installed.private {
                Some(private) if private == traversal.private => return Ok(index),
                None if traversal.entry_ns >= installed.valid_ns => return Ok(index),
                None => return Err(Unknown::NeverRead(name())),
                Some(_) => candidate = index.checked_sub(1),
            }
        }
        match candidate {
            Some(_) => Err(Unknown::OtherAddress(name())),
            None if slot.sure_from > 0 => Err(Unknown::NotReported(name())),
            None if self.versions.first().is_some_and(|oldest| oldest.count == 0) => {
                Err(Unknown::OtherAddress(name()))
            }
            None => Err(Unknown::NeverRead(name())),
        }
    }

    /// Puts a table that was read where it belongs. Gives it back when that is not known yet, because replacements
    /// from before it was read are still on their way, or because a traversal that entered at `entry_ns` may have met
    /// another table of this name.
    fn take(
        &mut self,
        reading: Reading,
        slot: u32,
        reported: Slot,
        entry_ns: u64,
        names: &mut TargetNames,
    ) -> Option<Reading> {
        let (before, after) = (reading.before[slot as usize], reading.after[slot as usize]);
        if before != after || before < reported.sure_from {
            return None;
        }
        if before > reported.last {
            return Some(reading);
        }
        let with_generation = |count| {
            if count == 0 {
                return Rc::clone(&reading.fetched);
            }
            Rc::new(Version::new(reading.fetched.table.clone(), count, true))
        };
        let newest = self.versions.iter().rposition(|installed| installed.count <= before);
        match newest.filter(|newest| self.versions[*newest].count >= reported.sure_from) {
            Some(newest) => {
                let installed = &mut self.versions[newest];
                let known = installed.version.as_ref().is_ok_and(|version| version.read);
                if !known && installed.raw.is_none() && entry_ns < reading.valid_ns {
                    return Some(reading);
                }
                // A replacement that the kernel refused is reported as well, and what was read is not it.
                let mut same = || installed.raw.as_ref().is_none_or(|raw| names.learn(raw, &reading.raw));
                if !known && same() {
                    installed.version = Ok(with_generation(installed.count));
                    (installed.raw, installed.pending) = (None, None);
                }
            }
            None if self.shortened && reported.sure_from == 0 => {}
            None => {
                // Nothing of what was there before was reported: it was there when the trace began, or was lost.
                let count = if reported.sure_from == 0 { 0 } else { before };
                let found = Installed {
                    count,
                    private: None,
                    // Where a replacement was lost, a traversal from before the reading may have met the one before it.
                    valid_ns: if count == 0 { reading.valid_ns } else { reading.read_ns },
                    raw: None,
                    version: Ok(with_generation(count)),
                    pending: None,
                };
                self.versions.insert(newest.map_or(0, |newest| newest + 1), found);
                self.shorten();
            }
        }
        None
    }
}

impl Version {
    /// A version of which nothing has been asked yet.
    pub(crate) fn new(table: Table, generation: u32, read: bool) -> Self {
        Self {
            graph: Graph::new(&table),
            generation,
            read,
            walks: RefCell::default(),
            tag: format!("{}@{generation}", table.name).into(),
            said: table.entries.iter().map(|_| OnceCell::new()).collect(),
            table,
        }
    }

    /// What TRACE calls an entry, once [`rule`](Self::rule) has been asked about it.
    pub fn known_name(&self, entry: usize) -> Option<&Rc<str>> {
        Some(&self.said.get(entry)?.get()?.name)
    }

    /// What TRACE calls an entry, `table:chain:kind:number`, and what a step says of it; `None` for one that is in no
    /// chain.
    #[inline]
    pub fn rule(&self, entry: usize) -> Option<(&Rc<str>, Rule<'_>)> {
        let rule = self.table.rule(entry)?;
        let Said { name, owner } = self.said.get(entry)?.get_or_init(|| {
            let Entry { kind, number, .. } = self.table.entries[entry];
            let Rule { table, chain, text, .. } = rule;
            let name = StepName { table, chain, kind, number }.to_string().into();
            Said { name, owner: owner::of(Place { table, chain, text: text.map(|text| &**text) }) }
        });
        Some((name, Rule { owner: owner.as_deref(), ..rule }))
    }
}

impl History {
    /// Which tables a packet of this namespace and family can meet.
    pub fn loaded(&self, netns: u32, family: Family) -> Loaded {
        let ranks = self.loaded.get(&(netns, family)).copied().unwrap_or_default();
        let mut possible = self.announced.get(&family).copied().unwrap_or_default();
        possible.iter_mut().zip(ranks).for_each(|(possible, ranks)| *possible |= ranks);
        Loaded { ranks, possible }
    }

    /// As long as this stays the same, so does what [`loaded`](Self::loaded) gives.
    #[inline]
    pub fn loads(&self) -> u64 {
        self.loads
    }
}

/// A table's name from its record.
pub fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
