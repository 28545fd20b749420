//! From rows of the kernel's TRACE to steps and paths.

use super::super::outlet::Outlet;
use super::both::{Both, Pending};
use super::gate::Gate;
use super::known::{Checked, Does, Known, Named};
use super::nft::Live;
use crate::backend::netlink::{self, Arrival};
use crate::cli::trace::TraceConfig;
use crate::command::choice::matches;
use crate::command::kept::Kept;
use crate::filter::Filter;
use crate::hash::KernelMap;
use crate::kernel_log::{Record, Time};
use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::Packet;
use crate::path::ending::Ending;
use crate::path::group::join::Joined;
use crate::path::group::{Grouped, Grouper, Hold, Met, Placed, Row};
use crate::path::{Action, Certainty, Path, Step};
use crate::predicate::Predicates;
use crate::sink::{Output, Sink, Start, Totals};
use crate::sys::clock;
use crate::trace_line::{self, LogStyle};
use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::rc::Rc;

/// How long a packet may be silent before its path is given out.
const PATIENCE_MS: u64 = 500;

/// The same in nanoseconds; the environment variable is for tests on machines that stand still for longer.
fn patience_ns() -> u64 {
    let wanted = std::env::var("NFTRACER_PATIENCE_MS").ok().and_then(|ms| ms.parse::<u32>().ok());
    wanted.map_or(PATIENCE_MS, u64::from) * 1_000_000
}

/// Everything that turns rows into output.
pub(super) struct Rows {
    outlet: Outlet,
    grouper: Grouper,
    show: Show,
    style: LogStyle,
    netns: Option<u32>,
    /// What to add to CLOCK_MONOTONIC to get nanoseconds since the epoch.
    epoch_ns: u64,
    /// Lines of TRACE that could not be read.
    unreadable: u64,
    /// The last packet: many rows in a row are about the same.
    last: Option<Rc<Packet>>,
    /// What is needed where packets meet nftables as well.
    both: Option<Both>,
    /// Rules of nftables have changed, or may have, that are not followed.
    nft_changed: bool,
}

/// Which packets are shown, and what is known about them.
struct Show {
    filter: Filter,
    known: Known,
    /// Packets on their way; `None` is not shown.
    open: KernelMap<u64, Option<Shown>>,
    /// Packets that are or were shown.
    count: u64,
    /// Whether another one is to be.
    gate: Gate,
    /// Paths that are given out when it is known that the rules were the same all the time.
    waiting: Vec<Path>,
}

/// A packet on its way.
#[derive(Default)]
struct Shown {
    /// What the last rule did with it, where that is known.
    last: Option<Last>,
    /// The last row and its hook, where that is known.
    at: Option<(Row, Option<Hook>)>,
}

/// What the last rule that a packet met did with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Verdict(Verdict),
    /// It went on.
    GoesOn,
}

impl Rows {
    /// Has seen nothing yet. `netns` is the namespace of all rows, if that is known.
    pub(super) fn new(
        (sink, output): (Box<dyn Sink>, Output),
        config: &TraceConfig,
        filter: &Filter,
        (known, live): (Known, Option<Live>),
        netns: Option<u32>,
    ) -> Self {
        // A line needs nothing of what later rows tell, unless they may be of the other half.
        let hold = if output == Output::Trace && live.is_none() { Hold::Never } else { Hold::UntilKnown };
        let mut grouper = Grouper::new(hold).with_patience(patience_ns());
        known.each_place(|family, table, hook| grouper.loaded(netns, family, table, hook));
        Self {
            outlet: Outlet::new(sink, config.count),
            grouper,
            show: Show {
                filter: filter.clone(),
                known,
                open: KernelMap::default(),
                count: 0,
                gate: Gate::new(config),
                waiting: Vec::new(),
            },
            style: LogStyle::default(),
            netns,
            epoch_ns: clock::epoch_ns(),
            unreadable: 0,
            last: None,
            both: live.map(|live| Both::new(live, netns)),
            nft_changed: false,
        }
    }

    /// Shows only packets that are wanted, each when it is done.
    pub(super) fn choose(&mut self, predicates: &Predicates, per_rule: Option<NonZeroU32>) {
        self.outlet.choose(predicates.clone(), None, per_rule);
    }

    /// Casts doubt on all paths.
    pub(super) fn doubt_all(&mut self, why: &str) {
        self.outlet.doubt_all(why);
    }

