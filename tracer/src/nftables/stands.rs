//! Which base chains see a packet, and which of them should have told of it.

use super::{Ruleset, Table};
use crate::netfilter::{Family, Hook, TableFamily};
use crate::path::group::join::At;
use std::collections::HashSet;
use std::sync::Arc;

/// A base chain: the family and name of its table, and its own name.
pub type BaseName = (TableFamily, Arc<str>, Arc<str>);

/// A base chain that a packet met; of those of devices, at which.
pub type Met = (BaseName, Option<Vec<u8>>);

/// All base chains of a namespace.
#[derive(Debug)]
pub struct Stands {
    generation: u32,
    stands: Vec<Stand>,
    layers: Vec<Layer>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub name: Vec<u8>,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The names of the devices by which packets come to it.
    pub below: Vec<Vec<u8>>,
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
        Self { generation: ruleset.generation, stands: stands.collect(), layers: Vec::new() }
    }

    /// The same among these devices.
    pub fn with_layers(self, layers: Vec<Layer>) -> Self {
        Self { layers, ..self }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stands.is_empty()
    }

    /// Whether these are of the same generation of the rules.
    pub fn same_generation(&self, other: &Self) -> bool {
        self.generation == other.generation
    }

    /// Devices below one, and below those.
    fn below(&self, device: &[u8]) -> Vec<&Layer> {
        let mut found: Vec<&Layer> = self.layers.iter().filter(|layer| layer.name == device).collect();
        let mut next = 0;
        while let Some(layer) = found.get(next) {
            let below = self.layers.iter().filter(|other| layer.below.contains(&other.name));
            let new: Vec<&Layer> = below.filter(|other| !found.contains(other)).collect();
            found.extend(new);
            next += 1;
        }
        found
    }

    /// Whether packets come to a device, or leave it, by way of a bridge.
    pub fn is_behind_bridge(&self, device: Option<&[u8]>) -> bool {
        device.is_some_and(|device| self.below(device).iter().any(|layer| layer.is_bridge))
    }

    /// In words, which base chains must have seen a packet that was at these places, in this order, and told nothing; and
    /// which may have.
    pub fn silent(
        &self,
        family: Family,
        places: &[At],
        gone: bool,
        met: &HashSet<Met>,
        Devices { indev, outdev }: Devices<'_>,
    ) -> Vec<String> {
        let Some((first, last)) = places.first().zip(places.last()) else { return Vec::new() };
        let passed: HashSet<Hook> = places.iter().map(|at| at.hook).chain(between(places)).collect();
        let has = |device: Option<&[u8]>, devices: &[String]| device.is_some_and(|it| is_one_of(it, devices));
        let went_out = !gone && matches!(last.hook, Hook::Postrouting | Hook::ArpOutput | Hook::Egress);
        let came_in = indev.is_some() && !first.leaves();
        let from_bridge = came_in && !first.hook.is_of_bridge() && self.is_behind_bridge(indev);
        // IP may have been asked by the bridge, which sends it on.
        let is_bridged =
            [Hook::BridgeForward, Hook::BridgePostrouting].iter().any(|hook| passed.contains(hook));
        let mut silent = Vec::new();
        for Stand { name, at, nat, devices } in &self.stands {
            let (of, table, chain) = name;
            if *nat || !of.sees(family, at.hook) {
                continue;
            }
            let is_met = |device: Option<&[u8]>| met.contains(&(name.clone(), device.map(<[u8]>::to_vec)));
            let below = || {
                let other = indev.map(|device| self.below(device)).unwrap_or_default();
                other.iter().any(|layer| Some(&*layer.name) != indev && is_one_of(&layer.name, devices))
            };
            let has_met =
                if at.hook == Hook::Ingress { is_met(indev) } else { met.iter().any(|it| it.0 == *name) };
            let why = match at.hook {
                Hook::Ingress if came_in && below() => MAY_BE_LATE,
                _ if has_met => continue,
                Hook::Ingress if !came_in || !has(indev, devices) => continue,
                Hook::Ingress if first.hook != Hook::Ingress && is_bridged && from_bridge => continue,
                Hook::Ingress if first.hook != Hook::Ingress => LATE,
                Hook::Egress if went_out && has(outdev, devices) => SILENT,
                Hook::Egress => continue,
                Hook::BridgePrerouting if from_bridge => LATE,
                Hook::BridgeInput if from_bridge && !is_bridged && !passed.contains(&at.hook) => MAY_BE_LATE,
                Hook::BridgePostrouting if went_out && self.is_behind_bridge(outdev) => SILENT,
                Hook::BridgeOutput if went_out && self.is_behind_bridge(outdev) && first.leaves() => SILENT,
                hook if !passed.contains(&hook) => continue,
                // IP was asked by the bridge, and there it ended.
                hook if gone && hook.asks() == Some(last.hook) && at.priority >= 0 => continue,
                hook if hook == first.hook && at.priority < first.priority => LATE,
                hook if hook == first.hook && at.priority == first.priority => continue,
                hook if hook == last.hook && gone && at.priority >= last.priority => continue,
                _ => SILENT,
            };
            silent.push(format!("{} {table}:{chain} {why}", of.name()));
        }
        silent
    }
}

/// Why a base chain is not there.
const LATE: &str = "is not there: the mark comes after it";
const MAY_BE_LATE: &str = "may have to be there: the mark comes after it";
const SILENT: &str = "is not there: it told nothing";

/// Whether a device is one of a chain's, whose names may end with a `*`.
pub(crate) fn is_one_of(device: &[u8], devices: &[String]) -> bool {
    devices.iter().any(|name| match name.strip_suffix('*') {
        Some(prefix) => device.starts_with(prefix.as_bytes()),
        None => device == name.as_bytes(),
    })
}

/// Hooks that were passed between two others without a word.
fn between(places: &[At]) -> impl Iterator<Item = Hook> {
    places.windows(2).filter_map(|pair| match (pair[0].hook, pair[1].hook) {
        (Hook::Prerouting, Hook::Postrouting | Hook::Egress) => Some(Hook::Forward),
        (Hook::BridgePrerouting, Hook::BridgePostrouting) => Some(Hook::BridgeForward),
        _ => None,
    })
}
