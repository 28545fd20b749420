//! How long packets are in tables and base chains.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

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
/// Rules that a packet passes, in each chain.
const RULES: [usize; 3] = [10, 1_000, 10_000];
const PACKETS: usize = 40;

fn send(netns: &Netns, count: usize) -> Result<()> {
    netns.enter(|| {
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))?;
        to.set_read_timeout(Some(Duration::from_secs(30)))?;
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut buffer = [0; 64];
        for _ in 0..count {
            from.send_to(b"timed", (Ipv4Addr::LOCALHOST, PORT))?;
            to.recv(&mut buffer).context("a datagram did not come")?;
        }
        Ok(())
    })
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

/// The median of what packets took in a table.
fn median_ns(rows: &[Value], table: &str, hook: &str) -> Result<f64> {
    let wanted = |row: &&Value| row["type"] == "spent" && row["table"] == table && row["hook"] == hook;
    let mut took: Vec<u64> = rows.iter().filter(wanted).filter_map(|row| row["ns"].as_u64()).collect();
    took.sort_unstable();
    let median = took.get(took.len() / 2).with_context(|| format!("nothing of {table} at {hook}"))?;
    Ok(*median as f64)
}

/// Rules that no packet of the test matches.
fn lines(count: usize, line: impl Fn(u8, u8) -> String) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
        let _ = writeln!(text, "{}", line(high, low));
        text
    })
}

/// What a thousand rules cost more than ten is known from what ten thousand cost more. Where the guest counts instructions
/// as time the figures are the same to a fifth; elsewhere other guests take time away, and only the order is certain.
fn grows_with_rules(_: &Options) -> Result<Outcome> {
    load_modules();
    let netns = Netns::create("timed")?;
    let is_counted = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1);
    let mut figures = Vec::new();
    for engine in ["legacy", "nft"] {
        let mut medians = Vec::new();
        for rules in RULES {
            if engine == "legacy" {
                let rules = lines(rules, |high, low| format!("-A INPUT -s 198.18.{high}.{low}/32 -j DROP"));
                let text =
                    format!("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n{rules}COMMIT\n");
                netns.command("iptables-legacy-restore", &[], &text)?;
            } else {
                let rules = lines(rules, |high, low| format!("ip saddr 198.18.{high}.{low} drop"));
                let hook = "type filter hook input priority 0; policy accept;";
                let text =
                    format!("flush ruleset\ntable ip filter {{ chain INPUT {{\n{hook}\n{rules}}}\n}}\n");
                netns.command("nft", &["-f", "-"], &text)?;
            }
            let (rows, errors) = trace(&netns, &["--latency"])?;
            let rows: Vec<Value> = rows.into_iter().filter(|row| row["engine"] == engine).collect();
            medians.push(median_ns(&rows, "filter", "input").with_context(|| format!("{errors:?}"))?);
        }
        if engine == "legacy" {
            netns.clear_rules()?;
        }
        let said = format!("{engine} {medians:?}");
        let [few, more, most] = medians[..] else { anyhow::bail!(said) };
        check(few < more && more < most, &said)?;
        let expected = (RULES[1] - RULES[0]) as f64 / (RULES[2] - RULES[0]) as f64;
        let ratio = (more - few) / (most - few) / expected;
        check(!is_counted || (0.8..1.2).contains(&ratio), format!("{said}: {ratio}"))?;
        figures.push(format!("{said} ns, {ratio:.2} of what the rules say"));
    }
    Ok(Outcome::Passed(figures.join(", ")))
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
