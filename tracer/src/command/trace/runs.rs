//! Runs through base chains of nftables, between their first record and their last, and the rules that they met.

use super::interpreter::ReadNftables;
use crate::hash::KernelMap;
use crate::nftables::Ruleset;
use crate::nftables::versions::{AllCommits, Version, Versions, lacks_text};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tracer_common::nft::{Event, Run, what};

/// Rules that change are read again at most this often.
const READ_AGAIN: Duration = Duration::from_millis(20);
/// The programs that print rules are run at most this often, and at most for a tenth of the time.
const PRINT_AGAIN: Duration = Duration::from_millis(250);
const PRINT_SHARE: u32 = 10;
/// How long a run may be silent before it is given up.
const SILENT_NS: u64 = 250_000_000;

/// The rules of a namespace as they were read.
pub struct NftReading {
    /// The rules.
    pub ruleset: Ruleset,
    /// The counters from before reading them.
    pub before: AllCommits,
    /// The counters from after it.
    pub after: AllCommits,
}

/// A run with all that is known of it.
pub(super) struct Ended {
    pub(super) run: Run,
    pub(super) events: Vec<Event>,
}

/// Runs that are under way.
#[derive(Default)]
pub(super) struct Runs {
    open: KernelMap<u64, Ended>,
    by_packet: KernelMap<u64, u64>,
    /// By the time they began.
    begun: VecDeque<(u64, u64)>,
}

impl Runs {
    /// A packet enters a base chain.
    pub(super) fn begin(&mut self, run: &Run) {
        self.begun.push_back((run.entry_ns, run.run));
        self.by_packet.insert(run.packet, run.run);
        self.open.insert(run.run, Ended { run: *run, events: Vec::with_capacity(8) });
    }

    /// A verdict. Gives the run when it ends it.
    pub(super) fn event(&mut self, event: &Event) -> Option<Ended> {
        let open = self.open.get_mut(&event.run)?;
        open.events.push(*event);
        let is_last = event.what == what::POLICY || event.what == what::LEFT || event.code >= 0;
        is_last.then(|| self.end(event.run)).flatten()
    }

    /// The run of a packet that is seen elsewhere now.
    pub(super) fn of_packet(&mut self, packet: u64) -> Option<Ended> {
        let run = *self.by_packet.get(&packet)?;
        self.end(run)
    }

    /// A run that has been silent for too long.
    pub(super) fn silent(&mut self, now_ns: u64) -> Option<Ended> {
        while let Some((_, run)) = self.begun.pop_front_if(|(begun_ns, _)| *begun_ns + SILENT_NS <= now_ns) {
            if let Some(ended) = self.end(run) {
                return Some(ended);
            }
        }
        None
    }

    fn end(&mut self, run: u64) -> Option<Ended> {
        let ended = self.open.remove(&run)?;
        if self.by_packet.get(&ended.run.packet) == Some(&run) {
            self.by_packet.remove(&ended.run.packet);
        }
        Some(ended)
    }
}

/// The rules that runs met.
pub(super) struct Rules {
    versions: Versions,
    read: ReadNftables,
    /// When the rules of a namespace were last read, and when they may be printed again.
    last: HashMap<u32, (Instant, Instant)>,
}

impl Rules {
    pub(super) fn new(read: ReadNftables) -> Self {
        Self { versions: Versions::default(), read, last: HashMap::new() }
    }

    /// Takes the rules of a namespace as they are now, with their texts.
    pub(super) fn fetched(&mut self, netns: u32, reading: NftReading) {
        let NftReading { ruleset, before, after } = reading;
        self.versions.read(netns, ruleset, &before, &after);
        self.last.insert(netns, (Instant::now(), Instant::now() + PRINT_AGAIN));
    }

    /// The rules that a run met. When they are not known, the newest of its namespace, for what can be told of it all
    /// the same.
    pub(super) fn met_by(&mut self, run: &Run) -> Result<Rc<Version>, Option<Rc<Version>>> {
        if let Some(version) = self.versions.met_by(run) {
            return Ok(Rc::clone(version));
        }
        self.read_again(run.netns);
        match self.versions.met_by(run) {
            Some(version) => Ok(Rc::clone(version)),
            None => Err(self.versions.newest(run.netns).cloned()),
        }
    }

    /// The newest rules of a namespace.
    pub(super) fn newest(&self, netns: u32) -> Option<&Rc<Version>> {
        self.versions.newest(netns)
    }

    /// Reads the rules of a namespace again, unless that was just done.
    pub(super) fn read_again(&mut self, netns: u32) {
        let now = Instant::now();
        let (read, mut may_print) = match self.last.get(&netns) {
            Some((read, may_print)) => (Some(*read), *may_print),
            None => (None, now),
        };
        if read.is_some_and(|read| now.duration_since(read) < READ_AGAIN) {
            return;
        }
        let Some(NftReading { ruleset, before, after }) = (self.read)(netns, false) else { return };
        self.versions.read(netns, ruleset, &before, &after);
        let lacks = self.versions.newest(netns).is_some_and(|version| lacks_text(&version.ruleset));
        if lacks && now >= may_print {
            if let Some(NftReading { ruleset, before, after }) = (self.read)(netns, true) {
                self.versions.read(netns, ruleset, &before, &after);
            }
            may_print = Instant::now() + PRINT_AGAIN.max(now.elapsed() * PRINT_SHARE);
        }
        self.last.insert(netns, (Instant::now(), may_print));
    }
}
