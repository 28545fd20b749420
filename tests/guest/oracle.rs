//! nftracer against the kernel's own TRACE, packet by packet.

use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nftracer_tests::compare::{Verdict, Wrong};
use nftracer_tests::generate::{Parts, Ruleset, Shape, generate};
use nftracer_tests::lab::{Family, Place, Spread, addresses};
use nftracer_tests::packet::identity;
use nftracer_tests::ruleset::{HANDWRITTEN, Handwritten};
use nftracer_tests::tracer::Totals;
use nftracer_tests::traffic::{OPEN, Planner, Shot, connection};
use nftracer_tests::{netns, wait};

use crate::kprobe_session::with_session;
use crate::session::Session;
use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "oracle_itself", run: itself },
    Test {
        name: "oracle_handwritten_ipv4",
        run: |options| handwritten(options, Family::Ipv4, HANDWRITTEN.iter(), Handwritten::text, &[]),
    },
    Test {
        name: "oracle_handwritten_ipv6",
        run: |options| handwritten(options, Family::Ipv6, HANDWRITTEN.iter(), Handwritten::text, &[]),
    },
    Test {
        name: "oracle_large_tables",
        run: |options| handwritten(options, Family::Ipv4, HANDWRITTEN.iter(), Handwritten::large_text, &[]),
    },
    Test { name: "oracle_generated", run: generated },
    Test { name: "oracle_loaded", run: |options| loaded(options, false, &[]) },
    Test { name: "oracle_edited", run: |options| loaded(options, true, &[]) },
    Test {
        name: "oracle_session_ipv4",
        run: |options| with_session(options, |options, way| disturbed(options, Family::Ipv4, way)),
    },
    Test {
        name: "oracle_session_ipv6",
        run: |options| with_session(options, |options, way| disturbed(options, Family::Ipv6, way)),
    },
    Test {
        name: "oracle_session_loaded",
        run: |options| with_session(options, |options, way| loaded(options, false, way)),
    },
];

/// Packets of one family that share a ruleset.
const SHOTS: usize = 60;
/// Generated rulesets whose packets are compared together: most of the time goes into waiting for the last of them.
const RULESETS_AT_ONCE: usize = 10;
/// Generated rulesets that one run of the tracer sees; then it starts anew.
const RULESETS_PER_RUN: usize = 100;

/// A slow machine takes minutes for this many; then it gives a sign of life.
const RULESETS_PER_SIGN: usize = 50;

/// Rulesets under which traversals are inside of others, or their order is not known.
const DISTURBING: [&str; 3] = ["REJECT", "TEE", "chains entered twice"];

/// How many packets may be in doubt for 10 000 traversals, apart from those that lack one that the probes missed.
#[derive(Clone, Copy)]
struct Limit {
    inexact: u64,
    /// Whether every traversal has to be seen.
    sees_all: bool,
}

const SINGLE_FLOW: Limit = Limit { inexact: 10, sees_all: false };
const UNDER_LOAD: Limit = Limit { inexact: 50, sees_all: false };
const WHILE_EDITED: Limit = Limit { inexact: 200, sees_all: false };

