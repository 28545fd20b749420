//! Where packets meet something: hooks and priorities.

use crate::netfilter::Hook;
use crate::path::group::place::Table;
use tracer_common::place;

/// Where tables of ours mark packets: after fragments have been put together (-400), before the raw table (-300).
pub const MARK: i32 = -350;

/// Where in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The hook.
    pub hook: Hook,
    /// The turn at the hook; lower ones are earlier.
    pub priority: i32,
}

impl At {
    /// The place of a legacy table; `None` for a chain that is not a built-in one.
    pub fn of_legacy(table: &str, chain: &str) -> Option<Self> {
        let table = Table::named(table)?;
        let hook = table.builtin(chain)?;
        let priority = match table {
            Table::Raw => -300,
            Table::Mangle => -150,
            Table::Nat => nat_priority(hook),
            Table::Filter => 0,
            Table::Security => 50,
        };
        Some(Self { hook, priority })
    }

    /// Whether a packet can come from here to another place, or stays. `device` says that it is at another device there.
    pub(super) fn leads_to(self, to: Self, loopback: bool, device: bool) -> bool {
        use Hook::*;
        // With br_netfilter a packet meets the hooks of IP within those of a bridge.
        if self.hook.is_of_bridge() || to.hook.is_of_bridge() {
            return self.hook != to.hook || to.priority >= self.priority;
        }
        let later: &[Hook] = match self.hook {
            Ingress => &[Prerouting, Input, Forward, Postrouting, Egress, ArpInput],
            Prerouting => &[Input, Forward, Postrouting, Egress],
            Input => &[],
            Forward | Output => &[Postrouting, Egress],
            Postrouting | ArpOutput => &[Egress],
            _ => &[],
        };
        if self.hook == to.hook {
            // One device may be on top of another.
            return to.priority >= self.priority || self.hook.is_of_device() && device;
        }
        later.contains(&to.hook) || loopback && self.leaves() && to.comes_in()
    }

    /// Whether packets that a table of ours marks are seen first here.
    pub(super) fn can_be_first(self) -> bool {
        let marked = matches!(self.hook, Hook::Prerouting | Hook::Output) && self.priority <= MARK;
        marked || self.hook == Hook::Ingress
    }

    /// Whether the packet may be on its way out.
    pub fn leaves(self) -> bool {
        matches!(self.hook, Hook::Output | Hook::Postrouting | Hook::Egress)
    }

    /// Whether the packet may just have come in.
    pub(super) fn comes_in(self) -> bool {
        matches!(self.hook, Hook::Ingress | Hook::Prerouting | Hook::Input)
    }

    /// Whether packets are here on their way in.
    pub(super) fn is_for_incoming(self) -> bool {
        use Hook::{
            ArpInput, BridgeForward, BridgeInput, BridgePrerouting, Forward, Ingress, Input, Prerouting,
        };
        let before = matches!(self.hook, Ingress | BridgePrerouting | BridgeInput | Prerouting);
        before || matches!(self.hook, Input | Forward | BridgeForward | ArpInput)
    }

    /// Whether NAT may change where the packet goes on the way from here to another place.
    pub(super) fn crosses_destination_nat(self, to: Self) -> bool {
        use Hook::*;
        let before = |at: Self| match at.hook {
            Ingress | BridgePrerouting | BridgeInput => true,
            Prerouting | Output => at.priority <= nat_priority(Prerouting),
            _ => false,
        };
        let after = |at: Self| match at.hook {
            Ingress => false,
            Prerouting | Output => at.priority >= nat_priority(Prerouting),
            _ => true,
        };
        before(self) && after(to)
    }

    /// Whether NAT may change where the packet says that it comes from.
    pub(super) fn crosses_source_nat(self, to: Self) -> bool {
        use Hook::*;
        let before = |at: Self| match at.hook {
            Postrouting | Input => at.priority <= nat_priority(Postrouting),
            hook => hook != Egress,
        };
        let after = |at: Self| match at.hook {
            Postrouting | Input => at.priority >= nat_priority(Postrouting),
            Egress | BridgeOutput | BridgePostrouting => true,
            _ => false,
        };
        let leaves = self.leaves() && (to.comes_in() || to.hook == Egress);
        leaves || before(self) && after(to)
    }
}

/// The turn of NAT at a hook, whatever the priorities of its chains are (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`).
pub fn nat_priority(hook: Hook) -> i32 {
    place::nat_priority(hook as u8)
}
