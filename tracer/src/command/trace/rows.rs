//! From rows of the kernel's TRACE to steps and paths.

use super::super::outlet::Outlet;
use super::known::{Checked, Does, Known, Named};
use crate::backend::netlink;
use crate::command::choice::matches;
use crate::filter::Filter;
use crate::kernel_log::{Record, Time};
use crate::netfilter::Verdict;
use crate::packet::Packet;
use crate::path::group::{Grouped, Grouper, Hold, Placed, Row};
use crate::path::{Action, Certainty, Path, Step};
use crate::sink::{Output, Sink, Start, Totals};
use crate::sys::clock;
use crate::trace_line::{self, LogStyle};
use std::collections::HashMap;
use std::io;
use std::num::NonZeroU64;
use std::rc::Rc;

/// How long a packet may be silent before its path is given out.
const PATIENCE_NS: u64 = 500_000_000;

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
}

/// Which packets are shown, and what is known about them.
struct Show {
    filter: Filter,
    known: Known,
    /// Packets on their way; `None` is not shown.
    open: HashMap<u64, Option<Shown>>,
    /// Packets that are or were shown.
    count: u64,
    /// Paths that are given out when it is known that the rules were the same all the time.
    waiting: Vec<Path>,
}

/// A packet on its way.
#[derive(Default)]
struct Shown {
    /// What the last rule did with it, where that is known.
    last: Option<Last>,
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
        limit: Option<NonZeroU64>,
        filter: &Filter,
        known: Known,
        netns: Option<u32>,
    ) -> Self {
        // A line needs nothing of what later rows tell.
        let hold = if output == Output::Trace { Hold::Never } else { Hold::UntilKnown };
        let mut grouper = Grouper::new(hold).with_patience(PATIENCE_NS);
        known.each_place(|family, table, hook| grouper.loaded(netns, family, table, hook));
        Self {
            outlet: Outlet::new(sink, limit),
            grouper,
            show: Show { filter: filter.clone(), known, open: HashMap::new(), count: 0, waiting: Vec::new() },
            style: LogStyle::default(),
            netns,
            epoch_ns: clock::epoch_ns(),
            unreadable: 0,
            last: None,
        }
    }

    /// Says that tracing has begun.
    pub(super) fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.outlet.begin(start)
    }

    /// Takes a row.
    pub(super) fn row(&mut self, row: &netlink::Row<'_>) {
        let same = self.last.as_ref().filter(|last| last.view() == row.view).map(Rc::clone);
        let packet = same.unwrap_or_else(|| Rc::new(Packet::from(row.view)));
        self.last = Some(Rc::clone(&packet));
        let now_ns = clock::monotonic_ns();
        let time_ns = row.time_ns.unwrap_or(self.epoch_ns.wrapping_add(now_ns));
        self.add(row.name, packet, time_ns, now_ns);
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
        let met = match self.show.known.met(packet.family, name) {
            Named::Met(met) => met,
            Named::Ours => return,
            Named::Nothing => {
                self.unreadable += 1;
                return;
            }
        };
        let row = Row { met, packet, time_ns: Some(time_ns), clock_ns: Some(now_ns), netns: self.netns };
        let Self { grouper, outlet, show, .. } = self;
        grouper.add(row, &mut |grouped| show.take(outlet, grouped));
    }

    /// Rows were lost.
    pub(super) fn lost(&mut self) {
        self.grouper.lost("rows were lost meanwhile");
    }

    /// Gives out packets that have been silent for long, and looks whether the rules are the same.
    pub(super) fn expire(&mut self, now_ns: u64) {
        let Self { grouper, outlet, show, .. } = self;
        grouper.expire(now_ns, &mut |grouped| show.take(outlet, grouped));
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
        grouper.finish(&mut |grouped| show.take(outlet, grouped));
        self.check(true);
    }

    /// Ends the output.
    pub(super) fn finish(&mut self, lost: u64) -> io::Result<Totals> {
        self.outlet.finish(lost + self.unreadable, 0)
    }
}

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

    fn step(&mut self, outlet: &mut Outlet, placed: &Placed) {
        let Row { met, packet, time_ns, netns, .. } = &placed.row;
        let view = packet.view();
        let Self { filter, known, open, count, .. } = self;
        let shown = open.entry(placed.packet).or_insert_with(|| {
            let wanted = matches(filter, &view) && !outlet.is_beyond(*count + 1);
            wanted.then(|| {
                *count += 1;
                Shown::default()
            })
        });
        let Some(shown) = shown else { return };
        let found = known.rule(packet.family, &met.name);
        let (rule, action) = match found {
            Some((rule, Does::Always(action))) => (rule, Some(action)),
            Some((rule, Does::Depends)) => (rule, placed.action.clone()),
            None => (met.rule(packet.family), placed.action.clone()),
        };
        shown.last = match &action {
            Some(Action::Verdict(verdict)) => Some(Last::Verdict(*verdict)),
            Some(_) => Some(Last::GoesOn),
            None => None,
        };
        outlet.step(&Step {
            packet: placed.packet,
            time_ns: *time_ns,
            hook: placed.hook,
            rule,
            name: &met.name,
            action,
            view,
            view_doubt: None,
            netns: *netns,
        });
    }

    fn path(&mut self, mut path: Path) {
        let Some(Some(shown)) = self.open.remove(&path.packet) else { return };
        match shown.last {
            Some(Last::Verdict(verdict)) => path.verdict = path.verdict.or(Some(verdict)),
            Some(Last::GoesOn) => {
                let end = path.steps.last().map_or("?", |name| name);
                let why = format!("nothing came after {end}: a match dropped the packet, or rows were lost");
                doubt(&mut path, &why);
            }
            None => {}
        }
        self.waiting.push(path);
    }
}
