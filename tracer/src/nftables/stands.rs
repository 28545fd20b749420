//! Which base chains see a packet, and which of them should have told of it.

use super::{Ruleset, Table};
use crate::netfilter::{Family, Hook, TableFamily};
use crate::path::group::join::At;
use std::collections::HashSet;
use std::sync::Arc;

/// A base chain: the family and name of its table, and its own name.
pub type BaseName = (TableFamily, Arc<str>, Arc<str>);

/// All base chains of a namespace.
#[derive(Debug)]
pub struct Stands {
    generation: u32,
    stands: Vec<Stand>,
}

#[derive(Debug)]
struct Stand {
    name: BaseName,
    at: At,
    /// Asked about the first packet of a connection only.
    nat: bool,
    devices: Vec<String>,
}

impl Stands {
    /// The base chains that packets come to, without those of tables that are `passed_over`.
    pub fn of(ruleset: &Ruleset, passed_over: impl Fn(&Table) -> bool) -> Self {
        let standing = ruleset.standing().filter(|(table, ..)| !passed_over(table));
        let stands = standing.map(|(table, chain, base, at)| Stand {
            name: (table.family, Arc::clone(&table.name), Arc::clone(&chain.name)),
            at,
            nat: base.is_nat(),
            devices: base.devices.clone(),
        });
        Self { generation: ruleset.generation, stands: stands.collect() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stands.is_empty()
    }

    /// Whether these are of the same generation of the rules.
    pub fn same_generation(&self, other: &Self) -> bool {
        self.generation == other.generation
    }

    /// In words, which base chains must have seen a packet that was at these places, in this order, and told nothing.
    pub fn silent(
        &self,
        family: Family,
        places: &[At],
        gone: bool,
        met: &HashSet<BaseName>,
        indev: Option<&[u8]>,
    ) -> Vec<String> {
        let Some((first, last)) = places.first().zip(places.last()) else { return Vec::new() };
        let passed: HashSet<Hook> = places.iter().map(|at| at.hook).chain(between(places)).collect();
        let has = |devices: &[String]| indev.is_some_and(|indev| is_one_of(indev, devices));
        let mut silent = Vec::new();
        for Stand { name, at, nat, devices } in &self.stands {
            let (of, table, chain) = name;
            if *nat || met.contains(name) || !of.sees(family, at.hook) {
                continue;
            }
            let why = match at.hook {
                Hook::Ingress if first.hook == Hook::Prerouting && has(devices) => "the mark comes after it",
                Hook::Ingress | Hook::Egress => continue,
                hook if !passed.contains(&hook) => continue,
                hook if hook == first.hook && at.priority < first.priority => "the mark comes after it",
                hook if hook == first.hook && at.priority == first.priority => continue,
                hook if hook == last.hook && gone && at.priority >= last.priority => continue,
                _ => "it told nothing",
            };
            silent.push(format!("{} {table}:{chain} is not there: {why}", of.name()));
        }
        silent
    }
}

/// Whether a device is one of a chain's, whose names may end with a `*`.
pub(crate) fn is_one_of(device: &[u8], devices: &[String]) -> bool {
    devices.iter().any(|name| match name.strip_suffix('*') {
        Some(prefix) => device.starts_with(prefix.as_bytes()),
        None => device == name.as_bytes(),
    })
}

/// Hooks that were passed between two others without a word.
fn between(places: &[At]) -> impl Iterator<Item = Hook> {
    let forwarded = |pair: &&[At]| {
        pair[0].hook == Hook::Prerouting && matches!(pair[1].hook, Hook::Postrouting | Hook::Egress)
    };
    places.windows(2).filter(forwarded).map(|_| Hook::Forward)
}
