//! Where in the stack a legacy table stands, and what lies between two of them.

use crate::netfilter::Hook;
use crate::packet::PacketView;

/// A table's turn at a hook: in the order of the hooks' priorities (`enum nf_ip_hook_priorities`). The `nat` table comes
/// before `filter` where destinations are changed, and last where sources are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u8);

const RAW: u8 = 0;
const NAT_DESTINATION: u8 = 2;
const NAT_SOURCE: u8 = 5;
const RANKS: u8 = 6;

/// One table at one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) hook: Hook,
    rank: Rank,
}

/// The hooks at which a table is asked; `None` for a table of no legacy name.
pub(super) fn hooks_of(table: &str) -> Option<&'static [Hook]> {
    use Hook::*;
    Some(match table {
        "raw" => &[Prerouting, Output],
        "mangle" => &Hook::ALL,
        "nat" => &[Prerouting, Input, Output, Postrouting],
        "filter" | "security" => &[Input, Forward, Output],
        _ => return None,
    })
}

/// The hook of a built-in chain of a table. Another table may have a user chain of the same name.
pub(super) fn builtin(table: &str, chain: &str) -> Option<Hook> {
    hooks_of(table)?.iter().copied().find(|hook| hook.chain() == chain)
}

/// The hooks at which a table could have been asked about a packet with these devices, in the order of the stack.
///
/// Newer kernels tell the input device at POSTROUTING, too.
pub(super) fn possible_hooks(table: &str, view: &PacketView<'_>) -> Vec<Hook> {
    use Hook::*;
    let by_devices: &[Hook] = match (view.indev, view.outdev) {
        (Some(_), None) => &[Prerouting, Input],
        (Some(_), Some(_)) => &[Forward, Postrouting],
        (None, Some(_)) => &[Output, Postrouting],
        (None, None) => &[],
    };
    let of_table = hooks_of(table).unwrap_or_default();
    by_devices.iter().copied().filter(|hook| of_table.contains(hook)).collect()
}

impl Place {
    pub(super) fn new(table: &str, hook: Hook) -> Option<Self> {
        let rank = match table {
            "raw" => RAW,
            "mangle" => 1,
            "nat" if changes_destination(hook) => NAT_DESTINATION,
            "nat" => NAT_SOURCE,
            "filter" => 3,
            "security" => 4,
            _ => return None,
        };
        Some(Self { hook, rank: Rank(rank) })
    }

    /// A number of its own, below 32.
    pub(super) fn index(self) -> u32 {
        self.hook as u32 * u32::from(RANKS) + u32::from(self.rank.0)
    }

    /// Whether only the first packet of a connection comes here.
    pub(super) fn is_nat(self) -> bool {
        matches!(self.rank.0, NAT_DESTINATION | NAT_SOURCE)
    }

    /// Whether a packet can meet this place first, given the places that there are: only nat, which is not asked about
    /// every packet, comes before.
    pub(super) fn can_be_first(self, places: u32) -> bool {
        let asked = |hook: Hook, below: u8| {
            let rank = |rank| Self { hook, rank: Rank(rank) };
            let places_at = (0..below).map(rank).filter(|place| !place.is_nat());
            places_at.into_iter().any(|place| places & 1 << place.index() != 0)
        };
        let none = |hooks: &[Hook]| hooks.iter().all(|hook| !asked(*hook, RANKS));
        let first_here = !asked(self.hook, self.rank.0);
        first_here
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

    /// The places that a packet passes on its way from here to a later one, both left out; `None` where there is no way.
    /// A packet that leaves by the loopback device comes in again.
    pub(super) fn between(self, to: Self, loopback: bool) -> Option<Vec<Self>> {
        let way = way(self.hook, to.hook, loopback)?;
        if self.hook == to.hook && to.rank <= self.rank {
            return None;
        }
        let places = way.iter().flat_map(|&hook| (0..RANKS).map(move |rank| Self { hook, rank: Rank(rank) }));
        Some(places.skip_while(|place| *place != self).skip(1).take_while(|place| *place != to).collect())
    }

    /// The places after this one at the same hook.
    pub(super) fn later_at_hook(self) -> impl Iterator<Item = Self> {
        (self.rank.0 + 1..RANKS).map(move |rank| Self { hook: self.hook, rank: Rank(rank) })
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
