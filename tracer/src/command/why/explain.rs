//! Explains of each packet why it passed one rule.

use super::rules::Rules;
use crate::cli::netns::Netns;
use crate::cli::trace::RuleName;
use crate::latency::Spent;
use crate::packet::Sender;
use crate::path::ending::Freed;
use crate::path::group::Logged;
use crate::path::{Certainty, Path, Step};
use crate::sink::{Namespace, Sink, Start, Totals};
use crate::trace_line::LogStyle;
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
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.rules.hold();
        self.shown.begin(start)
    }

    fn namespace(&mut self, inode: u32, known: &Namespace) -> io::Result<()> {
        self.shown.namespace(inode, known)
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        if step.rule.table == self.wanted.table && step.rule.chain == self.wanted.chain {
            self.pending.entry(step.packet).or_default().push(step.into());
            if self.pending.len() > PENDING {
                self.pending.pop_first();
            }
        }
        self.shown.step(step)
    }

    fn logged(&mut self, packet: u64, logged: &Logged) -> io::Result<()> {
        self.shown.logged(packet, logged)
    }

    fn log_style(&mut self, style: LogStyle) {
        self.shown.log_style(style);
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        let steps = self.pending.remove(&path.packet).unwrap_or_default();
        if let Some(told) = self.tell(path, &steps) {
            self.shown.told(path.packet, &self.wanted.to_string(), &told)?;
        }
        self.shown.path(path)
    }

    fn freed(&mut self, packet: u64, time_ns: u64, freed: &Freed) -> io::Result<()> {
        self.shown.freed(packet, time_ns, freed)
    }

    fn sender(&mut self, packet: u64, sender: &Sender) -> io::Result<()> {
        self.shown.sender(packet, sender)
    }

    fn spent(&mut self, packet: u64, spent: &Spent) -> io::Result<()> {
        self.shown.spent(packet, spent)
    }

    fn finish(&mut self, totals: &Totals) -> io::Result<()> {
        self.shown.finish(totals)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shown.flush()
    }
}
