//! Where in the stack a legacy table stands, and what lies between two of them.

use crate::netfilter::Hook;
use crate::packet::Packet;

/// The legacy tables. The kernel knows no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Raw,
    Mangle,
    Nat,
    Filter,
    Security,
}

/// Where tracing begins, as far as nothing else is known: x_tables accepts the TRACE target in this table alone
/// (`trace_tg_reg` in `net/netfilter/xt_TRACE.c`), and it comes before all others. A table of nftables that marks packets
/// comes even earlier, and who uses one tells what tables there are ([`Place::can_be_first`]).
pub(super) const BEGINNING: Table = Table::Raw;

/// A table's turn at a hook: in the order of the hooks' priorities (`enum nf_ip_hook_priorities`). The `nat` table comes
/// before `filter` where destinations are changed, and last where sources are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u8);

const NAT_DESTINATION: u8 = 2;
const NAT_SOURCE: u8 = 5;
const RANKS: u8 = 6;
/// A bit for each rank.
const ALL_RANKS: u32 = (1 << RANKS) - 1;
const NAT_RANKS: u32 = 1 << NAT_DESTINATION | 1 << NAT_SOURCE;

/// One table at one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) hook: Hook,
    rank: Rank,
}

impl Table {
    /// By its name; `None` for one of no legacy name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "raw" => Self::Raw,
            "mangle" => Self::Mangle,
            "nat" => Self::Nat,
            "filter" => Self::Filter,
            "security" => Self::Security,
            _ => return None,
        })
    }

    /// The hooks at which it is asked.
    fn hooks(self) -> &'static [Hook] {
        use Hook::*;
        match self {
            Self::Raw => &[Prerouting, Output],
            Self::Mangle => &Hook::ALL,
            Self::Nat => &[Prerouting, Input, Output, Postrouting],
            Self::Filter | Self::Security => &[Input, Forward, Output],
        }
    }

    /// The hook of a built-in chain. Another table may have a user chain of the same name.
    pub(super) fn builtin(self, chain: &str) -> Option<Hook> {
        self.hooks().iter().copied().find(|hook| hook.chain() == chain)
    }

    /// The hooks at which it could have been asked about a packet with these devices, in the order of the stack.
    ///
    /// Newer kernels tell the input device at POSTROUTING, too.
    pub(super) fn possible_hooks(self, packet: &Packet) -> impl Iterator<Item = Hook> {
        use Hook::*;
        let by_devices: &[Hook] = match (packet.indev.is_some(), packet.outdev.is_some()) {
            (true, false) => &[Prerouting, Input],
            (true, true) => &[Forward, Postrouting],
            (false, true) => &[Output, Postrouting],
            (false, false) => &[],
        };
        by_devices.iter().copied().filter(move |hook| self.hooks().contains(hook))
    }

    /// The only one of these hooks.
    pub(super) fn only_hook(self, packet: &Packet) -> Option<Hook> {
        let mut possible = self.possible_hooks(packet);
        possible.next().filter(|_| possible.next().is_none())
    }
}

impl Place {
    pub(super) fn new(table: Table, hook: Hook) -> Self {
        let rank = match table {
            Table::Raw => 0,
            Table::Mangle => 1,
            Table::Nat if changes_destination(hook) => NAT_DESTINATION,
            Table::Filter => 3,
            Table::Security => 4,
            Table::Nat => NAT_SOURCE,
        };
        Self { hook, rank: Rank(rank) }
    }

    /// A bit of its own, for sets of places.
    pub(super) fn bit(self) -> u32 {
        of_hook(self.hook, 1 << self.rank.0)
    }

    /// Whether a packet can meet this place first, given the places that there are: only nat, which is not asked about
    /// every packet, comes before.
    pub(super) fn can_be_first(self, places: u32) -> bool {
        let asked = |hook: Hook, ranks: u32| places & of_hook(hook, ranks & !NAT_RANKS) != 0;
        let none = |hooks: &[Hook]| hooks.iter().all(|hook| !asked(*hook, ALL_RANKS));
        !asked(self.hook, self.ranks_before())
            && match self.hook {
                Hook::Input | Hook::Forward => none(&[Hook::Prerouting]),
                Hook::Postrouting => none(&[Hook::Output]) || none(&[Hook::Prerouting, Hook::Forward]),
                _ => true,
            }
    }

