//! Explains of each packet why it passed one rule.

use super::rules::Rules;
use crate::cli::netns::Netns;
use crate::cli::trace::RuleName;
use crate::path::{Certainty, Path};
use crate::sink::{Row, Sink};
use crate::why::{Met, Told, told};
use std::collections::BTreeMap;
use std::io;

/// Packets on their way that are kept; beyond that the oldest is forgotten.
const PENDING: usize = 100_000;

/// Gives everything to a sink, and what packets say to one rule that they passed.
pub(in crate::command) struct Explaining {
    shown: Box<dyn Sink>,
    wanted: RuleName,
    rules: Rules,
    /// What packets met in the rule's chain.
    pending: BTreeMap<u64, Vec<Met>>,
}

impl Explaining {
    /// Explains one rule of a namespace.
    pub(in crate::command) fn new(shown: Box<dyn Sink>, wanted: &RuleName, netns: &Netns) -> Self {
        Self { shown, wanted: wanted.clone(), rules: Rules::new(netns), pending: BTreeMap::new() }
    }

    fn tell(&mut self, path: &Path, steps: &[Met]) -> Option<Told> {
        let first = steps.first()?;
        if path.certainty != Certainty::Complete {
            // Whether it met the rule is in doubt as well.
            return Some(Told::Unknown("its path is in doubt"));
        }
        let times = first.time_ns.zip(steps.last()?.time_ns);
        let met = times.and_then(|(first_ns, last_ns)| self.rules.met(first_ns, last_ns));
        let rules = met.and_then(|loaded| Some((loaded.chain(first)?, loaded.may_change(first))));
        told(steps, self.wanted.number, rules.as_ref().map(|(listed, changed)| (listed.as_slice(), *changed)))
    }
}

impl Sink for Explaining {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Start(_) => self.rules.hold(),
            Row::Step(step)
                if step.rule.table == self.wanted.table && step.rule.chain == self.wanted.chain =>
            {
                self.pending.entry(step.packet).or_default().push(step.into());
                if self.pending.len() > PENDING {
                    self.pending.pop_first();
                }
            }
            Row::Path(path) => {
                let steps = self.pending.remove(&path.packet).unwrap_or_default();
                if let Some(told) = self.tell(path, &steps) {
                    self.shown.row(Row::Told(path.packet, &self.wanted.to_string(), &told))?;
                }
            }
            _ => {}
        }
        self.shown.row(row)
    }

    fn enough(&self) -> bool {
        self.shown.enough()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shown.flush()
    }
}
