//! What a run leaves behind, however it ends: nothing.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::lab::{Family, Place, Spread};
use nftracer_tests::netns::Netns;
use nftracer_tests::ruleset::HANDWRITTEN;
use nftracer_tests::state::State;
use nftracer_tests::tracer::{self, Tracer};
use nftracer_tests::traffic::Planner;
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::kprobe_session::with_session;
use crate::session::Session;
use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "leaves_no_trace", run: |options| leaves_no_trace(options, &[], &End::ALL) },
    Test {
        name: "session_leaves_no_trace",
        run: |options| with_session(options, |options, way| leaves_no_trace(options, way, &[KILL])),
    },
];

const KILL: End = End::Signal(Signal::KILL);

/// The kernel frees programs and maps some time after their last user is gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// How a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Count,
    Duration,
    ClosedPipe,
    Signal(Signal),
}

fn leaves_no_trace(options: &Options, way: &[&str], ends: &[End]) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    for family in Family::ALL {
        let nat = HANDWRITTEN.iter().find(|ruleset| ruleset.name == "nat").context("a ruleset with NAT")?;
        session.load(Place::R, family, &nat.text(family))?;
    }
    let mut planner = Planner::new(options.seed, 0, 1);
    let before = State::of(&session.lab.r)?;
    for end in ends {
        let mut fire = || session.fire(&planner.shots(Family::Ipv4, 20));
        let changed = end.run(&session.lab.r, way, &before, &mut fire).with_context(|| format!("{end:?}"))?;
        let changed = changed.unwrap_or_default();
        check(changed.is_empty(), format!("{end:?}, while it runs:\n{}", changed.join("\n")))?;
        let mut differences = Vec::new();
        wait::until(GONE_WITHIN, || {
            differences = before.differences(&State::of(&session.lab.r).ok()?);
            differences.is_empty().then_some(())
        });
        check(differences.is_empty(), format!("after {end:?}:\n{}", differences.join("\n")))?;
    }
    Ok(Outcome::Passed(format!("{} ways to end", ends.len())))
}

impl End {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Count,
        Self::Duration,
        Self::ClosedPipe,
        Self::Signal(Signal::INT),
        Self::Signal(Signal::TERM),
        Self::Signal(Signal::HUP),
        Self::Signal(Signal::KILL),
    ];

    /// Runs a tracer in a namespace to this end. Says what differed in rules and settings while it ran, where there
    /// was time to look.
    pub(crate) fn run(
        self,
        netns: &Netns,
        way: &[&str],
        before: &State,
        fire: &mut dyn FnMut(),
    ) -> Result<Option<Vec<String>>> {
        let mut arguments = [&["--netns", netns.name(), "-o", "json"], way].concat();
        match self {
            Self::Count => arguments.extend(["-c", "5"]),
            Self::Duration => arguments.extend(["--for", "500ms"]),
            Self::ClosedPipe => return closed_pipe(&arguments, fire).map(|()| None),
            Self::Signal(_) => {}
        }
        let tracer = Tracer::start(&arguments, &[])?;
        fire();
        let (ended, changed) = match self {
            Self::Signal(signal) => {
                let changed = before.differences_in_configuration(&State::of(netns)?);
                (tracer.stop(signal)?, Some(changed))
            }
            _ => (tracer.finish(Duration::from_secs(60))?, None),
        };
        let killed = matches!(self, Self::Signal(Signal::KILL | Signal::HUP));
        check(killed || ended.status.code() == Some(0), format!("{}: {:?}", ended.status, ended.errors))?;
        Ok(changed)
    }
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
