//! The rules as they are when a packet has been dropped.

use crate::cli::netns::Netns;
use crate::command;
use crate::explain::may_change;
use crate::fetch::{self, Fetched, nft::Nftables};
use crate::footprint;
use crate::netfilter::{Engine, Family, Hook, TableFamily};
use crate::nftables;
use crate::owner::{self, Place};
use crate::sys::{clock, netns};
use crate::why::{Listed, Met};
use std::fs::File;
use std::time::{Duration, Instant};

/// For so long rules are taken for the present ones where only what stands at the hooks is asked for.
const RECENT: Duration = Duration::from_secs(1);

/// Reads the rules of the namespace that a packet was in.
pub(super) struct Rules {
    netns: Netns,
    /// The last that were read, when, and where.
    recent: Option<(Instant, Option<u32>, Loaded)>,
    held: Option<Held>,
}

/// The rules of the one namespace that is traced, and when they were the ones that packets met.
struct Held {
    namespace: File,
    loaded: Loaded,
    /// From when, in nanoseconds since the epoch.
    since_ns: u64,
    /// When they were last found to be the same.
    until_ns: u64,
}

impl Held {
    fn read(namespace: File) -> Self {
        let loaded = Loaded::read(&namespace);
        let since_ns = now_ns();
        Self { namespace, loaded, since_ns, until_ns: since_ns }
    }
}

fn now_ns() -> u64 {
    clock::epoch_ns().wrapping_add(clock::monotonic_ns())
}

/// What is loaded in one namespace.
pub(super) struct Loaded {
    legacy: Vec<Fetched>,
    nftables: nftables::Ruleset,
}

impl Rules {
    pub(super) fn new(netns: &Netns) -> Self {
        Self { netns: netns.clone(), recent: None, held: None }
    }

    /// The namespace as it was named, or that with an inode number, by its name.
    pub(super) fn netns(&self, inode: Option<u32>) -> Netns {
        match &self.netns {
            Netns::All => {
                let found = netns::list().into_iter().find(|found| Some(found.inode) == inode);
                found.map_or(Netns::All, |found| match (found.name, found.pid) {
                    (Some(name), _) => Netns::Name(name),
                    (None, Some(pid)) => Netns::Pid(pid),
                    (None, None) => Netns::Path(found.path),
                })
            }
            named => named.clone(),
        }
    }

    /// Those that were there a moment ago.
    pub(super) fn recent(&mut self, inode: Option<u32>) -> &Loaded {
        let is_recent = |held: &&Held| now_ns().saturating_sub(held.until_ns) < RECENT.as_nanos() as u64;
        if let Some(held) = self.held.as_ref().filter(is_recent) {
            return &held.loaded;
        }
        let is_recent =
            |(when, of, _): &(Instant, Option<u32>, Loaded)| *of == inode && when.elapsed() < RECENT;
        let known = self.recent.take().filter(is_recent);
        let (when, loaded) = match known {
            Some((when, _, loaded)) => (when, loaded),
            None => (Instant::now(), self.read(inode)),
        };
        &self.recent.insert((when, inode, loaded)).2
    }

    /// Reads them; what cannot be read is left out.
    pub(super) fn read(&self, inode: Option<u32>) -> Loaded {
        let netns = self.netns(inode);
        let namespace = if netns == Netns::All { None } else { command::open_namespace(&netns).ok() };
        namespace.as_ref().map_or_else(Loaded::nothing, Loaded::read)
    }

    /// Reads them before packets come, so that it can be told later whether they were the same all the time.
    pub(super) fn hold(&mut self) {
        if self.netns != Netns::All {
            self.held = command::open_namespace(&self.netns).ok().map(Held::read);
        }
    }

    /// The rules that a packet met from one moment to another, in nanoseconds since the epoch; `None` when they were
    /// changed since they were read, and in all namespaces at once.
    pub(super) fn met(&mut self, since_ns: u64, until_ns: u64) -> Option<&Loaded> {
        let held = self.held.as_mut()?;
        if held.until_ns < until_ns {
            let now_ns = now_ns();
            if !held.loaded.is_same(&held.namespace) {
                let namespace = held.namespace.try_clone().ok()?;
                *held = Held::read(namespace);
                return None;
            }
            held.until_ns = now_ns;
        }
        (held.since_ns <= since_ns).then_some(&held.loaded)
    }
}

