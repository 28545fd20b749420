//! What a run leaves behind, however it ends: nothing.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::lab::{Family, Place, Spread};
use nftracer_tests::ruleset::HANDWRITTEN;
use nftracer_tests::state::State;
use nftracer_tests::tracer::{self, Tracer};
use nftracer_tests::traffic::Planner;
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::session::Session;
use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "leaves_no_trace", run: leaves_no_trace }];

/// The kernel frees programs and maps some time after their last user is gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Count,
    Duration,
    ClosedPipe,
    Signal(Signal),
}

fn leaves_no_trace(options: &Options) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    for family in Family::ALL {
        let nat = HANDWRITTEN.iter().find(|ruleset| ruleset.name == "nat").context("a ruleset with NAT")?;
        session.load(Place::R, family, &nat.text(family))?;
    }
    let mut planner = Planner::new(options.seed, 0, 1);
    let ends = [
        End::Count,
        End::Duration,
        End::ClosedPipe,
        End::Signal(Signal::INT),
        End::Signal(Signal::TERM),
        End::Signal(Signal::HUP),
        End::Signal(Signal::KILL),
    ];
    let before = State::of(&session.lab.r)?;
    for end in ends {
        let mut fire = || session.fire(&planner.shots(Family::Ipv4, 20));
        run(&session, end, &before, &mut fire).with_context(|| format!("{end:?}"))?;
        let mut differences = Vec::new();
        wait::until(GONE_WITHIN, || {
            differences = before.differences(&State::of(&session.lab.r).ok()?);
            differences.is_empty().then_some(())
        });
        check(differences.is_empty(), format!("after {end:?}:\n{}", differences.join("\n")))?;
    }
    Ok(Outcome::Passed(format!("{} ways to end", ends.len())))
}

fn run(session: &Session, end: End, before: &State, fire: &mut dyn FnMut()) -> Result<()> {
    let netns = session.lab.r.name();
    let mut arguments = vec!["--netns", netns, "-o", "json"];
    match end {
        End::Count => arguments.extend(["-c", "5"]),
        End::Duration => arguments.extend(["--for", "500ms"]),
        End::ClosedPipe => return closed_pipe(&arguments, fire),
        End::Signal(_) => {}
    }
    let tracer = Tracer::start(&arguments, &[])?;
    fire();
    let ended = match end {
        End::Signal(signal) => {
            let differences = before.differences_in_configuration(&State::of(&session.lab.r)?);
            check(differences.is_empty(), format!("while it runs:\n{}", differences.join("\n")))?;
            tracer.stop(signal)?
        }
        _ => tracer.finish(Duration::from_secs(60))?,
    };
    let killed = matches!(end, End::Signal(Signal::KILL | Signal::HUP));
    check(killed || ended.status.code() == Some(0), format!("{}: {:?}", ended.status, ended.errors))
}

/// The reader goes away after a line.
fn closed_pipe(arguments: &[&str], fire: &mut dyn FnMut()) -> Result<()> {
    let mut child = Command::new(tracer::program())
        .arg("trace")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    drop(child.stdout.take());
    // It may take several packets until something is written.
    let status = wait::until(Duration::from_secs(60), || {
        fire();
        child.try_wait().ok().flatten()
    });
    let _ = child.kill();
    let status = status.context("goes on though nobody reads")?;
    check(status.code() == Some(0), format!("a closed pipe ended it with {status}"))
}
