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
//! Pure: records and tables in, versions out.
#![forbid(unsafe_code)]

use crate::fetch::Fetched;
use crate::netfilter::{Family, Hook};
use crate::path::walk::Graph;
use crate::ruleset::Table;
use crate::xtables::{RawTable, TargetNames};
use std::collections::HashMap;
use std::rc::Rc;
use thiserror::Error;
use tracer_common::legacy::{
    CHUNK_BYTES, Replaced, TABLE_SLOTS, TableChunk, Traversal, rank, table_class, table_slot,
};

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
}

/// All versions seen of all tables.
#[derive(Debug, Default)]
pub struct History {
    tables: HashMap<u64, Line>,
    read: HashMap<(u32, Family, String), Reading>,
    /// How often something was read; a line looks for its own table only when this has changed.
    readings: u64,
    names: TargetNames,
    slots: HashMap<u32, Slot>,
    loaded: HashMap<(u32, Family), Loaded>,
}

/// Which tables have a chain at each hook: bit n stands for [`rank`] n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// By hook number.
    pub ranks: [u8; 5],
}

impl Loaded {
    fn add(&mut self, table: &Table) {
        let mut name = [0; 4];
        name.iter_mut().zip(table.name.bytes()).for_each(|(to, from)| *to = from);
        let class = table_class(u32::from_ne_bytes(name));
        for hook in Hook::ALL {
            if table.hook_entry[hook as usize].is_some() {
                self.ranks[hook as usize] |= 1 << rank(hook as u8, class);
            }
        }
    }
}

/// A table as it was read, and the replace counters then.
#[derive(Debug)]
struct Reading {
    fetched: Rc<Version>,
    raw: RawTable,
    before: Counts,
    after: Counts,
}

/// The versions of one `xt_table`.
#[derive(Debug, Default)]
struct Line {
    /// [`History::readings`] when it last looked.
    looked: u64,
    initial: Option<Rc<Version>>,
    /// Address of the initial version, as its first traversal told it.
    initial_private: Option<u64>,
    installed: Vec<Installed>,
}

/// A version that a replacement brought.
#[derive(Debug)]
struct Installed {
    count: u32,
    private: u64,
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

/// What was reported of the counter of one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    last: u32,
    /// The first count that was not reported.
    gap: Option<u32>,
}

impl History {
    /// Takes a table that was read from the kernel, with the replace counters from before and after reading it.
    pub fn fetched(&mut self, netns: u32, fetched: Fetched, before: Counts, after: Counts) {
        let key = (netns, fetched.table.family, fetched.table.name.clone());
        self.loaded.entry((netns, fetched.table.family)).or_default().add(&fetched.table);
        self.readings += 1;
        let version = Rc::new(Version::new(fetched.table, 0, true));
        self.read.insert(key, Reading { fetched: version, raw: fetched.raw, before, after });
    }

    /// Takes the announcement of a new version.
    pub fn replaced(&mut self, replaced: &Replaced) {
        let slot = self.slots.entry(table_slot(replaced.table)).or_default();
        if replaced.replace_count != slot.last.wrapping_add(1) && slot.gap.is_none() {
            slot.gap = Some(slot.last.wrapping_add(1));
        }
        slot.last = replaced.replace_count;
        let version = match replaced.chunks {
            0 => Err("it is too large to be copied".to_owned()),
            _ => Err("not all of it arrived".to_owned()),
        };
        let line = self.tables.entry(replaced.table).or_default();
        line.installed.push(Installed {
            count: replaced.replace_count,
            private: replaced.private,
            raw: None,
            version,
            pending: (replaced.chunks > 0).then(|| Pending { header: *replaced, bytes: Vec::new(), chunks: 0 }),
        });
        // Only the newest versions can still be met; a few more are kept for records that are on their way.
        if line.installed.len() > 64 {
            line.installed.drain(..32);
            line.initial = None;
        }
    }

