//! From records to steps and paths. Knows neither the ring nor namespaces, so that it can be measured without them.

use super::super::outlet::Outlet;
use super::drops::{self, Drops, Watched};
use super::links::Links;
use super::runs::{Ended, Heard, NftReading, Rules, Runs};
use super::senders::Senders;
use super::shown::Shown;
use super::standings::Standings;
use super::views::{state, view, view_of_run};
use crate::backend::ebpf::decode::{Record, Seen};
use crate::backend::ebpf::ending::Endings;
use crate::backend::ebpf::kernel::HOOKS_DROP;
use crate::fetch::Fetched;
use crate::footprint;
use crate::history::{Counts, History, Unknown, Version, name_of};
use crate::latency::Spent;
use crate::netfilter::{Engine, Family, Hook, Verdict};
use crate::netlink::Message;
use crate::nftables;
use crate::packet::{PacketView, Tracked};
use crate::path::attribute::{Views, attribute, attribute_unordered, same_bytes};
use crate::path::ending::Ending;
use crate::path::last_rule;
use crate::path::track::{Part, Tracker, Visit};
use crate::path::walk::{Walk, Walker};
use crate::path::{Action, Certainty, Sighting, Step};
use crate::predicate::Predicates;
use crate::ruleset::{Table, Target};
use crate::sink::{Sink, Start, Totals};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tracer_common::ending::Freed;
use tracer_common::legacy::{Match, Traversal, doubt, fact};

/// A table that changes is read again at most this often, for the texts of its rules.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// Reads the table that a traversal met again, by its family and name.
pub type ReadAgain = Box<dyn FnMut(&Traversal, Family, &str) -> Result<Reading, NotRead>>;

/// Why a table was not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRead {
    /// It is not the one any more that the traversal met.
    Replaced,
    /// It cannot be had.
    Failed,
}

/// Reads the rules of nftables in a namespace again, without their texts; `None` when they cannot be had.
pub type ReadNftables = Box<dyn FnMut(u32) -> Option<NftReading>>;

/// Has the rules of nftables in a namespace printed, on a thread of its own; `None` when that cannot be done. Nothing comes
/// when they cannot be had.
pub type PrintNftables = Box<dyn FnMut(u32) -> Option<Receiver<nftables::Ruleset>>>;

