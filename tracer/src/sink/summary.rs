//! What is said of all packets together when the last one has been shown.

use super::summary_json::write_rows;
use super::{Output, Row, Sink};
use crate::latency::{Histogram, Span, Summary};
use crate::text::Escaped;
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
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Step(step) => self.summary.met(step.rule.family, step.name, step.rule.text),
            Row::Spent(_, spent) => self.summary.spent(spent),
            // The last row of JSON stays the last one.
            Row::End(_) if self.output == Output::Json => {
                self.shown.flush()?;
                write_rows(&mut self.out, &self.summary)?;
            }
            Row::End(_) => {
                self.shown.row(row)?;
                return write_summary(&mut self.out, &self.summary);
            }
            _ => {}
        }
        self.shown.row(row)
    }

    fn enough(&self) -> bool {
        self.shown.enough()
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