impl Loaded {
    fn nothing() -> Self {
        Self { legacy: Vec::new(), nftables: nftables::Ruleset::default() }
    }

    fn read(namespace: &File) -> Self {
        let nftables = Nftables::open(namespace).ok().flatten();
        let fetched = nftables.and_then(|mut nftables| nftables.fetch().ok());
        Self {
            legacy: fetch::fetch_tables(namespace).unwrap_or_default(),
            nftables: fetched.map(|fetched| fetched.ruleset).unwrap_or_default(),
        }
    }

    /// Whether a namespace has these rules and no others.
    fn is_same(&self, namespace: &File) -> bool {
        let generation = match Nftables::open(namespace) {
            Ok(Some(mut nftables)) => nftables.generation().ok(),
            Ok(None) => Some(0),
            Err(_) => None,
        };
        generation == Some(self.nftables.generation)
            && fetch::are_same(namespace, &self.legacy).unwrap_or(false)
    }

    /// Whether every packet of a family that comes to a hook meets a table there.
    pub(super) fn has_stand(&self, family: Family, hook: Hook) -> bool {
        let legacy = |fetched: &Fetched| {
            let table = &fetched.table;
            table.family == family && table.name != "nat" && table.hook_entry[hook as usize].is_some()
        };
        let mut base_chains = self.nftables.standing();
        self.legacy.iter().any(legacy)
            || base_chains.any(|(table, _, base, at)| {
                let ours = footprint::is_table_of_ours(table);
                at.hook == hook && table.family.sees(family, hook) && !base.is_nat() && !ours
            })
    }

    /// The rules of the chain of a step; `None` when it is not there any more.
    pub(super) fn chain(&self, met: &Met) -> Option<Vec<Listed>> {
        let owner = |text: Option<&str>| owner::of(Place { table: &met.table, chain: &met.chain, text });
        if met.engine == Engine::Nft {
            let chain = self.nftables.table(met.family, &met.table)?.chain(&met.chain)?;
            let listed = |(rule, number): (&nftables::Rule, u32)| Listed {
                number,
                text: rule.text.clone(),
                owner: owner(rule.text.as_deref()),
            };
            return Some(chain.rules.iter().zip(1..).map(listed).collect());
        }
        let table = self
            .legacy
            .iter()
            .map(|fetched| &fetched.table)
            .find(|table| TableFamily::from(table.family) == met.family && table.name == met.table)?;
        let chain = table.chains.iter().find(|chain| chain.name == met.chain)?;
        let entries = table.entries.get(chain.entries.clone())?.iter().filter(|entry| !entry.tail);
        // Rules of our own are not counted in the names of steps.
        let is_ours = |text: &str| footprint::is_rule_of_ours(text);
        let others = entries.filter(|entry| !entry.text.as_deref().is_some_and(is_ours));
        let listed = others.zip(1..).map(|(entry, number)| Listed {
            number,
            text: entry.text.clone(),
            owner: owner(entry.text.as_deref()),
        });
        Some(listed.collect())
    }

    /// Whether rules of the table of a step may change a packet without being met.
    pub(super) fn may_change(&self, met: &Met) -> bool {
        let table = self.nftables.table(met.family, &met.table);
        met.engine == Engine::Nft
            && table.is_none_or(|table| {
                let chains = table.chains.iter();
                chains.flat_map(|chain| &chain.rules).any(|rule| rule.text.as_deref().is_none_or(may_change))
            })
    }

    /// Whether iptables-nft, or its sibling, made the table of a step.
    pub(super) fn is_of_iptables(&self, met: &Met) -> bool {
        let table = self.nftables.table(met.family, &met.table);
        met.engine == Engine::Nft && table.is_some_and(nftables::Table::is_of_iptables)
    }
}
