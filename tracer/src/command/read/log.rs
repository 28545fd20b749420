//! Shows the packets of a kernel log.

use super::Choice;
use super::input::Input;
use crate::cli::read::ReadConfig;
use crate::command::outlet::Outlet;
use crate::error::Failure;
use crate::kernel_log::{Clock, Record, Time, Undresser};
use crate::packet::Packet;
use crate::path::Step;
use crate::path::group::{Grouped, Grouper, Hold, Logged, Met, Row};
use crate::sink::{Output, Sink, Start};
use crate::text;
use crate::trace_line::{self, LogStyle, TraceLine, Unreadable};
use anyhow::Context as _;
use foldhash::fast::RandomState;
use jiff::tz::TimeZone;
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::rc::Rc;

/// Names of steps that are remembered.
const NAMES: usize = 1 << 16;
/// Packets of the last lines that are remembered: most lines are about the same as one before.
const PACKETS: usize = 4;

/// Reads all lines.
pub(super) fn show(mut input: Input, choice: Choice, config: &ReadConfig) -> Result<(), Failure> {
    let sink = crate::command::open_sink(config.output, None)?;
    let clock = Clock::new(TimeZone::system(), input.written);
    let mut reader = LogReader::new(sink, config.output, choice, clock).context("cannot write")?;
    let mut number = 0_u64;
    let name = input.name.clone();
    let end = loop {
        let line = match input.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        number += 1;
        if let Err(error) = reader.line(line)
            && config.verbose
        {
            let line = text::lossy(line);
            // Nobody is left to be told when standard error is gone.
            let _ = writeln!(io::stderr(), "nftracer: line {number}: {error}: {}", text::escape(&line));
        }
        reader.outlet.check().context("cannot write")?;
    };
    // A file that is damaged is shown up to there.
    let summary = reader.finish().context("cannot write")?;
    eprintln!("{summary}");
    Ok(end.with_context(|| format!("cannot read {name}, from line {} on", number + 1))?)
}

/// What the lines were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Of the LOG target, about packets that were traced.
    logged: u64,
    /// Of TRACE, but not to be read.
    unreadable: u64,
    /// All others.
    other: u64,
    /// Records that the log says it lost, and those missing from a numbering without gaps.
    lost: u64,
}

/// From lines to what is shown.
pub(super) struct LogReader {
    undresser: Undresser,
    grouper: Grouper,
    choice: Choice,
    pub(super) outlet: Outlet,
    style: LogStyle,
    met: HashMap<Box<str>, Rc<Met>, RandomState>,
    packets: Vec<(Box<str>, Rc<Packet>)>,
    /// Where in `packets` the next goes.
    oldest: usize,
    /// The number of the last record, where records have one.
    sequence: Option<u64>,
    counts: Counts,
}

impl LogReader {
    pub(super) fn new(sink: Box<dyn Sink>, output: Output, choice: Choice, clock: Clock) -> io::Result<Self> {
        // A line needs nothing of what later lines tell, and stays where it was among the others.
        let hold = if output == Output::Trace { Hold::Never } else { Hold::UntilKnown };
        let style = LogStyle::default();
        let mut outlet = Outlet::new(sink, None);
        outlet.choose(choice.predicates.clone(), None, choice.per_rule);
        outlet.begin(&Start {
            filter: choice.filter.text.clone(),
            choice: choice.predicates.to_string(),
            netns: String::new(),
            backend: "log",
            footprint: "none".to_owned(),
            kernel: String::new(),
            log_style: style,
        })?;
        Ok(Self {
            undresser: Undresser::new(clock),
            grouper: Grouper::new(hold),
            choice,
            outlet,
            style,
            met: HashMap::default(),
            packets: Vec::new(),
            oldest: 0,
            sequence: None,
            counts: Counts::default(),
        })
    }

