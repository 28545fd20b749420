//! Several runs at once, and what is left when even the guard is killed.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::{self, Certainty, Trace, Tracer};
use nftracer_tests::wait;
use rustix::process::{Pid, Signal, kill_process};

use crate::crash::{State, prepare, state};
use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "two_at_once", run: two_at_once },
    Test { name: "leaves_no_trace", run: leaves_no_trace },
    Test { name: "doctor_cleans", run: doctor_cleans },
    Test { name: "names_are_not_enough", run: names_are_not_enough },
];

const SOON: Duration = Duration::from_secs(10);
/// Called as the tables by which runs mark packets, and nothing of the kind.
const USERS_TABLE: &str =
    "table inet nftracer_7_8 {\n chain in { type filter hook input priority 0; udp dport 9 drop; }\n}\n";

fn start(netns: &Netns, backend: &str, mark: &str) -> Result<Tracer> {
    Tracer::start(&["--backend", backend, "--mark", mark, "--netns", netns.name(), "-o", "json"], &[])
}

fn all_netns() -> String {
    fs::read_to_string("/proc/sys/net/netfilter/nf_log_all_netns").unwrap_or_default()
}

/// Runs that need the same setting share it, and the last puts it back; others are refused.
fn two_at_once() -> Result<String> {
    let netns = crate::netns("t")?;
    prepare(&netns)?;
    // So that the logger is one that must be put back.
    netns.sysctl("net/netfilter/nf_log/2", "NONE")?;
    let (before, before_all) = (state(&netns)?, all_netns());
    for killed in [false, true] {
        let end = if killed { Signal::KILL } else { Signal::INT };
        let first = start(&netns, "log", "rule")?;
        let second = start(&netns, "log", "nft")?;
        let other =
            tracer::run(&["trace", "--backend", "netlink", "--netns", netns.name(), "--for", "1s"], &[])?;
        let said = other.errors.join("\n");
        check(other.status.code() == Some(3), format!("netlink beside log: {}: {said}", other.status))?;
        check(said.contains(&first.pid().to_string()), format!("does not say who: {said}"))?;
        first.stop(end)?;
        let logger = || netns.enter(|| Ok(fs::read_to_string("/proc/sys/net/netfilter/nf_log/2")?));
        wait::until(SOON, || {
            state(&netns).ok().filter(|now| now["iptables-legacy"] == before["iptables-legacy"])
        })
        .context("the first left its rules")?;
        check(logger()?.trim() == "nf_log_ipv4", "the first took the logger from the second")?;
        check(all_netns().trim() == "1", "the first took the log from the second")?;
        second.stop(end)?;
        as_before(&netns, &before)?;
        check(all_netns() == before_all, "nf_log_all_netns is not as before")?;
        wait::until(SOON, || crate::crash::records().ok().filter(Vec::is_empty))
            .context("records are left")?;
    }
    let elsewhere = crate::netns("u")?;
    let (one, other) = (start(&netns, "netlink", "rule")?, start(&elsewhere, "netlink", "rule")?);
    one.stop(Signal::TERM)?;
    other.stop(Signal::TERM)?;
    as_before(&netns, &before)?;
    Ok("3 pairs".to_owned())
}

fn as_before(netns: &Netns, before: &State) -> Result<()> {
    let mut now = State::new();
    wait::until(SOON, || {
        now = state(netns).ok()?;
        (now == *before).then_some(())
    })
    .with_context(|| format!("before: {before:#?}\nafterwards: {now:#?}"))
}

