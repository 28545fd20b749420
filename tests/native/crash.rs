//! Runs that are killed: within a second, nothing is left of them.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nftracer_tests::lab::Family;
use nftracer_tests::netns::Netns;
use nftracer_tests::random::Random;
use nftracer_tests::{ruleset, tracer, wait};

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "killed_at_any_moment", run: killed_at_any_moment }];

/// The backend, what marks packets, and how often it is killed.
const WAYS: [(&str, &str, u32); 5] = [
    ("netlink", "nft", 100),
    ("netlink", "rule", 100),
    ("netlink", "none", 100),
    ("log", "nft", 20),
    ("log", "rule", 20),
];
/// A run is ready after about this time, so that some are killed before and some after.
const READY_MILLIS: usize = 120;
/// A run that is killed is gone within a second. The lock of iptables is one for all namespaces: where many wait for
/// it, or for a CPU, a few may take longer.
const PROMISED: Duration = Duration::from_secs(1);
const FEW: usize = 7;
const GONE_WITHIN: Duration = Duration::from_secs(10);
const WORKERS: u32 = 2;

/// What a run could leave in a namespace.
pub(crate) type State = BTreeMap<&'static str, String>;

pub(crate) fn state(netns: &Netns) -> Result<State> {
    let mut state = State::new();
    for family in Family::ALL {
        let saved = netns.command(&format!("{}-save", family.tool()), &[], "")?;
        state.insert(family.tool(), ruleset::without_counters(&saved));
    }
    state.insert("nftables", netns.command("nft", &["list", "ruleset"], "")?);
    for name in ["net/netfilter/nf_log/2", "net/netfilter/nf_log/10"] {
        state.insert(name, netns.enter(|| Ok(fs::read_to_string(format!("/proc/sys/{name}"))?))?);
    }
    let groups = netns.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log")?))?;
    state.insert("groups", groups);
    Ok(state)
}

/// Rules of somebody else, which must stay as they are.
pub(crate) fn prepare(netns: &Netns) -> Result<()> {
    for family in Family::ALL {
        netns.command(family.tool(), &["-t", "raw", "-A", "OUTPUT", "-p", "tcp", "-j", "TRACE"], "")?;
        netns.command(family.tool(), &["-A", "INPUT", "-p", "udp", "-j", "DROP"], "")?;
    }
    netns.command("nft", &["add", "table", "inet", "nftracer_not"], "")?;
    Ok(())
}

fn killed_at_any_moment() -> Result<String> {
    let all_netns = || fs::read_to_string("/proc/sys/net/netfilter/nf_log_all_netns").unwrap_or_default();
    let before = all_netns();
    let mut took = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        for worker in workers {
            took.extend(worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??);
        }
        Ok(())
    })?;
    wait::until(GONE_WITHIN, || (all_netns() == before).then_some(()))
        .context("nf_log_all_netns is not as before")?;
    wait::until(GONE_WITHIN, || records().ok().filter(Vec::is_empty)).context("records are left")?;
    took.sort();
    let late = took.iter().filter(|took| **took > PROMISED).count();
    let slowest = took.last().copied().unwrap_or_default().as_millis();
    let usual = took.get(took.len() / 2).copied().unwrap_or_default().as_millis();
    let said = format!("{} kills, gone after {usual} ms, the slowest {slowest} ms, {late} late", took.len());
    check(late <= FEW, said.clone())?;
    Ok(said)
}

/// Records of processes that are gone.
pub(crate) fn records() -> Result<Vec<String>> {
    if !fs::exists("/run/nftracer")? {
        return Ok(Vec::new());
    }
    let names = fs::read_dir("/run/nftracer")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let gone = |name: &String| {
        name.split_once(':').is_some_and(|(pid, _)| !fs::exists(format!("/proc/{pid}")).unwrap_or(false))
    };
    Ok(names.filter(gone).collect())
}

/// One worker's share, in a namespace of its own: how long each took to be gone.
fn work(worker: u32) -> Result<Vec<Duration>> {
    let netns = crate::netns(&format!("k{worker}"))?;
    prepare(&netns)?;
    let before = state(&netns)?;
    let mut random = Random::new(u64::from(worker) + 1);
    let mut gone = Vec::new();
    for (backend, mark, count) in WAYS {
        for _ in 0..count / WORKERS {
            let after = Duration::from_millis(u64::try_from(random.below(READY_MILLIS))?);
            let took = kill((backend, mark), &netns, &before, after)
                .with_context(|| format!("{backend}, mark {mark}, killed after {after:?}"))?;
            gone.push(took);
        }
    }
    Ok(gone)
}

/// Says how long it took until all was as before.
fn kill((backend, mark): (&str, &str), netns: &Netns, before: &State, after: Duration) -> Result<Duration> {
    let mut child = Command::new(tracer::program())
        .args(["trace", "--backend", backend, "--mark", mark, "--netns", netns.name(), "icmp or icmp6"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Not waiting for anything: this is when it is killed.
    thread::sleep(after);
    child.kill()?;
    let killed = Instant::now();
    child.wait()?;
    let mut last = State::new();
    wait::until(GONE_WITHIN, || {
        last = state(netns).ok()?;
        (last == *before).then_some(())
    })
    .with_context(|| format!("before: {before:#?}\nafterwards: {last:#?}"))?;
    Ok(killed.elapsed())
}
