//! What doctor says of the ways of tracing holds.

use anyhow::{Context, Result};
use nftracer_tests::tracer::{self, Tracer};
use rustix::process::Signal;
use serde::Deserialize;

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "doctor_is_right", run: doctor_is_right }];

#[derive(Deserialize)]
struct Report {
    backends: Vec<Backend>,
}

#[derive(Deserialize)]
struct Backend {
    name: String,
    mark: Option<String>,
    usable: bool,
    footprint: Option<String>,
    reason: Option<String>,
}

fn doctor_is_right() -> Result<String> {
    let netns = crate::netns("h")?;
    let ended = tracer::run(&["doctor", "--json"], &[])?;
    // Doctor's output is one object, not rows.
    let text = ended.trace.odd.first().map(|odd| odd.split_once(": {").map_or("", |(_, rest)| rest));
    let report: Report = serde_json::from_str(&format!("{{{}", text.context("doctor says nothing")?))?;
    let mut said = Vec::new();
    for Backend { name, mark, usable, footprint, reason } in report.backends {
        let mark = mark.unwrap_or_else(|| "none".to_owned());
        let started = Tracer::start(&["--backend", &name, "--mark", &mark, "--netns", netns.name()], &[]);
        check(started.is_ok() == usable, format!("{name}, mark {mark}: doctor says {usable}: {reason:?}"))?;
        if let Ok(tracer) = started {
            let errors = tracer.stop(Signal::INT)?.errors.join(" ");
            for change in footprint.iter().flat_map(|footprint| footprint.split(", ")) {
                // Its name ends with numbers that nobody knows before.
                let known = change.split("PID").next().unwrap_or(change).split(" (").next().unwrap_or(change);
                check(errors.contains(known), format!("{name}, mark {mark}: {known:?} is not in {errors}"))?;
            }
        }
        said.push(format!("{name} {mark} {usable}"));
    }
    Ok(said.join(", "))
}