    /// Takes a line. Fails if it is one of TRACE and cannot be read.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), Unreadable> {
        let Some(record) = self.undresser.record(line) else {
            self.other(&text::lossy(line));
            return Ok(());
        };
        self.check_sequence(record.sequence);
        let result = match self.known(&record.text) {
            Some((met, packet)) => {
                self.step(met, packet, record.time);
                return Ok(());
            }
            None => self.new_to_us(&record),
        };
        result.inspect_err(|_| {
            self.counts.unreadable += 1;
            self.grouper.lost("a line of TRACE could not be read meanwhile");
        })
    }

    /// A line that is made of what was read before: the name of a step, and the rest of a line of late.
    fn known(&self, text: &str) -> Option<(Rc<Met>, Rc<Packet>)> {
        let name_and_blank = text.strip_prefix("TRACE: ")?;
        let (newer, older) = self.packets.split_at(self.oldest.min(self.packets.len()));
        let newest_first = newer.iter().rev().chain(older.iter().rev());
        let (name, packet) = newest_first
            .filter_map(|(content, packet)| Some((name_and_blank.strip_suffix(&**content)?, packet)))
            .next()?;
        let met = self.met.get(name.strip_suffix(' ')?)?;
        Some((Rc::clone(met), Rc::clone(packet)))
    }

    fn new_to_us(&mut self, record: &Record<'_>) -> Result<(), Unreadable> {
        match trace_line::trace_line(&record.text) {
            Some(found) => {
                let (packet, met) = (self.packet(found.content)?, self.met(&found));
                self.step(met, packet, record.time);
                Ok(())
            }
            None if record.text.starts_with("TRACE: ") => {
                Err(Unreadable { column: 1, expected: "table:chain:kind:number" })
            }
            None => {
                self.untraced(record);
                Ok(())
            }
        }
    }

    fn step(&mut self, met: Rc<Met>, packet: Rc<Packet>, time: Option<Time>) {
        let row = Row {
            packet,
            met,
            time_ns: time.and_then(Time::epoch_ns),
            clock_ns: time.map(Time::ns),
            netns: None,
        };
        let (outlet, choice) = (&mut self.outlet, &mut self.choice);
        self.grouper.add(row, &mut |grouped| give(outlet, choice, grouped));
    }

    fn packet(&mut self, content: &str) -> Result<Rc<Packet>, Unreadable> {
        if let Some((_, packet)) = self.packets.iter().find(|(known, _)| **known == *content) {
            return Ok(Rc::clone(packet));
        }
        let style = self.style;
        let packet = Rc::new(trace_line::packet(content, &mut self.style)?);
        if self.style != style {
            self.outlet.log_style(self.style);
        }
        let entry = (content.into(), Rc::clone(&packet));
        match self.packets.get_mut(self.oldest) {
            Some(place) => *place = entry,
            None => self.packets.push(entry),
        }
        self.oldest = (self.oldest + 1) % PACKETS;
        Ok(packet)
    }

    fn met(&mut self, found: &TraceLine<'_>) -> Rc<Met> {
        if let Some(met) = self.met.get(found.name) {
            return Rc::clone(met);
        }
        if self.met.len() >= NAMES {
            self.met.clear();
        }
        let met = Rc::new(Met::from(found.step));
        self.met.insert(found.name.into(), Rc::clone(&met));
        met
    }

    /// A line of the LOG target, or of something else.
    fn untraced(&mut self, record: &Record<'_>) {
        if !self.log(&record.text) {
            self.other(&record.text);
        }
    }

    fn log(&mut self, line: &str) -> bool {
        let Some(found) = trace_line::log_line(line) else { return false };
        let mut style = self.style;
        let Ok(packet) = trace_line::packet(found.content, &mut style) else { return false };
        let logged = Logged { prefix: found.prefix.into(), line: line.into() };
        let (outlet, choice) = (&mut self.outlet, &mut self.choice);
        let belongs = self.grouper.log(&packet, logged, &mut |grouped| give(outlet, choice, grouped));
        self.counts.logged += u64::from(belongs);
        belongs
    }

    fn other(&mut self, line: &str) {
        self.counts.other += 1;
        if let Some(count) = told_loss(line) {
            self.counts.lost += count;
            self.grouper.lost("the log lost lines meanwhile");
        }
    }

    fn check_sequence(&mut self, sequence: Option<u64>) {
        let Some(sequence) = sequence else { return };
        let missing = self.sequence.map_or(0, |last| sequence.saturating_sub(last.saturating_add(1)));
        if missing > 0 {
            self.counts.lost = self.counts.lost.saturating_add(missing);
            self.grouper.lost("records are missing from the log");
        }
        self.sequence = Some(sequence);
    }

    /// Gives out what is left. Says what there was.
    pub(super) fn finish(mut self) -> io::Result<String> {
        let (outlet, choice) = (&mut self.outlet, &mut self.choice);
        self.grouper.finish(&mut |grouped| give(outlet, choice, grouped));
        let Counts { logged, unreadable, other, lost } = self.counts;
        let totals = self.outlet.finish(lost, 0)?;
        Ok(format!("{totals}, {logged} log lines, {other} other lines, {unreadable} unreadable lines"))
    }
}

/// How many lines a log daemon says it lost.
fn told_loss(line: &str) -> Option<u64> {
    let number_before = |end: &str| {
        let head = &line[..line.find(end)?];
        head.rsplit(' ').next()?.parse().ok()
    };
    // systemd-journald, and rsyslog's imjournal and imuxsock.
    match line.contains("Missed ") {
        true => number_before(" kernel messages"),
        false => number_before(" messages lost due to rate-limiting"),
    }
}

fn give(outlet: &mut Outlet, choice: &mut Choice, grouped: Grouped) {
    match grouped {
        Grouped::Step(step) => {
            let Row { met, packet, time_ns, netns, .. } = &step.row;
            let view = packet.view();
            if !choice.takes_step(step.packet, &view) {
                return;
            }
            outlet.step_of(
                packet,
                &Step {
                    packet: step.packet,
                    time_ns: *time_ns,
                    hook: step.hook,
                    rule: met.rule(packet.family),
                    name: &met.name,
                    action: step.action.clone(),
                    view,
                    view_doubt: None,
                    tracked: None,
                    netns: *netns,
                },
            );
        }
        Grouped::Logged { packet, logged } => {
            if choice.takes(packet) {
                outlet.logged(packet, &logged);
            }
        }
        Grouped::Path(path) => {
            if choice.takes_path(path.packet) {
                outlet.path(&path);
            }
        }
    }
}