    /// Says that tracing has begun.
    pub(super) fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.outlet.begin(start)
    }

    /// Takes what came. Where packets meet nftables as well it waits for [`Self::settle`].
    pub(super) fn arrival(&mut self, arrival: &Arrival<'_>) {
        match arrival {
            Arrival::Row(row) => self.row(row),
            Arrival::Nftables(message) => {
                let time_ns = self.epoch_ns.wrapping_add(clock::monotonic_ns());
                match &mut self.both {
                    Some(both) => both.wait(Pending::message(message, time_ns)),
                    None => self.nft_changed = true,
                }
            }
        }
    }

    /// The namespace whose rules of nftables have changed since the last call, and are not followed.
    pub(super) fn nft_changed(&mut self) -> Option<&File> {
        self.show.known.namespace().filter(|_| std::mem::take(&mut self.nft_changed))
    }

    /// All that came has been taken.
    pub(super) fn settle(&mut self, device: &mut dyn FnMut(u32) -> Rc<[u8]>) {
        let Some(mut both) = self.both.take() else { return };
        for pending in both.settle() {
            let clock_ns = both.tick(clock::monotonic_ns());
            match pending {
                Pending::Row { name, packet, time_ns } => {
                    self.add_half(&mut both, &name, packet, time_ns, clock_ns);
                }
                Pending::Message { kind, payload, time_ns } => {
                    let Self { show, outlet, netns, grouper, .. } = self;
                    let finish = &mut |joined| show.joined(outlet, joined);
                    let over = both.message((kind, &payload), (time_ns, clock_ns), *netns, device, finish);
                    if let Some(number) = over {
                        grouper.over(number, &mut |grouped| show.take_half(outlet, &mut both, grouped));
                    }
                }
            }
        }
        both.print();
        self.both = Some(both);
    }

    /// Takes a row of a packet that may meet nftables as well.
    fn add_half(&mut self, both: &mut Both, name: &str, packet: Rc<Packet>, time_ns: u64, clock_ns: u64) {
        let Some(met) = self.named(packet.family, name) else { return };
        let row = Row {
            met: Rc::clone(&met),
            packet: Rc::clone(&packet),
            time_ns: Some(time_ns),
            clock_ns: Some(clock_ns),
            netns: self.netns,
        };
        let Self { grouper, outlet, show, .. } = self;
        let half = grouper.add(row, &mut |grouped| show.take_half(outlet, both, grouped));
        let does = show.known.rule(packet.family, &met.name).map(|(_, does)| does);
        both.row(half, &met, packet.view(), does, clock_ns);
    }

    /// What a row names; `None` for what is no step.
    fn named(&mut self, family: Family, name: &str) -> Option<Rc<Met>> {
        match self.show.known.met(family, name) {
            Named::Met(met) => Some(met),
            Named::Ours => None,
            Named::Nothing => {
                self.unreadable += 1;
                None
            }
        }
    }

    /// Takes a row.
    fn row(&mut self, row: &netlink::Row<'_>) {
        let same = self.last.as_ref().filter(|last| last.view() == row.view).map(Rc::clone);
        let packet = same.unwrap_or_else(|| Rc::new(Packet::from(row.view)));
        self.last = Some(Rc::clone(&packet));
        let now_ns = clock::monotonic_ns();
        let time_ns = row.time_ns.unwrap_or(self.epoch_ns.wrapping_add(now_ns));
        match &mut self.both {
            Some(both) => both.wait(Pending::Row { name: row.name.into(), packet, time_ns }),
            None => self.add(row.name, packet, time_ns, now_ns),
        }
    }

    /// Takes a record of the kernel's log.
    pub(super) fn record(&mut self, record: &Record<'_>) {
        let Some(line) = trace_line::trace_line(&record.text) else { return };
        let Ok(packet) = trace_line::packet(line.content, &mut self.style) else {
            self.unreadable += 1;
            self.grouper.lost("a line of TRACE could not be read meanwhile");
            return;
        };
        let now_ns = clock::monotonic_ns();
        let time_ns = match record.time {
            Some(Time::Epoch(ns)) => ns,
            // The log's clock and CLOCK_MONOTONIC are nearly the same.
            Some(Time::Uptime(ns)) => self.epoch_ns.wrapping_add(ns),
            None => self.epoch_ns.wrapping_add(now_ns),
        };
        self.add(line.name, Rc::new(packet), time_ns, now_ns);
    }

    fn add(&mut self, name: &str, packet: Rc<Packet>, time_ns: u64, now_ns: u64) {
        let Some(met) = self.named(packet.family, name) else { return };
        let row = Row { met, packet, time_ns: Some(time_ns), clock_ns: Some(now_ns), netns: self.netns };
        let Self { grouper, outlet, show, .. } = self;
        grouper.add(row, &mut |grouped| show.take(outlet, grouped));
    }

    /// Rows were lost.
    pub(super) fn lost(&mut self) {
        self.nft_changed = self.both.is_none();
        self.grouper.lost(LOST);
        if let Some(both) = &mut self.both {
            both.lost(LOST);
        }
    }

    /// Gives out packets that have been silent for long, and looks whether the rules are the same.
    pub(super) fn expire(&mut self, now_ns: u64) {
        let Self { grouper, outlet, show, .. } = self;
        match &mut self.both {
            None => grouper.expire(now_ns, &mut |grouped| show.take(outlet, grouped)),
            Some(both) => {
                grouper.expire(now_ns, &mut |grouped| show.take_half(outlet, both, grouped));
                let silent_since_ns = self.epoch_ns.wrapping_add(now_ns) - patience_ns();
                both.expire(silent_since_ns, &mut |joined| show.joined(outlet, joined));
            }
        }
        self.check(false);
    }

    fn check(&mut self, now: bool) {
        let netns = self.netns;
        let Self { grouper, outlet, show, .. } = self;
        if show.open.is_empty() && show.waiting.is_empty() {
            return;
        }
        let Some(checked) = show.known.check(now) else { return };
        if checked == Checked::Changed {
            show.known.each_place(|family, table, hook| grouper.loaded(netns, family, table, hook));
            grouper.lost(CHANGED);
            show.waiting.iter_mut().for_each(|path| doubt(path, CHANGED));
        }
        show.waiting.drain(..).for_each(|path| outlet.path(&path));
    }

    /// Whether all packets that were asked for have been given out.
    pub(super) fn enough(&self) -> bool {
        self.outlet.enough()
    }

    /// Writes what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.outlet.flush()
    }

    /// Gives out what is left. The rules are to be as they were while packets met them.
    pub(super) fn give_out_rest(&mut self) {
        let Self { grouper, outlet, show, .. } = self;
        match &mut self.both {
            None => grouper.finish(&mut |grouped| show.take(outlet, grouped)),
            Some(both) => {
                both.end(clock::monotonic_ns());
                grouper.finish(&mut |grouped| show.take_half(outlet, both, grouped));
                both.expire(u64::MAX, &mut |joined| show.joined(outlet, joined));
            }
        }
        self.check(true);
    }

    /// Ends the output.
    pub(super) fn finish(&mut self, lost: u64) -> io::Result<Totals> {
        let (sampled_out, limited_out) = self.show.gate.left_out();
        self.outlet.left_out(sampled_out, limited_out);
        self.outlet.finish(lost + self.unreadable, 0)
    }
}

