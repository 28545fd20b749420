//! More rows than can be read: each is shown, or counted as lost. And rules that outlive their time.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nftracer_tests::tracer::Tracer;
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "every_row_counts", run: every_row_counts },
    Test { name: "rules_are_renewed", run: rules_are_renewed },
];

const DATAGRAMS: u64 = 20_000;
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

fn every_row_counts() -> Result<String> {
    let netns = crate::netns("f")?;
    netns.command("iptables-legacy", &["-A", "INPUT", "-p", "udp", "-j", "DROP"], "")?;
    let arguments = ["--backend", "netlink", "--mark", "nft", "--netns", netns.name(), "-o", "trace", "udp"];
    // Room for few rows.
    let tracer = Tracer::start(&arguments, &[("NFTRACER_RING_BYTES", "65536")])?;
    let socket = netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?))?;
    let started = Instant::now();
    for _ in 0..DATAGRAMS {
        socket.send_to(b"flood", "127.0.0.1:4000")?;
    }
    let offered = started.elapsed();
    wait::until_steady(SETTLES_WITHIN, 40, || tracer.lines());
    // What comes after a loss tells how much was lost.
    socket.send_to(b"last", "127.0.0.1:4000")?;
    wait::until_steady(SETTLES_WITHIN, 40, || tracer.lines());
    let ended = tracer.stop(Signal::INT)?;
    let totals = ended.errors.last().context("no totals")?;
    let number = |word: &str| -> Result<u64> {
        let before = totals.split(word).next().context("a word")?.trim_end();
        Ok(before.rsplit(' ').next().context("a number")?.parse()?)
    };
    // One at OUTPUT, one at INPUT.
    let (rows, steps, lost) = (2 * (DATAGRAMS + 1), number("steps")?, number("lost")?);
    check(steps + lost == rows, format!("{rows} rows were offered: {totals}"))?;
    check(lost > 0, "too slow for losses")?;
    check(u64::try_from(ended.lines.len())? == steps, "a line for each step")?;
    Ok(format!("{rows} rows in {} ms, {steps} shown, {lost} lost", offered.as_millis()))
}

fn rules_are_renewed() -> Result<String> {
    let netns = crate::netns("r")?;
    let arguments = ["--backend", "netlink", "--mark", "rule", "--netns", netns.name(), "ip"];
    let tracer = Tracer::start(&arguments, &[("NFTRACER_RULES_SECONDS", "2")])?;
    let rules = || -> Result<Vec<String>> {
        let saved = netns.command("iptables-legacy-save", &["-t", "raw"], "")?;
        Ok(saved.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
    };
    let before = rules()?;
    check(before.len() == 2, format!("{before:?}"))?;
    let after = wait::until(Duration::from_secs(10), || rules().ok().filter(|rules| *rules != before));
    let after = after.context("they were not renewed")?;
    check(
        after.len() == 2 && after[0] != before[0] && after[1] != before[1],
        format!("{before:?} {after:?}"),
    )?;
    let ended = tracer.stop(Signal::INT)?;
    check(ended.status.code() == Some(0) && rules()?.is_empty(), format!("{:?}", ended.errors))?;
    Ok(after.join(" / "))
}
