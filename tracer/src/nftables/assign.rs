//! Gives rules the text that their owner's tool prints.
//!
//! nft prints handles, which must be those of the model, chain by chain and in order. The others print no handles:
//! number, verdicts and policies of a table's rules must agree, or none of them gets a text.

use super::{Chain, Rule, RuleVerdict, Ruleset, Table, listing, save};
use crate::netfilter::{TableFamily, Verdict};
use crate::text;
use std::sync::Arc;

/// Why a tool's output does not describe a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A line that is not understood.
    #[error("it printed a line that is not understood: {0:?}")]
    Line(String),
    /// The table is missing, or is another one of the same name.
    #[error("it did not print the table that the kernel holds")]
    Table,
    /// The chain is missing or has other rules.
    #[error("it printed other rules for chain {0:?} than the kernel holds")]
    Rules(String),
    /// The chain has another policy.
    #[error("it printed another policy for chain {0:?} than the kernel holds")]
    Policy(String),
}

/// Sets [`Rule::nft`] and [`Rule::text`] of all rules of a table from what `nft -a list ruleset` prints about all
/// tables; or of none, when that contradicts the model.
pub fn attach_listing(ruleset: &mut Ruleset, printed: &[u8]) -> Vec<(TableFamily, Arc<str>, Mismatch)> {
    let printed = text::lossy(printed);
    let (listed, broken) = match listing::parse(&printed) {
        Ok(listed) => (listed, None),
        Err(line) => (Vec::new(), Some(Mismatch::Line(line.to_owned()))),
    };
    let mut mismatches = Vec::new();
    for table in &mut ruleset.tables {
        let same = |listed: &&listing::Table<'_>| {
            listed.family == table.family.name()
                && *listed.name == *table.name
                && listed.handle.is_none_or(|handle| handle == table.handle)
        };
        let texts = match (listed.iter().find(same), &broken) {
            (_, Some(broken)) => Err(broken.clone()),
            (None, None) => Err(Mismatch::Table),
            (Some(listed), None) => nft_texts(table, listed),
        };
        match texts {
            Ok(texts) => texts.into_iter().for_each(|(place, text)| set(table, place, &text, true)),
            Err(mismatch) => mismatches.push((table.family, table.name.clone(), mismatch)),
        }
    }
    mismatches
}

/// Sets [`Rule::text`] of the rules that iptables-nft or one of its siblings made, from what its save program for a
/// family prints; of none of a table, when that contradicts the model.
pub fn attach_save(
    ruleset: &mut Ruleset,
    family: TableFamily,
    printed: &[u8],
) -> Vec<(TableFamily, Arc<str>, Mismatch)> {
    let printed = text::lossy(printed);
    let sections = match save::parse(&printed) {
        Ok(sections) => sections,
        Err(line) => {
            let tables = ruleset.tables.iter().filter(|table| table.family == family);
            let mismatch = Mismatch::Line(line.to_owned());
            return tables.map(|table| (family, table.name.clone(), mismatch.clone())).collect();
        }
    };
    let mut mismatches = Vec::new();
    for table in ruleset.tables.iter_mut().filter(|table| table.family == family) {
        let Some(section) = sections.iter().find(|section| section.table == &*table.name) else { continue };
        match save_texts(table, section) {
            Ok(texts) => texts.into_iter().for_each(|(place, text)| set(table, place, &text, false)),
            Err(mismatch) => mismatches.push((family, table.name.clone(), mismatch)),
        }
    }
    mismatches
}

/// A rule's chain and its place there.
type Place = (usize, usize);

fn set(table: &mut Table, (chain, rule): Place, text: &Arc<str>, by_nft: bool) {
    let rule = &mut table.chains[chain].rules[rule];
    rule.text = Some(text.clone());
    if by_nft {
        rule.nft = Some(text.clone());
    }
}