const LOST: &str = "rows were lost meanwhile";
const CHANGED: &str = "the rules were changed meanwhile";

fn doubt(path: &mut Path, why: &str) {
    path.certainty = Certainty::Inexact;
    if !path.why.iter().any(|said| said == why) {
        path.why.push(why.to_owned());
    }
}

impl Show {
    fn take(&mut self, outlet: &mut Outlet, grouped: Grouped) {
        match grouped {
            Grouped::Step(placed) => self.step(outlet, &placed),
            Grouped::Path(path) => self.path(*path),
            Grouped::Logged { .. } => {}
        }
    }

    /// Takes what legacy tables told, where packets meet nftables as well.
    fn take_half(&mut self, outlet: &mut Outlet, both: &mut Both, grouped: Grouped) {
        match grouped {
            Grouped::Step(placed) => {
                let clock_ns = placed.row.clock_ns.unwrap_or_default();
                both.keep(placed.packet, clock_ns, Kept::of(&told(&self.known, &placed)));
            }
            Grouped::Path(path) => {
                if let Some(joined) = both.close(*path) {
                    self.joined(outlet, joined);
                }
            }
            Grouped::Logged { .. } => {}
        }
    }

    /// Gives out a packet of which all is known.
    fn joined(&mut self, outlet: &mut Outlet, joined: Joined<Kept>) {
        let Joined { number, first, mut steps, mut path } = joined;
        let Some(beginning) = steps.first() else { return };
        let first = first.unwrap_or_else(|| beginning.packet());
        // Legacy tables show more of a packet.
        let shown = |step: &Kept| step.is_legacy() && matches(&self.filter, &step.packet().view());
        let wanted = matches(&self.filter, &first.view())
            || steps.iter().find(|step| step.is_legacy()).is_some_and(shown);
        if !wanted || outlet.is_beyond(self.count + 1) || !self.gate.admits(clock::monotonic_ns()) {
            return;
        }
        self.count += 1;
        Kept::settle(&mut steps);
        path.steps = steps.iter().map(Kept::name).collect();
        path.ending = steps.last().and_then(|last| ending_of(last_of(last.action().as_ref())));
        if let Some(last) = steps.last().filter(|step| step.is_legacy()) {
            let goes_on = || self.known.goes_on(&last.packet(), last.table(), last.hook());
            end(&mut path, last_of(last.action().as_ref()), goes_on);
        }
        steps.iter().for_each(|step| outlet.step(&step.step(number, path.netns)));
        self.waiting.push(path);
    }

