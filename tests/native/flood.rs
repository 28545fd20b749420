//! More rows than can be read: each is shown, or counted as lost. And rules that outlive their time.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fmt, fs, thread};

use anyhow::{Context, Result, anyhow};
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::{self, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "every_row_counts", run: every_row_counts },
    Test { name: "rules_are_renewed", run: rules_are_renewed },
];

/// Rules that every datagram meets on its way out, each a row.
const RULES: usize = 60;
const SENDERS: usize = 2;
const OFFERED_FOR: Duration = Duration::from_secs(3);
/// Rows in a second that have to be offered.
const RATE: u64 = 100_000;
/// A machine that has much else to do may not get so far the first time.
const ATTEMPTS: usize = 5;
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// With room for few rows most are lost, with the usual room few or none; the account is exact in both.
fn every_row_counts() -> Result<String> {
    let mut said = Vec::new();
    for room in [&["--buffer", "64K"][..], &[]] {
        let mut best = None;
        for _ in 0..ATTEMPTS {
            let flood = flood(room)?;
            check(room.is_empty() || flood.lost > 0, format!("too slow for losses: {flood}"))?;
            if best.as_ref().is_none_or(|best: &Flood| best.rate < flood.rate) {
                best = Some(flood);
            }
            if best.as_ref().is_some_and(|best| best.rate >= RATE) {
                break;
            }
        }
        let best = best.context("an attempt")?;
        check(best.rate >= RATE, format!("this machine offers too little: {best}"))?;
        said.push(best.to_string());
    }
    Ok(said.join("; with more room "))
}

/// What came of rows that were offered.
struct Flood {
    offered: u64,
    /// In each second that a sender had a processor: what else the machine does keeps the tracer waiting, too.
    rate: u64,
    shown: u64,
    lost: u64,
    /// Until the last was shown.
    took: Duration,
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offered, rate, shown, lost, took } = self;
        let shown_rate = *shown as f64 / took.as_secs_f64();
        write!(f, "{offered} rows, {rate} a second, {shown} shown, {shown_rate:.0} a second, {lost} lost")
    }
}

fn flood(room: &[&str]) -> Result<Flood> {
    let netns = crate::netns("f")?;
    let rules = "-A OUTPUT -p udp\n".repeat(RULES);
    netns.command(
        "iptables-legacy-restore",
        &[],
        &format!("*filter\n{rules}-A INPUT -p udp -j DROP\nCOMMIT\n"),
    )?;
    let out = env::temp_dir().join(format!("nftracer-native-flood-{}", std::process::id()));
    // A file takes all at once; who reads a pipe could be slower than the tracer.
    let mut command = Command::new("sh");
    let script = format!("exec \"$0\" \"$@\" >{}", out.display());
    command.args(["-c", &script]).arg(tracer::program()).args([
        "trace",
        "--backend",
        "netlink",
        "--mark",
        "nft",
    ]);
    command.args(["--netns", netns.name(), "-o", "trace"]).args(room).arg("udp");
    let mut tracer = Tracer::spawn_command(command)?;
    tracer.ready()?;
    let size = || fs::metadata(&out).map(|file| file.len()).unwrap_or_default();
    let started = Instant::now();
    let sent_for = thread::scope(|scope| -> Result<Duration> {
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(|| netns.enter(send))).collect();
        senders.into_iter().map(|sender| sender.join().map_err(|_| anyhow!("a sender panicked"))?).sum()
    })?;
    let rate = offered(&netns)? * 1000 / u64::try_from(sent_for.as_millis())?;
    let mut shown_by = Instant::now();
    let mut last = size();
    wait::until_steady(SETTLES_WITHIN, 400, || {
        if size() != last {
            (shown_by, last) = (Instant::now(), size());
        }
        last
    });
    // What comes after a loss tells how much was lost. As long as the tracer has not made room, it is lost, too.
    let last = || netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?.send_to(LAST, "127.0.0.1:4000")?));
    let came = || last().is_ok() && wait::until_steady(SETTLES_WITHIN, 4, size) && ends_with_last(&out);
    wait::until(SETTLES_WITHIN, || came().then_some(())).context("the last datagram is not shown")?;
    wait::until_steady(SETTLES_WITHIN, 40, size);
    let ended = tracer.stop(Signal::INT)?;
    let lines = fs::read_to_string(&out)?.lines().count();
    fs::remove_file(&out)?;
    let totals = ended.errors.last().context("no totals")?;
    let number = |word: &str| -> Result<u64> {
        let before = totals.split(word).next().context("a word")?.trim_end();
        Ok(before.rsplit(' ').next().context("a number")?.parse()?)
    };
    let (shown, lost, offered) = (number("steps")?, number("lost")?, offered(&netns)?);
    check(shown + lost == offered, format!("the kernel counted {offered} rows: {totals}"))?;
    check(u64::try_from(lines)? == shown, format!("{lines} lines, {shown} steps"))?;
    Ok(Flood { offered, rate, shown, lost, took: shown_by - started })
}

/// Shorter than the others.
const LAST: &[u8] = b"last";

fn ends_with_last(out: &Path) -> bool {
    let last = format!(" LEN={} ", 20 + 8 + LAST.len());
    fs::read(out).is_ok_and(|text| {
        let tail = &text[text.len().saturating_sub(4096)..];
        String::from_utf8_lossy(tail).contains(&last)
    })
}

/// Says for how long it had a processor.
fn send() -> Result<Duration> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let started = Instant::now();
    while started.elapsed() < OFFERED_FOR {
        for _ in 0..16 {
            socket.send_to(b"flood", "127.0.0.1:4000")?;
        }
    }
    let had = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(u64::try_from(had.tv_sec)?, u32::try_from(had.tv_nsec)?))
}

/// How many rows the kernel had to tell of: each rule or policy that a packet met.
fn offered(netns: &Netns) -> Result<u64> {
    let saved = netns.command("iptables-legacy-save", &["-c", "-t", "filter"], "")?;
    let count = |line: &str| {
        let (_, counters) = line.split_once('[')?;
        counters.split(':').next()?.parse::<u64>().ok()
    };
    Ok(saved.lines().filter_map(count).sum())
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
