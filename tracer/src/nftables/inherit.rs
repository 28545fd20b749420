//! Texts of rules that say the same as before a change.

use super::{Chain, Rule, RuleVerdict, Ruleset, Table};
use std::collections::HashMap;

/// Expressions that name what is written elsewhere: a set without a name of its own may hold something else now.
const ELSEWHERE: [&str; 3] = ["lookup", "dynset", "objref"];
/// What names of chains begin with that are written within a rule.
const WITHIN: &str = "__";

/// Whether rules have no text.
pub fn lacks_text(ruleset: &Ruleset) -> bool {
    let mut rules = ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    rules.any(|rule| rule.text.is_none())
}

/// Gives rules without a text the one that they had: a rule of the same handle that said the same, or one in the same
/// chain that was loaded anew.
pub fn inherit_texts(ruleset: &mut Ruleset, before: &Ruleset) {
    let changes = ruleset.generation.wrapping_sub(before.generation).cast_signed().unsigned_abs();
    for table in &mut ruleset.tables {
        let Some(earlier) = before.table(table.family, &table.name) else { continue };
        if table.handle == earlier.handle {
            inherit_by_handle(table, earlier, changes <= 1);
        }
        for chain in &mut table.chains {
            if let Some(earlier) = earlier.chain(&chain.name) {
                inherit_by_content(chain, earlier);
            }
        }
    }
}

/// Within a table no handle is used twice, but a rule that replaces another has its handle. Where no more than one
/// transaction is between, it cannot have the name of a set that the other one had, and only names of chains can change
/// that a map has. Before Linux 4.16 tables have no handles, and another one may be there now.
fn inherit_by_handle(table: &mut Table, earlier: &Table, is_next: bool) {
    let names: HashMap<u64, &str> = earlier.chains.iter().map(|chain| (chain.handle, &*chain.name)).collect();
    let renamed = |chain: &Chain| names.get(&chain.handle).is_some_and(|name| **name != *chain.name);
    let stays = is_next && table.handle != 0 && !table.chains.iter().any(renamed);
    for chain in &mut table.chains {
        for rule in chain.rules.iter_mut().filter(|rule| rule.text.is_none()) {
            if let Some((holder, _, known)) = earlier.rule(rule.handle)
                && holder.name == chain.name
                && known.content == rule.content
                && (stays || speaks_for_itself(rule))
            {
                rule.say_as(known);
            }
        }
    }
}

fn inherit_by_content(chain: &mut Chain, earlier: &Chain) {
    if chain.rules.iter().all(|rule| rule.text.is_some()) {
        return;
    }
    let known = earlier.rules.iter().filter(|rule| rule.text.is_some() && speaks_for_itself(rule));
    let known: HashMap<u64, &Rule> = known.map(|rule| (rule.content, rule)).collect();
    for rule in chain.rules.iter_mut().filter(|rule| rule.text.is_none() && speaks_for_itself(rule)) {
        if let Some(known) = known.get(&rule.content) {
            rule.say_as(known);
        }
    }
}

impl Rule {
    fn say_as(&mut self, other: &Self) {
        self.text = other.text.clone();
        self.nft = other.nft.clone();
    }
}

/// Whether the text follows from the rule's own content. Rules that hold a chain are printed with its rules.
fn speaks_for_itself(rule: &Rule) -> bool {
    let elsewhere = rule.expressions.iter().any(|name| ELSEWHERE.contains(&&**name));
    let holds = matches!(
        &rule.verdict,
        Some(RuleVerdict::Jump(chain) | RuleVerdict::Goto(chain)) if chain.starts_with(WITHIN)
    );
    !elsewhere && !holds
}
