//! The versions of the rules that packets met, told apart by how often rules were committed.

use super::{Located, Ruleset, Table};
use crate::hash::KernelMap;
use crate::netfilter::StepKind;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use tracer_common::nft::{COMMIT_SLOTS, Commits, Run};

/// Versions of one namespace that are kept: records of a packet come late, but not by more.
const KEPT: usize = 16;

/// The counters of all slots at one moment.
pub type AllCommits = [Commits; COMMIT_SLOTS as usize];

/// Handles of table and chain, number and kind.
type Name = (u64, u64, u32, StepKind);

/// The rules of a namespace between two changes.
#[derive(Debug)]
pub struct Version {
    /// The rules.
    pub ruleset: Ruleset,
    /// By slot: the counter while these were the rules; `None` where something was being committed.
    commits: Vec<Option<u32>>,
    names: RefCell<HashMap<Name, Rc<str>>>,
    tags: RefCell<HashMap<u64, Rc<str>>>,
}

impl Version {
    fn new(ruleset: Ruleset, before: &AllCommits, after: &AllCommits) -> Self {
        let stable = |(before, after): (&Commits, &Commits)| {
            let quiet = before.begun == before.done && before.begun == after.begun;
            quiet.then_some(before.begun as u32)
        };
        Self {
            commits: before.iter().zip(after).map(stable).collect(),
            names: RefCell::default(),
            tags: RefCell::default(),
            ruleset,
        }
    }

    fn was_met_by(&self, run: &Run) -> bool {
        let slot = usize::try_from(run.commit_slot).ok();
        slot.and_then(|slot| *self.commits.get(slot)?) == Some(run.commits)
    }

    /// `table@generation` for a table's handle, made once.
    pub fn tag(&self, table: u64) -> Option<Rc<str>> {
        if let Some(tag) = self.tags.borrow().get(&table) {
            return Some(Rc::clone(tag));
        }
        let name = &self.ruleset.tables.iter().find(|known| known.handle == table)?.name;
        let tag: Rc<str> = format!("{name}@{}", self.ruleset.generation).into();
        self.tags.borrow_mut().insert(table, Rc::clone(&tag));
        Some(tag)
    }

    /// `table:chain:kind:number`, made once.
    pub fn name(&self, located: &Located<'_>) -> Rc<str> {
        let Located { table, chain, number, kind, .. } = located;
        let mut names = self.names.borrow_mut();
        let name = names
            .entry((table.handle, chain.handle, *number, *kind))
            .or_insert_with(|| format!("{}:{}:{kind}:{number}", table.name, chain.name).into());
        Rc::clone(name)
    }
}

/// The versions that were read, by the inode number of the namespace.
#[derive(Debug, Default)]
pub struct Versions(KernelMap<u32, VecDeque<Rc<Version>>>);

impl Versions {
    /// Takes the rules of a namespace as they were read between these two moments.
    pub fn read(&mut self, netns: u32, mut ruleset: Ruleset, before: &AllCommits, after: &AllCommits) {
        let versions = self.0.entry(netns).or_default();
        if let Some(last) = versions.back() {
            inherit(&mut ruleset, &last.ruleset);
        }
        versions.push_back(Rc::new(Version::new(ruleset, before, after)));
        while versions.len() > KEPT {
            versions.pop_front();
        }
    }

    /// The version that a run met; `None` when it was not read.
    pub fn met_by(&self, run: &Run) -> Option<&Rc<Version>> {
        self.0.get(&run.netns)?.iter().rev().find(|version| version.was_met_by(run))
    }

    /// The newest version of a namespace.
    pub fn newest(&self, netns: u32) -> Option<&Rc<Version>> {
        self.0.get(&netns)?.back()
    }
}

/// Whether rules have no text that might have one.
pub fn lacks_text(ruleset: &Ruleset) -> bool {
    let mut rules = ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    rules.any(|rule| rule.text.is_none())
}

/// Rules that say the same as before keep the text they had, unless a chain that it may name has another name now.
fn inherit(ruleset: &mut Ruleset, before: &Ruleset) {
    let earlier: HashMap<u64, &Table> = before.tables.iter().map(|table| (table.handle, table)).collect();
    for table in &mut ruleset.tables {
        let Some(earlier) = earlier.get(&table.handle).filter(|earlier| earlier.name == table.name) else {
            continue;
        };
        let names: HashMap<u64, &str> =
            earlier.chains.iter().map(|chain| (chain.handle, &*chain.name)).collect();
        let renamed =
            |chain: &super::Chain| names.get(&chain.handle).is_some_and(|name| **name != *chain.name);
        if table.chains.iter().any(renamed) {
            continue;
        }
        for rule in
            table.chains.iter_mut().flat_map(|chain| &mut chain.rules).filter(|rule| rule.text.is_none())
        {
            if let Some((_, _, known)) = earlier.rule(rule.handle)
                && known.content == rule.content
            {
                rule.text = known.text.clone();
                rule.nft = known.nft.clone();
            }
        }
    }
}
