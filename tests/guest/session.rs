//! A lab with its traffic, the kernel's listeners and a running tracer.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nftracer_tests::compare::{Verdict, compare, is_finished, is_settled};
use nftracer_tests::lab::{Family, Lab, Place, Spread};
use nftracer_tests::listener::{Listener, Row};
use nftracer_tests::nflog;
use nftracer_tests::packet::Identity;
use nftracer_tests::ruleset;
use nftracer_tests::tracer::{Ended, Totals, Trace, Tracer};
use nftracer_tests::traffic::{Senders, Server, Shot};
use nftracer_tests::wait;
use rustix::process::Signal;

/// Until what was sent has gone all its ways.
const SETTLES_WITHIN: Duration = Duration::from_secs(180);
/// Looks without a change, after which it is worth comparing.
const SHORT_SILENCE: u32 = 4;
/// Looks without a change, after which nothing more will come.
const LONG_SILENCE: u32 = 400;
/// The same as long as the tracer has told nothing: it may be reading rules.
const FIRST_SILENCE: u32 = 4000;

pub(crate) struct Session {
    pub(crate) lab: Lab,
    pub(crate) senders: Senders,
    listeners: Vec<Listener>,
    /// The namespaces in which the kernel is listened to.
    heard: Vec<u64>,
    tracer: Option<Tracer>,
    /// What the running tracer has told so far, for its totals.
    told: Totals,
    odd: Vec<String>,
    lost_before: u64,
    _servers: Vec<Server>,
}

/// Waits until something has stayed the same for so many looks.
fn steady<T: PartialEq>(looks: u32, look: impl FnMut() -> T) -> Result<()> {
    crate::check(
        wait::until_steady(SETTLES_WITHIN, looks, look),
        format!("it does not come to rest within {SETTLES_WITHIN:?}"),
    )
}

