//! What was counted, as JSON Lines.

use super::counts::{CountSink, CountTotals};
use super::json::serialize;
use crate::tally::{Numbers, Ranking};
use jiff::Timestamp;
use serde::Serialize;
use std::io::{self, Write};

/// An object at each look, and one at the end.
pub struct CountJson<W: Write>(W);

impl<W: Write> CountJson<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    fn write(&mut self, row: &impl Serialize) -> io::Result<()> {
        let mut line = Vec::new();
        serialize(&mut line, row);
        line.push(b'\n');
        self.0.write_all(&line)?;
        self.0.flush()
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "counts")]
struct CountsRow<'a> {
    time: String,
    by: &'static str,
    unit: &'static str,
    /// Since the object before; of the last one since the beginning.
    seconds: f64,
    last: bool,
    rows: Vec<RowFields<'a>>,
    others: NumberFields,
    other_rows: usize,
    sum: NumberFields,
}

#[derive(Serialize)]
struct RowFields<'a> {
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(flatten)]
    numbers: NumberFields,
}

#[derive(Serialize)]
struct NumberFields {
    count: u64,
    new: u64,
    rate: f64,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "counted")]
struct EndRow {
    lost: u64,
    missed: u64,
    uncounted: u64,
    doubtful: u64,
}

impl<W: Write> CountSink for CountJson<W> {
    fn show(&mut self, ranking: &Ranking) -> io::Result<()> {
        let numbers = |numbers: &Numbers| NumberFields {
            count: numbers.count,
            new: numbers.new,
            rate: (ranking.rate(numbers) * 1000.0).round() / 1000.0,
        };
        self.write(&CountsRow {
            time: Timestamp::from_nanosecond(ranking.time_ns.into()).unwrap_or_default().to_string(),
            by: ranking.by.name(),
            unit: ranking.by.unit(),
            seconds: ranking.elapsed.as_secs_f64(),
            last: ranking.is_last,
            rows: ranking
                .rows
                .iter()
                .map(|(what, of)| RowFields {
                    what: &what.name,
                    family: what.family,
                    netns: what.netns,
                    text: what.text.as_deref(),
                    owner: what.owner.as_deref(),
                    numbers: numbers(of),
                })
                .collect(),
            others: numbers(&ranking.others.1),
            other_rows: ranking.others.0,
            sum: numbers(&ranking.sum),
        })
    }

    fn end(&mut self, totals: &CountTotals) -> io::Result<()> {
        let &CountTotals { lost, missed, uncounted, doubtful } = totals;
        self.write(&EndRow { lost, missed, uncounted, doubtful })
    }
}
