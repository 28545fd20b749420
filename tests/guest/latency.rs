//! How long packets are in tables and base chains.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::Tracer;
use nftracer_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::{Options, Outcome, Test, check, load_modules};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "latency_grows_with_rules", run: grows_with_rules },
    Test { name: "latency_chooses_and_sums_up", run: chooses_and_sums_up },
];

const SETTLES_WITHIN: Duration = Duration::from_secs(120);
/// Looks without a change, after which nothing more will come.
const SILENCE: u32 = 100;
const PORT: u16 = 4001;
/// Rules that a packet passes, in each chain. Where only the order of the figures is certain, fewer show it.
const RULES: [usize; 3] = [10, 1_000, 10_000];
const FEWER_RULES: [usize; 3] = [10, 300, 2_000];
const ENGINES: [&str; 2] = ["legacy", "nft"];
const PACKETS: usize = 40;

/// Sends packets, one after the other. Gives how long it took to send and receive one, by the median.
fn send(netns: &Netns, count: usize) -> Result<f64> {
    netns.enter(|| {
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))?;
        to.set_read_timeout(Some(Duration::from_secs(30)))?;
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut buffer = [0; 64];
        let mut took = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            from.send_to(b"timed", (Ipv4Addr::LOCALHOST, PORT))?;
            to.recv(&mut buffer).context("a datagram did not come")?;
            took.push(start.elapsed().as_nanos() as u64);
        }
        median(took).context("no packet was sent")
    })
}

fn median(mut took: Vec<u64>) -> Option<f64> {
    took.sort_unstable();
    took.get(took.len() / 2).map(|median| *median as f64)
}

/// Rows of a trace of so many packets, and what it said.
fn trace(netns: &Netns, options: &[&str]) -> Result<(Vec<Value>, Vec<String>)> {
    let arguments = [&["--netns", netns.name(), "-o", "json"], options, &["udp"]].concat();
    let tracer = Tracer::start(&arguments, &[])?;
    send(netns, PACKETS)?;
    wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.seen());
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{arguments:?}: {}: {:?}", ended.status, ended.errors))?;
    let packets = ended.trace.packets.len();
    let mut rows: Vec<Value> =
        ended.lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
    rows.push(serde_json::json!({ "type": "packets", "count": packets }));
    Ok((rows, ended.errors))
}

/// What packets took in the chains at `input`.
fn times_ns(rows: &[Value], engine: &str) -> Vec<u64> {
    let wanted = |row: &&Value| row["type"] == "spent" && row["engine"] == engine && row["hook"] == "input";
    let in_filter = rows.iter().filter(|row| row["table"] == "filter");
    in_filter.filter(wanted).filter_map(|row| row["ns"].as_u64()).collect()
}

/// Loads so many rules that no packet of the test matches.
fn load(netns: &Netns, engine: &str, count: usize) -> Result<()> {
    let lines = |before: &str, after: &str| {
        (0..count).fold(String::new(), |mut text, number| {
            let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
            let _ = writeln!(text, "{before} 198.18.{high}.{low} {after}");
            text
        })
    };
    if engine == "legacy" {
        let rules = lines("-A INPUT -s", "-j DROP");
        let text = format!("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n{rules}COMMIT\n");
        netns.command("iptables-legacy-restore", &[], &text)?;
    } else {
        let rules = lines("ip saddr", "drop");
        let hook = "type filter hook input priority 0; policy accept;";
        let text = format!("flush ruleset\ntable ip filter {{ chain input {{\n{hook}\n{rules}}}\n}}\n");
        netns.command("nft", &["-f", "-"], &text)?;
    }
    Ok(())
}

/// What so many rules cost a packet that nobody traces, for each engine, over what the fewest cost.
fn references(netns: &Netns) -> Result<[[f64; 3]; 2]> {
    let mut over = [[0.0; 3]; 2];
    for (engine, over) in ENGINES.into_iter().zip(&mut over) {
        for (rules, over) in RULES.into_iter().zip(&mut *over) {
            load(netns, engine, rules)?;
            *over = send(netns, PACKETS)?;
        }
        *over = over.map(|total| total - over[0]);
        load(netns, engine, 0)?;
    }
    Ok(over)
}

