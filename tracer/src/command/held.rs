//! Packets of which it is known only at their end whether they are shown.

use super::kept::Kept;
use super::per_rule::PerRule;
use crate::hash::KernelMap;
use crate::latency::Spent;
use crate::packet::{Packet, Sender};
use crate::path::group::Logged;
use crate::path::{Path, Step};
use crate::predicate::{Choice, Met, Predicates};
use crate::trace_line::LogStyle;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

/// Steps that are held at most, of all packets on their way.
const STEPS: usize = 1 << 18;

/// Packets on their way.
pub(super) struct Held {
    predicates: Predicates,
    /// Only packets that took longer are wanted; 0 for all.
    slow_ns: u64,
    /// Of those that are wanted, only so many of each rule are.
    per_rule: Option<PerRule>,
    open: KernelMap<u64, Open>,
    /// Steps held, of all packets.
    steps: usize,
    /// The packet at the last step: many in a row show the same.
    last: Option<Rc<Packet>>,
    style: Option<LogStyle>,
}

/// A packet on its way.
#[derive(Default)]
struct Open {
    met: Met,
    pieces: Vec<Piece>,
    style: Option<LogStyle>,
    /// What it took so far.
    took_ns: u64,
    /// There was no room for all of its steps.
    is_cut: bool,
}

/// What is given out of a packet before its path.
pub(super) enum Piece {
    Step(Box<Kept>),
    Logged(Logged),
    Spent(Box<Spent>),
    Sender(Box<Sender>),
}

/// A packet that is done.
pub(super) struct Done {
    pub(super) choice: Choice,
    /// It is wanted, but more than was asked for of its rule.
    pub(super) is_beyond: bool,
    pub(super) pieces: Vec<Piece>,
    /// How its kernel writes lines, where that was said.
    pub(super) style: Option<LogStyle>,
    /// What is in doubt about it.
    pub(super) doubt: Option<&'static str>,
}

impl Held {
    /// Packets that are wanted by these.
    pub(super) fn new(predicates: Predicates, slow: Option<Duration>, per_rule: Option<NonZeroU32>) -> Self {
        let slow_ns = slow.map_or(0, |slow| u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX));
        let per_rule = per_rule.map(PerRule::new);
        Self { predicates, slow_ns, per_rule, open: KernelMap::default(), steps: 0, last: None, style: None }
    }

    /// Takes a step, whose packet may be owned already.
    pub(super) fn step(&mut self, step: &Step<'_>, packet: Option<&Rc<Packet>>) {
        let open = self.open.entry(step.packet).or_default();
        open.met.add(self.predicates.met(step));
        open.style = self.style;
        if self.steps >= STEPS {
            open.is_cut = true;
            return;
        }
        let same = || self.last.as_ref().filter(|last| last.view() == step.view).map(Rc::clone);
        let packet = packet.map(Rc::clone).or_else(same).unwrap_or_else(|| Rc::new(Packet::from(step.view)));
        self.last = Some(Rc::clone(&packet));
        open.pieces.push(Piece::Step(Box::new(Kept::sharing(step, packet))));
        self.steps += 1;
    }

    /// Takes what a pass through a table took.
    pub(super) fn spent(&mut self, packet: u64, spent: &Spent) {
        let open = self.open.entry(packet).or_default();
        open.took_ns = open.took_ns.saturating_add(spent.ns);
        if self.steps < STEPS {
            open.pieces.push(Piece::Spent(Box::new(spent.clone())));
            self.steps += 1;
        }
    }

    /// Takes who sends a packet.
    pub(super) fn sender(&mut self, packet: u64, sender: Sender) {
        if let Some(open) = self.open.get_mut(&packet).filter(|_| self.steps < STEPS) {
            open.pieces.push(Piece::Sender(Box::new(sender)));
            self.steps += 1;
        }
    }

    /// Takes a line of the LOG target.
    pub(super) fn logged(&mut self, packet: u64, logged: &Logged) {
        // It belongs to a step: one without any is no packet.
        if let Some(open) = self.open.get_mut(&packet).filter(|_| self.steps < STEPS) {
            open.pieces.push(Piece::Logged(logged.clone()));
            self.steps += 1;
        }
    }

    /// Steps from here on are of a kernel that writes its lines in this style.
    pub(super) fn log_style(&mut self, style: LogStyle) {
        self.style = Some(style);
    }

    /// A packet is done.
    pub(super) fn done(&mut self, path: &Path) -> Done {
        let Open { met, pieces, style, took_ns, is_cut } = self.open.remove(&path.packet).unwrap_or_default();
        self.steps -= pieces.len();
        let choice = match self.predicates.choose(met, path.verdict, path.ending.as_ref()) {
            _ if self.slow_ns > 0 && took_ns <= self.slow_ns => Choice::Unwanted,
            choice => choice,
        };
        let steps = pieces.iter().filter_map(|piece| match piece {
            Piece::Step(kept) => Some(&**kept),
            _ => None,
        });
        let per_rule = self.per_rule.as_mut().filter(|_| choice == Choice::Wanted);
        Done {
            choice,
            is_beyond: per_rule.is_some_and(|per_rule| !per_rule.admits(steps)),
            pieces,
            style,
            doubt: is_cut.then_some("not all of its steps could be held until its end"),
        }
    }
}
