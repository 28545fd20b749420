//! The versions of the rules that packets met: by their generations, and by how often rules were committed.

use super::follow::{Follower, Gap};
use super::{Located, Ruleset, inherit_texts};
use crate::hash::KernelMap;
use crate::netfilter::StepKind;
use crate::netlink::Message;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use tracer_common::nft::{COMMIT_SLOTS, Commits, Run, fact};

/// Versions of one namespace that are kept: records of a packet come late, but not by more.
const KEPT: usize = 64;

/// The counters of all slots at one moment.
pub type AllCommits = [Commits; COMMIT_SLOTS as usize];

/// Handles of table and chain, number and kind.
type Name = (u64, u64, u32, StepKind);

/// The rules of a namespace between two changes.
#[derive(Debug)]
pub struct Version {
    /// The rules.
    pub ruleset: Ruleset,
    /// When it was learned of (CLOCK_MONOTONIC).
    since_ns: u64,
    names: RefCell<HashMap<Name, Rc<str>>>,
    tags: RefCell<HashMap<u64, Rc<str>>>,
}

/// By slot: the counters while a version was the current one, low halves of those that began and of those that made
/// one; `None` where something was being committed.
type Stable = Vec<Option<(u32, u32)>>;

fn stable(before: &AllCommits, after: &AllCommits) -> Stable {
    let stable = |(before, after): (&Commits, &Commits)| {
        let quiet = before.begun == before.done && before.begun == after.begun;
        quiet.then_some((before.begun as u32, before.made as u32))
    };
    before.iter().zip(after).map(stable).collect()
}