fn nft_texts(table: &Table, listed: &listing::Table<'_>) -> Result<Vec<(Place, Arc<str>)>, Mismatch> {
    let mut texts = Vec::new();
    for (at, chain) in table.chains.iter().enumerate().filter(|(_, chain)| !chain.bound) {
        let mismatch = || Mismatch::Rules(chain.name.to_string());
        let same = |listed: &&listing::Chain<'_>| {
            *listed.name == *chain.name && listed.handle.is_none_or(|handle| handle == chain.handle)
        };
        let listed = &listed.chains.iter().find(same).ok_or_else(mismatch)?.rules;
        let handles = listed.iter().map(|rule| rule.handle);
        if !handles.eq(chain.rules.iter().map(|rule| rule.handle)) {
            return Err(mismatch());
        }
        for (rule, (listed, number)) in chain.rules.iter().zip(listed.iter().zip(0..)) {
            texts.push(((at, number), listed.text.into()));
            if let (false, Some(RuleVerdict::Jump(to) | RuleVerdict::Goto(to))) =
                (listed.bound.is_empty(), &rule.verdict)
            {
                let to = table.index.chains.get(&**to).ok_or_else(mismatch)?;
                let inner = &table.chains[*to];
                if !inner.bound || inner.rules.len() != listed.bound.len() {
                    return Err(mismatch());
                }
                texts.extend(
                    listed.bound.iter().zip(0..).map(|(text, number)| ((*to, number), Arc::from(*text))),
                );
            }
        }
    }
    Ok(texts)
}

fn save_texts(table: &Table, section: &save::Section<'_>) -> Result<Vec<(Place, Arc<str>)>, Mismatch> {
    let mut texts = Vec::new();
    for (name, policy) in &section.chains {
        let mismatch = || Mismatch::Rules((*name).to_owned());
        let lines = section.rules.get(name).map_or(&[][..], Vec::as_slice);
        let Some(at) = table.index.chains.get(*name) else {
            // A built-in chain that the kernel has not.
            if lines.is_empty() { continue } else { return Err(mismatch()) }
        };
        let chain = &table.chains[*at];
        if !same_policy(chain, policy) {
            return Err(Mismatch::Policy((*name).to_owned()));
        }
        let rules = match chain.rules.as_slice() {
            [rules @ .., last] if last.policy => rules,
            rules => rules,
        };
        if rules.len() != lines.len() {
            return Err(mismatch());
        }
        for (rule, (line, number)) in rules.iter().zip(lines.iter().zip(0..)) {
            if !names_verdict(rule, line) {
                return Err(mismatch());
            }
            if is_of_iptables(rule) {
                texts.push(((*at, number), Arc::from(*line)));
            }
        }
    }
    if section.rules.keys().any(|name| !section.chains.iter().any(|(chain, _)| chain == name)) {
        return Err(Mismatch::Table);
    }
    Ok(texts)
}

/// iptables-nft and its siblings give every rule a counter. A rule without one was put there by nft, and iptables-nft
/// may not understand all of it.
fn is_of_iptables(rule: &Rule) -> bool {
    rule.expressions.iter().any(|name| &**name == "counter")
}

fn same_policy(chain: &Chain, printed: &str) -> bool {
    match (&chain.base, printed) {
        (Some(base), "ACCEPT") => base.policy == Verdict::Accept,
        (Some(base), "DROP") => base.policy == Verdict::Drop,
        (Some(_), _) => false,
        // ebtables-nft has policies for all chains.
        (None, _) => true,
    }
}

/// Whether a line can be that of a rule with this verdict.
fn names_verdict(rule: &Rule, line: &str) -> bool {
    let has = |option: &str, name: &str| {
        // One may begin with the blank that ends the one before, where a comment looks like an option.
        let starts = line.match_indices(' ').map(|(at, _)| &line[at..]);
        starts.filter_map(|rest| rest.strip_prefix(option)).any(|word| {
            word.strip_prefix(name).is_some_and(|after| after.is_empty() || after.starts_with(' '))
        })
    };
    match &rule.verdict {
        Some(RuleVerdict::Final(Verdict::Accept)) => has(" -j ", "ACCEPT"),
        Some(RuleVerdict::Final(Verdict::Drop)) => has(" -j ", "DROP"),
        Some(RuleVerdict::Return) => has(" -j ", "RETURN"),
        Some(RuleVerdict::Jump(chain)) => has(" -j ", chain),
        Some(RuleVerdict::Goto(chain)) => has(" -g ", chain),
        Some(RuleVerdict::Final(_) | RuleVerdict::Continue) | None => true,
    }
}
