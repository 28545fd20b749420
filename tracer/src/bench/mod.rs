//! What `nftracer bench` found out, and how it is shown. The measuring is in `command/bench`.
#![forbid(unsafe_code)]

mod chart;
mod json;
mod statistics;
mod table;

#[cfg(test)]
mod tests;

pub use statistics::{Figures, Round, lower_quartile};

use crate::doctor::Obstacle;
use crate::netfilter::Engine;
use std::time::Duration;

/// In this order they are shown.
const ENGINES: [Engine; 2] = [Engine::Legacy, Engine::Nft];

/// The name for people.
fn title(engine: Engine) -> &'static str {
    match engine {
        Engine::Legacy => "legacy tables",
        Engine::Nft => "nftables",
    }
}

/// One way of tracing, and what it costs.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in JSON and on the command line.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// What packets met meanwhile.
    pub engine: Engine,
    /// What it costs, or why this host could not measure it.
    pub result: Result<Figures, Obstacle>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// `uname -r`
    pub kernel: String,
    /// The architecture.
    pub arch: &'static str,
    /// CPUs in use, if the kernel tells.
    pub cpus: Option<u32>,
    /// Bytes of each datagram.
    pub payload_bytes: usize,
    /// How long it took.
    pub took: Duration,
    /// Somebody ended it before its time.
    pub interrupted: bool,
    /// First what was measured without any tracing, for each engine.
    pub rows: Vec<Row>,
}

impl Report {
    /// A table, a bar chart, and what could not be measured.
    pub fn to_text(&self) -> String {
        [table::text(self), chart::text(self), table::not_measured(self)].concat()
    }

    /// One JSON object, with a newline.
    pub fn to_json(&self) -> String {
        json::text(self)
    }

    fn of(&self, engine: Engine) -> impl Iterator<Item = (&Row, &Figures)> {
        let measured = move |row: &'_ &Row| row.engine == engine;
        self.rows.iter().filter(measured).filter_map(|row| Some((row, row.result.as_ref().ok()?)))
    }
}

/// A number with a space between the thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
