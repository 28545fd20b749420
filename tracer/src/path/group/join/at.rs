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

    /// Whether a packet can come from here to another place, or stays.
    pub(super) fn leads_to(self, to: Self, loopback: bool) -> bool {
        use Hook::*;
        // With br_netfilter a packet meets the hooks of IP within those of a bridge.
        if self.hook.is_of_bridge() || to.hook.is_of_bridge() {
            return self.hook != to.hook || to.priority >= self.priority;
        }
        let later: &[Hook] = match self.hook {
            Ingress => &[Prerouting, Input, Forward, Postrouting, Egress],
            Prerouting => &[Input, Forward, Postrouting, Egress],
            Input => &[],
            Forward | Output => &[Postrouting, Egress],
            Postrouting => &[Egress],
            _ => &[],
        };
        if self.hook == to.hook {
            return to.priority >= self.priority;
        }
        later.contains(&to.hook) || loopback && self.leaves() && to.comes_in()
    }

    /// Whether packets that a table of ours marks are seen first here.
    pub(super) fn can_be_first(self) -> bool {
        let marked = matches!(self.hook, Hook::Prerouting | Hook::Output) && self.priority <= MARK;
        marked || self.hook == Hook::Ingress
    }

    /// Whether the packet may be on its way out.
    pub(super) fn leaves(self) -> bool {
        matches!(self.hook, Hook::Output | Hook::Postrouting | Hook::Egress)
    }

    /// Whether the packet may just have come in.
    pub(super) fn comes_in(self) -> bool {
        matches!(self.hook, Hook::Ingress | Hook::Prerouting | Hook::Input)
    }

    /// Whether NAT may change where the packet goes on the way from here to another place.
    pub(super) fn crosses_destination_nat(self, to: Self) -> bool {
        self.crosses(to, [Hook::Prerouting, Hook::Output])
    }

    /// Whether NAT may change where the packet says that it comes from.
    pub(super) fn crosses_source_nat(self, to: Self) -> bool {
        let leaves = self.leaves() && (to.comes_in() || to.hook == Hook::Egress);
        leaves || self.crosses(to, [Hook::Postrouting, Hook::Input])
    }

    fn crosses(self, to: Self, hooks: [Hook; 2]) -> bool {
        let priority = nat_priority(hooks[0]);
        let before = hooks.contains(&self.hook) && self.priority <= priority;
        before && (to.hook != self.hook || to.priority >= priority)
    }
}

/// The turn of NAT at a hook, whatever the priorities of its chains are (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`).
pub fn nat_priority(hook: Hook) -> i32 {
    place::nat_priority(hook as u8)
}
