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
const GONE_WITHIN: Duration = Duration::from_secs(1);
const WORKERS: u32 = 4;

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
    let (mut kills, mut slowest) = (0, Duration::ZERO);
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        for worker in workers {
            let (done, longest) = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
            kills += done;
            slowest = slowest.max(longest);
        }
        Ok(())
    })?;
    wait::until(GONE_WITHIN, || (all_netns() == before).then_some(()))
        .context("nf_log_all_netns is not as before")?;
    check(!fs::exists("/run/nftracer")? || records()?.is_empty(), "records are left")?;
    Ok(format!("{kills} kills, all gone after {} ms at most", slowest.as_millis()))
}

/// Records of processes that are gone.
fn records() -> Result<Vec<String>> {
    let names = fs::read_dir("/run/nftracer")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let gone = |name: &String| {
        name.split_once(':').is_some_and(|(pid, _)| !fs::exists(format!("/proc/{pid}")).unwrap_or(false))
    };
    Ok(names.filter(gone).collect())
}

/// One worker's share, in a namespace of its own: how many, and how long the slowest took to be gone.
fn work(worker: u32) -> Result<(u32, Duration)> {
    let netns = crate::netns(&format!("k{worker}"))?;
    prepare(&netns)?;
    let before = state(&netns)?;
    let mut random = Random::new(u64::from(worker) + 1);
    let (mut kills, mut slowest) = (0, Duration::ZERO);
    for (backend, mark, count) in WAYS {
        for _ in 0..count / WORKERS {
            let after = Duration::from_millis(u64::try_from(random.below(READY_MILLIS))?);
            let took = kill((backend, mark), &netns, &before, after)
                .with_context(|| format!("{backend}, mark {mark}, killed after {after:?}"))?;
            slowest = slowest.max(took);
            kills += 1;
        }
    }
    Ok((kills, slowest))
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