/// The kernel's side alone: every ruleset loads, and every packet sent shows up.
fn itself(options: &Options) -> Result<Outcome> {
    let session = Session::new(&[Place::R], Spread::SameCpu)?;
    let (mut packets, mut rows, mut refused) = (0, 0, Vec::new());
    for family in Family::ALL {
        let mut planner = Planner::new(options.seed, 0, 1);
        let (parts, without) = Parts::of(&session.lab.r, family)?;
        refused.extend(without);
        let made = |seed| {
            let shape = if seed % 2 == 0 { Shape::Tree } else { Shape::Graph };
            generate(options.seed + seed, family, shape, &parts).text()
        };
        let texts = HANDWRITTEN.iter().map(|ruleset| ruleset.text(family));
        for text in texts.chain((0..10).map(made)) {
            session.load(Place::R, family, &text)?;
            let shots = planner.shots(family, SHOTS);
            session.kernel_rows()?;
            session.fire(&shots);
            // Datagrams in pieces are put together before the first table.
            let whole = shots.iter().filter(|shot| shot.packet.fragment.is_none() && shot.from != Place::B);
            let mut wanted: Vec<_> = whole.filter_map(|shot| identity(&shot.packet.bytes()[0])).collect();
            packets += wanted.len();
            wait::until(Duration::from_secs(10), || match session.kernel_rows() {
                Ok(seen) => {
                    rows += seen.len();
                    wanted.retain(|packet| seen.iter().all(|row| row.packet != *packet));
                    wanted.is_empty().then_some(Ok(()))
                }
                Err(error) => Some(Err(error)),
            })
            .transpose()?;
            check(wanted.is_empty(), format!("the kernel did not tell of {wanted:?} with\n{text}"))?;
        }
    }
    let without =
        if refused.is_empty() { String::new() } else { format!("; not on this kernel: {refused:?}") };
    Ok(Outcome::Passed(format!("{packets} packets sent, {rows} lines of the kernel{without}")))
}

/// With the rulesets that send packets from inside a traversal, or change what comes behind it.
fn disturbed(options: &Options, family: Family, way: &[&str]) -> Result<Outcome> {
    let disturbed = |name| DISTURBING.contains(&name) || name == "nat";
    let rulesets = HANDWRITTEN.iter().filter(|ruleset| disturbed(ruleset.name));
    handwritten(options, family, rulesets, Handwritten::text, way)
}

fn handwritten(
    options: &Options,
    family: Family,
    rulesets: impl Iterator<Item = &'static Handwritten>,
    text: fn(&Handwritten, Family) -> String,
    way: &[&str],
) -> Result<Outcome> {
    let mut session = Session::new(&[Place::R], Spread::SameCpu)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut total = Verdict::default();
    for (number, ruleset) in rulesets.enumerate() {
        let text = text(ruleset, family);
        session.load(Place::R, family, &text)?;
        // The first is there before the tracer, which has to notice the others.
        if number == 0 {
            let name = session.lab.r.name().to_owned();
            session.trace_with(&[&["--netns", &name, "-o", "json"], way].concat())?;
        }
        session.fire(&planner.shots(family, SHOTS));
        let fired = Instant::now();
        let mut verdict = session.judge()?;
        let settled = fired.elapsed();
        // What connections need of neighbours' answers comes in any order, so they are on their own.
        let at = addresses(family);
        for (to, port) in [(at.b, OPEN), (at.r, OPEN), (at.r_dnat, 80), (at.b, 443)] {
            connection(&session.lab.a, to, port)?;
        }
        connection(&session.lab.r, at.b, OPEN)?;
        connection(&session.lab.r, at.lo, OPEN)?;
        verdict.add(session.judge()?);
        if options.verbose {
            println!("  {}: {} ({settled:?})", ruleset.name, verdict.figures);
        }
        let place = format!("ruleset \"{}\" for {family:?}, seed {}", ruleset.name, options.seed);
        examine(&verdict, &place, &text)?;
        check(
            !ruleset.is_tree || verdict.figures.unordered == 0,
            format!("{place}: {} unordered, though no chain can be entered twice", verdict.figures.unordered),
        )?;
        total.add(verdict);
    }
    let totals = session.end(&mut total)?;
    examine(&total, "the end", "")?;
    check_missed(&total, &totals)?;
    conclude(&total, SINGLE_FLOW)
}

/// A ruleset made up, and what is sent through it.
struct Case {
    seed: u64,
    shape: Shape,
    ruleset: Ruleset,
    shots: Vec<Shot>,
}

impl Case {
    /// Whether something is found that must not be.
    fn is_faulty(&self, verdict: &Verdict) -> bool {
        !verdict.wrong.is_empty() || self.shape == Shape::Tree && verdict.figures.unordered > 0
    }

    fn run(&self, session: &mut Session, ruleset: &Ruleset) -> Result<()> {
        session.load(Place::R, ruleset.family, &ruleset.text())?;
        session.fire(&self.shots);
        session.wait_for_kernel()?;
        Ok(())
    }
}

