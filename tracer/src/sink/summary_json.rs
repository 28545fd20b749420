//! What is said of all packets together, as JSON Lines.

use super::json::serialize;
use super::summary::HOTTEST;
use crate::latency::Summary;
use serde::Serialize;
use std::io::{self, Write};

#[derive(Serialize)]
#[serde(tag = "type", rename = "latency")]
struct LatencyRow<'a> {
    hook: &'a str,
    what: &'a str,
    count: u64,
    mean_ns: u64,
    longest_ns: u64,
    /// From how many nanoseconds on, and how often, by powers of two.
    histogram: Vec<(u64, u64)>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "hot")]
struct HotRow<'a> {
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    count: u64,
}

/// A row for each table and base chain, and one for each of the rules that were met most often.
pub(super) fn write_rows(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    for (stand, histogram) in summary.stands() {
        let row = LatencyRow {
            hook: stand.hook.name(),
            what: &stand.name,
            count: histogram.count(),
            mean_ns: histogram.mean_ns(),
            longest_ns: histogram.longest_ns(),
            histogram: histogram.filled().collect(),
        };
        write_row(out, &row)?;
    }
    for hot in summary.hottest(HOTTEST) {
        write_row(out, &HotRow { what: &hot.name, text: hot.text.as_deref(), count: hot.count })?;
    }
    out.flush()
}

fn write_row(out: &mut dyn Write, row: &impl Serialize) -> io::Result<()> {
    let mut line = Vec::new();
    serialize(&mut line, row);
    line.push(b'\n');
    out.write_all(&line)
}
