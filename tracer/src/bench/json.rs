//! The wire form of `nftracer bench -o json`.

use super::{Figures, Report, Row};
use crate::doctor::Obstacle;
use serde::Serialize;

#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    version: &'static str,
    kernel: &'a str,
    arch: &'a str,
    cpus: Option<u32>,
    payload_bytes: usize,
    took_ns: u64,
    interrupted: bool,
    rows: Vec<Measured>,
    not_measured: Vec<NotMeasured<'a>>,
}

#[derive(Serialize)]
struct Measured {
    name: &'static str,
    title: &'static str,
    engine: &'static str,
    packets_per_second: f64,
    ratio: f64,
    spread: f64,
    latency_p50_ns: u64,
    latency_p99_ns: u64,
    reader_ns_per_packet: Option<f64>,
    lost: u64,
    rounds: usize,
}

#[derive(Serialize)]
struct NotMeasured<'a> {
    name: &'static str,
    title: &'static str,
    engine: &'static str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

impl Measured {
    fn of(row: &Row, figures: &Figures) -> Self {
        Self {
            name: row.name,
            title: row.title,
            engine: row.engine.name(),
            packets_per_second: figures.packets_per_second,
            ratio: figures.ratio,
            spread: figures.spread,
            latency_p50_ns: figures.p50_ns,
            latency_p99_ns: figures.p99_ns,
            reader_ns_per_packet: figures.reader_ns,
            lost: figures.lost,
            rounds: figures.rounds,
        }
    }
}

impl<'a> NotMeasured<'a> {
    fn of(row: &'a Row, Obstacle { reason, remedy }: &'a Obstacle) -> Self {
        let (name, title, engine) = (row.name, row.title, row.engine.name());
        Self { name, title, engine, reason, remedy: remedy.as_deref() }
    }
}

/// One object on one line.
pub(super) fn text(report: &Report) -> String {
    let measured = |row: &Row| Some(Measured::of(row, row.result.as_ref().ok()?));
    let wire = Wire {
        kind: "bench",
        version: env!("CARGO_PKG_VERSION"),
        kernel: &report.kernel,
        arch: report.arch,
        cpus: report.cpus,
        payload_bytes: report.payload_bytes,
        took_ns: u64::try_from(report.took.as_nanos()).unwrap_or(u64::MAX),
        interrupted: report.interrupted,
        rows: report.rows.iter().filter_map(measured).collect(),
        not_measured: report
            .rows
            .iter()
            .filter_map(|row| Some(NotMeasured::of(row, row.result.as_ref().err()?)))
            .collect(),
    };
    // Numbers, words and lists of them: nothing that JSON does not know.
    serde_json::to_string(&wire).map(|text| text + "\n").unwrap_or_default()
}