/// Where the guest counts instructions as time, what rules add is what they add to the way of a packet that nobody traces,
/// to a fifth. Elsewhere other guests take time away, and only the order is certain.
fn grows_with_rules(_: &Options) -> Result<Outcome> {
    load_modules();
    let netns = Netns::create("timed")?;
    let is_counted = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1);
    let references = if is_counted { Some(references(&netns)?) } else { None };
    for engine in ENGINES {
        load(&netns, engine, 1)?;
    }
    let tracer = Tracer::start(&["--netns", netns.name(), "-o", "json", "--latency", "udp"], &[])?;
    let mut took = [[0.0; 3]; 2];
    for (step, rules) in (if is_counted { RULES } else { FEWER_RULES }).into_iter().enumerate() {
        for engine in ENGINES {
            load(&netns, engine, rules)?;
        }
        send(&netns, PACKETS)?;
        // The new rules are read first.
        let mut rows = Vec::new();
        let known = wait::until(SETTLES_WITHIN, || {
            rows.extend(
                tracer.take_lines().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()),
            );
            let times = ENGINES.map(|engine| times_ns(&rows, engine));
            times.iter().all(|times| times.len() > PACKETS / 2).then(|| times.map(median))
        });
        wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.take_lines().len());
        let known = known.with_context(|| format!("no times of {rules} rules: {:?}", tracer.errors()))?;
        for (took, median) in took.iter_mut().zip(known) {
            took[step] = median.unwrap_or(0.0);
        }
    }
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{}: {:?}", ended.status, ended.errors))?;
    let mut figures = Vec::new();
    for (index, (engine, took)) in ENGINES.into_iter().zip(took).enumerate() {
        let mut said = format!("{engine} {took:?} ns");
        check(took.is_sorted_by(|few, more| few < more), &said)?;
        for (over, figure) in references.iter().flat_map(|all| all[index]).zip(took).skip(1) {
            let ratio = (figure - took[0]) / over;
            let _ = write!(said, ", {ratio:.3} of {over}");
            check((0.8..1.2).contains(&ratio), &said)?;
        }
        figures.push(said);
    }
    Ok(Outcome::Passed(figures.join("; ")))
}

/// `--slow` shows those that took longer, `--summary` ends with all.
fn chooses_and_sums_up(_: &Options) -> Result<Outcome> {
    load_modules();
    let netns = Netns::create("timed")?;
    let rules =
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n";
    netns.command("iptables-legacy-restore", &[], rules)?;
    let shown = |rows: &[Value]| rows.last().and_then(|row| row["count"].as_u64());
    let (rows, _) = trace(&netns, &["--slow", "1ns"])?;
    check(shown(&rows) == Some(PACKETS as u64), format!("--slow 1ns: {:?}", rows.last()))?;
    let (rows, _) = trace(&netns, &["--slow", "30s"])?;
    check(shown(&rows) == Some(0), format!("--slow 30s: {:?}", rows.last()))?;
    let (rows, errors) = trace(&netns, &["--summary"])?;
    let count = |kind: &str, what: &str| {
        let row = rows.iter().find(|row| row["type"] == kind && row["what"] == what);
        row.and_then(|row| row["count"].as_u64())
    };
    let was_missed = !errors.iter().any(|line| line.contains(" 0 lost, 0 missed,"));
    for (kind, what) in [
        ("latency", "ip filter:INPUT"),
        ("latency", "ip filter:OUTPUT"),
        ("hot", "ip filter:INPUT:rule:1"),
        ("hot", "ip filter:OUTPUT:policy:1"),
    ] {
        let counted = count(kind, what);
        let right = counted == Some(PACKETS as u64) || was_missed;
        check(right, format!("{kind} {what}: {counted:?} of {PACKETS}: {errors:?}"))?;
    }
    Ok(Outcome::Passed(format!("{PACKETS} packets, all of them, none, and summed up")))
}
