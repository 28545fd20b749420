//! From the verdicts of a packet's run through a base chain to its steps.
//!
//! Every jump and return is checked: a verdict that is missing shows as a rule that could not be next.

#[cfg(test)]
mod tests;

use super::{Chain, Located, Rule, RuleVerdict, Ruleset, Table};
use crate::netfilter::{StepKind, Verdict};
use crate::path::Action;
use tracer_common::nft::{Event, Run, code, fact, what};

/// What one verdict stands for.
#[derive(Clone, Debug)]
pub struct Met<'r> {
    /// The rule, end or policy.
    pub located: Located<'r>,
    /// What it did.
    pub action: Action<'r>,
    /// `skb->mark` after it; `None` when the packet may have been gone.
    pub mark: Option<u32>,
}

/// A run, as far as it could be followed.
#[derive(Clone, Debug, Default)]
pub struct Followed<'r> {
    /// In the order they were met, up to what could not be.
    pub met: Vec<Met<'r>>,
    /// What the base chain decided; `None` when its end was not seen.
    pub verdict: Option<Verdict>,
    /// What is in doubt; `None` when every check passed.
    pub doubt: Option<String>,
}

/// Follows a run of which nothing more will come through these rules.
pub fn follow<'r>(ruleset: &'r Ruleset, run: &Run, events: &[Event]) -> Followed<'r> {
    let mut followed = Followed { met: Vec::with_capacity(events.len()), ..Followed::default() };
    followed.doubt = followed.walk(ruleset, run, events).err();
    // The end can be known though the way is not.
    followed.verdict = followed.verdict.or_else(|| events.last().and_then(end));
    followed
}

/// The verdict that ends a run, if this is one that says it by itself.
fn end(event: &Event) -> Option<Verdict> {
    (event.what != what::POLICY && event.code >= 0).then(|| Verdict::from_return(event.code as u32))
}

/// A chain that the packet is in.
struct Frame<'r> {
    chain: &'r Chain,
    /// The number of the last rule that was met.
    number: u32,
}

/// Where the packet is: in the last of these chains, and it will go back to those before. Empty between the end of
/// the base chain and its policy.
struct Place<'r> {
    generation: u32,
    table: &'r Table,
    base: &'r Chain,
    stack: Vec<Frame<'r>>,
}

impl<'r> Followed<'r> {
    fn walk(&mut self, ruleset: &'r Ruleset, run: &Run, events: &[Event]) -> Result<(), String> {
        if run.facts & fact::CHANGING != 0 {
            return Err("the rules of nftables were being changed".to_owned());
        }
        if run.facts & fact::UNREADABLE != 0 {
            return Err("a chain of nftables could not be read".to_owned());
        }
        let table = ruleset.tables.iter().find(|table| table.handle == run.table);
        let table = table.ok_or_else(|| format!("nftables has no table with handle {}", run.table))?;
        let base = chain(table, run.chain)?;
        let generation = ruleset.generation;
        let name = format!("{} {}:{}", table.family.name(), table.name, base.name);
        let stack = match events {
            // What came before was not looked for: the packet is where the rule is.
            [last, ..] if run.facts & fact::LAST_RULE != 0 && last.what != what::POLICY => {
                let unknown = || format!("in {name}, its table has no rule with handle {}", last.rule);
                let (chain, number, _) = table.rule(last.rule).ok_or_else(unknown)?;
                vec![Frame { chain, number: number - 1 }]
            }
            [_, ..] if run.facts & fact::LAST_RULE != 0 => Vec::new(),
            _ => vec![Frame { chain: base, number: 0 }],
        };
        let mut place = Place { generation, table, base, stack };
        for (index, event) in (0..).zip(events) {
            if event.index != index {
                return Err(format!("a verdict of {name} was not seen"));
            }
            if event.commits != run.commits {
                return Err("the rules of nftables were changed meanwhile".to_owned());
            }
            if self.verdict.is_some() {
                return Err(format!("{name} went on after its end"));
            }
            if event.what == what::LEFT {
                return Err(format!("the rules of {name} are not visible"));
            }
            self.met.extend(place.take(event)?);
            self.verdict = match self.met.last() {
                Some(Met { action: Action::Verdict(verdict), .. }) => Some(*verdict),
                _ => None,
            };
        }
        match self.verdict {
            Some(_) => Ok(()),
            None => Err(format!("the end of {name} was not seen")),
        }
    }
}

