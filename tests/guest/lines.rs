//! `-o trace` against the kernel's log, byte for byte.

use std::borrow::Cow;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nftracer_tests::compare::TRACE_RULES;
use nftracer_tests::kmsg::Kmsg;
use nftracer_tests::lab::{Family, Place, Spread, addresses};
use nftracer_tests::ruleset::HANDWRITTEN;
use nftracer_tests::tracer::Tracer;
use nftracer_tests::traffic::{OPEN, Planner, connection};
use nftracer_tests::wait;
use nftracer_tests::{netns, ruleset};
use rustix::process::Signal;

use crate::session::Session;
use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "lines_byte_exact_ipv4", run: |options| byte_exact(options, Family::Ipv4) },
    Test { name: "lines_byte_exact_ipv6", run: |options| byte_exact(options, Family::Ipv6) },
];

/// Each shows other targets, or names.
const RULESETS: &[&str] = &[
    "jumps, gotos, returns",
    "nat",
    "REJECT",
    "targets that go on",
    "names of builtins, odd names and comments",
];
/// How often the packets of a ruleset are sent again.
const REPEATS: u32 = 4;
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Looks without a new line, after which none will come.
const LONG_SILENCE: u32 = 200;
/// Of so many lines, at most one may have lost its owner to the end of its socket.
const CLOSED_MEANWHILE: usize = 50;
/// The kernel's log holds 256 KiB.
const SHOTS_AT_ONCE: usize = 4;

fn byte_exact(options: &Options, family: Family) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    let kmsg = Kmsg::start(&session.lab.r)?;
    let tracer = Tracer::start(&["--netns", session.lab.r.name(), "-o", "trace"], &[])?;
    let mut watch = Watch { session, kmsg, tracer, planner: Planner::new(options.seed, 0, 1), family };
    let (mut compared, mut others, mut again) = (0, 0, 0);
    for name in RULESETS {
        let ruleset =
            HANDWRITTEN.iter().find(|ruleset| ruleset.name == *name).context("there is this one")?;
        ruleset::load(&watch.session.lab.r, family, &ruleset.text(family))?;
        // Lines may be missing if the tracer says so in the end; then everything is sent once more.
        let mut repeats = 0;
        let told = loop {
            let told = watch.send()?;
            check(!told.kernel.is_empty(), "the kernel printed nothing")?;
            if told.is_equal() || told.has_invented() || repeats == REPEATS {
                break told;
            }
            repeats += 1;
        };
        check(told.is_equal(), format!("\"{name}\"\n{told}"))?;
        compared += told.kernel.len();
        others += told.others;
        again += repeats;
    }
    let ended = watch.tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("ended with {}: {:?}", ended.status, ended.errors))?;
    check(again == 0 || tells_of_a_loss(&ended.errors), format!("lines are missing: {:?}", ended.errors))?;
    let sent_again = if again == 0 { String::new() } else { format!("; {again} sent again after a loss") };
    Ok(Outcome::Passed(format!("{compared} lines equal; {others} of other rules{sent_again}")))
}

/// Both sides of the comparison.
struct Watch {
    session: Session,
    kmsg: Kmsg,
    tracer: Tracer,
    planner: Planner,
    family: Family,
}

/// What they told of the packets of one ruleset, in any order.
#[derive(Default)]
struct Told {
    kernel: Vec<String>,
    tracer: Vec<String>,
    /// Lines of the kernel's that are not compared.
    others: usize,
}

impl Watch {
    /// Sends packets of all kinds through the rules that are loaded.
    fn send(&mut self) -> Result<Told> {
        self.kmsg.take()?;
        self.tracer.take_lines();
        let mut told = Told::default();
        let shots = self.planner.shots(self.family, 60);
        for shots in shots.chunks(SHOTS_AT_ONCE) {
            self.session.fire(shots);
            self.collect(&mut told)?;
        }
        let at = addresses(self.family);
        for (place, to) in [(Place::A, at.b), (Place::R, at.b), (Place::R, at.lo)] {
            let from = self.session.lab.netns(place);
            connection(from, to, OPEN)?;
            datagram_as(from, &SocketAddr::new(to, OPEN).to_string())?;
            self.collect(&mut told)?;
        }
        told.settle();
        Ok(told)
    }

    /// Waits until both sides have told of as much, or nothing more comes.
    fn collect(&mut self, told: &mut Told) -> Result<()> {
        let (mut last, mut silence) = ((0, 0), 0);
        let settled = wait::until(SETTLES_WITHIN, || -> Option<Result<()>> {
            let (lines, lost) = match self.kmsg.take() {
                Ok(taken) => taken,
                Err(error) => return Some(Err(error)),
            };
            if lost > 0 {
                return Some(Err(anyhow!("the kernel's log overwrote {lost} lines")));
            }
            told.add(&lines, &self.tracer.take_lines());
            let now = (told.kernel.len() + told.others, told.tracer.len());
            silence = if now == last { silence + 1 } else { 0 };
            last = now;
            let over = silence >= LONG_SILENCE || silence >= 1 && told.tracer.len() == told.kernel.len();
            over.then_some(Ok(()))
        });
        settled.context("the lines do not end")?
    }
}

