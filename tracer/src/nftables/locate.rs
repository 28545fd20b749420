//! Which rule of the model a trace message is about.

use super::trace::{TraceEvent, TraceKind};
use super::{Base, Chain, Rule, Ruleset, Table};
use crate::netfilter::{Engine, StepKind};
use crate::owner::{self, Place};
use crate::ruleset;

/// A rule, end or policy in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located<'r> {
    /// Its table.
    pub table: &'r Table,
    /// Its chain.
    pub chain: &'r Chain,
    /// The rule; `None` at the end of a chain.
    pub rule: Option<&'r Rule>,
    /// Its place in the chain, from 1, as `iptables -L --line-numbers` counts. An end is one more than the last rule,
    /// as in legacy tables.
    pub number: u32,
    /// What it is.
    pub kind: StepKind,
    /// The generation of the rules.
    pub generation: u32,
}

impl Ruleset {
    /// What a message is about; `None` when the model has no such chain, or no such rule in that chain.
    ///
    /// The message must be of this generation, because a table that is made anew uses handles again. It is when both
    /// hold: it came after the announcement of this generation, on one socket that has joined both groups; and the
    /// kernel, asked after the message has come, still tells this generation. For the kernel counts before packets
    /// meet new rules, and announces after (`nf_tables_commit` in `net/netfilter/nf_tables_api.c`).
    pub fn locate(&self, event: &TraceEvent<'_>) -> Option<Located<'_>> {
        let table = self.table(event.family, &event.table)?;
        let chain = table.chain(&event.chain)?;
        let end = |kind| {
            Some(Located { table, chain, rule: None, number: chain.end(), kind, generation: self.generation })
        };
        match event.kind {
            TraceKind::Return => end(StepKind::Return),
            TraceKind::Policy => chain.base.as_ref().and(end(StepKind::Policy)),
            TraceKind::Rule => {
                let (holder, number, rule) = table.rule(event.handle?)?;
                (holder.handle == chain.handle).then_some(Located {
                    table,
                    chain,
                    rule: Some(rule),
                    number,
                    kind: StepKind::Rule,
                    generation: self.generation,
                })
            }
        }
    }

    /// What a message is about that came while these rules were replaced by `next`; `None` when it may be about
    /// another rule. It is certain when nothing came in between and both say the same: handles are not used again as
    /// long as the table is there.
    pub fn locate_before<'r>(&'r self, next: &'r Ruleset, event: &TraceEvent<'_>) -> Option<Located<'r>> {
        let (old, new) = (self.locate(event)?, next.locate(event)?);
        let same = old.table.handle == new.table.handle
            && old.chain.handle == new.chain.handle
            && old.chain.base == new.chain.base
            && old.number == new.number
            && old.rule.map(|rule| rule.content) == new.rule.map(|rule| rule.content);
        (same && next.generation == self.generation.wrapping_add(1)).then_some(new)
    }
}

impl<'r> Located<'r> {
    /// What a step says of it.
    pub fn rule(&self) -> ruleset::Rule<'r> {
        ruleset::Rule {
            engine: Engine::Nft,
            family: self.table.family,
            table: &self.table.name,
            chain: &self.chain.name,
            kind: self.kind,
            number: Some(self.number),
            handle: self.rule.map(|rule| rule.handle),
            text: self.rule.and_then(|rule| rule.text.as_ref()),
            nft: self.rule.and_then(|rule| rule.nft.as_ref().filter(|nft| Some(*nft) != rule.text.as_ref())),
            owner: self.owner(),
        }
    }

    /// The program that made it, and for what.
    fn owner(&self) -> Option<&'r str> {
        let known = self.rule.map_or(&self.chain.owner, |rule| &rule.owner);
        let find = || {
            let text = self.rule.and_then(|rule| rule.text.as_deref());
            owner::of(Place { table: &self.table.name, chain: &self.chain.name, text })
        };
        known.get_or_init(find).as_deref()
    }

    /// The hook, if the chain has one.
    pub fn base(&self) -> Option<&'r Base> {
        self.chain.base.as_ref()
    }
}