impl Version {
    fn new(ruleset: Ruleset, since_ns: u64) -> Self {
        Self { names: RefCell::default(), tags: RefCell::default(), ruleset, since_ns }
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

/// What is known of a namespace.
#[derive(Debug, Default)]
struct Known {
    versions: VecDeque<Rc<Version>>,
    /// The generations of versions that were read, and what was counted then.
    read: VecDeque<(u32, Stable)>,
    follower: Follower,
    /// What was announced was not what was read.
    distrusted: bool,
}

impl Known {
    /// The generation that a run met.
    fn generation(&self, run: &Run) -> Option<u32> {
        let slot = usize::try_from(run.commit_slot).ok()?;
        let mut counted = self.read.iter().rev().filter_map(|(generation, stable)| {
            let (begun, made) = (*stable.get(slot)?)?;
            Some((*generation, begun, made))
        });
        if let Some((generation, ..)) = counted.clone().find(|(_, begun, _)| *begun == run.commits) {
            return Some(generation);
        }
        // Each commit that made one made the next.
        let (generation, _, made) = counted.next().filter(|_| run.facts & fact::GENERATIONS != 0)?;
        Some(generation.wrapping_add(run.generations.wrapping_sub(made)))
    }

    fn push(&mut self, version: Version) {
        let generation = version.ruleset.generation;
        // One that was read can come late.
        let age = |known: &Rc<Version>| generation.wrapping_sub(known.ruleset.generation).cast_signed();
        let at = self.versions.iter().rposition(|known| age(known) >= 0);
        match at.map(|at| (at, age(&self.versions[at]))) {
            Some((at, 0)) => {
                let since_ns = self.versions[at].since_ns;
                self.versions[at] = Rc::new(Version { since_ns, ..version });
            }
            at => self.versions.insert(at.map_or(0, |(at, _)| at + 1), Rc::new(version)),
        }
        while self.versions.len() > KEPT {
            self.versions.pop_front();
        }
    }
}

/// The versions that are known, by the inode number of the namespace.
#[derive(Debug, Default)]
pub struct Versions(KernelMap<u32, Known>);

impl Versions {
    /// Takes the rules of a namespace as they were read between these two moments, and when (CLOCK_MONOTONIC).
    pub fn read(
        &mut self,
        netns: u32,
        mut ruleset: Ruleset,
        (before, after): (&AllCommits, &AllCommits),
        read_ns: u64,
    ) {
        let known = self.0.entry(netns).or_default();
        let announced =
            known.versions.iter().find(|version| version.ruleset.generation == ruleset.generation);
        if announced.is_some_and(|version| !same(&version.ruleset, &ruleset)) {
            known.distrusted = true;
            known.versions.clear();
        }
        if let Some(last) = known.versions.back() {
            inherit_texts(&mut ruleset, &last.ruleset);
        }
        let read = (ruleset.generation, stable(before, after));
        // Rules can be read often without a change.
        if known.read.back() != Some(&read) {
            known.read.push_back(read);
        }
        while known.read.len() > KEPT {
            known.read.pop_front();
        }
        known.push(Version::new(ruleset, read_ns));
    }

    /// Takes the texts of the rules of a namespace, as they were printed some time ago.
    pub fn printed(&mut self, netns: u32, texts: &Ruleset) {
        let Some(known) = self.0.get_mut(&netns) else { return };
        let printed = known.versions.iter().find(|version| version.ruleset.generation == texts.generation);
        let newest = known.versions.back().filter(|newest| newest.ruleset.generation != texts.generation);
        for version in [printed.cloned(), newest.cloned()].into_iter().flatten() {
            let (mut ruleset, since_ns) = (version.ruleset.clone(), version.since_ns);
            inherit_texts(&mut ruleset, texts);
            known.push(Version::new(ruleset, since_ns));
        }
    }

    /// Takes an announcement of a change, heard at a time (CLOCK_MONOTONIC). Fails when the rules have to be read.
    pub fn announced(&mut self, netns: u32, message: &Message<'_>, heard_ns: u64) -> Result<(), Gap> {
        let known = self.0.entry(netns).or_default();
        let newest = known.versions.back().filter(|_| !known.distrusted).cloned().ok_or(Gap)?;
        match known.follower.take(message, &newest.ruleset) {
            Some(Ok(mut ruleset)) => {
                inherit_texts(&mut ruleset, &newest.ruleset);
                known.push(Version::new(ruleset, heard_ns));
            }
            Some(Err(gap)) => return Err(gap),
            None => {}
        }
        Ok(())
    }

    /// Announcements were lost.
    pub fn deafened(&mut self, netns: u32) {
        self.0.entry(netns).or_default().follower.forget();
    }

    /// The version that a run met; `None` when it is not known.
    pub fn met_by(&self, run: &Run) -> Option<&Rc<Version>> {
        let known = self.0.get(&run.netns)?;
        let generation = known.generation(run)?;
        known.versions.iter().rev().find(|version| version.ruleset.generation == generation)
    }

    /// The version of a namespace that was the newest one known at a time (CLOCK_MONOTONIC).
    pub fn at(&self, netns: u32, time_ns: u64) -> Option<&Rc<Version>> {
        let versions = &self.0.get(&netns)?.versions;
        versions.iter().rev().find(|version| version.since_ns <= time_ns).or(versions.front())
    }

    /// The newest version of a namespace.
    pub fn newest(&self, netns: u32) -> Option<&Rc<Version>> {
        self.0.get(&netns)?.versions.back()
    }
}

/// Whether two rulesets say the same, whatever is known of their texts.
fn same(one: &Ruleset, other: &Ruleset) -> bool {
    one.tables.len() == other.tables.len()
        && one.tables.iter().zip(&other.tables).all(|(one, other)| {
            let chains = one.chains.iter().zip(&other.chains);
            (one.handle, &one.name, one.flags, one.chains.len())
                == (other.handle, &other.name, other.flags, other.chains.len())
                && chains.into_iter().all(|(one, other)| {
                    let rules = |chain: &super::Chain| {
                        chain.rules.iter().map(|rule| (rule.handle, rule.content)).collect::<Vec<_>>()
                    };
                    (one.handle, &one.name, &one.base) == (other.handle, &other.name, &other.base)
                        && rules(one) == rules(other)
                })
        })
}
