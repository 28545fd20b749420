//! The loaded rules, numbered as the kernel numbers them.

pub mod display;
pub mod text;

use crate::netfilter::{Engine, Family, Hook, StepKind, TableFamily, Verdict};
use std::ops::Range;
use std::sync::Arc;

/// A rule, return or policy, whichever engine holds it.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Who evaluates it.
    pub engine: Engine,
    /// The family of its table.
    pub family: TableFamily,
    /// The table's name.
    pub table: &'a str,
    /// The chain's name.
    pub chain: &'a str,
    /// The word for its shape.
    pub kind: StepKind,
    /// Its place in the chain, from 1; `None` where nothing tells.
    pub number: Option<u32>,
    /// nftables' handle of a rule.
    pub handle: Option<u64>,
    /// The rule as its owner's tool prints it; `None` where it is not known, and where no user wrote one.
    pub text: Option<&'a Arc<str>>,
    /// The same as nft prints it, where that is another text.
    pub nft: Option<&'a Arc<str>>,
    /// The program that made it, and for what; `None` where that cannot be told.
    pub owner: Option<&'a str>,
}

/// One legacy table as the kernel holds it: a flat list of entries, hidden ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `ip` or `ip6`.
    pub family: Family,
    /// `filter`, `nat`, …
    pub name: String,
    /// All entries in blob order. A traversal's matches refer to them by index.
    pub entries: Vec<Entry>,
    /// Chains in blob order, built-in ones first.
    pub chains: Vec<Chain>,
    /// Where each hook begins, as index into `entries`; `None` where the table has no chain at the hook.
    pub hook_entry: [Option<usize>; 5],
    /// The policy entry of each hook's chain.
    pub underflow: [Option<usize>; 5],
    /// Bytes of the blob, `xt_table_info.size`.
    pub size: u32,
}

/// A chain of a legacy table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name; for a built-in chain that of its hook.
    pub name: String,
    /// The hook of a built-in chain.
    pub hook: Option<Hook>,
    /// Its rules and, last, its tail entry (policy or implicit return), without the head entry of a user chain.
    pub entries: Range<usize>,
}

/// One entry of the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index into [`Table::chains`]; `None` for the head of a user chain and for the end of the table.
    pub chain: Option<usize>,
    /// Number in its chain as the kernel's TRACE counts, from 1; the tail is rules + 1.
    pub number: u32,
    /// What the kernel's TRACE calls it.
    pub kind: StepKind,
    /// The tail entry of its chain, which no user wrote.
    pub tail: bool,
    /// Matches every packet: no IP fields, no matches.
    pub unconditional: bool,
    /// What happens to a packet that matches.
    pub target: Target,
    /// The rule as iptables-save prints it, `-A INPUT -p tcp … -j ACCEPT`; `None` where it is not known, and for
    /// tail entries.
    pub text: Option<Arc<str>>,
}

/// The target of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A final verdict.
    Verdict(Verdict),
    /// `-j RETURN`, and the tail of a user chain.
    Return,
    /// `-j CHAIN`: continues at entry `to` and comes back.
    Jump {
        /// First entry of the chain.
        to: usize,
    },
    /// `-g CHAIN`: continues at entry `to` and returns to the caller's caller.
    Goto {
        /// First entry of the chain.
        to: usize,
    },
    /// No `-j`: goes on with the next entry.
    Continue,
    /// An extension: MARK, REJECT, LOG, DNAT, …
    Extension(Extension),
    /// Head of a user chain, or the end of the table; no packet reaches it.
    Error,
}

/// A target extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its name; `None` when only a kernel address was seen and the name behind it is not known.
    pub name: Option<Arc<str>>,
    /// Its revision.
    pub revision: u8,
    /// Its private parameters, as the extension's uapi header lays them out.
    pub data: Vec<u8>,
}

impl Table {
    /// Name of the chain of an entry.
    pub fn chain_of(&self, entry: usize) -> Option<&Chain> {
        self.chains.get(self.entries.get(entry)?.chain?)
    }

    /// What a step says of an entry; `None` for one that is in no chain.
    #[inline]
    pub fn rule(&self, entry: usize) -> Option<Rule<'_>> {
        let (Entry { kind, number, text, .. }, chain) = (self.entries.get(entry)?, self.chain_of(entry)?);
        Some(Rule {
            engine: Engine::Legacy,
            family: self.family.into(),
            table: &self.name,
            chain: &chain.name,
            kind: *kind,
            number: Some(*number),
            handle: None,
            text: text.as_ref(),
            nft: None,
            owner: None,
        })
    }
}
