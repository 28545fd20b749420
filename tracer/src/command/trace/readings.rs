//! `--count-by` where the kernel counts by itself: the counters of legacy tables are read now and then, and packets pay
//! nothing.

use super::counting::show;
use super::probes::{Namespaces, Watch, complain};
use super::{Next, Session, Wish, say};
use crate::cli::netns::Netns;
use crate::cli::trace::{Backend, Counting};
use crate::command;
use crate::error::Failure;
use crate::fetch;
use crate::history::Version;
use crate::netfilter::Family;
use crate::sink::{CountSink, CountTotals, Start};
use crate::sys::{kernel, netns};
use crate::tally::{By, Tally, What};
use crate::trace_line::LogStyle;
use crate::xtables::RawTable;
use anyhow::Context as _;
use std::collections::HashMap;
use std::time::Instant;

/// A count under way.
pub(super) struct Readings {
    namespaces: Namespaces,
    /// Names say of which namespace they are.
    several: bool,
    counting: Counting,
    tables: HashMap<(u32, Family, String), Read>,
    /// What was counted by versions of tables that are gone.
    gone: HashMap<What, u64>,
    tally: Tally,
    sink: Box<dyn CountSink>,
    began: Instant,
    looked: Instant,
    watch: Option<Watch>,
}

/// A table as it was read.
struct Read {
    version: Version,
    raw: RawTable,
    /// What its counters were when counting began.
    base: Vec<u64>,
    /// How far they have moved since.
    moved: Vec<u64>,
}

impl Readings {
    /// Reads the tables, if their counters say all that was asked for; `None` if they do not.
    pub(super) fn start(wish: &Wish<'_>, counting: Counting) -> Result<Option<(Self, Start)>, Failure> {
        let config = wish.config;
        let by_rules = matches!(counting.by, By::Rule | By::Chain | By::Owner);
        if !by_rules || !config.filter.is_empty() || config.backend != Backend::Auto {
            return Ok(None);
        }
        let namespace = match config.netns.path() {
            Some(_) => Some(command::open_namespace(&config.netns)?),
            None => None,
        };
        let inode = namespace.as_ref().map(netns::inode).transpose().map_err(Failure::running)?;
        let namespaces = Namespaces::new(namespace, inode);
        if !kernel::has_legacy_tables() || (kernel::has_nftables() && namespaces.have_base_chains()) {
            return Ok(None);
        }
        let now = Instant::now();
        let mut readings = Self {
            several: config.netns == Netns::All,
            counting,
            tables: HashMap::new(),
            gone: HashMap::new(),
            tally: Tally::default(),
            sink: super::counting::sink(config.output),
            began: now,
            looked: now,
            watch: namespaces.home().ok().map(Watch::new),
            namespaces,
        };
        readings.read(true);
        let start = wish.start("the rules' own counters", "none".to_owned(), LogStyle::default());
        Ok(Some((readings, start)))
    }

    /// Reads all counters. What tables had counted before the first reading is not of this count.
    fn read(&mut self, is_first: bool) {
        let Self { namespaces, tables, gone, counting, several, .. } = self;
        namespaces.each(|inode, file| {
            // A namespace that is gone has no tables.
            for raw in fetch::read_tables(file).unwrap_or_default() {
                let key = (inode, raw.family, raw.name.clone());
                let counts = raw.packet_counts();
                if let Some(read) = tables.get_mut(&key)
                    && read.raw.same_rules(&raw)
                {
                    for ((base, moved), count) in read.base.iter_mut().zip(&mut read.moved).zip(counts) {
                        if count < base.wrapping_add(*moved) {
                            // They have been set to zero meanwhile: what was counted stays counted.
                            *base = 0_u64.wrapping_sub(*moved);
                        }
                        *moved = count.wrapping_sub(*base);
                    }
                    continue;
                }
                let Ok(Some(fetched)) = fetch::fetch_table(file, raw.family, &raw.name) else { continue };
                let (family, name) = (raw.family, &raw.name);
                if is_first {
                    complain(&fetched);
                } else {
                    say(&format!(
                        "{family} table {name} has come or was replaced: what its rules counted around that is not counted"
                    ));
                }
                let base = fetched.raw.packet_counts();
                let read = Read {
                    version: Version::new(fetched.table, 0, true),
                    moved: vec![0; base.len()],
                    base,
                    raw: fetched.raw,
                };
                if let Some(old) = tables.insert(key, read) {
                    for (what, count) in old.totals(counting.by, several.then_some(inode)) {
                        *gone.entry(what).or_default() += count;
                    }
                }
            }
        });
        let mut totals: Vec<(What, u64)> = gone.iter().map(|(what, count)| (what.clone(), *count)).collect();
        for ((inode, ..), read) in tables {
            totals.extend(read.totals(counting.by, several.then_some(*inode)));
        }
        self.tally.look(totals);
    }
}

impl Read {
    /// What its rules have counted.
    fn totals(&self, by: By, netns: Option<u32>) -> Vec<(What, u64)> {
        let moved = self.moved.iter().enumerate().filter(|(_, moved)| **moved > 0);
        let named = moved.filter_map(|(entry, moved)| {
            let (name, rule) = self.version.rule(entry)?;
            Some((super::counting::what(by, netns, name, &rule), *moved))
        });
        named.collect()
    }
}

impl Session for Readings {
    fn begin(&mut self, _start: &Start) -> Result<(), Failure> {
        Ok(())
    }

    /// Nothing comes by itself.
    async fn ready(&mut self) {
        std::future::pending().await
    }

    fn look(&mut self) -> Result<Next, Failure> {
        if self.watch.as_mut().is_some_and(Watch::look) {
            self.watch = None;
            say("nftables has rules now that are not counted");
        }
        if self.looked.elapsed() >= self.counting.interval {
            self.read(false);
            show(&mut *self.sink, &self.tally, self.counting, self.looked, false)?;
            self.looked = Instant::now();
        }
        Ok(Next::Wait)
    }

    fn end(mut self) -> Result<(), Failure> {
        self.read(false);
        show(&mut *self.sink, &self.tally, self.counting, self.began, true)?;
        let totals = CountTotals::default();
        self.sink.end(&totals).context("cannot write")?;
        eprintln!("{totals}");
        Ok(())
    }
}