    /// Takes a part of a new version.
    pub fn chunk(&mut self, chunk: &TableChunk) {
        let Some(line) = self.tables.get_mut(&chunk.table) else { return };
        let Some(installed) = line.installed.iter_mut().rfind(|installed| installed.count == chunk.replace_count) else {
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
    pub fn version(&mut self, traversal: &Traversal) -> Result<Rc<Version>, Unknown> {
        let name = || name_of(&traversal.table_name);
        let slot = self.slots.get(&table_slot(traversal.table)).copied().unwrap_or_default();
        let line = self.tables.entry(traversal.table).or_default();
        if line.looked != self.readings
            && let Some(family) = Family::from_nfproto(traversal.family)
        {
            let key = (traversal.netns, family, name());
            line.looked = self.readings;
            if let Some(reading) = self.read.remove(&key)
                && let Some(early) = line.take(reading, table_slot(traversal.table), slot, &mut self.names)
            {
                line.looked = 0;
                self.read.insert(key, early);
            }
            let newest = line.installed.iter().rev().find_map(|installed| installed.version.as_ref().ok());
            if let Some(version) = newest.or(line.initial.as_ref()) {
                self.loaded.entry((traversal.netns, family)).or_default().add(&version.table);
            }
        }
        let count = traversal.replace_count;
        if count > slot.last {
            return Err(Unknown::NotReported(name()));
        }
        let newest = line.installed.iter().rposition(|installed| installed.count <= count);
        let met = match newest {
            Some(newest) if line.installed[newest].private == traversal.private => Some(newest),
            Some(newest) => newest.checked_sub(1),
            None => None,
        };
        let since = met.map_or(0, |met| line.installed[met].count);
        if slot.gap.is_some_and(|gap| gap <= count && since < gap) {
            return Err(Unknown::NotReported(name()));
        }
        match met {
            Some(met) if line.installed[met].private == traversal.private => match &line.installed[met].version {
                Ok(version) => Ok(Rc::clone(version)),
                Err(reason) => Err(Unknown::NotCaptured { name: name(), reason: reason.clone() }),
            },
            Some(_) => Err(Unknown::OtherAddress(name())),
            None => {
                let version = line.initial.as_ref().ok_or_else(|| Unknown::NeverRead(name()))?;
                match line.initial_private {
                    Some(private) if private != traversal.private => Err(Unknown::OtherAddress(name())),
                    _ => {
                        line.initial_private = Some(traversal.private);
                        Ok(Rc::clone(version))
                    }
                }
            }
        }
    }
}

impl Line {
    /// Puts a table that was read where it belongs. Gives it back when that is not known yet, because replacements
    /// from before it was read are still on their way.
    fn take(&mut self, reading: Reading, slot: u32, reported: Slot, names: &mut TargetNames) -> Option<Reading> {
        let (before, after) = (reading.before[slot as usize], reading.after[slot as usize]);
        if before != after {
            return None;
        }
        if before > reported.last {
            return Some(reading);
        }
        match self.installed.iter_mut().rfind(|installed| installed.count <= before) {
            None => self.initial = self.initial.take().or(Some(reading.fetched)),
            Some(installed) => {
                let same = installed.raw.as_ref().is_none_or(|raw| names.learn(raw, &reading.raw));
                let complete = installed.pending.is_none();
                if same && complete {
                    let table = Rc::try_unwrap(reading.fetched).map_or_else(|shared| shared.table.clone(), |v| v.table);
                    installed.version = Ok(Rc::new(Version::new(table, installed.count, true)));
                }
            }
        }
        None
    }
}

impl Version {
    fn new(table: Table, generation: u32, read: bool) -> Self {
        Self { graph: Graph::new(&table), table, generation, read }
    }
}

impl History {
    /// Which tables a packet of this namespace and family can meet.
    pub fn loaded(&self, netns: u32, family: Family) -> Loaded {
        self.loaded.get(&(netns, family)).copied().unwrap_or_default()
    }
}

/// A table's name from its record.
pub fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