fn generated(options: &Options) -> Result<Outcome> {
    let mut session = Session::new(&[Place::R], Spread::SameCpu)?;
    let parts = [Parts::of(&session.lab.r, Family::Ipv4)?.0, Parts::of(&session.lab.r, Family::Ipv6)?.0];
    let mut planner = Planner::new(options.seed, 0, 1);
    let shots_each = options.packets.div_ceil(options.rulesets.max(1));
    let mut made = |number: usize| -> Result<Case> {
        let which = number % 2;
        let shape = if (number / RULESETS_AT_ONCE).is_multiple_of(2) { Shape::Tree } else { Shape::Graph };
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(u64::try_from(number)?);
        let ruleset = generate(seed, Family::ALL[which], shape, &parts[which]);
        Ok(Case { seed, shape, ruleset, shots: planner.shots(Family::ALL[which], shots_each) })
    };
    let (mut total, mut run, mut trees) = (Verdict::default(), Verdict::default(), 0);
    for first in (0..options.rulesets).step_by(RULESETS_AT_ONCE) {
        let end = options.rulesets.min(first + RULESETS_AT_ONCE);
        let cases = (first..end).map(&mut made).collect::<Result<Vec<_>>>()?;
        if first.is_multiple_of(RULESETS_PER_RUN) {
            session.load(Place::R, cases[0].ruleset.family, &cases[0].ruleset.text())?;
            session.trace()?;
        }
        cases.iter().try_for_each(|case| case.run(&mut session, &case.ruleset))?;
        let verdict = session.judge()?;
        if options.verbose {
            let sizes: Vec<_> = cases.iter().map(|case| case.ruleset.size()).collect();
            println!(
                "  seeds from {}, {sizes:?} rules: {} {:?}",
                cases[0].seed, verdict.figures, verdict.reasons
            );
        }
        if end.is_multiple_of(RULESETS_PER_SIGN) {
            println!("  {end} of {} rulesets", options.rulesets);
        }
        if cases[0].is_faulty(&verdict) {
            return explain(&mut session, &cases, &verdict, options);
        }
        if cases[0].shape == Shape::Tree {
            trees += verdict.figures.packets;
        }
        run.add(verdict);
        if end.is_multiple_of(RULESETS_PER_RUN) || end == options.rulesets {
            let totals = session.end(&mut run)?;
            check_missed(&run, &totals)?;
            examine(&run, "the end of a run", "")?;
            total.add(std::mem::take(&mut run));
        }
    }
    let enough = u64::try_from(options.packets)?;
    check(total.figures.packets >= enough, format!("only {} packets", total.figures.packets))?;
    let Outcome::Passed(figures) = conclude(&total, SINGLE_FLOW)? else { bail!("concluded otherwise") };
    Ok(Outcome::Passed(format!(
        "{} rulesets; {figures}; where no chain can be entered twice: {trees} packets, 0 unordered",
        options.rulesets
    )))
}

/// Finds out which of several cases went wrong, and the smallest ruleset found on which its packets still do.
fn explain(session: &mut Session, cases: &[Case], verdict: &Verdict, options: &Options) -> Result<Outcome> {
    let seeds = format!("seeds {} to {}", cases[0].seed, cases[cases.len() - 1].seed);
    for case in cases {
        case.run(session, &case.ruleset)?;
        let alone = session.judge()?;
        if case.is_faulty(&alone) {
            let (smaller, fault) = shrink(session, case, alone, options);
            let place = format!("seed {}, {:?}, {:?}", case.seed, smaller.family, case.shape);
            examine(&fault, &place, &smaller.text())?;
            bail!("{place}: {}, though no chain can be entered twice\n{}", fault.figures, smaller.text());
        }
    }
    let texts: String =
        cases.iter().map(|case| format!("# seed {}\n{}", case.seed, case.ruleset.text())).collect();
    examine(verdict, &format!("{seeds}, together but not alone"), &texts)?;
    bail!("{seeds}, together but not alone: {}, though no chain can be entered twice", verdict.figures)
}

