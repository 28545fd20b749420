//! What is said of all packets together when the last one has been shown.

use super::summary_json::write_rows;
use super::{Namespace, Output, Sink, Start, Totals};
use crate::latency::{Histogram, Span, Spent, Summary};
use crate::packet::Sender;
use crate::path::ending::Freed;
use crate::path::group::Logged;
use crate::path::{Path, Step};
use crate::text::Escaped;
use crate::trace_line::LogStyle;
use crate::why::{Told, Why};
use std::io::{self, Write};

/// Rules that are named.
pub(super) const HOTTEST: usize = 10;
/// Characters of the longest bar.
const BAR: u64 = 40;

/// Gives everything to another sink, and ends with a summary.
pub struct Summarised<'w> {
    shown: Box<dyn Sink + 'w>,
    output: Output,
    out: Box<dyn Write + 'w>,
    summary: Summary,
}

impl<'w> Summarised<'w> {
    /// The summary goes to `out`, in the form that packets are shown in.
    pub fn new(shown: Box<dyn Sink + 'w>, output: Output, out: impl Write + 'w) -> Self {
        Self { shown, output, out: Box::new(out), summary: Summary::default() }
    }
}

impl Sink for Summarised<'_> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.shown.begin(start)
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        self.summary.met(step.rule.family, step.name, step.rule.text);
        self.shown.step(step)
    }

    fn logged(&mut self, packet: u64, logged: &Logged) -> io::Result<()> {
        self.shown.logged(packet, logged)
    }

    fn log_style(&mut self, style: LogStyle) {
        self.shown.log_style(style);
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        self.shown.path(path)
    }

    fn namespace(&mut self, inode: u32, known: &Namespace) -> io::Result<()> {
        self.shown.namespace(inode, known)
    }

    fn freed(&mut self, packet: u64, time_ns: u64, freed: &Freed) -> io::Result<()> {
        self.shown.freed(packet, time_ns, freed)
    }

    fn told(&mut self, packet: u64, name: &str, told: &Told) -> io::Result<()> {
        self.shown.told(packet, name, told)
    }

    fn sender(&mut self, packet: u64, sender: &Sender) -> io::Result<()> {
        self.shown.sender(packet, sender)
    }

    fn spent(&mut self, packet: u64, spent: &Spent) -> io::Result<()> {
        self.summary.spent(spent);
        self.shown.spent(packet, spent)
    }

    fn why(&mut self, why: Option<&Why>, packets: u64) -> io::Result<()> {
        self.shown.why(why, packets)
    }

    fn enough(&self) -> bool {
        self.shown.enough()
    }

    /// The last row of JSON stays the last one.
    fn finish(&mut self, totals: &Totals) -> io::Result<()> {
        if self.output == Output::Json {
            self.shown.flush()?;
            write_rows(&mut self.out, &self.summary)?;
            return self.shown.finish(totals);
        }
        self.shown.finish(totals)?;
        write_summary(&mut self.out, &self.summary)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shown.flush()
    }
}

fn write_summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    writeln!(out, "time in tables and base chains")?;
    for (stand, histogram) in summary.stands() {
        let hook = stand.hook.name();
        let (mean, longest) = (Span(histogram.mean_ns()), Span(histogram.longest_ns()));
        let (name, count) = (Escaped(&stand.name), histogram.count());
        writeln!(out, "  {hook:<11}  {name}  {count} times, {mean} on average, at most {longest}")?;
        write_histogram(out, histogram)?;
    }
    writeln!(out, "rules met most often")?;
    let hottest = summary.hottest(HOTTEST);
    let width = hottest.first().map_or(0, |hot| hot.count.to_string().len());
    for hot in hottest {
        write!(out, "  {:>width$}  {}", hot.count, Escaped(&hot.name))?;
        match &hot.text {
            Some(text) => writeln!(out, "  {}", Escaped(text))?,
            None => writeln!(out)?,
        }
    }
    out.flush()
}

fn write_histogram(out: &mut dyn Write, histogram: &Histogram) -> io::Result<()> {
    let most = histogram.filled().map(|(_, count)| count).max().unwrap_or(0).max(1);
    for (from_ns, count) in histogram.filled() {
        let length = (u128::from(count) * u128::from(BAR)).div_ceil(most.into()) as usize;
        let (from, bar) = (Span(from_ns).to_string(), "█".repeat(length));
        writeln!(out, "    {from:>9}+  {bar} {count}")?;
    }
    Ok(())
}