/// Gives what was announced of the rules of nftables in a namespace since the last time, each with the time
/// (CLOCK_MONOTONIC) when it was heard.
pub type HearChanges = Box<dyn FnMut(u32, &mut dyn FnMut(&Message<'_>, u64)) -> Heard>;

/// A table as it was read.
pub struct Reading {
    /// The table.
    pub fetched: Fetched,
    /// The replace counters from before reading it.
    pub before: Counts,
    /// The replace counters from after it.
    pub after: Counts,
    /// The time (CLOCK_MONOTONIC) after it.
    pub read_ns: u64,
}

/// Everything that turns a record into output; apart from the ring, which lends the records.
pub struct Interpreter {
    outlet: Outlet,
    read_again: ReadAgain,
    history: History,
    tracker: Tracker,
    walker: Walker,
    /// Memory for the names of a traversal's steps.
    names: Vec<Rc<str>>,
    /// The packet as the last step showed it.
    shown: Shown,
    /// What to add to CLOCK_MONOTONIC to get nanoseconds since the epoch.
    epoch_ns: u64,
    /// The time (CLOCK_MONOTONIC) of the latest traversal.
    seen_ns: u64,
    /// When tables that changed were last read again.
    last_read: HashMap<(u32, Family, String), Instant>,
    runs: Runs,
    rules: Rules,
    /// What stands at the hooks of a namespace, as long as it stays the same.
    standings: Standings,
    /// Tells how packets ended, where the kernel says it.
    endings: Option<Endings>,
    /// Packets that something else dropped than what is watched, and whether base chains of nftables are.
    drops: Drops,
    watches_nftables: bool,
    links: Links,
    /// Who sends packets, where that was asked for and is known.
    senders: Option<Senders>,
}

impl Interpreter {
    /// Nothing is known yet. `epoch_ns` is what to add to CLOCK_MONOTONIC to get nanoseconds since the epoch.
    pub fn new(
        sink: Box<dyn Sink>,
        limit: Option<NonZeroU64>,
        epoch_ns: u64,
        read_again: ReadAgain,
        read_nftables: ReadNftables,
        print_nftables: PrintNftables,
        hear_changes: HearChanges,
    ) -> Self {
        let outlet = Outlet::new(sink, limit);
        let mut tracker = Tracker::default();
        tracker.omit_endings(!outlet.asks_for_endings());
        Self {
            outlet,
            read_again,
            history: History::default(),
            tracker,
            walker: Walker::default(),
            names: Vec::new(),
            shown: Shown::default(),
            epoch_ns,
            seen_ns: 0,
            last_read: HashMap::new(),
            runs: Runs::default(),
            rules: Rules::new(read_nftables, print_nftables, hear_changes),
            standings: Standings::default(),
            endings: None,
            drops: Drops::default(),
            watches_nftables: true,
            links: Links::default(),
            senders: None,
        }
    }

    /// Shows only packets that are wanted, each when it is done.
    pub(super) fn choose(
        &mut self,
        predicates: &Predicates,
        slow: Option<Duration>,
        per_rule: Option<NonZeroU32>,
    ) {
        self.outlet.choose(predicates.clone(), slow, per_rule);
        self.tracker.omit_endings(!self.outlet.asks_for_endings());
    }

    /// Tells how packets ended: their paths are kept for a moment, for what the kernel may do with them then.
    pub(super) fn tell_endings(&mut self, endings: Endings) {
        if self.outlet.shows_paths() {
            self.tracker.hold();
            self.endings = Some(endings);
        }
    }

    /// Base chains of nftables are not watched: what drops packets may be one of theirs.
    pub(super) fn omit_nftables(&mut self) {
        self.watches_nftables = false;
    }

    /// Tells who sends packets.
    pub(super) fn tell_senders(&mut self) {
        self.senders = Some(Senders::default());
    }

    /// Records that come from now on were there by this time (CLOCK_MONOTONIC).
    pub(super) fn heard(&mut self, now_ns: u64) {
        self.tracker.heard(now_ns);
    }

    /// Takes the rules of nftables in a namespace as they are now.
    pub fn fetched_nftables(&mut self, netns: u32, reading: NftReading) {
        self.rules.fetched(netns, reading);
    }

    /// Takes a table as it is now.
    pub fn fetched(&mut self, netns: u32, reading: Reading) {
        let Reading { fetched, before, after, read_ns } = reading;
        self.history.fetched(netns, fetched, before, after, read_ns);
    }

    /// Learns of the changes of the rules of nftables in a namespace.
    pub(super) fn follow_nftables(&mut self, netns: u32) {
        self.rules.follow(netns);
    }

    /// Something came that is not traced: from now on no path is complete.
    pub(super) fn doubt_all(&mut self, why: &str) {
        self.outlet.doubt_all(why);
    }

    /// Says that tracing has begun.
    pub fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.outlet.begin(start)
    }

    /// Takes a record.
    pub fn record(&mut self, record: Record<'_>) {
        match record {
            Record::Traversal(seen) => {
                self.leave(seen.traversal.packet);
                self.traversal(seen);
            }
            Record::Run(run) => {
                self.leave(run.packet);
                self.runs.begin(run);
            }
            Record::Event(event, since_ns) => {
                if let Some(ended) = self.runs.event(event, since_ns) {
                    self.run(&ended);
                }
            }
            Record::Sender(sender) => {
                if let Some(senders) = &mut self.senders {
                    senders.told(sender);
                }
            }
            Record::Freed(freed) => {
                self.leave_freed(freed);
                self.freed(freed);
            }
            Record::Dropped(dropped) => {
                if self.endings.is_some() {
                    self.drops.wait(dropped);
                }
            }
            Record::Reinjected(reinjected) => {
                self.leave(reinjected.packet);
                let Self { tracker, outlet, links, .. } = self;
                tracker.reinjected(reinjected, &mut |path| outlet.path(&links.settled(path)));
            }
            Record::Link(link) => self.links.link(link),
            Record::Tracked(tracked) => self.links.tracked(tracked),
            Record::Replaced(replaced) => self.history.replaced(replaced),
            Record::Chunk(chunk) => self.history.chunk(chunk),
        }
    }

    /// Records were lost at some time between these two.
    pub(super) fn lost(&mut self, since_ns: u64, until_ns: u64) {
        self.tracker.lost(since_ns, until_ns);
    }

    /// Whether all packets that were asked for have been given out.
    pub(super) fn enough(&self) -> bool {
        self.outlet.enough()
    }

    fn traversal(&mut self, seen: Seen<'_>) {
        let traversal = seen.traversal;
        self.seen_ns = self.seen_ns.max(traversal.entry_ns);
        let (Some(family), Some(hook)) =
            (Family::from_nfproto(traversal.family), Hook::from_number(traversal.hook))
        else {
            return;
        };
        self.tracker.notice(traversal);
        let mut visit = Visit::of_traversal(traversal, family);
        if self.endings.is_some() {
            visit = visit.with_token(traversal.entry.copied, &traversal.entry_bytes);
        }
        let found = self.tracker.find(&visit);
        let number = found.number;
        self.links.number(traversal.packet, number);
        if self.outlet.is_beyond(number) {
            return;
        }
        let mut names = std::mem::take(&mut self.names);
        let part = match self.version(traversal, family) {
            Ok(version) => self.steps(number, &version, hook, seen, &mut names),
            Err(unknown) => Part {
                steps: &mut names,
                certainty: Certainty::Inexact,
                why: Some(match doubts(traversal.doubts) {
                    Some(doubts) => format!("{unknown}, {doubts}"),
                    None => unknown.to_string(),
                }),
                generation: None,
                outcome: None,
                verdict: returned(traversal).map(Verdict::from_return),
                queue: returned(traversal).and_then(queue_of),
                sighting: None,
            },
        };
        self.sender(number, traversal.packet, traversal.facts & fact::OWNER != 0);
        if traversal.exit.took_ns != 0 && part.verdict.is_some() {
            let table = name_of(&traversal.table_name);
            self.outlet.spent(
                number,
                &Spent {
                    hook,
                    engine: Engine::Legacy,
                    family: family.into(),
                    table: table.into(),
                    chain: hook.chain().into(),
                    ns: traversal.exit.took_ns.into(),
                    steps_ns: Vec::new(),
                },
            );
        }
        let version = self.rules.at(traversal.netns, traversal.entry_ns);
        let Self { tracker, outlet, links, standings, history, .. } = self;
        let stands = if is_last_rule(traversal) {
            // What it met before was not looked for.
            Rc::default()
        } else {
            standings.of((traversal.netns, family), history, version)
        };
        tracker.add(&visit, found, part, &stands, &mut |path| outlet.path(&links.settled(path)));
        self.names = names;
    }

    /// Gives out who sends a packet, where that is known. It has been to a table or base chain.
    #[inline]
    fn sender(&mut self, number: u64, packet: u64, has_socket: bool) {
        if let Some(senders) = &mut self.senders
            && let Some(sender) = senders.of(packet, has_socket)
        {
            self.outlet.sender(number, sender);
        }
    }

    /// The kernel freed what may be a packet that is traced.
    fn freed(&mut self, freed: &Freed) {
        let Some(endings) = &mut self.endings else { return };
        let (function, said) = drops::said(endings, freed);
        let Some(released) = self.tracker.freed(freed, &function) else {
            if let Some((number, netns)) = self.tracker.freed_later(freed, &function) {
                let time_ns = self.epoch_ns.wrapping_add(freed.time_ns);
                self.outlet.freed(number, time_ns, &said.seen_from(netns));
            }
            return;
        };
        let said = said.seen_from(released.netns);
        let ending = match function.as_str() {
            HOOKS_DROP => drops::by_function(endings, freed, released, said, true),
            _ => Ending::Freed(said),
        };
        // A base chain that was seen, or a table, has ended the path already.
        let unseen = match &ending {
            Ending::ByFunction { hooks, .. } => hooks.is_empty(),
            _ => function == "nft_do_chain",
        };
        let Self { tracker, outlet, links, .. } = self;
        tracker.end(freed.packet, ending, unseen, &mut |path| outlet.path(&links.settled(path)));
    }

    /// A packet is seen somewhere else: a run of it that is open has ended, though its end was not seen.
    fn leave(&mut self, packet: u64) {
        if let Some(ended) = self.runs.of_packet(packet) {
            self.run(&ended);
        }
    }

    /// A packet has been freed. A base chain can do that itself, before it is seen that the packet leaves it.
    fn leave_freed(&mut self, freed: &Freed) {
        let place = self.endings.as_mut().and_then(|endings| endings.place(freed.location));
        let by_chain = place.is_some_and(|place| place.name == "nft_do_chain");
        match by_chain.then(|| self.runs.dropped(freed.packet)).flatten() {
            Some(ended) => self.run(&ended),
            None => self.leave(freed.packet),
        }
    }

    /// A run has ended, or will not be seen again.
    fn run(&mut self, ended: &Ended) {
        let Ended { run, events, since_ns } = ended;
        let (Some(family), Some(hook)) = (Family::of_packets(run.family), Hook::from_record(run.hook)) else {
            return;
        };
        let mut visit = Visit::of_run(run, family);
        if self.endings.is_some() {
            visit = visit.with_token(run.copied, &run.bytes);
        }
        let found = self.tracker.find(&visit);
        let number = found.number;
        self.links.number(run.packet, number);
        if self.outlet.is_beyond(number) {
            return;
        }
        let (version, mut why) = match self.rules.met_by(run) {
            Ok(version) => (Some(version), None),
            Err(newest) => {
                (newest, Some("the version of nftables' rules that it met is not known".to_owned()))
            }
        };
        let nothing = nftables::Ruleset::default();
        let ruleset = version.as_ref().map_or(&nothing, |version| &version.ruleset);
        let mut followed = nftables::run::follow(ruleset, run, events);
        why = why.or(followed.doubt);
        let is_last_rule = run.facts & tracer_common::nft::fact::LAST_RULE != 0;
        if is_last_rule {
            why = Some(match why {
                None => last_rule::WHY.to_owned(),
                Some(doubt) => {
                    followed.met.clear();
                    last_rule::unknown(Some(doubt))
                }
            });
        }
        let is_unknown = is_last_rule && followed.met.is_empty();
        let mut names = std::mem::take(&mut self.names);
        let mut mark = run.mark;
        self.shown.forget();
        // The rules by which another nftracer marks packets are no steps, as its own would not be.
        let marks = ruleset
            .tables
            .iter()
            .any(|table| table.handle == run.table && footprint::is_table_of_ours(table));
        for met in followed.met {
            let Some(version) = version.as_ref().filter(|_| !marks) else { break };
            let name = version.name(&met.located);
            mark = met.mark.unwrap_or(mark);
            let step = Step {
                packet: number,
                time_ns: Some(self.epoch_ns.wrapping_add(run.entry_ns)),
                hook: Some(hook),
                rule: met.located.rule(),
                name: &name,
                action: Some(met.action),
                view: view_of_run(run, family, mark),
                view_doubt: None,
                tracked: Tracked::of(run.ctinfo, run.facts & tracer_common::nft::fact::CONNTRACK != 0),
                netns: Some(run.netns),
            };
            self.outlet.step(&step);
            names.push(name);
        }
        self.sender(number, run.packet, run.facts & tracer_common::nft::fact::OWNER != 0);
        if !marks
            && followed.verdict.is_some()
            && let Some((&ns, version)) = since_ns.last().zip(version.as_ref())
            && let Some((table, chain)) = version.ruleset.chain_of(run.table, run.chain)
        {
            let before = std::iter::once(&0).chain(since_ns);
            self.outlet.spent(
                number,
                &Spent {
                    hook,
                    engine: Engine::Nft,
                    family: table.family,
                    table: (&*table.name).into(),
                    chain: (&*chain.name).into(),
                    ns,
                    steps_ns: since_ns
                        .iter()
                        .zip(before)
                        .map(|(now, before)| now.saturating_sub(*before))
                        .collect(),
                },
            );
        }
        let part = Part {
            steps: &mut names,
            certainty: if why.is_some() { Certainty::Inexact } else { Certainty::Complete },
            why,
            generation: version.as_ref().filter(|_| !marks).and_then(|version| version.tag(run.table)),
            outcome: None,
            verdict: followed.verdict,
            queue: events.last().and_then(|event| queue_of(event.code.cast_unsigned())),
            sighting: is_unknown
                .then(|| sighting(self.epoch_ns.wrapping_add(run.entry_ns), view_of_run(run, family, mark))),
        };
        let Self { tracker, outlet, links, standings, history, .. } = self;
        let stands = if is_last_rule {
            // As for a traversal.
            Rc::default()
        } else {
            standings.of((run.netns, family), history, version.as_ref())
        };
        tracker.add(&visit, found, part, &stands, &mut |path| outlet.path(&links.settled(path)));
        self.names = names;
    }

    /// The version of the table that the packet met. A new one is read at once, for the texts of its rules, unless the
    /// table is being changed all the time, or has been changed again meanwhile.
    fn version(&mut self, traversal: &Traversal, family: Family) -> Result<Rc<Version>, Unknown> {
        match self.history.version(traversal) {
            Ok(version) if version.read => Ok(version),
            Err(Unknown::OtherAddress(name)) => Err(Unknown::OtherAddress(name)),
            met => self.read_again(traversal, family, met),
        }
    }

    /// Reads a table again, if it is time to.
    #[cold]
    fn read_again(
        &mut self,
        traversal: &Traversal,
        family: Family,
        met: Result<Rc<Version>, Unknown>,
    ) -> Result<Rc<Version>, Unknown> {
        let key = (traversal.netns, family, name_of(&traversal.table_name));
        let now = Instant::now();
        if self.last_read.get(&key).is_some_and(|last| now.duration_since(*last) < READ_AGAIN) {
            return met;
        }
        let read = (self.read_again)(traversal, family, &key.2);
        if !matches!(read, Err(NotRead::Replaced)) {
            self.last_read.insert(key, Instant::now());
        }
        let Ok(reading) = read else { return met };
        self.fetched(traversal.netns, reading);
        self.history.version(traversal)
    }

    /// Gives out the steps of a traversal, and puts their names into `names` if they will be asked for.
    fn steps<'n>(
        &mut self,
        number: u64,
        version: &Version,
        hook: Hook,
        seen: Seen<'_>,
        names: &'n mut Vec<Rc<str>>,
    ) -> Part<'n> {
        let Seen { traversal, matches, .. } = seen;
        let Version { table, graph, walks, .. } = version;
        let mut why = doubts(traversal.doubts);
        let mut outcome = None;
        let last_rule = is_last_rule(traversal);
        let known = (why.is_none() && !last_rule).then(|| {
            let returned = returned(traversal);
            walks.borrow_mut().walk(&mut self.walker, (table, graph), hook, matches, returned)
        });
        let verdict = known.as_ref().map_or_else(|| returned(traversal), |known| known.verdict);
        let (entries, mut certainty) = match known.as_deref().map(|known| &known.walk) {
            Some(Walk::Ordered(entries)) => (Cow::from(entries), Certainty::Complete),
            Some(Walk::Unordered(entries)) => {
                why = Some(format!("the order in {}:{} is not known", table.name, hook.chain()));
                (entries.into(), Certainty::Unordered)
            }
            Some(Walk::Cut(entries, cut)) => {
                outcome = Some(format!("dropped by {}", cut.text()));
                (entries.into(), Certainty::Complete)
            }
            Some(Walk::Inexact(reason)) => {
                why = Some(reason.text(table));
                (plausible(table, matches).into(), Certainty::Inexact)
            }
            None if last_rule => {
                let dropper = last_rule::dropper(table, hook, matches);
                why = Some(match dropper {
                    Some(_) => last_rule::WHY.to_owned(),
                    None => last_rule::unknown(why),
                });
                (dropper.into_iter().collect(), Certainty::Inexact)
            }
            None => (plausible(table, matches).into(), Certainty::Inexact),
        };
        let entry = state(&traversal.entry, seen.entry_bytes);
        let exit = (traversal.facts & fact::EXIT != 0).then(|| state(&traversal.exit, seen.exit_bytes));
        let can_change = known.as_ref().is_some_and(|known| known.can_change);
        let views = match certainty {
            _ if !can_change && exit.is_none_or(|exit| same_bytes(entry, exit)) => Views::Unchanged(entry),
            Certainty::Complete => attribute(table, &entries, entry, exit),
            Certainty::Unordered => attribute_unordered(table, &entries, entry, exit),
            Certainty::Inexact => Views::Unchanged(entry),
        };
        let unchanged = matches!(views, Views::Unchanged(_));
        let mut again = unchanged && self.shown.is_of(traversal);
        if !again {
            self.shown.forget();
        }
        let named = self.outlet.shows_paths();
        let last = entries.len().saturating_sub(1);
        for (index, &entry) in entries.iter().enumerate() {
            if again
                && let Some(name) = version.known_name(entry)
                && self.outlet.step_again(name)
            {
                if named {
                    names.push(Rc::clone(name));
                }
                continue;
            }
            let Some((name, rule)) = version.rule(entry) else {
                certainty = Certainty::Inexact;
                continue;
            };
            if named {
                names.push(Rc::clone(name));
            }
            let (state, view_doubt) = views.at(index);
            let ended = if index == last && outcome.is_none() { verdict } else { None };
            let step = Step {
                packet: number,
                time_ns: Some(self.epoch_ns.wrapping_add(traversal.entry_ns)),
                hook: Some(hook),
                rule,
                name,
                action: Some(action(table, entry, ended)),
                view: view(traversal, state),
                view_doubt,
                tracked: Tracked::of(traversal.ctinfo, traversal.facts & fact::CONNTRACK != 0),
                netns: Some(traversal.netns),
            };
            self.outlet.step(&step);
            if unchanged && !again {
                self.shown.set(traversal);
                again = true;
            }
        }
        Part {
            steps: names,
            certainty,
            why,
            generation: named.then(|| Rc::clone(&version.tag)),
            outcome,
            verdict: verdict.map(Verdict::from_return),
            queue: verdict.and_then(queue_of),
            sighting: (last_rule && entries.is_empty())
                .then(|| sighting(self.epoch_ns.wrapping_add(traversal.entry_ns), view(traversal, entry))),
        }
    }

    /// The time (CLOCK_MONOTONIC) of the latest traversal.
    pub(super) fn seen_ns(&self) -> u64 {
        self.seen_ns
    }

    /// Gives out packets that have been silent for long.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(ended) = self.runs.silent(now_ns) {
            self.run(&ended);
        }
        self.give_drops(now_ns);
        let Self { tracker, outlet, links, .. } = self;
        tracker.expire(now_ns, &mut |path| outlet.path(&links.settled(path)));
    }

    /// Gives out packets that nothing dropped that is watched, and that have waited for long enough.
    fn give_drops(&mut self, now_ns: u64) {
        while let Some(dropped) = self.drops.next(now_ns) {
            let Some(endings) = &mut self.endings else { return };
            let all = dropped.is_open == 0 && !self.tracker.may_lack(dropped.freed.time_ns);
            let watched = Watched { nftables: self.watches_nftables, all };
            let number = self.tracker.number();
            if let Some(path) = drops::path(number, &dropped, self.epoch_ns, watched, endings) {
                self.outlet.path(&path);
            }
        }
    }

    /// Writes what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.outlet.flush()
    }

    /// Gives out the packets that are still on their way. What happened until this time (CLOCK_MONOTONIC) has been read.
    pub(super) fn give_out_rest(&mut self, read_until_ns: u64) {
        while let Some(ended) = self.runs.silent(u64::MAX) {
            self.run(&ended);
        }
        self.give_drops(u64::MAX);
        let Self { tracker, outlet, links, .. } = self;
        tracker.finish(read_until_ns, &mut |path| outlet.path(&links.settled(path)));
    }

    /// So many packets that matched were left out, as was asked for.
    pub(super) fn left_out(&mut self, sampled_out: Option<u64>, limited_out: Option<u64>) {
        self.outlet.left_out(sampled_out, limited_out);
    }

    /// Ends the output. Says what there was, with the records that were lost and the traversals that no probe saw.
    pub(super) fn finish(&mut self, lost: u64, missed: u64) -> io::Result<Totals> {
        self.outlet.finish(lost, missed)
    }
}

