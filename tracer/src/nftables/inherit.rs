//! Texts of rules that say the same as before a change.

use super::{Rule, Ruleset, Table};
use std::collections::HashMap;

/// Expressions that name what is written elsewhere: a set without a name of its own may hold something else now.
const ELSEWHERE: [&str; 3] = ["lookup", "dynset", "objref"];

/// Whether rules have no text.
pub fn lacks_text(ruleset: &Ruleset) -> bool {
    let mut rules = ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    rules.any(|rule| rule.text.is_none())
}

/// Gives rules without a text the one that they had, if the same chain of the same table had a rule of the same handle that
/// said the same.
pub fn inherit_texts(ruleset: &mut Ruleset, before: &Ruleset) {
    let earlier: HashMap<u64, &Table> = before.tables.iter().map(|table| (table.handle, table)).collect();
    for table in &mut ruleset.tables {
        let Some(earlier) = earlier.get(&table.handle).filter(|earlier| earlier.name == table.name) else {
            continue;
        };
        for chain in &mut table.chains {
            for rule in chain.rules.iter_mut().filter(|rule| rule.text.is_none() && speaks_for_itself(rule)) {
                let Some((holder, _, known)) = earlier.rule(rule.handle) else { continue };
                if holder.name == chain.name && known.content == rule.content {
                    rule.text = known.text.clone();
                    rule.nft = known.nft.clone();
                }
            }
        }
    }
}

/// Rules that hold a chain are printed with its rules.
fn speaks_for_itself(rule: &Rule) -> bool {
    let elsewhere = rule.expressions.iter().any(|name| ELSEWHERE.contains(&&**name));
    let leads = matches!(rule.verdict, Some(super::RuleVerdict::Jump(_) | super::RuleVerdict::Goto(_)));
    !elsewhere && !leads
}
