//! The rules that nearly had a packet otherwise.

use super::Met;
use crate::explain::{Answer, Checked, Known, Leads, explain, leads, may_change};
use crate::netfilter::{Engine, StepKind};
use std::cmp::Reverse;
use std::sync::Arc;

/// So many are shown at most.
const MOST: usize = 3;

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its place in the chain, from 1.
    pub number: u32,
    /// Its text; `None` where that is not known.
    pub text: Option<Arc<str>>,
    /// The program that made it, and for what.
    pub owner: Option<String>,
}

/// A rule that nearly had a packet otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// `table:chain:rule:number`
    pub name: String,
    /// Its text.
    pub text: Arc<str>,
    /// The program that made it, and for what.
    pub owner: Option<String>,
    /// It stands behind the rule that ended the packet, which never came to it.
    pub behind: bool,
    /// What the packet says to each of its conditions.
    pub checks: Vec<Checked>,
}

impl Close {
    /// The conditions that the packet does not meet, each with what it has instead.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checks.iter().filter_map(|checked| match &checked.answer {
            Answer::Fails { value } => Some((checked.text.as_str(), value.as_str())),
            _ => None,
        })
    }

    /// The conditions of which nothing is known.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let unknown = self.checks.iter().filter(|checked| checked.answer == Answer::Unknown);
        unknown.map(|checked| checked.text.as_str())
    }
}

/// Rules that a packet passed on its way to the step `at`, by one condition that it does not meet; and those behind that
/// step, if it meets all that they ask. Only rules that would have let it pass, or sent it elsewhere.
pub fn close(steps: &[Met], at: usize, rules: &mut dyn FnMut(&Met) -> Option<Vec<Listed>>) -> Vec<Close> {
    let Some(end) = steps.get(at) else { return Vec::new() };
    let place = |step: &Met| (step.hook, step.engine, step.family, step.table.clone());
    let near: Vec<&Met> = steps[..=at].iter().filter(|step| place(step) == place(end)).collect();
    let mut chains: Vec<&str> = Vec::new();
    for step in near.iter().rev().filter(|step| step.engine == end.engine) {
        if !chains.contains(&step.chain.as_str()) {
            chains.push(&step.chain);
        }
    }
    let mut found = Vec::new();
    for (distance, chain) in chains.into_iter().enumerate() {
        let steps: Vec<&Met> = near.iter().copied().filter(|step| step.chain == chain).collect();
        let Some(listed) = rules(steps[0]).filter(|listed| is_as_met(listed, &steps)) else { continue };
        let behind = (chain == end.chain && end.kind == StepKind::Rule).then_some(end);
        let passed = Passed { steps: &steps, listed: &listed };
        found.extend(listed.iter().filter_map(|rule| {
            let close = passed.explain(rule, behind)?;
            let unknown = close.unknown().count();
            let failed = close.failed().count();
            let held = close.checks.len() - unknown - failed;
            let wanted = match close.behind {
                true => failed == 0 && unknown == 0,
                false => failed <= 1 && failed + unknown > 0,
            };
            wanted
                .then_some(((Reverse(failed), unknown, Reverse(held), distance, Reverse(rule.number)), close))
        }));
    }
    // One condition that is known to have failed says most, and more so where others held; then what is nearest.
    found.sort_by_key(|(key, _)| *key);
    found.into_iter().map(|(_, close)| close).take(MOST).collect()
}

/// Whether the rules are still those that the packet met, and it came to the chain once.
fn is_as_met(listed: &[Listed], steps: &[&Met]) -> bool {
    let same = |step: &&Met| {
        let rule = listed.iter().find(|rule| Some(rule.number) == step.number);
        match (&step.text, rule) {
            (Some(text), Some(rule)) => rule.text.as_ref() == Some(text),
            (None, None) => true,
            (None, Some(rule)) => rule.text.is_none(),
            (Some(_), None) => false,
        }
    };
    let numbers: Option<Vec<u32>> = steps.iter().map(|step| step.number).collect();
    steps.iter().all(same) && numbers.is_some_and(|numbers| numbers.is_sorted_by(|one, next| one < next))
}

/// The steps of a packet in one chain.
struct Passed<'a> {
    steps: &'a [&'a Met],
    listed: &'a [Listed],
}

impl Passed<'_> {
    /// What the packet says to a rule that it passed, or that stands behind the one that ended it.
    fn explain(&self, rule: &Listed, behind: Option<&Met>) -> Option<Close> {
        let text = rule.text.as_ref()?;
        match leads(text) {
            Leads::Accept => {}
            Leads::To(target) if !is_aside(&target) => {}
            _ => return None,
        }
        let met = |step: &&&Met| step.number == Some(rule.number);
        if self.steps.iter().any(|step| met(&step)) {
            return None;
        }
        // Nothing in this chain changed the packet between this rule and the next one that it met.
        let next = self.steps.iter().find(|step| step.number > Some(rule.number)).copied();
        let (view_at, behind) = match (next, behind) {
            (Some(next), _) => (next, false),
            (None, Some(end)) => (end, true),
            (None, None) => return None,
        };
        let changing = |rule: &Listed| rule.text.as_ref().is_none_or(|text| may_change(text));
        let silent = view_at.engine == Engine::Nft && self.listed.iter().any(changing);
        let known = if view_at.doubtful || silent { Known::Devices } else { Known::All };
        let name = format!("{}:{}:rule:{}", view_at.table, view_at.chain, rule.number);
        let checks = explain(text, &view_at.packet.view(), known);
        Some(Close { name, text: Arc::clone(text), owner: rule.owner.clone(), behind, checks })
    }
}

/// Whether a target neither lets a packet pass nor leads it to other rules.
fn is_aside(target: &str) -> bool {
    const ASIDE: [&str; 12] = [
        "LOG", "NFLOG", "TRACE", "MARK", "CONNMARK", "TARPIT", "RETURN", "QUEUE", "NFQUEUE", "AUDIT", "SET",
        "TCPMSS",
    ];
    ASIDE.contains(&target)
}
