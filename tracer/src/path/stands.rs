//! What stands at the hooks that packets of one family pass: legacy tables and base chains of nftables, those of devices
//! among them.
#![forbid(unsafe_code)]

use crate::history::Loaded;
use crate::netfilter::{Family, Hook};
use crate::nftables::Ruleset;
use crate::nftables::stands::is_one_of;
use std::rc::Rc;
use tracer_common::place::legacy_priority;

/// Classes of the legacy tables, see [`tracer_common::legacy::table_class`], by [`tracer_common::legacy::rank`].
const CLASSES: [u8; 8] = [0, 1, 2, 3, 4, 5, 3, 7];
const TABLES: [&str; 8] = ["?", "raw", "mangle", "nat", "filter", "security", "nat", "?"];
/// Stands at one hook that are kept track of.
const MOST: usize = 64;

/// Something that a packet meets at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A legacy table.
    Legacy {
        /// Its [`tracer_common::legacy::rank`].
        rank: u8,
    },
    /// A base chain of nftables.
    Nft {
        /// Handle of its table.
        table: u64,
        /// Its own handle.
        chain: u64,
    },
}

#[derive(Clone, Debug)]
struct Stand {
    key: Key,
    /// At the hook; for what translates addresses that of the translation.
    priority: i32,
    /// Among what translates addresses.
    order: i32,
    name: Rc<str>,
    /// Consulted for connections only.
    nat: bool,
    /// There for certain; otherwise it may have come.
    sure: bool,
    /// At a device's hooks: the names of the devices.
    devices: Vec<String>,
}

/// What stands at one hook, in the order of the priorities; the bits stand for its places.
#[derive(Clone, Debug, Default)]
struct AtHook {
    stands: Vec<Stand>,
    /// Where the legacy tables are among them, by rank, with what [`Stands::place`] says of them.
    legacy: [Option<Legacy>; 8],
    all: u64,
    sure: u64,
    nat: u64,
    /// Something stands at a hook that can come after this one; then the same for what goes out through loopback.
    goes_on: [bool; 2],
}

/// A legacy table at a hook.
#[derive(Clone, Copy, Debug)]
struct Legacy {
    priority: i32,
    before: u64,
    bit: u64,
}

/// Hooks by the number that [`Hook::from_record`] takes.
const HOOKS: [Hook; 15] = [
    Hook::Prerouting,
    Hook::Input,
    Hook::Forward,
    Hook::Output,
    Hook::Postrouting,
    Hook::Ingress,
    Hook::Egress,
    Hook::BridgePrerouting,
    Hook::BridgeInput,
    Hook::BridgeForward,
    Hook::BridgeOutput,
    Hook::BridgePostrouting,
    Hook::ArpInput,
    Hook::ArpOutput,
    Hook::ArpForward,
];

/// What stands at each hook.
#[derive(Clone, Debug, Default)]
pub struct Stands {
    hooks: [AtHook; HOOKS.len()],
    legacy: bool,
    bridges: bool,
}

/// The bits of the first `count`, at most 64.
fn lowest(count: usize) -> u64 {
    u64::MAX.checked_shl(count as u32).map_or(u64::MAX, |above| !above)
}

/// Hooks that can come after another; `loopback` says whether the packet goes out through such a device. Which device it
/// leaves by tells whether there is more at egress.
fn hooks_after(hook: Hook, loopback: bool) -> &'static [Hook] {
    match hook {
        Hook::Ingress => &[Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Postrouting, Hook::ArpInput],
        Hook::Prerouting => &[Hook::Input, Hook::Forward, Hook::Postrouting],
        Hook::Output if loopback => &[Hook::Postrouting, Hook::Ingress, Hook::Prerouting, Hook::Input],
        Hook::Forward | Hook::Output => &[Hook::Postrouting],
        Hook::Postrouting | Hook::Egress if loopback => &[Hook::Ingress, Hook::Prerouting, Hook::Input],
        Hook::Input | Hook::Postrouting | Hook::Egress => &[],
        Hook::ArpInput | Hook::ArpOutput | Hook::ArpForward => &[],
        // Where a packet that crosses a bridge can be next is not looked at.
        Hook::BridgePrerouting
        | Hook::BridgeInput
        | Hook::BridgeForward
        | Hook::BridgeOutput
        | Hook::BridgePostrouting => &[],
    }
}

impl Stands {
    /// The legacy tables of a family, and the base chains that see its packets.
    pub fn of(loaded: Loaded, family: Family, ruleset: Option<&Ruleset>) -> Self {
        let mut stands = Self::default();
        for hook in Hook::ALL {
            let (sure, possible) = (loaded.ranks[hook as usize], loaded.possible[hook as usize]);
            stands.legacy |= sure != 0;
            for rank in (1..=7_u8).filter(|rank| (sure | possible) & 1 << rank != 0) {
                let priority = legacy_priority(hook as u8, CLASSES[usize::from(rank)]);
                stands.add(
                    hook,
                    Stand {
                        key: Key::Legacy { rank },
                        priority,
                        order: priority,
                        name: format!("{}:{}", TABLES[usize::from(rank)], hook.chain()).into(),
                        nat: matches!(rank, 3 | 6),
                        sure: sure & 1 << rank != 0,
                        devices: Vec::new(),
                    },
                );
            }
        }
        for (table, chain, base, at) in ruleset.into_iter().flat_map(Ruleset::standing) {
            if table.family.sees(family, at.hook) {
                stands.add(
                    at.hook,
                    Stand {
                        key: Key::Nft { table: table.handle, chain: chain.handle },
                        priority: at.priority,
                        order: base.priority,
                        name: format!("{} {}:{}", table.family.name(), table.name, chain.name).into(),
                        nat: base.is_nat(),
                        sure: true,
                        devices: base.devices.clone(),
                    },
                );
            }
        }
        stands.index();
        stands
    }