/// However a run ends, all is as before, and what it changed was said.
fn leaves_no_trace() -> Result<String> {
    let netns = crate::netns("l")?;
    prepare(&netns)?;
    let before = state(&netns)?;
    let mut runs = 0;
    for (backend, mark) in [("netlink", "nft"), ("netlink", "rule"), ("log", "nft"), ("log", "rule")] {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            let tracer = start(&netns, backend, mark)?;
            let changed = state(&netns)?;
            check(changed != before, "nothing was changed")?;
            let ended = tracer.stop(signal)?;
            let said = ended.errors.join("\n");
            check(ended.status.code() == Some(0), format!("{}: {said}", ended.status))?;
            let word = if mark == "nft" { "table inet nftracer_" } else { "TRACE rules" };
            check(said.contains("footprint: ") && said.contains(word), format!("not said: {said}"))?;
            // Not later: when the run has ended.
            check(state(&netns)? == before, format!("{backend}, mark {mark}: something is left"))?;
            runs += 1;
        }
    }
    Ok(format!("{runs} runs"))
}

/// The guard of a run.
fn guard_of(tracer: &Tracer) -> Result<i32> {
    let pid = tracer.pid();
    let found = fs::read_dir("/proc")?.flatten().find_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let parent: u32 = tail.split_ascii_whitespace().nth(1)?.parse().ok()?;
        (parent == pid && head.contains("nftracer-guard")).then(|| head.split(' ').next()?.parse().ok())?
    });
    found.context("the guard is found")
}

fn kill(pid: i32) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("a process")?, Signal::KILL)?)
}

/// What a run left that was killed together with its guard goes, and nothing else: not the rules of a run that goes on.
fn doctor_cleans() -> Result<String> {
    let netns = crate::netns("d")?;
    prepare(&netns)?;
    netns.command("nft", &["-f", "-"], USERS_TABLE)?;
    let before = state(&netns)?;
    let elsewhere = crate::netns("e")?;
    let living = start(&elsewhere, "netlink", "rule")?;
    let others = state(&elsewhere)?;
    let mut said = Vec::new();
    for (backend, mark) in [("netlink", "rule"), ("netlink", "nft"), ("log", "rule")] {
        let tracer = start(&netns, backend, mark)?;
        kill(guard_of(&tracer)?)?;
        tracer.stop(Signal::KILL)?;
        check(state(&netns)? != before, "nothing is left to clean")?;
        let listed = tracer::run(&["doctor"], &[])?.lines.join("\n");
        check(listed.contains("doctor --clean"), format!("doctor does not see it:\n{listed}"))?;
        let cleaned = tracer::run(&["doctor", "--clean"], &[])?;
        check(cleaned.status.code() == Some(0), format!("{}: {:?}", cleaned.status, cleaned.errors))?;
        check(state(&netns)? == before, format!("{backend}, mark {mark}: not clean: {:?}", cleaned.lines))?;
        said.extend(cleaned.lines);
    }
    let again = tracer::run(&["doctor", "--clean"], &[])?;
    check(again.lines == ["nothing to clean"], format!("{:?}", again.lines))?;
    check(state(&elsewhere)? == others, "a living run lost what it needs")?;
    living.stop(Signal::INT)?;
    Ok(said.join(" / "))
}

/// A user's table is traced like any other, however it is called.
fn names_are_not_enough() -> Result<String> {
    let netns = crate::netns("y")?;
    netns.command("nft", &["-f", "-"], USERS_TABLE)?;
    let tracer = start(&netns, "netlink", "nft")?;
    netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9")?))?;
    let dropped = |trace: &Trace| trace.packets.values().any(|packet| packet.verdict == "drop");
    wait::until(SOON, || tracer.look(dropped).then_some(()));
    let ended = tracer.stop(Signal::INT)?;
    let dropped = ended.trace.packets.values().find(|packet| packet.verdict == "drop");
    let dropped = dropped.with_context(|| format!("nothing is dropped: {:?}", ended.trace.packets))?;
    let is_right = dropped.path == ["nftracer_7_8:in:rule:1"] && dropped.certainty == Certainty::Complete;
    check(is_right, format!("{dropped:?}"))?;
    let others = ended.trace.steps.iter().filter(|step| !step.step.starts_with("nftracer_7_8:"));
    check(others.count() == 0, format!("marking is shown: {:?}", ended.trace.steps))?;
    Ok(format!("{:?}", dropped.path))
}
