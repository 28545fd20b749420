//! The figures as a table, and what is not in it.

use super::{ENGINES, Figures, Report, Row, grouped, title};
use crate::doctor::Obstacle;
use crate::netfilter::Engine;
use crate::text::escape;
use std::fmt::Write as _;

const COLUMNS: usize = 8;

/// A table for each kind of rules.
pub(super) fn text(report: &Report) -> String {
    let cpus = report.cpus.map_or(String::new(), |cpus| format!(", {cpus} CPUs"));
    let mut text = format!(
        "Linux {}, {}{cpus}: UDP datagrams of {} bytes between two namespaces, sent and received by one thread\n",
        escape(&report.kernel),
        report.arch,
        report.payload_bytes,
    );
    let rounds = report.rows.iter().filter_map(|row| Some(row.result.as_ref().ok()?.rounds)).max();
    let rounds = match rounds {
        Some(1) => "one round".to_owned(),
        some => format!("medians of {} rounds", some.unwrap_or_default()),
    };
    let early = if report.interrupted { ", ended early" } else { "" };
    let _ = writeln!(text, "{rounds} in {:.0} s{early}", report.took.as_secs_f64());
    for engine in ENGINES {
        let mut lines: Vec<[String; COLUMNS]> = report.of(engine).map(cells).collect();
        if lines.is_empty() {
            continue;
        }
        lines.insert(0, header(engine));
        text.push('\n');
        write(&mut text, &lines);
    }
    text
}

fn header(engine: Engine) -> [String; COLUMNS] {
    [title(engine), "packets/s", "of nothing", "spread", "p50", "p99", "reader", "lost"].map(str::to_owned)
}

fn cells((row, figures): (&Row, &Figures)) -> [String; COLUMNS] {
    [
        row.title.to_owned(),
        grouped(figures.packets_per_second),
        format!("{:.1} %", figures.ratio * 100.0),
        format!("{:.1} %", figures.spread * 100.0),
        microseconds(figures.p50_ns as f64),
        microseconds(figures.p99_ns as f64),
        figures.reader_ns.map_or_else(|| "-".to_owned(), microseconds),
        grouped(figures.lost as f64),
    ]
}

fn microseconds(nanoseconds: f64) -> String {
    format!("{:.1} µs", nanoseconds / 1000.0)
}

/// The first column is text, the others are numbers.
fn write(text: &mut String, lines: &[[String; COLUMNS]]) {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    for line in lines {
        let _ = write!(text, "{:width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
}

/// What this host could not measure, and why. Rows that have one reason in common are told together.
pub(super) fn not_measured(report: &Report) -> String {
    let mut reasons: Vec<(&Obstacle, Vec<String>)> = Vec::new();
    for row in &report.rows {
        let Err(obstacle) = &row.result else { continue };
        let name = format!("{} with {}", row.title, title(row.engine));
        match reasons.iter_mut().find(|(known, _)| *known == obstacle) {
            Some((_, names)) => names.push(name),
            None => reasons.push((obstacle, vec![name])),
        }
    }
    let mut text = String::new();
    for (Obstacle { reason, remedy }, names) in reasons {
        let _ = writeln!(text, "\nnot measured: {}\n  {}", names.join("; "), escape(reason));
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "  remedy: {}", escape(remedy));
        }
    }
    text
}
