//! `-o trace` against the kernel's log, byte for byte.

use std::borrow::Cow;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use nftracer_tests::compare::TRACE_RULES;
use nftracer_tests::kmsg::Kmsg;
use nftracer_tests::lab::{Family, Spread, addresses};
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

const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// The kernel's log holds 256 KiB.
const SHOTS_AT_ONCE: usize = 4;

fn byte_exact(options: &Options, family: Family) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    let mut kmsg = Kmsg::start(&session.lab.r)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let wanted = [
        "jumps, gotos, returns",
        "nat",
        "REJECT",
        "targets that go on",
        "names of builtins, odd names and comments",
    ];
    let (mut lines, mut skipped) = (0, 0);
    let rulesets =
        wanted.iter().flat_map(|name| HANDWRITTEN.iter().filter(move |ruleset| ruleset.name == *name));
    let mut left: Vec<_> = rulesets.map(|ruleset| (ruleset, 0)).collect();
    while let Some((ruleset, repeats)) = left.pop() {
        let name = ruleset.name;
        ruleset::load(&session.lab.r, family, &ruleset.text(family))?;
        let tracer = Tracer::start(&["--netns", session.lab.r.name(), "-o", "trace"], &[])?;
        let (mut kernel, mut lost) = kmsg.take()?;
        kernel.clear();
        let mut collect = |kmsg: &mut Kmsg, tracer: &Tracer| -> Result<()> {
            let limit = SETTLES_WITHIN;
            wait::until(limit, || {
                let (lines, overwritten) = kmsg.take().ok()?;
                let quiet = lines.is_empty();
                kernel.extend(lines);
                lost += overwritten;
                let expected = kernel.iter().filter(|line| is_compared(line)).count();
                (quiet && tracer.lines() >= expected).then_some(())
            });
            Ok(())
        };
        for shots in planner.shots(family, 60).chunks(SHOTS_AT_ONCE) {
            session.fire(shots);
            collect(&mut kmsg, &tracer)?;
        }
        let at = addresses(family);
        for (from, to) in [(&session.lab.a, at.b), (&session.lab.r, at.b), (&session.lab.r, at.lo)] {
            connection(from, to, OPEN)?;
            datagram_as(from, &format!("{}", std::net::SocketAddr::new(to, OPEN)))?;
            collect(&mut kmsg, &tracer)?;
        }
        let ended = tracer.stop(Signal::TERM)?;
        check(ended.status.success(), format!("ended with {}: {:?}", ended.status, ended.errors))?;
        check(lost == 0, format!("the kernel's log overwrote {lost} lines"))?;
        let mut theirs: Vec<_> =
            kernel.iter().filter(|line| is_compared(line)).map(|line| as_compared(line)).collect();
        let mut ours: Vec<_> =
            ended.lines.iter().filter(|line| is_compared(line)).map(|line| as_compared(line)).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        check(!theirs.is_empty(), "the kernel printed nothing")?;
        lines += theirs.len();
        skipped += kernel.len() - theirs.len();
        // Lines may be missing if the tracer says so; then everything is sent once more.
        let invented = ours.iter().any(|line| !theirs.contains(line));
        if theirs != ours && !invented && tells_of_a_loss(&ended.errors) && repeats < 2 {
            left.push((ruleset, repeats + 1));
            continue;
        }
        let told = ended.errors.join("\n");
        check(theirs == ours, format!("\"{name}\"\n{}{told}", difference(&theirs, &ours)))?;
    }
    Ok(Outcome::Passed(format!("{lines} lines equal; {skipped} of other rules")))
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

/// Without the owner where a reset comes in: its socket may be closed between our look at it and the kernel's.
fn as_compared(line: &str) -> Cow<'_, str> {
    let incoming = !line.contains(" IN= ") && line.contains(" RST ");
    let Some((head, owner)) = line.split_once(" UID=").filter(|_| incoming) else { return line.into() };
    // `1234 GID=5678 MARK=0x1 `: what follows the two numbers stays.
    let rest = owner.splitn(3, ' ').nth(2).unwrap_or("");
    format!("{head} {rest}").into()
}

fn difference(kernel: &[Cow<'_, str>], tracer: &[Cow<'_, str>]) -> String {
    let missing: Vec<_> = kernel.iter().filter(|line| !tracer.contains(line)).collect();
    let invented: Vec<_> = tracer.iter().filter(|line| !kernel.contains(line)).collect();
    let mut text = format!("{} lines of the kernel, {} of nftracer\n", kernel.len(), tracer.len());
    for (lines, who) in [(&missing, "only the kernel "), (&invented, "only nftracer   ")] {
        text += &format!("{who}({}):\n", lines.len());
        lines.iter().take(6).for_each(|line| text += &format!("  {line}|\n"));
    }
    text
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
