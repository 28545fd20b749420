//! The rules of nftables from the kernel's announcements of changes, so that they need not be read again.
//!
//! A transaction is announced object by object, its generation last: `nf_tables_commit` in
//! `net/netfilter/nf_tables_api.c`. What the announcements leave open is not guessed.

use super::decode::{self, Parts, new, nfta};
use super::{Index, Rule, Ruleset, Table};
use crate::netfilter::{Hook, TableFamily};
use crate::netlink::{Message, Netfilter, find};
use std::collections::HashSet;

/// `NFT_MSG_DEL…`
mod del {
    pub(super) const TABLE: u8 = 2;
    pub(super) const CHAIN: u8 = 5;
    pub(super) const RULE: u8 = 8;
    pub(super) const SET: u8 = 11;
    pub(super) const FLOWTABLE: u8 = 24;
}

/// Of a message's flags: the rule comes after all others, or after one of them.
const APPEND: u16 = libc::NLM_F_APPEND as u16;
/// Every new rule has it, on kernels that tell how a rule came.
const CREATE: u16 = libc::NLM_F_CREATE as u16;

/// The announcements do not tell what the rules are now: they have to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap;

/// Collects the announcements of a transaction.
#[derive(Debug, Default)]
pub struct Follower {
    /// Type, flags and content of the messages since the last generation.
    messages: Vec<(u16, u16, Vec<u8>)>,
}

impl Follower {
    /// Announcements were lost.
    pub fn forget(&mut self) {
        self.messages.clear();
    }

    /// Takes an announcement. Gives the rules after it when it ends a transaction on `base`, the rules before; nothing
    /// when that is one of those that `base` has seen already.
    pub fn take(&mut self, message: &Message<'_>, base: &Ruleset) -> Option<Result<Ruleset, Gap>> {
        let Some(generation) = message.netfilter().and_then(|message| decode::generation(&message)) else {
            self.messages.push((message.kind, message.flags, message.payload.to_vec()));
            return None;
        };
        let messages = std::mem::take(&mut self.messages);
        match generation.wrapping_sub(base.generation).cast_signed() {
            ..=0 => None,
            1 => Some(after(base, generation, &messages).ok_or(Gap)),
            2.. => Some(Err(Gap)),
        }
    }
}

/// The rules after a transaction; `None` where that is not certain.
fn after(base: &Ruleset, generation: u32, messages: &[(u16, u16, Vec<u8>)]) -> Option<Ruleset> {
    let mut work = Work {
        ruleset: Ruleset { generation, ..base.clone() },
        names: Parts::default(),
        gone: HashSet::new(),
        waiting: Vec::new(),
    };
    for (kind, flags, payload) in messages {
        let message = Message { kind: *kind, flags: *flags, sequence: 0, port: 0, payload };
        let message = message.netfilter()?;
        if message.subsystem == decode::SUBSYSTEM {
            work.take(&message, *flags)?;
        }
    }
    work.finish()
}

/// Handles of a table and a rule.
type RuleKey = (u64, u64);

/// Rules in the making.
struct Work {
    ruleset: Ruleset,
    names: Parts,
    /// Rules that are deleted in this transaction. They stay until its end: others are announced as those after them.
    gone: HashSet<RuleKey>,
    /// Rules that come after one that is announced later: the place of the chain, the handle of that one.
    waiting: Vec<(usize, usize, u64, Rule)>,
}

