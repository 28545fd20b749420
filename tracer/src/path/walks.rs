//! Walks that were found before. Most packets go one of a few ways through a table, and a way depends on nothing but
//! the table's version, the hook, the counts and the verdict.
#![forbid(unsafe_code)]

use super::attribute::can_change;
use super::walk::{Graph, Walk, Walker};
use crate::hash::Multiply;
use crate::netfilter::Hook;
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
    verdict: u32,
    matches: Box<[Match]>,
    /// What was found.
    pub walk: Walk,
    /// Whether the target of a step can have changed what later steps show.
    pub can_change: bool,
}

impl Walks {
    /// As [`Walker::walk`].
    #[inline]
    pub fn walk(
        &mut self,
        walker: &mut Walker,
        (table, graph): (&Table, &Graph),
        hook: Hook,
        matches: &[Match],
        verdict: u32,
    ) -> Rc<Known> {
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, None);
        }
        let slot = &mut self.slots[slot_of(hook, matches)];
        let same =
            |known: &&Rc<Known>| known.hook == hook && known.verdict == verdict && *known.matches == *matches;
        if let Some(known) = slot.as_ref().filter(same) {
            return Rc::clone(known);
        }
        let walk = walker.walk(graph, hook, matches, verdict);
        Rc::clone(slot.insert(Rc::new(Known::new(table, hook, matches, verdict, walk))))
    }
}

impl Known {
    #[cold]
    fn new(table: &Table, hook: Hook, matches: &[Match], verdict: u32, walk: Walk) -> Self {
        let can_change = match &walk {
            // What the last step's target did, no step shows.
            Walk::Ordered(steps) | Walk::Cut(steps, _) => {
                can_change(table, &steps[..steps.len().saturating_sub(1)])
            }
            Walk::Unordered(steps) => can_change(table, steps),
            Walk::Inexact(_) => false,
        };
        Self { hook, verdict, matches: matches.into(), walk, can_change }
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
