//! The rules of nftables, whichever tool made them: the model, its decoding from netlink messages, the text of rules,
//! and the kernel's trace messages.
//!
//! Pure: no I/O, no clock.
#![forbid(unsafe_code)]

mod assign;
pub mod decode;
pub mod display;
pub mod follow;
mod inherit;
mod listing;
mod locate;
pub mod run;
mod save;
pub mod stands;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod traversal;
pub mod versions;

pub use assign::{Mismatch, attach_listing, attach_save};
pub use inherit::{inherit_texts, lacks_text};
pub use locate::Located;

use crate::netfilter::{Hook, TableFamily, Verdict};
use crate::path::Action;
use crate::path::group::join::{At, nat_priority};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// All tables of a network namespace at one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The kernel's number of this state, `NFTA_GEN_ID`. Every change gives another.
    pub generation: u32,
    /// In the kernel's order.
    pub tables: Vec<Table>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: Arc<str>,
    /// Never used again in its namespace. A table that is deleted and made anew has another, and counts the handles
    /// of its rules from the beginning. 0 on kernels that have none.
    pub handle: u64,
    /// `NFT_TABLE_F_…`.
    pub flags: u32,
    /// The netlink port of the process that owns it; the kernel deletes the table when that process ends.
    pub owner: Option<u32>,
    /// In the kernel's order.
    pub chains: Vec<Chain>,
    /// Sets and maps, anonymous ones included.
    pub sets: Vec<Set>,
    /// What lets packets pass by all other hooks.
    pub flowtables: Vec<Flowtable>,
    index: Index,
}

/// `NFT_TABLE_F_DORMANT`: no packet gets to the table.
const DORMANT: u32 = 0x1;

/// Where rules and chains are, by what names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Index {
    /// Chain and place in it, by handle.
    rules: HashMap<u64, (usize, usize)>,
    chains: HashMap<Arc<str>, usize>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: Arc<str>,
    /// Unique in its table, among rules and sets too.
    pub handle: u64,
    /// Where packets come in; `None` for a chain that only other chains lead to.
    pub base: Option<Base>,
    /// Written within a rule as `jump { … }`; nft does not list it on its own.
    pub bound: bool,
    /// In order.
    pub rules: Vec<Rule>,
    /// See [`crate::owner`]; found out when it is first asked for.
    owner: OnceLock<Option<String>>,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its hook; `None` for one that this program does not know.
    pub hook: Option<Hook>,
    /// Lower ones are earlier.
    pub priority: i32,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// What becomes of a packet at the end.
    pub policy: Verdict,
    /// The devices of a chain at ingress or egress.
    pub devices: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique in its table, and not used again as long as the table is there. `nft replace` keeps it.
    pub handle: u64,
    /// A hash of all that it says, without what it has counted.
    pub content: u64,
    /// What its owner says about it.
    pub comment: Option<String>,
    /// What ebtables-nft shows as the policy of a user's chain, which is its last rule.
    pub policy: bool,
    /// Names of its expressions, in order: `meta`, `cmp`, `immediate`, `match`, …
    pub expressions: Vec<Arc<str>>,
    /// Does nothing but ask for bytes of the packet, and set its trace bit.
    pub only_traces: bool,
    /// The verdict it ends with, unless a map holds it or it has none.
    pub verdict: Option<RuleVerdict<'static>>,
    /// As its owner's tool prints it; `None` where that is not known.
    pub text: Option<Arc<str>>,
    /// As nft prints it; `None` where that is not known.
    pub nft: Option<Arc<str>>,
    /// See [`crate::owner`]; found out when it is first asked for.
    owner: OnceLock<Option<String>>,
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleVerdict<'a> {
    /// Ends the base chain.
    Final(Verdict),
    /// Goes on with the next rule.
    Continue,
    /// Goes to a chain, to come back.
    Jump(Cow<'a, str>),
    /// Goes to a chain, not to come back.
    Goto(Cow<'a, str>),
    /// Goes back to the calling chain, or to the policy.
    Return,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: Arc<str>,
    /// Unique in its table.
    pub handle: u64,
    /// Has values too.
    pub map: bool,
    /// Written within a rule.
    pub anonymous: bool,
}

/// A flowtable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flowtable {
    /// Its name.
    pub name: Arc<str>,
    /// Unique in its table.
    pub handle: u64,
    /// Where it is at ingress.
    pub priority: i32,
    /// On which devices.
    pub devices: Vec<String>,
}

