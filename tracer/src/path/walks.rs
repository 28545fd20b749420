//! Walks that were found before. Most packets go one of a few ways through a table, and a way depends on nothing but
//! the table's version, the hook, the counts and the verdict.
#![forbid(unsafe_code)]

use super::attribute::can_change;
use super::walk::{Graph, Reason, Walk, Walker};
use crate::hash::Multiply;
use crate::netfilter::{Hook, Verdict};
use crate::ruleset::Table;
use std::hash::Hasher as _;
use std::rc::Rc;
use tracer_common::legacy::Match;

/// Walks that are kept of each version; a new one takes the place of one that has the same slot.
const SLOTS: usize = 64;

/// The walks of one version of a table.
#[derive(Debug, Default)]
pub struct Walks {
    /// Empty until the first walk: many versions are never met.
    slots: Vec<Option<Rc<Known>>>,
}

/// A walk and what it was asked for.
#[derive(Debug)]
pub struct Known {
    hook: Hook,
    returned: Option<u32>,
    matches: Box<[Match]>,
    /// What was found.
    pub walk: Walk,
    /// What the function returned; where that was not seen, what it must have returned.
    pub verdict: Option<u32>,
    /// Whether the target of a step can have changed what later steps show.
    pub can_change: bool,
}

impl Walks {
    /// As [`Walker::walk`], where `returned` is known. Where it is not, the end was not seen, and the verdict is what
    /// the counts allow, if that is one.
    #[inline]
    pub fn walk(
        &mut self,
        walker: &mut Walker,
        (table, graph): (&Table, &Graph),
        hook: Hook,
        matches: &[Match],
        returned: Option<u32>,
    ) -> Rc<Known> {
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, None);
        }
        let slot = &mut self.slots[slot_of(hook, matches)];
        let same = |known: &&Rc<Known>| {
            known.hook == hook && known.returned == returned && *known.matches == *matches
        };
        if let Some(known) = slot.as_ref().filter(same) {
            return Rc::clone(known);
        }
        let (walk, verdict) = match returned {
            Some(verdict) => (walker.walk(graph, hook, matches, verdict), Some(verdict)),
            None => implied(walker, graph, hook, matches),
        };
        let can_change = can_any_change(table, &walk);
        let known = Known { hook, returned, matches: matches.into(), walk, verdict, can_change };
        Rc::clone(slot.insert(Rc::new(known)))
    }
}

/// The walk of a traversal whose end was not seen, and the verdict it must have ended in. That takes a rule whose verdict
/// it is: nothing shows that a match dropped the packet. Which queue a packet went to, or that it came again, no count
/// tells.
#[cold]
fn implied(walker: &mut Walker, graph: &Graph, hook: Hook, matches: &[Match]) -> (Walk, Option<u32>) {
    const VERDICTS: [Verdict; 5] =
        [Verdict::Drop, Verdict::Accept, Verdict::Stolen, Verdict::Queue, Verdict::Repeat];
    let mut found = None;
    for verdict in VERDICTS {
        let number = u32::from(verdict.number());
        let walk = walker.walk(graph, hook, matches, number);
        match walk {
            Walk::Inexact(Reason::NoWay(_)) => {}
            Walk::Inexact(_) => return (walk, None),
            _ if found.is_some() => return (Walk::Inexact(Reason::ManyEnds), None),
            _ => found = Some((walk, verdict, number)),
        }
    }
    match found {
        Some((walk @ (Walk::Ordered(_) | Walk::Unordered(_)), Verdict::Drop | Verdict::Accept, number)) => {
            (walk, Some(number))
        }
        Some(_) => (Walk::Inexact(Reason::ManyEnds), None),
        None => (Walk::Inexact(Reason::NoEnd), None),
    }
}

#[cold]
fn can_any_change(table: &Table, walk: &Walk) -> bool {
    match walk {
        // What the last step's target did, no step shows.
        Walk::Ordered(steps) | Walk::Cut(steps, _) => {
            can_change(table, &steps[..steps.len().saturating_sub(1)])
        }
        Walk::Unordered(steps) => can_change(table, steps),
        Walk::Inexact(_) => false,
    }
}

fn slot_of(hook: Hook, matches: &[Match]) -> usize {
    let mut hasher = Multiply::default();
    hasher.write_u32(hook as u32);
    for found in matches {
        hasher.write_u64(u64::from(found.index) << 32 | u64::from(found.count));
    }
    hasher.finish() as usize % SLOTS
}
