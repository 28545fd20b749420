//! How long packets were in tables and base chains.
//!
//! Pure.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::netfilter::{Engine, Hook, TableFamily};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// What one pass through a table or a base chain took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Where.
    pub hook: Hook,
    /// Whose table it is.
    pub engine: Engine,
    /// Of the table.
    pub family: TableFamily,
    /// Name of the table.
    pub table: Box<str>,
    /// Name of the built-in or base chain.
    pub chain: Box<str>,
    /// Nanoseconds, from its first rule to its verdict.
    pub ns: u64,
    /// The same from verdict to verdict on the way, where the engine tells: each with the rules before that did not hold.
    pub steps_ns: Vec<u64>,
}

/// `1.2 µs`
#[derive(Clone, Copy, Debug)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} ns", self.0),
            1_000..1_000_000 => write!(f, "{:.1} µs", ns / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} ms", ns / 1e6),
            _ => write!(f, "{:.1} s", ns / 1e9),
        }
    }
}

/// How often something took how long, by powers of two.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// By the number of bits of the nanoseconds.
    buckets: [u64; 65],
    sum_ns: u64,
    longest_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; 65], sum_ns: 0, longest_ns: 0 }
    }
}

impl Histogram {
    /// Takes one.
    pub fn add(&mut self, ns: u64) {
        self.buckets[(u64::BITS - ns.leading_zeros()) as usize] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.longest_ns = self.longest_ns.max(ns);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What they took on average.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count()).unwrap_or(0)
    }

    /// What the longest took.
    pub fn longest_ns(&self) -> u64 {
        self.longest_ns
    }

    /// From the first bucket that is not empty to the last: what the shortest in it took at least, and how many there are.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> {
        let used = |bucket: &u64| *bucket > 0;
        let first = self.buckets.iter().position(used).unwrap_or(0);
        let last = self.buckets.iter().rposition(used).map_or(0, |last| last + 1);
        (first..last).map(|bits| (if bits == 0 { 0 } else { 1 << (bits - 1) }, self.buckets[bits]))
    }
}

/// A table or base chain at its hook, in the order in which packets come there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stand {
    /// The hook.
    pub hook: Hook,
    /// `ip filter:INPUT`
    pub name: String,
}

/// A rule, and how often packets met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// `ip filter:INPUT:rule:3`
    pub name: String,
    /// Its text.
    pub text: Option<Arc<str>>,
    /// How often.
    pub count: u64,
}

/// All that packets took.
#[derive(Debug, Default)]
pub struct Summary {
    stands: BTreeMap<Stand, Histogram>,
    rules: HashMap<(TableFamily, String), Hot>,
}

impl Summary {
    /// Takes what one pass took.
    pub fn spent(&mut self, spent: &Spent) {
        let Spent { hook, family, table, chain, .. } = spent;
        let name = format!("{} {table}:{chain}", family.name());
        self.stands.entry(Stand { hook: *hook, name }).or_default().add(spent.ns);
    }

    /// Takes a rule that a packet met.
    pub fn met(&mut self, family: TableFamily, name: &str, text: Option<&Arc<str>>) {
        let key = (family, name.to_owned());
        let hot = self.rules.entry(key).or_insert_with(|| Hot {
            name: format!("{} {name}", family.name()),
            text: text.cloned(),
            count: 0,
        });
        hot.count += 1;
    }

    /// The histograms, in the order of the hooks.
    pub fn stands(&self) -> impl Iterator<Item = (&Stand, &Histogram)> {
        self.stands.iter()
    }

    /// The rules that were met most often.
    pub fn hottest(&self, most: usize) -> Vec<&Hot> {
        let mut rules: Vec<&Hot> = self.rules.values().collect();
        rules.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.name.cmp(&other.name)));
        rules.truncate(most);
        rules
    }
}
