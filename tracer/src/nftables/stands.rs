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
    /// The names of the bridges, and of what is on top of them.
    bridges: Vec<Vec<u8>>,
}

/// The devices that a packet came in by and leaves by, as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Devices<'a> {
    /// By which it came in.
    pub indev: Option<&'a [u8]>,
    /// By which it leaves.
    pub outdev: Option<&'a [u8]>,
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
        Self { generation: ruleset.generation, stands: stands.collect(), bridges: Vec::new() }
    }

    /// Whether some of them are those of bridges.
    pub fn have_bridges(&self) -> bool {
        self.stands.iter().any(|stand| stand.at.hook.is_of_bridge())
    }

    /// The same where these devices are bridges, or on top of one.
    pub fn with_bridges(self, bridges: Vec<Vec<u8>>) -> Self {
        Self { bridges, ..self }
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
        Devices { indev, outdev }: Devices<'_>,
    ) -> Vec<String> {
        let Some((first, last)) = places.first().zip(places.last()) else { return Vec::new() };
        let passed: HashSet<Hook> = places.iter().map(|at| at.hook).chain(between(places)).collect();
        let has = |device: Option<&[u8]>, devices: &[String]| device.is_some_and(|it| is_one_of(it, devices));
        let is_bridge = |device: Option<&[u8]>| self.bridges.iter().any(|bridge| Some(&**bridge) == device);
        let went_out = !gone && matches!(last.hook, Hook::Postrouting | Hook::ArpOutput | Hook::Egress);
        let came_in = matches!(first.hook, Hook::Prerouting | Hook::Input | Hook::Forward | Hook::ArpInput);
        let mut silent = Vec::new();
        for Stand { name, at, nat, devices } in &self.stands {
            let (of, table, chain) = name;
            if *nat || met.contains(name) || !of.sees(family, at.hook) {
                continue;
            }
            let why = match at.hook {
                Hook::Ingress if came_in && has(indev, devices) => "the mark comes after it",
                Hook::Ingress if first.hook != Hook::Ingress || !has(indev, devices) => continue,
                Hook::Egress if went_out && has(outdev, devices) => "it told nothing",
                Hook::Egress => continue,
                Hook::BridgePrerouting | Hook::BridgeInput if came_in && is_bridge(indev) => {
                    "the mark comes after it"
                }
                Hook::BridgeOutput | Hook::BridgePostrouting if went_out && is_bridge(outdev) => {
                    "it told nothing"
                }
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
