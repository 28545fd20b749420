//! What a run leaves behind where nftables is traced, however it ends: nothing.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nftracer_tests::lab::{Family, Lab, Spread};
use nftracer_tests::state::State;
use nftracer_tests::tracer::Tracer;
use nftracer_tests::traffic::{Planner, Senders};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "nft_leaves_no_trace", run: leaves_no_trace },
    Test { name: "nft_two_at_once", run: two_at_once },
    Test { name: "nft_flushed", run: flushed },
];

/// The kernel frees programs and maps some time after their last user is gone, and the guard waits for its process.
const GONE_WITHIN: Duration = Duration::from_secs(30);
const SEEN_WITHIN: Duration = Duration::from_secs(60);
const FLUSHES: u32 = 3;
/// Looks without a change.
const STEADY: u32 = 100;
const RULES: &str = "
table inet t {
    chain in { type filter hook input priority 0; policy accept; meta l4proto udp accept; }
    chain pass { type filter hook forward priority 0; policy accept; meta l4proto udp accept; }
}
";

fn lab() -> Result<Lab> {
    crate::load_modules();
    let lab = Lab::build("nft", Spread::SameCpu)?;
    for netns in lab.all() {
        netns.clear_rules()?;
    }
    lab.r.command("nft", &["-f", "-"], RULES)?;
    // The first run makes the folder of records, and loads what it needs.
    trace(&lab)?.stop(Signal::TERM)?;
    Ok(lab)
}

fn trace(lab: &Lab) -> Result<Tracer> {
    Tracer::start(&["--backend", "ebpf", "--netns", lab.r.name(), "-o", "json"], &[])
}

/// How many tables of ours there are.
fn tables(lab: &Lab) -> Result<usize> {
    let listed = lab.r.command("nft", &["list", "tables"], "")?;
    Ok(listed.lines().filter(|line| line.contains("nftracer_")).count())
}

/// How many tables it has where the rules are; kernels that know no owners have it where nobody flushes it.
fn own_tables_here(tracer: &Tracer) -> usize {
    usize::from(!tracer.errors().iter().any(|line| line.contains("in a namespace of its own")))
}

/// Waits until the host is as it was.
fn is_as(before: &State, lab: &Lab, after: &str) -> Result<()> {
    let mut differences = Vec::new();
    wait::until(GONE_WITHIN, || {
        differences = before.differences(&State::of(&lab.r).ok()?);
        differences.is_empty().then_some(())
    });
    check(differences.is_empty(), format!("after {after}:\n{}", differences.join("\n"))).map(drop)
}

fn leaves_no_trace(_: &Options) -> Result<Outcome> {
    let lab = lab()?;
    let signals = [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL, Signal::KILL];
    let before = State::of(&lab.r)?;
    for signal in signals {
        let tracer = trace(&lab)?;
        let there = tables(&lab)? == own_tables_here(&tracer);
        check(there, "the table that the footprint names is not there")?;
        tracer.stop(signal)?;
        is_as(&before, &lab, &format!("{signal:?}"))?;
    }
    Ok(Outcome::Passed(format!("{} ways to end", signals.len())))
}

/// Waits until more rules have been seen than before.
fn sees_rules(tracer: &Tracer, mut fire: impl FnMut()) -> Result<()> {
    let met = || tracer.look(|trace| trace.steps.iter().filter(|step| step.step.starts_with("t:")).count());
    let earlier = met();
    wait::until(SEEN_WITHIN, || {
        fire();
        (met() > earlier).then_some(())
    })
    .context("no rule of nftables was seen")
}

/// Somebody removes all rules and loads others: what switches the kernel's tracing on stays.
fn flushed(options: &Options) -> Result<Outcome> {
    let lab = lab()?;
    let senders = Senders::open(&lab)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut fire = || planner.shots(Family::Ipv4, 20).iter().for_each(|shot| senders.fire(shot));
    let tracer = trace(&lab)?;
    sees_rules(&tracer, &mut fire)?;
    for _ in 0..FLUSHES {
        lab.r.command("nft", &["-f", "-"], &format!("flush ruleset\n{RULES}"))?;
        // What the old rules held back goes only after a while, and late packets of theirs are seen before.
        wait::until_steady(SEEN_WITHIN, STEADY, || tracer.seen());
        sees_rules(&tracer, &mut fire)?;
    }
    tracer.stop(Signal::TERM)?;
    Ok(Outcome::Passed(format!("rules seen after each of {FLUSHES} flushes")))
}

/// Two trace at the same time; the one that goes on sees rules still when the other is killed.
fn two_at_once(options: &Options) -> Result<Outcome> {
    let lab = lab()?;
    let senders = Senders::open(&lab)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut fire = || planner.shots(Family::Ipv4, 20).iter().for_each(|shot| senders.fire(shot));
    let before = State::of(&lab.r)?;
    let (one, other) = (trace(&lab)?, trace(&lab)?);
    let remaining = own_tables_here(&other);
    check(tables(&lab)? == own_tables_here(&one) + remaining, "each has a table of its own")?;
    sees_rules(&one, &mut fire)?;
    sees_rules(&other, &mut fire)?;
    one.stop(Signal::KILL)?;
    wait::until(GONE_WITHIN, || (tables(&lab).ok()? == remaining).then_some(()))
        .context("its table is still there")?;
    sees_rules(&other, &mut fire)?;
    other.stop(Signal::TERM)?;
    is_as(&before, &lab, "both")?;
    Ok(Outcome::Passed("each saw rules, one after the other was killed".to_owned()))
}