/// The smallest ruleset found on which the same packets still go wrong.
fn shrink(session: &mut Session, case: &Case, verdict: Verdict, options: &Options) -> (Ruleset, Verdict) {
    let end = Instant::now() + Duration::from_secs(options.shrink_seconds);
    println!("  wrong with {} rules, trying less: {:?}", case.ruleset.size(), verdict.wrong.first());
    let (mut smallest, mut fault) = (case.ruleset.clone(), verdict);
    'again: loop {
        for smaller in smallest.smaller() {
            if Instant::now() >= end {
                break 'again;
            }
            if case.run(session, &smaller).is_err() {
                continue;
            }
            let Ok(verdict) = session.judge() else { break 'again };
            if case.is_faulty(&verdict) {
                (smallest, fault) = (smaller, verdict);
                continue 'again;
            }
        }
        break;
    }
    (smallest, fault)
}

/// Senders in all namespaces at once, all of them with rulesets that send packets from inside a traversal.
fn loaded(options: &Options, edited: bool, way: &[&str]) -> Result<Outcome> {
    const PLACES: [Place; 3] = [Place::A, Place::R, Place::B];
    const BURST: usize = 20;
    let mut session = Session::new(&PLACES, Spread::TwoCpus)?;
    let parts = [Parts::of(&session.lab.r, Family::Ipv4)?.0, Parts::of(&session.lab.r, Family::Ipv6)?.0];
    let texts = HANDWRITTEN.iter().filter(|ruleset| DISTURBING.contains(&ruleset.name));
    let texts: Vec<_> = texts.collect();
    // Room for a burst: the reader is slower than the senders.
    session.trace_with(&[&["--all-netns", "-o", "json", "--buffer", "64M"], way].concat())?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (mut total, mut round, edits) = (Verdict::default(), 0, AtomicU64::new(0));
    // Three senders at once, each with numbers of its own.
    let mut planners: Vec<_> =
        (0..3).map(|which| Planner::new(options.seed + u64::from(which), which, 3)).collect();
    while Instant::now() < end || total.figures.packets < u64::try_from(options.packets)? {
        let everywhere = PLACES.into_iter().enumerate();
        for ((at, place), family) in everywhere.flat_map(|place| Family::ALL.map(|family| (place, family))) {
            let text = if round % 4 == 3 {
                let seed = options.seed + u64::try_from(round * 3 + at)?;
                let parts = if family == Family::Ipv4 { &parts[0] } else { &parts[1] };
                generate(seed, family, Shape::Graph, parts).text()
            } else {
                texts[(round + at) % texts.len()].text(family)
            };
            let text = if edited { with_edited_chain(&text) } else { text };
            session.load(place, family, &text)?;
        }
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let editor = edited.then(|| scope.spawn(|| edit(session.lab.r.name(), &stop, &edits)));
            let fired = (0..16).try_for_each(|_| {
                let bursts: Vec<Vec<Shot>> = planners
                    .iter_mut()
                    .map(|planner| Family::ALL.map(|family| planner.shots(family, BURST)).concat())
                    .collect();
                thread::scope(|scope| {
                    for burst in &bursts {
                        let session = &session;
                        scope.spawn(move || session.fire(burst));
                    }
                });
                session.wait_for_readers()
            });
            stop.store(true, Ordering::Relaxed);
            editor.map(|editor| editor.join());
            fired
        })?;
        let verdict = session.judge()?;
        if options.verbose {
            println!("  round {round}: {}", verdict.figures);
        }
        let wrong = !verdict.wrong.is_empty();
        total.add(verdict);
        if wrong {
            break;
        }
        round += 1;
    }
    let totals = session.end(&mut total)?;
    examine(&total, &format!("seed {}, up to round {round}, {totals:?}", options.seed), "")?;
    check_missed(&total, &totals)?;
    let limit = if edited { WHILE_EDITED } else { UNDER_LOAD };
    let Outcome::Passed(figures) = conclude(&total, limit)? else { bail!("concluded otherwise") };
    let edits = edits.load(Ordering::Relaxed);
    let edits = if edited { format!("; {edits} edits") } else { String::new() };
    Ok(Outcome::Passed(format!(
        "{figures}; missed {}, lost {} by nftracer's own count{edits}",
        totals.missed, totals.lost
    )))
}