    fn step(&mut self, outlet: &mut Outlet, placed: &Placed) {
        let view = placed.row.packet.view();
        let Self { filter, known, open, count, gate, .. } = self;
        let shown = open.entry(placed.packet).or_insert_with(|| {
            let wanted = matches(filter, &view)
                && !outlet.is_beyond(*count + 1)
                && gate.admits(placed.row.clock_ns.unwrap_or_default());
            wanted.then(|| {
                *count += 1;
                Shown::default()
            })
        });
        let Some(shown) = shown else { return };
        let step = told(known, placed);
        shown.at = Some((placed.row.clone(), placed.hook));
        shown.last = last_of(step.action.as_ref());
        outlet.step_of(&placed.row.packet, &step);
    }

    fn path(&mut self, mut path: Path) {
        let Some(Some(shown)) = self.open.remove(&path.packet) else { return };
        let goes_on = || {
            let (row, hook) = shown.at.as_ref()?;
            Some(self.known.goes_on(&row.packet, &row.met.table, *hook))
        };
        path.ending = ending_of(shown.last);
        end(&mut path, shown.last, || goes_on().unwrap_or(false));
        self.waiting.push(path);
    }
}

/// A step as far as the rules tell what it did, or what came next.
fn told<'a>(known: &'a Known, placed: &'a Placed) -> Step<'a> {
    let Row { met, packet, time_ns, netns, .. } = &placed.row;
    let (rule, action) = match known.rule(packet.family, &met.name) {
        Some((rule, Does::Always(action))) => (rule, Some(action)),
        Some((rule, Does::Depends)) => (rule, placed.action.clone()),
        None => (met.rule(packet.family), placed.action.clone()),
    };
    Step {
        packet: placed.packet,
        time_ns: *time_ns,
        hook: placed.hook,
        rule,
        name: &met.name,
        action,
        view: packet.view(),
        view_doubt: None,
        tracked: None,
        netns: *netns,
    }
}

fn last_of(action: Option<&Action<'_>>) -> Option<Last> {
    match action? {
        Action::Verdict(verdict) => Some(Last::Verdict(*verdict)),
        _ => Some(Last::GoesOn),
    }
}

/// How a packet ended whose last step decided that.
fn ending_of(last: Option<Last>) -> Option<Ending> {
    match last? {
        Last::Verdict(Verdict::Drop) => Some(Ending::Dropped),
        Last::Verdict(Verdict::Stolen) => Some(Ending::Stolen),
        Last::Verdict(Verdict::Queue) => Some(Ending::Queued { queue: None }),
        _ => None,
    }
}

/// What the last step says of how a packet ended. `goes_on` says whether, let go on, it would have met another table.
fn end(path: &mut Path, last: Option<Last>, goes_on: impl FnOnce() -> bool) {
    let nothing_came = |path: &Path, why: &str| {
        let end = path.steps.last().map_or("?", |name| name);
        format!("nothing came after {end}: {why}")
    };
    match last {
        Some(Last::Verdict(verdict)) if verdict != Verdict::Accept => {
            path.verdict = path.verdict.or(Some(verdict));
        }
        Some(Last::GoesOn) => {
            let why = nothing_came(path, "a match dropped the packet, or rows were lost");
            doubt(path, &why);
        }
        accepted => {
            path.verdict = path.verdict.or(accepted.map(|_| Verdict::Accept));
            // Nothing tells those apart.
            if goes_on() {
                let why = nothing_came(path, "it was dropped elsewhere, or was held up");
                doubt(path, &why);
            }
        }
    }
}
