//! `nftracer bench`: every row is measured or says why not, and nothing is left, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::{tracer, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::crash::records;
use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "bench_measures_or_says_why_not", run: measures_or_says_why_not },
    Test { name: "bench_leaves_nothing", run: leaves_nothing },
];

const GONE_WITHIN: Duration = Duration::from_secs(10);

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(tracer::program());
    command.arg("bench").args(arguments).stdin(Stdio::null());
    command
}

fn measures_or_says_why_not() -> Result<String> {
    let before = state();
    let output = bench(&["--for", "2m", "--rounds", "1", "-o", "json"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    check(output.status.code() == Some(0), format!("{}: {said}", output.status))?;
    check(said.starts_with("measuring for at most 120 s in namespaces of its own, footprint: "), &*said)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows = |list: &str| report[list].as_array().cloned().with_context(|| format!("no {list}: {report}"));
    let (measured, not_measured) = (rows("rows")?, rows("not_measured")?);
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = measured.iter().chain(&not_measured).map(name).collect();
    check(names.len() == 14 && measured.len() + not_measured.len() == 14, format!("{names:?}"))?;
    // This machine can do all that needs no probes.
    for row in &not_measured {
        let reason = row["reason"].as_str().unwrap_or_default();
        check(name(row).contains("ebpf") && !reason.is_empty(), format!("{row}"))?;
    }
    for row in &measured {
        let number = |field: &str| row[field].as_f64().unwrap_or_default();
        let (p50, p99) = (number("latency_p50_ns"), number("latency_p99_ns"));
        let sound = number("packets_per_second") > 0.0 && number("ratio") > 0.0 && number("rounds") >= 1.0;
        check(sound && p50 > 0.0 && p99 >= p50, format!("{row}"))?;
        check(!name(row).contains("nothing") || row["ratio"] == 1.0, format!("{row}"))?;
    }
    check(state() == before, format!("{before:?} {:?}", state()))?;
    Ok(format!("{} rows, {} not here", measured.len(), not_measured.len()))
}

/// Ended by signals at several moments, in every row once in a while.
fn leaves_nothing() -> Result<String> {
    let before = state();
    let mut ended = 0;
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        for millis in [0, 300, 700, 1500, 2500] {
            let mut child = bench(&[
                "--row",
                "log",
                "--row",
                "nft-monitor",
                "--row",
                "trace-netlink",
                "--row",
                "log-target",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
            let mut line = String::new();
            BufReader::new(child.stderr.take().context("it is piped")?).read_line(&mut line)?;
            check(line.starts_with("measuring "), &line)?;
            // Not waiting for anything: this is when it is told.
            thread::sleep(Duration::from_millis(millis));
            let children = children(&child)?;
            kill_process(Pid::from_child(&child), signal)?;
            let status = child.wait()?;
            check(signal == Signal::KILL || status.success(), format!("{signal:?}: {status}"))?;
            let alive = || children.iter().any(|(pid, start)| start_of(*pid).as_ref() == Some(start));
            wait::until(GONE_WITHIN, || (!alive() && state() == before).then_some(()))
                .with_context(|| format!("{signal:?} after {millis} ms left {:?}", state()))?;
            ended += 1;
        }
    }
    Ok(format!("{ended} runs"))
}

/// What a run could leave on the host.
fn state() -> (String, Vec<String>, String) {
    let all_netns = fs::read_to_string("/proc/sys/net/netfilter/nf_log_all_netns").unwrap_or_default();
    let devices = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names: BTreeSet<String> =
        devices.map(|device| device.file_name().to_string_lossy().into_owned()).collect();
    let ours = names.iter().filter(|name| name.starts_with("bench")).cloned().collect();
    (all_netns, records().unwrap_or_default(), ours)
}

/// The processes that a run has started, with when they were started.
fn children(of: &Child) -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", of.id()))?.flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        found.extend(pids.filter_map(|pid| Some((pid, start_of(pid)?))));
    }
    Ok(found)
}

/// The 22nd field of `/proc/PID/stat`, for a process that has not ended.
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    (words.next()? != "Z").then(|| words.nth(18).map(str::to_owned))?
}