impl Told {
    fn add(&mut self, kernel: &[String], tracer: &[String]) {
        let compared = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| is_compared(line)).cloned().collect()
        };
        let theirs = compared(kernel);
        self.others += kernel.len() - theirs.len();
        self.kernel.extend(theirs);
        self.tracer.extend(compared(tracer));
    }

    /// Puts both sides in one order. Where a TCP packet comes in, its socket may be closed between our look at it and
    /// the kernel's: of the few lines that differ in nothing else, the owner is left out.
    fn settle(&mut self) {
        self.kernel.sort_unstable();
        self.tracer.sort_unstable();
        let (kernel, tracer) = (only_in(&self.kernel, &self.tracer), only_in(&self.tracer, &self.kernel));
        if kernel.len() > self.kernel.len() / CLOSED_MEANWHILE {
            return;
        }
        for (lines, places) in [(&mut self.kernel, kernel), (&mut self.tracer, tracer)] {
            for place in places {
                lines[place] = without_owner(&lines[place]).into_owned();
            }
            lines.sort_unstable();
        }
    }

    fn is_equal(&self) -> bool {
        self.kernel == self.tracer
    }

    /// Whether nftracer told of what the kernel did not.
    fn has_invented(&self) -> bool {
        self.tracer.iter().any(|line| self.kernel.binary_search(line).is_err())
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, tracer, .. } = self;
        writeln!(f, "{} lines of the kernel, {} of nftracer", kernel.len(), tracer.len())?;
        for (some, others, who) in
            [(kernel, tracer, "only the kernel "), (tracer, kernel, "only nftracer   ")]
        {
            let missing: Vec<_> = some.iter().filter(|line| others.binary_search(line).is_err()).collect();
            writeln!(f, "{who}({}):", missing.len())?;
            missing.iter().take(6).try_for_each(|line| writeln!(f, "  {line}|"))?;
        }
        Ok(())
    }
}

/// Whether the totals say that something was lost, missed or in doubt.
fn tells_of_a_loss(errors: &[String]) -> bool {
    let figure = |line: &str, word: &str| {
        let at = line.find(&format!(" {word}"))?;
        line[..at].rsplit(' ').next()?.parse::<u64>().ok()
    };
    let words = ["lost", "missed", "inexact"];
    errors.iter().any(|line| words.iter().any(|word| figure(line, word).is_some_and(|count| count > 0)))
}

/// Not the rules that switch TRACE on, not those of LOG, not what the kernel sends on its own account.
fn is_compared(line: &str) -> bool {
    let step = line.strip_prefix("TRACE: ").and_then(|rest| rest.split(" IN=").next()).unwrap_or("");
    // One ruleset has a LOG rule that pretends to be TRACE.
    !TRACE_RULES.contains(&step.trim_end()) && !step.starts_with("raw:FAKE:") && !line.contains(" DST=ff02:")
}

/// Where lines are that the others do not have; both are sorted.
fn only_in(lines: &[String], others: &[String]) -> Vec<usize> {
    let mut others = others.iter().peekable();
    let mut places = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        while others.next_if(|other| *other < line).is_some() {}
        if others.next_if_eq(&line).is_none() {
            places.push(place);
        }
    }
    places
}

/// The line of a TCP packet that comes in, without its socket's owner.
fn without_owner(line: &str) -> Cow<'_, str> {
    let incoming = !line.contains(" IN= ") && line.contains(" PROTO=TCP ");
    let Some((head, owner)) = line.split_once(" UID=").filter(|_| incoming) else { return line.into() };
    // `1234 GID=5678 MARK=0x1 `: what follows the two numbers stays.
    let rest = owner.splitn(3, ' ').nth(2).unwrap_or("");
    format!("{head} {rest}").into()
}

/// Somebody other than root sends a datagram.
fn datagram_as(from: &netns::Netns, to: &str) -> Result<()> {
    from.enter(|| {
        // What the ruleset refuses is no failure.
        Command::new("/proc/self/exe").args(["send-datagram", to]).uid(1234).gid(5678).status()?;
        Ok(())
    })
}

/// What the child does.
pub(crate) fn send_datagram(to: &str) -> ExitCode {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let _ = UdpSocket::bind(any).and_then(|socket| socket.send_to(b"from somebody", to));
    ExitCode::SUCCESS
}