impl Session {
    /// Builds the lab; the kernel is listened to in these places.
    pub(crate) fn new(listened: &[Place], spread: Spread) -> Result<Self> {
        crate::load_modules();
        let lab = Lab::build("nft", spread)?;
        for netns in lab.all() {
            ruleset::create_sets(netns)?;
            netns.clear_rules()?;
        }
        let listeners =
            listened.iter().map(|place| nflog::listen(lab.netns(*place))).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            senders: Senders::open(&lab)?,
            _servers: Server::everywhere(&lab)?,
            listeners,
            heard: listened.iter().map(|place| lab.netns(*place).inode()).collect(),
            lab,
            tracer: None,
            told: Totals::default(),
            odd: Vec::new(),
            lost_before: 0,
        })
    }

    /// Loads a ruleset in a place.
    pub(crate) fn load(&self, place: Place, family: Family, text: &str) -> Result<()> {
        ruleset::load(self.lab.netns(place), family, text)
    }

    /// Starts a tracer of the router.
    pub(crate) fn trace(&mut self) -> Result<()> {
        let name = self.lab.r.name().to_owned();
        self.trace_with(&["--netns", &name, "-o", "json"])
    }

    /// Starts a tracer.
    pub(crate) fn trace_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.tracer = Some(Tracer::start(arguments, &[])?);
        self.told = Totals::default();
        self.odd.clear();
        // What flew before is not for this comparison.
        self.wait_for_kernel()?;
        self.listeners.iter().for_each(|listener| drop(listener.take()));
        self.lost_before = self.lost();
        Ok(())
    }

    /// Sends these, one after the other.
    pub(crate) fn fire(&self, shots: &[Shot]) {
        shots.iter().for_each(|shot| self.senders.fire(shot));
    }

    /// Waits until both sides have told all, and holds them against each other.
    pub(crate) fn judge(&mut self) -> Result<Verdict> {
        let (rows, trace) = self.settle()?;
        self.note(&trace);
        let lost = self.lost();
        let verdict = compare(&rows, &trace, &self.heard, lost - self.lost_before);
        self.lost_before = lost;
        Ok(verdict)
    }

    /// As in [`Self::judge`], of those packets that are wanted, but not judged yet.
    pub(crate) fn settle_for(&mut self, wanted: &dyn Fn(&Identity) -> bool) -> Result<(Vec<Row>, Trace)> {
        let (rows, trace) = self.settle_if(wanted)?;
        self.note(&trace);
        Ok((rows, trace))
    }

    /// Lets what was sent go its ways unjudged.
    pub(crate) fn discard(&mut self) -> Result<()> {
        if let Some(tracer) = &self.tracer {
            steady(LONG_SILENCE, || (self.waiting(), tracer.seen()))?;
        }
        let (_, trace) = self.settle()?;
        self.note(&trace);
        Ok(())
    }

    /// What the kernel tells of what was sent.
    pub(crate) fn kernel_rows(&self) -> Result<Vec<Row>> {
        self.wait_for_kernel()?;
        Ok(self.listeners.iter().flat_map(Listener::take).collect())
    }

    /// Ends the tracer. What it still tells is compared; its totals have to be the sum of what it told.
    pub(crate) fn end(&mut self, verdict: &mut Verdict) -> Result<Totals> {
        verdict.add(self.judge()?);
        let tracer = self.tracer.take().context("a tracer runs")?;
        let ended = tracer.stop(Signal::TERM)?;
        self.note(&ended.trace);
        self.check_end(&ended)?;
        ended.trace.end.context("the last row is missing")
    }

    /// Waits until the kernel has told of what was sent.
    pub(crate) fn wait_for_kernel(&self) -> Result<()> {
        steady(SHORT_SILENCE, || self.waiting())
    }

    /// Waits until what both sides tell is read, so that bursts do not outrun the readers.
    pub(crate) fn wait_for_readers(&self) -> Result<()> {
        let seen = || self.tracer.as_ref().map(Tracer::seen);
        steady(2, || (self.waiting(), seen()))
    }

    fn check_end(&self, ended: &Ended) -> Result<()> {
        let errors = ended.errors.join("\n");
        crate::check(ended.status.code() == Some(0), format!("ended with {}: {errors}", ended.status))?;
        crate::check(self.odd.is_empty(), format!("rows that cannot be read: {:#?}", self.odd))?;
        let end = ended.trace.end.context("the last row is missing")?;
        let told = Totals { lost: end.lost, missed: end.missed, ..self.told };
        crate::check(told == end, format!("told {told:?}, but the totals say {end:?}: {errors}"))
    }

    fn settle(&self) -> Result<(Vec<Row>, Trace)> {
        self.settle_if(&|_| true)
    }

    fn settle_if(&self, wanted: &dyn Fn(&Identity) -> bool) -> Result<(Vec<Row>, Trace)> {
        let (mut rows, mut trace) = (Vec::new(), Trace::default());
        let Some(tracer) = &self.tracer else { return Ok((self.kernel_rows()?, trace)) };
        let (mut came, mut last, mut silence) = (0, None, 0);
        let settled = wait::until(SETTLES_WITHIN, || {
            for row in self.listeners.iter().flat_map(Listener::take) {
                came += 1;
                rows.extend(wanted(&row.packet).then_some(row));
            }
            trace.append(tracer.take());
            let now = Some((came, tracer.seen()));
            silence = if last == now { silence + 1 } else { 0 };
            last = now;
            let over = match silence {
                SHORT_SILENCE => is_settled(&rows, &trace, &self.heard),
                // What nobody saw never comes.
                FIRST_SILENCE.. => is_finished(&trace),
                LONG_SILENCE.. => is_finished(&trace) && (rows.is_empty() || !trace.steps.is_empty()),
                _ => false,
            };
            over.then_some(())
        });
        if settled.is_none() {
            let open = trace.steps.iter().find(|step| !trace.packets.contains_key(&step.packet));
            bail!(
                "not settled within {SETTLES_WITHIN:?}: {} lines of the kernel, {} steps of nftracer, {} packets \
                 that ended; still open: {open:?}",
                rows.len(),
                trace.steps.len(),
                trace.packets.len()
            );
        }
        Ok((rows, trace))
    }

    fn note(&mut self, trace: &Trace) {
        use nftracer_tests::tracer::Certainty::{Inexact, Unordered};
        let count = |certainty| trace.packets.values().filter(|packet| packet.certainty == certainty).count();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.told.packets += number(trace.packets.len());
        self.told.steps += number(trace.steps.len());
        self.told.unordered += number(count(Unordered));
        self.told.inexact += number(count(Inexact));
        self.odd.extend(trace.odd.iter().cloned());
    }

    fn waiting(&self) -> usize {
        self.listeners.iter().map(Listener::waiting).sum()
    }

    fn lost(&self) -> u64 {
        self.listeners.iter().map(Listener::lost).sum()
    }
}
