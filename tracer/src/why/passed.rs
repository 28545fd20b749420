//! A rule that a packet passed, and what it says to the rule's conditions.

use super::Met;
use crate::explain::{Answer, Checked, Known, explain, may_change, without_counters};
use crate::netfilter::Engine;
use std::sync::Arc;

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

/// A rule that a packet did not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
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

impl Passed {
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

/// What a packet met in one chain, at one hook, with the rules of the chain.
pub(super) struct InChain<'a> {
    pub(super) steps: &'a [&'a Met],
    pub(super) listed: &'a [Listed],
    /// A rule there may have changed the packet without having been met.
    pub(super) changed: bool,
}

impl InChain<'_> {
    /// Whether the rules are those that the packet met, and it came to the chain once.
    pub(super) fn is_clear(&self) -> bool {
        let same = |step: &&Met| {
            let rule = self.listed.iter().find(|rule| Some(rule.number) == step.number);
            let text = rule.and_then(|rule| rule.text.as_deref());
            match (step.text.as_deref(), text) {
                (Some(met), Some(text)) => without_counters(met) == without_counters(text),
                (met, text) => met == text,
            }
        };
        let numbers: Option<Vec<u32>> = self.steps.iter().map(|step| step.number).collect();
        self.steps.iter().all(same)
            && numbers.is_some_and(|numbers| numbers.is_sorted_by(|one, next| one < next))
    }

    /// The next step that the packet met behind a rule that it passed; `None` where it met that rule, and where it did
    /// not get so far. Nothing in this chain changed the packet in between.
    pub(super) fn behind(&self, number: u32) -> Option<&Met> {
        let next = self.steps.iter().find(|step| step.number >= Some(number))?;
        (next.number != Some(number)).then_some(*next)
    }

    /// What the packet says to a rule, as it was at a step.
    pub(super) fn ask(&self, rule: &Listed, at: &Met) -> Option<Passed> {
        let text = rule.text.as_ref()?;
        let known = if at.doubtful || self.changed { Known::Devices } else { Known::All };
        Some(Passed {
            name: format!("{}:{}:rule:{}", at.table, at.chain, rule.number),
            text: Arc::clone(text),
            owner: rule.owner.clone(),
            behind: false,
            checks: explain(text, &at.packet.view(), known),
        })
    }
}

/// Whether one of these rules may have changed a packet without having been met, and nothing shows it: rules of nftables
/// change a packet before they have asked all that they ask.
pub(super) fn may_have_changed(engine: Engine, listed: &[Listed]) -> bool {
    let changing = |rule: &Listed| rule.text.as_ref().is_none_or(|text| may_change(text));
    engine == Engine::Nft && listed.iter().any(changing)
}
