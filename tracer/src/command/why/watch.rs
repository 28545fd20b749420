//! Waits for the first packet that is dropped.

use super::look;
use super::rules::Rules;
use crate::packet::Sender;
use crate::path::{Path, Step};
use crate::sink::{Namespace, Row, Sink};
use crate::sys::clock;
use crate::why::{Met, Why, fate};
use std::collections::BTreeMap;
use std::io;

/// Steps of unfinished packets that are kept; beyond that those of the oldest packet are forgotten.
const PENDING_STEPS: usize = 100_000;

/// Keeps the steps of packets until one of these is found to have been dropped, and tells of that one.
pub(super) struct Watch {
    shown: Box<dyn Sink>,
    rules: Rules,
    /// What is known of namespaces.
    namespaces: BTreeMap<u32, Namespace>,
    pending: BTreeMap<u64, Pending>,
    pending_steps: usize,
    /// Paths whose end was not seen are always in doubt.
    has_doubt: bool,
    found: bool,
}

/// A packet on its way.
#[derive(Default)]
struct Pending {
    steps: Vec<Met>,
    sender: Option<Sender>,
}

impl Watch {
    /// Tells `shown` of the packet that was dropped.
    pub(super) fn new(shown: Box<dyn Sink>, rules: Rules) -> Self {
        Self {
            shown,
            rules,
            namespaces: BTreeMap::new(),
            pending: BTreeMap::new(),
            pending_steps: 0,
            has_doubt: false,
            found: false,
        }
    }

    fn take(&mut self, packet: u64) -> Pending {
        let pending = self.pending.remove(&packet).unwrap_or_default();
        self.pending_steps -= pending.steps.len();
        pending
    }

    fn step(&mut self, step: &Step<'_>) {
        self.pending.entry(step.packet).or_default().steps.push(step.into());
        self.pending_steps += 1;
        while self.pending_steps > PENDING_STEPS
            && let Some((&oldest, _)) = self.pending.first_key_value()
        {
            self.take(oldest);
        }
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        let Pending { steps, sender } = self.take(path.packet);
        let now_ns = clock::epoch_ns().wrapping_add(clock::monotonic_ns());
        let last_ns = steps.last().and_then(|step| step.time_ns);
        let silent_ns = last_ns.map_or(0, |last_ns| now_ns.saturating_sub(last_ns));
        let Self { rules, has_doubt, .. } = self;
        let has_stand = &mut |hook| rules.recent(path.netns).has_stand(path.family, hook);
        let Some(fate) = fate(path, &steps, has_stand, silent_ns, *has_doubt) else { return Ok(()) };
        let first_ns = steps.first().and_then(|step| step.time_ns);
        let met = first_ns.zip(last_ns).and_then(|(first_ns, last_ns)| rules.met(first_ns, last_ns));
        let mut why = Why::of(path, &steps, fate, &mut |step| met?.chain(step));
        let (netns, loaded) = (rules.netns(path.netns), rules.recent(path.netns));
        let is_of_iptables = why.at.as_ref().is_some_and(|at| loaded.is_of_iptables(at));
        why.sender = sender;
        why.look = look::command(&why, &netns, is_of_iptables);
        if let Some((inode, known)) = path.netns.and_then(|inode| self.namespaces.get_key_value(&inode)) {
            self.shown.row(Row::Namespace(*inode, known))?;
        }
        self.found = true;
        self.shown.row(Row::Why(&why))
    }
}

impl Sink for Watch {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Start(start) => {
                self.has_doubt = start.backend != "ebpf";
                self.rules.hold();
                self.shown.row(row)
            }
            Row::Namespace(inode, known) => {
                self.namespaces.insert(inode, known.clone());
                Ok(())
            }
            Row::Step(step) if !self.found => {
                self.step(step);
                Ok(())
            }
            Row::Sender(packet, sender) if !self.found => {
                self.pending.entry(packet).or_default().sender = Some(sender.clone());
                Ok(())
            }
            Row::Path(path) if !self.found => self.path(path),
            Row::End(totals) => {
                if !self.found {
                    self.shown.row(Row::NoDrop(totals.packets))?;
                }
                self.shown.row(row)
            }
            // What comes after the packet that was found is not told of any more; the others are not asked for.
            Row::Step(_)
            | Row::Path(_)
            | Row::LogStyle(_)
            | Row::Logged(..)
            | Row::Told(..)
            | Row::Sender(..)
            | Row::Spent(..)
            | Row::Freed(..)
            | Row::Why(_)
            | Row::NoDrop(_) => Ok(()),
        }
    }

    fn enough(&self) -> bool {
        self.found
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shown.flush()
    }
}
