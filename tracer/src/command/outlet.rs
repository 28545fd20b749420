//! Where all that is found out leaves: counted, and up to the number of packets that was asked for.

use super::held::{Held, Piece};
use crate::latency::Spent;
use crate::packet::{Packet, Sender};
use crate::path::ending::Freed;
use crate::path::group::Logged;
use crate::path::{Certainty, Path, Step};
use crate::predicate::{Choice, Predicates};
use crate::sink::{Namespace, Row, Sink, Start, Totals};
use crate::trace_line::LogStyle;
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::time::Duration;

/// A sink with its totals. After the first failure of the sink nothing more is written.
pub(super) struct Outlet {
    sink: Box<dyn Sink>,
    shows_paths: bool,
    totals: Totals,
    limit: Option<NonZeroU64>,
    failed: Option<io::Error>,
    /// Why no path is complete any more.
    doubt: Option<String>,
    /// The packet of the last step, where it may be shared with others.
    shown: Option<Rc<Packet>>,
    /// Packets of which it is not known yet whether they are shown; `None` where all are.
    held: Option<Held>,
}

impl Outlet {
    /// Gives out at most `limit` packets.
    pub(super) fn new(sink: Box<dyn Sink>, limit: Option<NonZeroU64>) -> Self {
        let shows_paths = sink.shows_paths();
        Self {
            sink,
            shows_paths,
            totals: Totals::default(),
            limit,
            failed: None,
            doubt: None,
            shown: None,
            held: None,
        }
    }

    /// Gives out only packets that are wanted, each when it is done.
    pub(super) fn choose(
        &mut self,
        predicates: Predicates,
        slow: Option<Duration>,
        per_rule: Option<NonZeroU32>,
    ) {
        let chooses = !predicates.is_empty() || slow.is_some() || per_rule.is_some();
        self.held = chooses.then(|| Held::new(predicates, slow, per_rule));
        self.totals.limited_out = per_rule.map(|_| 0);
    }

