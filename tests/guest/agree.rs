//! The same packets, traced with probes and by the kernel's own TRACE at the same time: the same paths.

use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::agree::{Figures, compare};
use nftracer_tests::compare::is_finished;
use nftracer_tests::lab::{Family, Place, Spread, addresses};
use nftracer_tests::ruleset::HANDWRITTEN;
use nftracer_tests::tracer::{Trace, Tracer};
use nftracer_tests::traffic::{OPEN, Planner, Shot, connection};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::session::Session;
use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "backends_agree", run: backends_agree }];

/// Local and forwarded packets, dropped, translated, and answered from inside a traversal.
const RULESETS: [&str; 3] = ["jumps, gotos, returns", "nat", "REJECT"];
/// Packets of a family that meet a ruleset.
const SHOTS: usize = 16;
/// So few at a time that nothing is lost and little happens at once.
const AT_ONCE: usize = 4;
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Looks without a new row, after which the next packets may come; and after which none will.
const SHORT_SILENCE: u32 = 4;
const LONG_SILENCE: u32 = 700;

fn backends_agree(options: &Options) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    let netns = session.lab.r.name();
    let mut planner = Planner::new(options.seed, 0, 1);
    let probes = Tracer::start(&["--netns", netns, "--backend", "ebpf", "-o", "json"], &[])?;
    let (mut said, mut missed) = (Vec::new(), 0);
    for backend in ["netlink", "log"] {
        let mut total = Figures::default();
        for name in RULESETS {
            let ruleset = HANDWRITTEN.iter().find(|ruleset| ruleset.name == name).context("there is this")?;
            for family in Family::ALL {
                session.load(Place::R, family, &without_trace(&ruleset.text(family)))?;
            }
            let arguments = ["--netns", netns, "--backend", backend, "--mark", "nft", "-o", "json"];
            // A machine whose host has much to do stands still now and then.
            let listener = Tracer::start(&arguments, &[("NFTRACER_PATIENCE_MS", "3000")])?;
            let both = [&probes, &listener];
            both.iter().for_each(|tracer| drop(tracer.take()));
            let mut shots = Family::ALL.map(|family| planner.shots(family, SHOTS)).concat();
            // Whether what is put together on its way is the same packet as its pieces, or as what it was before it
            // was taken apart, rows do not say.
            shots.retain(|shot| shot.packet.fragment.is_none());
            let [first, mut second] = watch(&session, both, &shots)?;
            second.append(listener.stop(Signal::TERM)?.trace);
            let compared = compare(&first, &second)
                .with_context(|| format!("\"{name}\", ebpf and {backend}, seed {}", options.seed))?;
            if options.verbose {
                println!("  {backend}, \"{name}\": {compared}");
            }
            total += compared;
        }
        check(total.doubtful * 50 <= total.packets, format!("too many are in doubt: {total}"))?;
        missed += total.missed;
        said.push(format!("{backend}: {total}"));
    }
    let ended = probes.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{}: {:?}", ended.status, ended.errors))?;
    // Each traversal that was missed has a step at least, and few more.
    let counted = ended.trace.end.map_or(0, |end| end.missed + end.lost);
    let told = || format!("{missed} steps missed, {counted} traversals counted: {}", said.join("; "));
    check(missed == 0 || missed as u64 <= 4 * counted, told())?;
    Ok(Outcome::Passed(said.join("; ")))
}

/// Without the rules that switch TRACE on: the tracer marks packets itself.
fn without_trace(ruleset: &str) -> String {
    let lines = ruleset.lines().filter(|line| !line.ends_with("-j TRACE"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Sends packets and opens connections, little by little. What both told of it.
fn watch(session: &Session, both: [&Tracer; 2], shots: &[Shot]) -> Result<[Trace; 2]> {
    let seen = || both.map(Tracer::seen);
    for shots in shots.chunks(AT_ONCE) {
        session.fire(shots);
        wait::until_steady(SETTLES_WITHIN, SHORT_SILENCE, seen);
    }
    for at in Family::ALL.map(addresses) {
        for (place, to, port) in [(Place::A, at.b, OPEN), (Place::A, at.r_dnat, 80), (Place::R, at.lo, OPEN)]
        {
            connection(session.lab.netns(place), to, port)?;
            wait::until_steady(SETTLES_WITHIN, SHORT_SILENCE, seen);
        }
    }
    let mut traces = [Trace::default(), Trace::default()];
    let (mut last, mut silence) = (seen(), 0);
    let settled = wait::until(SETTLES_WITHIN, || {
        for (trace, tracer) in traces.iter_mut().zip(both) {
            trace.append(tracer.take());
        }
        silence = if seen() == last { silence + 1 } else { 0 };
        last = seen();
        let same = traces[0].steps.len() == traces[1].steps.len();
        let over = silence > SHORT_SILENCE && same || silence > LONG_SILENCE;
        (over && traces.iter().all(is_finished)).then_some(())
    });
    check(settled.is_some(), format!("not settled within {SETTLES_WITHIN:?}"))?;
    Ok(traces)
}