impl Ruleset {
    /// The table of a name.
    pub fn table(&self, family: TableFamily, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.family == family && *table.name == *name)
    }

    /// A chain and its table by their handles.
    pub fn chain_of(&self, table: u64, chain: u64) -> Option<(&Table, &Chain)> {
        let table = self.tables.iter().find(|known| known.handle == table)?;
        Some((table, table.chains.iter().find(|known| known.handle == chain)?))
    }

    /// The base chains that packets come to, at hooks that this program knows.
    pub fn standing(&self) -> impl Iterator<Item = (&Table, &Chain, &Base, At)> {
        let awake = self.tables.iter().filter(|table| table.flags & DORMANT == 0);
        awake.flat_map(|table| {
            table.chains.iter().filter_map(move |chain| {
                let base = chain.base.as_ref()?;
                Some((table, chain, base, base.at()?))
            })
        })
    }
}

impl Table {
    /// The chain of a name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.get(*self.index.chains.get(name)?)
    }

    /// A rule with its chain and its number there, from 1.
    pub fn rule(&self, handle: u64) -> Option<(&Chain, u32, &Rule)> {
        let (chain, rule) = *self.index.rules.get(&handle)?;
        let chain = self.chains.get(chain)?;
        Some((chain, rule as u32 + 1, chain.rules.get(rule)?))
    }

    /// Whether iptables-nft, or its sibling for the family, made it: by its name, by a base chain of theirs, and by
    /// the counter that they give every rule.
    pub fn is_of_iptables(&self) -> bool {
        let has_counter = |rule: &Rule| rule.expressions.iter().any(|name| &**name == "counter");
        let mut rules = self.chains.iter().flat_map(|chain| &chain.rules).peekable();
        self.chains.iter().any(|chain| self.is_built_in(chain))
            && (rules.peek().is_none() || rules.any(has_counter))
    }

    /// Whether a chain is one of those that iptables-nft and its siblings make by themselves
    /// (`xtables_ipv4`, `xtables_arp` and `xtables_bridge` in `iptables/nft.c`).
    fn is_built_in(&self, chain: &Chain) -> bool {
        let Some(Base { hook: Some(hook), priority, .. }) = &chain.base else { return false };
        let expected = match (self.family, &*self.name, hook) {
            (TableFamily::Ip | TableFamily::Ip6, "raw", _) => -300,
            (TableFamily::Ip | TableFamily::Ip6, "mangle", _) => -150,
            (TableFamily::Ip | TableFamily::Ip6, "nat", Hook::Prerouting | Hook::Output) => -100,
            (TableFamily::Ip | TableFamily::Ip6, "nat", _) => 100,
            (TableFamily::Ip | TableFamily::Ip6 | TableFamily::Arp, "filter", _) => 0,
            (TableFamily::Ip | TableFamily::Ip6, "security", _) => 50,
            (TableFamily::Bridge, "filter", _) => -200,
            (TableFamily::Bridge, "nat", Hook::BridgePrerouting) => -300,
            (TableFamily::Bridge, "nat", Hook::BridgeOutput) => 100,
            (TableFamily::Bridge, "nat", Hook::BridgePostrouting) => 300,
            _ => return false,
        };
        *chain.name == *hook.chain() && *priority == expected
    }
}

impl Base {
    /// Asked about the first packet of a connection only.
    pub fn is_nat(&self) -> bool {
        self.kind == "nat"
    }

    /// Where it stands among all that packets of its family meet; `None` at a hook that this program does not know.
    pub fn at(&self) -> Option<At> {
        let hook = self.hook?;
        let priority = if self.is_nat() { nat_priority(hook) } else { self.priority };
        Some(At { hook, priority })
    }
}

impl Chain {
    /// The number of its policy or implicit return: one more than that of its last rule.
    pub fn end(&self) -> u32 {
        self.rules.len() as u32 + 1
    }
}

impl RuleVerdict<'_> {
    /// Without borrowing from a message.
    fn into_owned(self) -> RuleVerdict<'static> {
        match self {
            Self::Final(verdict) => RuleVerdict::Final(verdict),
            Self::Continue => RuleVerdict::Continue,
            Self::Jump(chain) => RuleVerdict::Jump(chain.into_owned().into()),
            Self::Goto(chain) => RuleVerdict::Goto(chain.into_owned().into()),
            Self::Return => RuleVerdict::Return,
        }
    }

    /// What a step says of it.
    pub fn action(&self) -> Action<'_> {
        match self {
            Self::Final(verdict) => Action::Verdict(*verdict),
            Self::Continue => Action::Continue,
            Self::Jump(chain) => Action::Jump(chain),
            Self::Goto(chain) => Action::Goto(chain),
            Self::Return => Action::Return,
        }
    }
}