    /// Says that tracing has begun.
    pub(super) fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.sink.row(Row::Start(start))?;
        self.sink.flush()
    }

    /// Whether the packet of this number, from 1, is more than was asked for. Where packets are chosen later, each may be
    /// wanted.
    pub(super) fn is_beyond(&self, packet: u64) -> bool {
        self.held.is_none() && self.limit.is_some_and(|limit| packet > limit.get())
    }

    /// Whether all packets that were asked for have been given out.
    pub(super) fn enough(&self) -> bool {
        self.limit.is_some_and(|limit| self.totals.packets >= limit.get()) || self.sink.enough()
    }

    /// Whether the steps of a path are shown with it, too.
    pub(super) fn shows_paths(&self) -> bool {
        self.shows_paths
    }

    /// Whether it matters how packets ended.
    pub(super) fn asks_for_endings(&self) -> bool {
        self.shows_paths || self.held.is_some()
    }

    fn give(&mut self, row: Row<'_>) {
        if self.failed.is_none() {
            self.failed = self.sink.row(row).err();
        }
    }

    /// This is known of a namespace from here on.
    pub(super) fn namespace(&mut self, inode: u32, known: &Namespace) {
        self.give(Row::Namespace(inode, known));
    }

    /// Gives out a step.
    pub(super) fn step(&mut self, step: &Step<'_>) {
        match &mut self.held {
            Some(held) => held.step(step, None),
            None => self.give_step(step),
        }
    }

    fn give_step(&mut self, step: &Step<'_>) {
        self.shown = None;
        self.totals.steps += 1;
        self.give(Row::Step(step));
    }

    /// Casts doubt on all paths from now on.
    pub(super) fn doubt_all(&mut self, why: &str) {
        self.doubt = Some(why.to_owned());
    }

    /// Gives out a step that shows a packet as it is, which other steps may show, too.
    pub(super) fn step_of(&mut self, packet: &Rc<Packet>, step: &Step<'_>) {
        match &mut self.held {
            Some(held) => held.step(step, Some(packet)),
            None => self.give_step_of(packet, step),
        }
    }

    fn give_step_of(&mut self, packet: &Rc<Packet>, step: &Step<'_>) {
        let same = self.shown.as_ref().is_some_and(|shown| Rc::ptr_eq(shown, packet));
        if !(same && self.give_step_again(step.name)) {
            self.give_step(step);
            self.shown = Some(Rc::clone(packet));
        }
    }

    /// Gives out a step whose view is that of the step before, if its name is enough for the sink.
    pub(super) fn step_again(&mut self, name: &str) -> bool {
        self.held.is_none() && self.give_step_again(name)
    }

    fn give_step_again(&mut self, name: &str) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let enough = self.sink.step_again(name).unwrap_or_else(|error| {
            self.failed = Some(error);
            true
        });
        self.totals.steps += u64::from(enough);
        enough
    }

    /// Gives out what a pass through a table took.
    pub(super) fn spent(&mut self, packet: u64, spent: &Spent) {
        match &mut self.held {
            Some(held) => held.spent(packet, spent),
            None => self.give(Row::Spent(packet, spent)),
        }
    }

    /// Gives out who sends a packet.
    pub(super) fn sender(&mut self, packet: u64, sender: Sender) {
        match &mut self.held {
            Some(held) => held.sender(packet, sender),
            None => self.give(Row::Sender(packet, &sender)),
        }
    }

    /// Gives out a line that the LOG target wrote about a packet.
    pub(super) fn logged(&mut self, packet: u64, logged: &Logged) {
        match &mut self.held {
            Some(held) => held.logged(packet, logged),
            None => self.give(Row::Logged(packet, logged)),
        }
    }

    /// Steps from here on are of a kernel that writes its lines in this style.
    pub(super) fn log_style(&mut self, style: LogStyle) {
        match &mut self.held {
            Some(held) => held.log_style(style),
            None => self.give(Row::LogStyle(style)),
        }
    }

    /// Gives out a path, if its packet is wanted.
    pub(super) fn path(&mut self, path: &Path) {
        let done = match &mut self.held {
            Some(held) => held.done(path),
            None => return self.give_path(path),
        };
        if self.enough() || self.failed.is_some() {
            return;
        }
        match done.choice {
            Choice::Unwanted => return,
            Choice::Unknown => {
                self.totals.undecided += 1;
                return;
            }
            Choice::Wanted if done.is_beyond => {
                self.totals.limited_out = self.totals.limited_out.map(|count| count + 1);
                return;
            }
            Choice::Wanted => {}
        }
        if let Some(style) = done.style {
            self.give(Row::LogStyle(style));
        }
        for piece in &done.pieces {
            match piece {
                Piece::Step(kept) => self.give_step_of(&kept.packet(), &kept.step(path.packet, kept.netns())),
                Piece::Logged(logged) => self.give(Row::Logged(path.packet, logged)),
                Piece::Sender(sender) => self.give(Row::Sender(path.packet, sender)),
                Piece::Spent(spent) => self.give(Row::Spent(path.packet, spent)),
            }
        }
        match done.doubt {
            Some(why) => self.give_path(&doubted(path, why)),
            None => self.give_path(path),
        }
    }

    fn give_path(&mut self, path: &Path) {
        if self.enough() || self.failed.is_some() {
            return;
        }
        let doubtful = self.doubt.as_deref().map(|why| doubted(path, why));
        let path = doubtful.as_ref().unwrap_or(path);
        self.totals.packets += 1;
        match path.certainty {
            Certainty::Complete => {}
            Certainty::Unordered => self.totals.unordered += 1,
            Certainty::Inexact => self.totals.inexact += 1,
        }
        self.failed = self.sink.row(Row::Path(path)).err();
    }

    /// Tells of a packet whose path was given out that the kernel has thrown it away since. Where packets are chosen later,
    /// it is not known any more whether this one was shown.
    pub(super) fn freed(&mut self, packet: u64, time_ns: u64, freed: &Freed) {
        if self.held.is_none() && !self.enough() {
            self.give(Row::Freed(packet, time_ns, freed));
        }
    }

    /// Fails if the sink did.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Writes what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.sink.flush(),
        }
    }

    /// So many packets that matched were left out before they came here, as was asked for.
    pub(super) fn left_out(&mut self, sampled_out: Option<u64>, limited_out: Option<u64>) {
        self.totals.sampled_out = sampled_out;
        let both = self.totals.limited_out.zip(limited_out).map(|(here, before)| here + before);
        self.totals.limited_out = both.or(self.totals.limited_out).or(limited_out);
    }

    /// Ends the output. Says what there was, with the records that were lost and the traversals that no probe saw.
    pub(super) fn finish(&mut self, lost: u64, missed: u64) -> io::Result<Totals> {
        (self.totals.lost, self.totals.missed) = (lost, missed);
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.sink.row(Row::End(&self.totals))?;
        Ok(self.totals)
    }
}

/// The same path, with something in doubt.
fn doubted(path: &Path, why: &str) -> Path {
    let mut path = path.clone();
    path.certainty = Certainty::Inexact;
    path.why.push(why.to_owned());
    path
}