impl<'r> Place<'r> {
    /// Takes a verdict. Gives what it stands for; the end of the base chain is told by its policy.
    fn take(&mut self, event: &Event) -> Result<Option<Met<'r>>, String> {
        let stolen = event.code == libc::NF_STOLEN;
        let mark = (!stolen).then_some(event.mark);
        let met = |located, action| Some(Met { located, action, mark });
        if event.what == what::POLICY {
            let policy = self.base.base.as_ref().map(|base| base.policy).filter(|_| self.stack.is_empty());
            let policy =
                policy.ok_or_else(|| self.wrong("its policy decided, though it was not at its end"))?;
            return Ok(met(self.end(self.base, StepKind::Policy), Action::Verdict(policy)));
        }
        let Some(Frame { chain, number: last }) = self.stack.pop() else {
            return Err(self.wrong("it went on after its end"));
        };
        if event.rule == 0 {
            let is_base = self.stack.is_empty() && chain.handle == self.base.handle;
            let located = self.end(chain, StepKind::Return);
            return Ok(if is_base { None } else { met(located, Action::Return) });
        }
        let unknown = || self.wrong(&format!("its table has no rule with handle {}", event.rule));
        let (holder, number, rule) = self.table.rule(event.rule).ok_or_else(unknown)?;
        if holder.handle != chain.handle || number <= last {
            let rule =
                format!("rule {number} of {} cannot come after rule {last} of {}", holder.name, chain.name);
            return Err(self.wrong(&rule));
        }
        let action = self.decide(rule, event)?;
        match action {
            Action::Continue => self.stack.push(Frame { chain, number }),
            Action::Jump(_) => {
                self.stack.push(Frame { chain, number });
                self.stack.push(Frame { chain: self::chain(self.table, event.target)?, number: 0 });
            }
            Action::Goto(_) => {
                self.stack.push(Frame { chain: self::chain(self.table, event.target)?, number: 0 });
            }
            Action::Return | Action::Verdict(_) => {}
        }
        let located = Located { rule: Some(rule), number, ..self.end(chain, StepKind::Rule) };
        Ok(met(located, action))
    }

    /// What a rule did, which must be what it says, where it says so itself and not through a map.
    fn decide(&self, rule: &Rule, event: &Event) -> Result<Action<'r>, String> {
        let action = match event.code {
            code::CONTINUE => Action::Continue,
            code::RETURN => Action::Return,
            code::JUMP => Action::Jump(&chain(self.table, event.target)?.name),
            code::GOTO => Action::Goto(&chain(self.table, event.target)?.name),
            verdict @ 0.. => Action::Verdict(Verdict::from_return(verdict as u32)),
            other => return Err(self.wrong(&format!("a rule gave the verdict {other}"))),
        };
        match rule.verdict.as_ref().map(RuleVerdict::action) {
            Some(said) if said != action => {
                Err(self.wrong(&format!("rule {} decided {action}, not {said}", rule.handle)))
            }
            _ => Ok(action),
        }
    }

    fn end(&self, chain: &'r Chain, kind: StepKind) -> Located<'r> {
        let Self { generation, table, .. } = *self;
        Located { generation, table, chain, rule: None, number: chain.end(), kind }
    }

    fn wrong(&self, what: &str) -> String {
        format!("in {} {}:{}, {what}", self.table.family.name(), self.table.name, self.base.name)
    }
}

fn chain(table: &Table, handle: u64) -> Result<&Chain, String> {
    let found = table.chains.iter().find(|chain| chain.handle == handle);
    found.ok_or_else(|| format!("{} {} has no chain with handle {handle}", table.family.name(), table.name))
}
