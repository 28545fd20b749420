//! The rules that nearly had a packet otherwise.

use super::Met;
use super::passed::{InChain, Listed, Passed, may_have_changed};
use crate::explain::{Leads, leads};
use std::cmp::Reverse;

/// So many are shown at most.
const MOST: usize = 3;

/// Rules that a packet passed on its way to the step `at`, by one condition that it does not meet; and those behind that
/// step, if it meets all that they ask. Only rules that would have let it pass, or sent it elsewhere.
pub(super) fn close(
    steps: &[Met],
    at: usize,
    rules: &mut dyn FnMut(&Met) -> Option<Vec<Listed>>,
) -> Vec<Passed> {
    let Some(end) = steps.get(at) else { return Vec::new() };
    let near: Vec<&Met> = steps[..=at].iter().filter(|step| step.is_beside(end)).collect();
    let mut chains: Vec<(&str, Vec<Listed>)> = Vec::new();
    for step in near.iter().rev() {
        if !chains.iter().any(|(chain, _)| *chain == step.chain) {
            let Some(listed) = rules(step) else { return Vec::new() };
            chains.push((&step.chain, listed));
        }
    }
    let changed = chains.iter().any(|(_, listed)| may_have_changed(end.engine, listed));
    let mut found = Vec::new();
    for (distance, (chain, listed)) in chains.iter().enumerate() {
        let steps: Vec<&Met> = near.iter().copied().filter(|step| step.chain == *chain).collect();
        let met = InChain { steps: &steps, listed, changed };
        if !met.is_clear() {
            continue;
        }
        for rule in listed.iter().filter(|rule| rule.text.as_deref().is_some_and(matters)) {
            let behind = *chain == end.chain && end.is_rule() && Some(rule.number) > end.number;
            let at = if behind { Some(end) } else { met.behind(rule.number) };
            let Some(passed) = at.and_then(|at| met.ask(rule, at)) else { continue };
            let (failed, unknown) = (passed.failed().count(), passed.unknown().count());
            let held = passed.checks.len() - unknown - failed;
            let wanted = match behind {
                true => failed == 0 && unknown == 0,
                false => failed <= 1 && failed + unknown > 0,
            };
            if wanted {
                let key = (Reverse(failed), unknown, Reverse(held), distance, Reverse(rule.number));
                found.push((key, Passed { behind, ..passed }));
            }
        }
    }
    // One condition that is known to have failed says most, and more so where others held; then what is nearest.
    found.sort_by_key(|(key, _)| *key);
    found.into_iter().map(|(_, passed)| passed).take(MOST).collect()
}

/// Whether a rule lets packets pass, or leads them to others.
fn matters(text: &str) -> bool {
    match leads(text) {
        Leads::Accept => true,
        Leads::To(target) => !is_aside(&target),
        Leads::Drop | Leads::Reject | Leads::On => false,
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