    /// `mangle:FORWARD`
    pub(super) fn name(self) -> String {
        let table = ["raw", "mangle", "nat", "filter", "security", "nat"][usize::from(self.rank.0)];
        format!("{table}:{}", self.hook.chain())
    }

    /// Whether there is a way from here to a later place. A packet that leaves by the loopback device comes in again.
    pub(super) fn leads_to(self, to: Self, loopback: bool) -> bool {
        self.way_to(to, loopback).is_some()
    }

    fn way_to(self, to: Self, loopback: bool) -> Option<&'static [Hook]> {
        way(self.hook, to.hook, loopback).filter(|_| self.hook != to.hook || self.rank < to.rank)
    }

    /// Which of some places a packet passes on its way from here to a later one, both left out, and nat, which is not
    /// asked about every packet; `None` where there is no way.
    pub(super) fn between(self, to: Self, loopback: bool, places: u32) -> Option<Vec<Self>> {
        let way = self.way_to(to, loopback)?;
        let passed = way.iter().fold(0, |passed, &hook| {
            let after = if hook == self.hook { self.ranks_after() } else { ALL_RANKS };
            let before = if hook == to.hook { to.ranks_before() } else { ALL_RANKS };
            passed | of_hook(hook, after & before & !NAT_RANKS)
        });
        let passed = passed & places;
        if passed == 0 {
            return Some(Vec::new());
        }
        let places = way.iter().flat_map(|&hook| (0..RANKS).map(move |rank| Self { hook, rank: Rank(rank) }));
        Some(places.filter(|place| place.bit() & passed != 0).collect())
    }

    /// Whether one of some places comes after this one at the same hook; not nat.
    pub(super) fn is_followed_at_hook(self, places: u32) -> bool {
        places & of_hook(self.hook, self.ranks_after() & !NAT_RANKS) != 0
    }

    fn ranks_before(self) -> u32 {
        (1 << self.rank.0) - 1
    }

    fn ranks_after(self) -> u32 {
        ALL_RANKS & !self.ranks_before() & !(1 << self.rank.0)
    }

    /// Whether a packet is forwarded on its way from here to `to`.
    pub(super) fn is_routed_to(self, to: Self) -> bool {
        self.hook == Hook::Prerouting && matches!(to.hook, Hook::Forward | Hook::Postrouting)
    }

    /// Whether the kernel may have changed where the packet goes on its way from here to `to`.
    pub(super) fn crosses_destination_nat(self, to: Self) -> bool {
        let before = changes_destination(self.hook) && self.rank.0 <= NAT_DESTINATION;
        before && (to.hook != self.hook || to.rank.0 > NAT_DESTINATION)
    }

    /// Whether the kernel may have changed where the packet says it comes from.
    pub(super) fn crosses_source_nat(self, to: Self) -> bool {
        let way = way(self.hook, to.hook, true).unwrap_or_default();
        way.contains(&Hook::Postrouting) && to.hook != Hook::Postrouting
    }
}

/// Ranks at a hook as bits of places.
fn of_hook(hook: Hook, ranks: u32) -> u32 {
    ranks << (hook as u32 * u32::from(RANKS))
}

fn changes_destination(hook: Hook) -> bool {
    matches!(hook, Hook::Prerouting | Hook::Output)
}

/// The hooks from one to another, both included.
fn way(from: Hook, to: Hook, loopback: bool) -> Option<&'static [Hook]> {
    use Hook::*;
    Some(match (from, to) {
        (Prerouting, Prerouting) => &[Prerouting],
        (Input, Input) => &[Input],
        (Forward, Forward) => &[Forward],
        (Output, Output) => &[Output],
        (Postrouting, Postrouting) => &[Postrouting],
        (Prerouting, Input) => &[Prerouting, Input],
        (Prerouting, Forward) => &[Prerouting, Forward],
        (Prerouting, Postrouting) => &[Prerouting, Forward, Postrouting],
        (Forward, Postrouting) => &[Forward, Postrouting],
        (Output, Postrouting) => &[Output, Postrouting],
        (Output, Prerouting) if loopback => &[Output, Postrouting, Prerouting],
        (Output, Input) if loopback => &[Output, Postrouting, Prerouting, Input],
        (Postrouting, Prerouting) if loopback => &[Postrouting, Prerouting],
        (Postrouting, Input) if loopback => &[Postrouting, Prerouting, Input],
        _ => return None,
    })
}