/// With a chain that the editor fills and empties.
fn with_edited_chain(text: &str) -> String {
    text.replace("*filter\n", "*filter\n:EDITED - [0:0]\n")
}

/// Changes rules until told to stop: a chain that nothing leads to, and the numbers of those that packets meet.
fn edit(netns: &str, stop: &AtomicBool, edits: &AtomicU64) {
    if netns::move_here(netns).is_err() {
        return;
    }
    let mut once = String::new();
    for edit in
        ["-A EDITED -m comment --comment x", "-D EDITED 1", "-I FORWARD -m mark --mark 0x77", "-D FORWARD 1"]
    {
        let _ = write!(once, "*filter\n{edit}\nCOMMIT\n");
    }
    let text = once.repeat(25);
    while !stop.load(Ordering::Relaxed) {
        for tool in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
            if netns::run(tool, &["--noflush"], &text).is_ok() {
                edits.fetch_add(100, Ordering::Relaxed);
            }
        }
    }
}

/// Fails with all it takes to see the fault again.
fn examine(verdict: &Verdict, place: &str, ruleset: &str) -> Result<()> {
    if verdict.wrong.is_empty() {
        return Ok(());
    }
    let first: Vec<String> = verdict.wrong.iter().take(5).map(Wrong::to_string).collect();
    let unseen = verdict.unseen_example.as_ref().map(|unseen| format!("\nunseen: {unseen:?}"));
    bail!(
        "{place}: {} wrong ({})\n{}{}\n{ruleset}",
        verdict.wrong.len(),
        verdict.figures,
        first.join("\n"),
        unseen.unwrap_or_default()
    )
}

/// What nobody saw has been counted by the tracer.
fn check_missed(verdict: &Verdict, totals: &Totals) -> Result<()> {
    let figures = &verdict.figures;
    // A packet that says that it is inexact may lack traversals, too; even all of them, or all after an address changed.
    let told = totals.missed + totals.lost + figures.told + figures.inexact;
    // What a target starts inside a traversal that a kprobe missed moves no count of the kernel's, and kprobes are all
    // there is where modules are not described.
    let inside = if Path::new("/sys/kernel/btf/ip_tables").exists() { 0 } else { totals.missed / 2 };
    check(
        figures.unseen <= told + inside,
        format!(
            "{} traversals unseen, such as {:?}, but the totals are {totals:?}",
            figures.unseen, verdict.unseen_example
        ),
    )
}

/// Whether a path is inexact only because the probes missed a traversal of the packet, which is counted by itself.
fn is_missing(reason: &str) -> bool {
    reason.split("; ").all(|part| {
        part.ends_with(" was not seen")
            || part.starts_with("its end was not seen")
            || part.starts_with("it was not seen ")
            || part.starts_with("its earlier tables were not seen")
            || part.starts_with("the order in ")
    })
}

fn conclude(verdict: &Verdict, limit: Limit) -> Result<Outcome> {
    let figures = &verdict.figures;
    check(figures.packets > 0, "no packet was traced")?;
    let allowed = figures.traversals * limit.inexact / 10_000;
    let doubtful: u64 =
        verdict.reasons.iter().filter(|(reason, _)| !is_missing(reason)).map(|(_, (count, _))| count).sum();
    check(
        doubtful <= allowed,
        format!("{doubtful} packets in doubt, {allowed} allowed ({figures}): {:#?}", verdict.reasons),
    )?;
    check(
        figures.unjudged * 100 <= figures.traversals && figures.oracle_lost * 100 <= figures.traversals,
        format!("too much of the kernel's lines was lost ({figures})"),
    )?;
    check(!limit.sees_all || figures.unseen == 0, format!("not all was seen: {:?}", verdict.unseen_example))?;
    let mut text = figures.to_string();
    for (reason, (count, _)) in &verdict.reasons {
        let _ = write!(text, "; {count} inexact: {reason}");
    }
    Ok(Outcome::Passed(text))
}
