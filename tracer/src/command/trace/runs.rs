//! Runs through base chains of nftables, between their first record and their last, and the rules that they met.

use super::interpreter::{HearChanges, PrintNftables, ReadNftables};
use crate::hash::KernelMap;
use crate::nftables::versions::{AllCommits, Version, Versions};
use crate::nftables::{Ruleset, lacks_text};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};
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
    /// The time (CLOCK_MONOTONIC) after it.
    pub read_ns: u64,
}

/// Whether all changes of the rules were heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// All.
    All,
    /// Some were lost.
    Some,
    /// Nobody listens for them in this namespace.
    Nothing,
}

/// A run with all that is known of it.
pub(super) struct Ended {
    pub(super) run: Run,
    pub(super) events: Vec<Event>,
    /// Where that was asked for: nanoseconds from the beginning to each of them.
    pub(super) since_ns: Vec<u64>,
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
        self.open.insert(run.run, Ended { run: *run, events: Vec::with_capacity(8), since_ns: Vec::new() });
    }

    /// A verdict. Gives the run when it ends it.
    pub(super) fn event(&mut self, event: &Event, since_ns: Option<u64>) -> Option<Ended> {
        let open = self.open.get_mut(&event.run)?;
        open.events.push(*event);
        open.since_ns.extend(since_ns);
        let is_last = event.what == what::POLICY || event.what == what::LEFT || event.code >= 0;
        is_last.then(|| self.end(event.run)).flatten()
    }

    /// The run of a packet that is seen elsewhere now.
    pub(super) fn of_packet(&mut self, packet: u64) -> Option<Ended> {
        let run = *self.by_packet.get(&packet)?;
        self.end(run)
    }

    /// The packet was dropped by the base chain that it was in: a run that is open has ended so.
    pub(super) fn dropped(&mut self, packet: u64) -> Option<Ended> {
        const NF_DROP: i32 = 0;
        let run = *self.by_packet.get(&packet)?;
        let open = self.open.get_mut(&run)?;
        let (index, commits) = open
            .events
            .last()
            .map_or((0, open.run.commits), |event| (event.index.wrapping_add(1), event.commits));
        let none = Event {
            kind: 0,
            index,
            run,
            rule: 0,
            target: 0,
            what: what::LEFT,
            code: NF_DROP,
            commits,
            mark: 0,
        };
        open.events.push(none);
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
    print: PrintNftables,
    hear: HearChanges,
    looks: HashMap<u32, Look>,
    /// The version that the latest run of a namespace met.
    met: KernelMap<u32, Rc<Version>>,
}

/// What is still to be learned of the rules of a namespace.
#[derive(Default)]
struct Look {
    /// When they were last read.
    read: Option<Instant>,
    /// When they may be printed again; `None` for at once.
    may_print: Option<Instant>,
    /// They are being printed, since when.
    printing: Option<(Instant, Receiver<Ruleset>)>,
    /// They have changed, and how is not known.
    unread: bool,
    /// Some may have no text.
    unprinted: bool,
}

impl Rules {
    pub(super) fn new(read: ReadNftables, print: PrintNftables, hear: HearChanges) -> Self {
        let (versions, looks, met) = (Versions::default(), HashMap::new(), KernelMap::default());
        Self { versions, read, print, hear, looks, met }
    }

    /// Takes the rules of a namespace as they are now, with their texts.
    pub(super) fn fetched(&mut self, netns: u32, reading: NftReading) {
        self.take(netns, reading);
        let now = Instant::now();
        let look = Look { read: Some(now), may_print: Some(now + PRINT_AGAIN), ..Look::default() };
        self.looks.insert(netns, look);
    }

    fn take(&mut self, netns: u32, reading: NftReading) {
        let NftReading { ruleset, before, after, read_ns } = reading;
        self.versions.read(netns, ruleset, (&before, &after), read_ns);
    }

    /// The rules that a run met. When they are not known, the newest of its namespace, for what can be told of it all
    /// the same.
    pub(super) fn met_by(&mut self, run: &Run) -> Result<Rc<Version>, Option<Rc<Version>>> {
        if self.versions.met_by(run).is_none() {
            self.hear(run.netns);
        }
        if self.versions.met_by(run).is_none() {
            self.read_again(run.netns);
        }
        match self.versions.met_by(run) {
            Some(version) => {
                self.met.insert(run.netns, Rc::clone(version));
                Ok(Rc::clone(version))
            }
            None => Err(self.versions.newest(run.netns).cloned()),
        }
    }

    /// The rules of a namespace at a time (CLOCK_MONOTONIC), as far as that is known. They are not older than those
    /// that were met before.
    pub(super) fn at(&self, netns: u32, time_ns: u64) -> Option<&Rc<Version>> {
        let (known, met) = (self.versions.at(netns, time_ns), self.met.get(&netns));
        let is_later = |known: &Rc<Version>, met: &Rc<Version>| {
            known.ruleset.generation.wrapping_sub(met.ruleset.generation).cast_signed() > 0
        };
        match (known, met) {
            (Some(known), Some(met)) if is_later(known, met) => Some(known),
            (known, met) => met.or(known),
        }
    }

    /// Learns of the changes of the rules of a namespace, and of the texts of new ones.
    pub(super) fn follow(&mut self, netns: u32) {
        self.hear(netns);
        if self.looks.get(&netns).is_some_and(|look| look.unread) {
            self.read_again(netns);
        }
        self.take_printed(netns);
        if self.looks.get(&netns).is_some_and(|look| look.unprinted) {
            self.print_again(netns);
        }
    }

    /// Takes what was announced of the rules of a namespace.
    fn hear(&mut self, netns: u32) {
        let Self { versions, hear, looks, .. } = self;
        let look = looks.entry(netns).or_default();
        let heard = hear(netns, &mut |message, heard_ns| {
            look.unprinted = true;
            look.unread |= versions.announced(netns, message, heard_ns).is_err();
        });
        if heard == Heard::Some {
            versions.deafened(netns);
            look.unread = true;
        }
    }

    /// Reads the rules of a namespace again, unless that was just done.
    fn read_again(&mut self, netns: u32) {
        let look = self.looks.entry(netns).or_default();
        if look.read.is_some_and(|read| read.elapsed() < READ_AGAIN) {
            return;
        }
        let Some(reading) = (self.read)(netns) else { return };
        (look.read, look.unread, look.unprinted) = (Some(Instant::now()), false, true);
        self.take(netns, reading);
    }

    /// Takes the texts of the rules of a namespace when they have been printed.
    fn take_printed(&mut self, netns: u32) {
        let Some(look) = self.looks.get_mut(&netns) else { return };
        let Some((began, texts)) = &look.printing else { return };
        let printed = match texts.try_recv() {
            Err(TryRecvError::Empty) => return,
            printed => printed.ok(),
        };
        look.may_print = Some(Instant::now() + PRINT_AGAIN.max(began.elapsed() * PRINT_SHARE));
        look.printing = None;
        if let Some(ruleset) = printed {
            self.versions.printed(netns, &ruleset);
        }
    }

    /// Has the rules of a namespace printed, if some of them have no text, unless that was just done.
    fn print_again(&mut self, netns: u32) {
        let look = self.looks.entry(netns).or_default();
        let now = Instant::now();
        if look.printing.is_some() || look.may_print.is_some_and(|may_print| now < may_print) {
            return;
        }
        look.unprinted = false;
        if self.versions.newest(netns).is_some_and(|version| lacks_text(&version.ruleset)) {
            look.printing = (self.print)(netns).map(|texts| (now, texts));
        }
    }
}