impl Work {
    /// Takes one announcement; `None` where it leaves something open.
    fn take(&mut self, message: &Netfilter<'_>, flags: u16) -> Option<()> {
        // Of a family that this program does not know there is nothing in the rules.
        let Some(family) = decode::family(message.family) else { return Some(()) };
        let body = message.attributes;
        let name = find(body, nfta::TABLE)?.text().into_owned();
        let at = self.ruleset.tables.iter().position(|table| table.family == family && *table.name == *name);
        match message.message {
            new::TABLE => {
                let mut alone = Parts::default();
                alone.add(message);
                let table = alone.finish(0).tables.pop()?;
                match at {
                    Some(at) => {
                        let known = &mut self.ruleset.tables[at];
                        (known.flags, known.owner) = (table.flags, table.owner);
                    }
                    None => self.ruleset.tables.push(table),
                }
            }
            // Places of tables and chains move.
            del::TABLE | del::CHAIN if !self.waiting.is_empty() => return None,
            del::TABLE => drop(self.ruleset.tables.remove(at?)),
            new::CHAIN => self.chain(at?, family, body)?,
            del::CHAIN => {
                let table = &mut self.ruleset.tables[at?];
                let name = find(body, nfta::CHAIN_NAME)?.text();
                let index = table.chains.iter().position(|chain| *chain.name == *name)?;
                let hook = table.chains[index].base.as_ref().and_then(|base| base.hook);
                // It can mean that the chain loses a device.
                if family == TableFamily::Netdev || matches!(hook, Some(Hook::Ingress | Hook::Egress)) {
                    return None;
                }
                table.chains.remove(index);
            }
            new::RULE | del::RULE => self.rule(at?, message, flags)?,
            new::SET => {
                let set = self.names.set(body)?;
                let sets = &mut self.ruleset.tables[at?].sets;
                if sets.iter().all(|known| known.name != set.name) {
                    sets.push(set);
                }
            }
            del::SET => {
                let name = find(body, nfta::SET_NAME)?.text();
                self.ruleset.tables[at?].sets.retain(|set| *set.name != *name);
            }
            // Devices come and go.
            new::FLOWTABLE | del::FLOWTABLE => return None,
            _ => {}
        }
        Some(())
    }

    fn chain(&mut self, at: usize, family: TableFamily, body: &[u8]) -> Option<()> {
        let name = self.names.name(body, nfta::CHAIN_NAME)?;
        let chain = decode::chain(family, name, body);
        let chains = &mut self.ruleset.tables[at].chains;
        let taken = chains.iter().any(|known| known.name == chain.name);
        match chains.iter_mut().find(|known| known.handle == chain.handle) {
            // A change can be announced without what stays the same.
            Some(known) if known.base.is_some() != chain.base.is_some() => return None,
            Some(known) => (known.name, known.base) = (chain.name, chain.base),
            None if taken => return None,
            None => chains.push(chain),
        }
        Some(())
    }

    fn rule(&mut self, at: usize, message: &Netfilter<'_>, flags: u16) -> Option<()> {
        let body = message.attributes;
        let rule = self.names.rule(body);
        let table = &mut self.ruleset.tables[at];
        // A rule takes chains with it that are written within it, unannounced.
        if table.chains.iter().any(|chain| chain.bound) {
            return None;
        }
        let name = find(body, nfta::RULE_CHAIN)?.text();
        let chain_at = table.chains.iter().position(|chain| *chain.name == *name)?;
        let rules = &mut table.chains[chain_at].rules;
        let known = rules.iter().position(|known| known.handle == rule.handle);
        if message.message == del::RULE {
            known?;
            self.gone.insert((table.handle, rule.handle));
            return Some(());
        }
        // One that replaces another has its handle.
        if let Some(known) = known {
            let replaced = self.gone.remove(&(table.handle, rule.handle));
            rules[known] = rule;
            return replaced.then_some(());
        }
        if flags & CREATE == 0 {
            return None;
        }
        match find(body, nfta::RULE_POSITION).and_then(|position| position.be64()) {
            Some(before) => self.waiting.push((at, chain_at, before, rule)),
            // The first or the last one has no position.
            None if flags & APPEND != 0 => rules.push(rule),
            None => rules.insert(0, rule),
        }
        self.place_waiting();
        Some(())
    }

    /// Places what waited for a rule that is there now.
    fn place_waiting(&mut self) {
        loop {
            let chains = &self.ruleset.tables;
            let place = |(table, chain, before, _): &(usize, usize, u64, Rule)| {
                let rules = &chains.get(*table)?.chains.get(*chain)?.rules;
                rules.iter().rposition(|rule| rule.handle == *before)
            };
            let ready = self.waiting.iter().enumerate().find_map(|(at, waits)| Some((at, place(waits)?)));
            let Some((at, before)) = ready else { return };
            let (table, chain, _, rule) = self.waiting.remove(at);
            self.ruleset.tables[table].chains[chain].rules.insert(before + 1, rule);
        }
    }

    fn finish(mut self) -> Option<Ruleset> {
        if !self.waiting.is_empty() {
            return None;
        }
        for table in &mut self.ruleset.tables {
            let Table { handle, chains, index, .. } = table;
            if !self.gone.is_empty() {
                for chain in &mut *chains {
                    chain.rules.retain(|rule| !self.gone.contains(&(*handle, rule.handle)));
                }
            }
            *index = Index::of(chains);
        }
        Some(self.ruleset)
    }
}