/// A packet that no step shows.
#[cold]
fn sighting(time_ns: u64, view: PacketView<'_>) -> Box<Sighting> {
    Box::new(Sighting { time_ns, packet: view.into() })
}

/// Whether only the rule that dropped the packet was looked for.
#[inline]
fn is_last_rule(traversal: &Traversal) -> bool {
    traversal.facts & fact::LAST_RULE != 0
}

/// What is in doubt about a traversal, in words.
#[inline]
fn doubts(bits: u32) -> Option<String> {
    if bits == 0 { None } else { in_words(bits) }
}

/// What these bits of [`doubt`] say.
#[cold]
fn in_words(bits: u32) -> Option<String> {
    const WORDS: [(u32, &str); 12] = [
        (doubt::REPLACED, "the table was replaced meanwhile"),
        (doubt::REPLACE_COUNT, "a table was replaced meanwhile"),
        (doubt::SEQUENCE, "something else used the tables on this CPU meanwhile"),
        (doubt::GENERATION, "a probe was missed meanwhile"),
        (doubt::NO_EXIT, "its end was not seen: the task moved to another CPU, or the probe was missed"),
        (doubt::TOO_DEEP, "too many traversals were open on this CPU"),
        (
            doubt::TOO_LARGE,
            "the table has grown too large since the trace began, or too many large ones were met",
        ),
        (doubt::UNREADABLE, "the table could not be read"),
        (doubt::TOO_MANY, "more rules matched than can be reported"),
        (doubt::ORPHAN, "a traversal from another CPU ended meanwhile"),
        (doubt::OTHERS, "another packet may have been dropped on this CPU at the same time"),
        (
            doubt::NO_ENTRY,
            "its beginning was not seen: the task moved to another CPU, or the probe was missed",
        ),
    ];
    let words: Vec<&str> = WORDS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// The entries that may have matched, for a traversal in doubt.
fn plausible(table: &Table, matches: &[Match]) -> Vec<usize> {
    let known =
        |entry: &Match| usize::try_from(entry.index).ok().filter(|index| table.chain_of(*index).is_some());
    matches.iter().filter(|entry| entry.count <= 0x7fff_ffff).filter_map(known).collect()
}

/// What the function returned; `None` when the end of the traversal was not seen.
#[inline]
fn returned(traversal: &Traversal) -> Option<u32> {
    let seen =
        traversal.doubts & (doubt::NO_EXIT | doubt::TOO_DEEP) == 0 && traversal.facts & fact::UNSEEN_END == 0;
    seen.then_some(traversal.verdict)
}

/// The number of the queue in a verdict that sends a packet to one.
fn queue_of(verdict: u32) -> Option<u16> {
    (Verdict::from_return(verdict) == Verdict::Queue).then_some((verdict >> 16) as u16)
}

/// What an entry did. `ended` is what the function returned when this was the last entry.
fn action(table: &Table, entry: usize, ended: Option<u32>) -> Action<'_> {
    let chain = |to: usize| table.chain_of(to).map_or("?", |chain| chain.name.as_str());
    match &table.entries[entry].target {
        Target::Verdict(verdict) => Action::Verdict(*verdict),
        Target::Return => Action::Return,
        Target::Jump { to } => Action::Jump(chain(*to)),
        Target::Goto { to } => Action::Goto(chain(*to)),
        Target::Continue | Target::Error => Action::Continue,
        Target::Extension(_) => {
            ended.map_or(Action::Continue, |value| Action::Verdict(Verdict::from_return(value)))
        }
    }
}