    fn add(&mut self, hook: Hook, stand: Stand) {
        self.hooks[hook as usize].stands.push(stand);
    }

    fn index(&mut self) {
        for at in &mut self.hooks {
            at.stands.sort_by_key(|stand| (stand.priority, stand.order));
            at.stands.truncate(MOST);
            let bits = |is: fn(&Stand) -> bool| {
                at.stands
                    .iter()
                    .enumerate()
                    .filter(|(_, stand)| is(stand))
                    .fold(0, |bits, (at, _)| bits | 1 << at)
            };
            (at.sure, at.nat) = (bits(|stand| stand.sure), bits(|stand| stand.nat));
            at.all = lowest(at.stands.len());
            for (place, stand) in at.stands.iter().enumerate() {
                if let Key::Legacy { rank } = stand.key {
                    let priority = stand.priority;
                    let before = lowest(at.stands.partition_point(|other| other.priority < priority));
                    at.legacy[usize::from(rank & 7)] = Some(Legacy { priority, before, bit: 1 << place });
                }
            }
        }
        self.bridges = Hook::BRIDGE.iter().any(|hook| self.all(*hook as u8) != 0);
        for hook in &HOOKS {
            let any = |loopback| hooks_after(*hook, loopback).iter().any(|later| self.all(*later as u8) != 0);
            self.hooks[*hook as usize].goes_on = [any(false), any(true)];
        }
    }

    fn at(&self, hook: u8) -> &AtHook {
        &self.hooks[usize::from(hook).min(HOOKS.len() - 1)]
    }

    /// Those that see a packet before something of this priority, and its own bit; 0 for one that is not known.
    #[inline]
    pub(super) fn place(&self, hook: u8, priority: i32, key: Key) -> (u64, u64) {
        let at = self.at(hook);
        if let Key::Legacy { rank } = key
            && let Some(legacy) = at.legacy[usize::from(rank & 7)]
            && legacy.priority == priority
        {
            return (legacy.before, legacy.bit);
        }
        let stands = &at.stands;
        let count = stands.iter().take_while(|stand| stand.priority < priority).count();
        let found = stands[count..].iter().position(|stand| stand.key == key);
        (lowest(count), found.map_or_else(|| self.bit(hook, key), |at| 1 << (count + at)))
    }

    /// The bit of one of them; 0 for one that is not known.
    pub(super) fn bit(&self, hook: u8, key: Key) -> u64 {
        let found = self.at(hook).stands.iter().position(|stand| stand.key == key);
        found.map_or(0, |at| 1 << at)
    }

    /// Those that see a packet before something of this priority.
    pub(super) fn before(&self, hook: u8, priority: i32) -> u64 {
        lowest(self.at(hook).stands.partition_point(|stand| stand.priority < priority))
    }

    /// The priority of the first of them with one of these bits.
    pub(super) fn first_priority(&self, hook: u8, bits: u64) -> Option<i32> {
        let stands = self.at(hook).stands.iter().enumerate();
        stands.filter(|(at, _)| bits & 1 << at != 0).map(|(_, stand)| stand.priority).next()
    }

    /// Those that are there for certain.
    pub(super) fn sure(&self, hook: u8) -> u64 {
        self.at(hook).sure
    }

    /// Those that are consulted for connections only.
    pub(super) fn nat(&self, hook: u8) -> u64 {
        self.at(hook).nat
    }

    /// All that are there, or may have come.
    pub(super) fn all(&self, hook: u8) -> u64 {
        self.at(hook).all
    }

    /// Whether something stands at a hook that can come after this one.
    #[inline]
    pub(super) fn goes_on(&self, hook: u8, loopback: bool) -> bool {
        self.at(hook).goes_on[usize::from(loopback)]
    }

    /// Whether there are legacy tables, whose shared sequence count shows what probes have missed.
    pub(super) fn has_witness(&self) -> bool {
        self.legacy
    }

    /// Whether there are base chains at devices at all.
    #[inline]
    pub(super) fn has_devices(&self) -> bool {
        self.all(Hook::Ingress as u8) | self.all(Hook::Egress as u8) != 0
    }

    /// Whether there are base chains at a hook of bridges.
    #[inline]
    pub(super) fn has_bridges(&self) -> bool {
        self.bridges
    }

    /// Those that see a packet at a device; at other hooks all, whatever the device.
    #[inline]
    pub(super) fn at_device(&self, hook: u8, device: &[u8]) -> u64 {
        if hook != Hook::Ingress as u8 && hook != Hook::Egress as u8 {
            return u64::MAX;
        }
        let sees = |stand: &Stand| !device.is_empty() && is_one_of(device, &stand.devices);
        let stands = self.at(hook).stands.iter().enumerate();
        stands.filter(|(_, stand)| sees(stand)).fold(0, |bits, (at, _)| bits | 1 << at)
    }

    /// The names of those with these bits.
    pub(super) fn names(&self, hook: u8, bits: u64) -> impl Iterator<Item = &Rc<str>> {
        let stands = self.at(hook).stands.iter().enumerate();
        stands.filter(move |(at, _)| bits & 1 << at != 0).map(|(_, stand)| &stand.name)
    }

    /// What bits of another version are here.
    pub(super) fn translate(&self, other: &Self, hook: u8, bits: u64) -> u64 {
        let keys = other.at(hook).stands.iter().enumerate().filter(|(at, _)| bits & 1 << at != 0);
        keys.fold(0, |bits, (_, stand)| bits | self.bit(hook, stand.key))
    }
}
