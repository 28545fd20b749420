//! `nftracer bench` where probes work: every way of tracing is measured.

use std::process::Command;

use anyhow::{Context, Result};
use nftracer_tests::{check, tracer};
use serde_json::Value;

use crate::{Options, Outcome, Test};

pub(crate) const TESTS: &[Test] = &[Test { name: "bench_measures_with_probes", run: measures_with_probes }];

/// It loads none of these by itself.
const MODULES: [&str; 4] = ["iptable_raw", "iptable_mangle", "iptable_filter", "nf_tables"];

fn measures_with_probes(_: &Options) -> Result<Outcome> {
    check(Command::new("modprobe").arg("-a").args(MODULES).status()?.success(), "no modules")?;
    let output = Command::new(tracer::program())
        .args(["bench", "--for", "5m", "--rounds", "1", "-o", "json"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), format!("{}: {said}", output.status))?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let not_measured = report["not_measured"].as_array().context("no list of what is not measured")?;
    check(not_measured.is_empty(), format!("{not_measured:?}"))?;
    let rows = report["rows"].as_array().context("no rows")?;
    let ratio = |row: &Value| Some(format!("{} {:.3}", row["name"].as_str()?, row["ratio"].as_f64()?));
    let ratios: Vec<String> = rows.iter().filter_map(ratio).collect();
    check(ratios.len() == 14, format!("{ratios:?}"))?;
    let seconds = report["took_ns"].as_f64().unwrap_or_default() / 1e9;
    Ok(Outcome::Passed(format!("{seconds:.1} s, {}", ratios.join(", "))))
}
