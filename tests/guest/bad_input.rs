//! What cannot be done, and what goes wrong meanwhile.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nftracer_tests::lab::{Family, Place, Spread};
use nftracer_tests::ruleset::HANDWRITTEN;
use nftracer_tests::tracer::{self, Ended, Tracer};
use nftracer_tests::traffic::Planner;
use rustix::process::Signal;

use crate::session::Session;
use crate::{Options, Outcome, Test, check};

/// In a guest that has loaded no module of legacy tables yet.
pub(crate) const FIRST: &[Test] = &[Test { name: "missing_modules", run: missing_modules }];

pub(crate) const TESTS: &[Test] = &[
    Test { name: "unknown_namespace", run: unknown_namespace },
    Test { name: "wrong_usage", run: wrong_usage },
    Test { name: "no_privileges", run: no_privileges },
    Test { name: "tables_vanish", run: tables_vanish },
    Test { name: "namespace_vanishes", run: namespace_vanishes },
];

const ENDS_WITHIN: Duration = Duration::from_secs(180);

fn missing_modules(_: &Options) -> Result<Outcome> {
    let loaded = || fs::read_to_string("/proc/modules").unwrap_or_default().contains("ip_tables ");
    if loaded() {
        return Ok(Outcome::Skipped("the tables' modules are loaded already".to_owned()));
    }
    let ended = tracer::run(&["trace", "--for", "100ms"], &[])?;
    expect(&ended, &[3], &["ipt_do_table", "nft_do_chain", "iptables-legacy"])?;
    check(!loaded(), "it loaded a module")?;
    Ok(Outcome::Passed(ended.errors.join(" / ")))
}

fn unknown_namespace(_: &Options) -> Result<Outcome> {
    let mut said = Vec::new();
    for name in ["nosuchspace", "/run/netns/nosuchspace", "4194303"] {
        let ended = tracer::run(&["trace", "--netns", name], &[])?;
        expect(&ended, &[1, 3], &[name])?;
        said.extend(ended.errors);
    }
    Ok(Outcome::Passed(said.join(" / ")))
}

fn wrong_usage(_: &Options) -> Result<Outcome> {
    let wrong: &[&[&str]] = &[
        &["trace", "tcp", "and"],
        &["trace", "host", "300.1.1.1"],
        &["trace", "port", "70000"],
        &["trace", "(", "udp"],
        &["trace", "-c", "0"],
        &["trace", "--for", "soon"],
        &["trace", "-o", "xml"],
        &["trace", "--netns", "a", "--all-netns"],
        &["trace", "--nosuch"],
        &["nosuch"],
        &[],
    ];
    for arguments in wrong {
        let ended = tracer::run(arguments, &[])?;
        expect(&ended, &[2], &[])?;
        check(!ended.errors.is_empty(), format!("{arguments:?}: not a word on standard error"))?;
    }
    Ok(Outcome::Passed(format!("{} wrong command lines", wrong.len())))
}

fn no_privileges(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    let mut command = Command::new(tracer::program());
    command.args(["trace", "--for", "100ms"]).uid(65534).gid(65534);
    let ended = Tracer::spawn_command(command)?.finish(ENDS_WITHIN)?;
    expect(&ended, &[3], &[])?;
    let said = ended.errors.join(" / ");
    check(said.contains("CAP_") || said.contains("root"), format!("names no remedy: {said}"))?;
    Ok(Outcome::Passed(said))
}

/// All rules go, then come back, while packets fly.
fn tables_vanish(options: &Options) -> Result<Outcome> {
    let mut session = Session::new(&[Place::R], Spread::SameCpu)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    session.trace()?;
    let mut total = nftracer_tests::compare::Verdict::default();
    for round in 0..4 {
        let family = Family::ALL[round % 2];
        let ruleset = &HANDWRITTEN[round % HANDWRITTEN.len()];
        session.load(Place::R, family, &ruleset.text(family))?;
        session.fire(&planner.shots(family, 20));
        total.add(session.judge()?);
        // Without TRACE the kernel is silent, and nftracer need not be.
        session.lab.r.clear_rules()?;
        session.fire(&planner.shots(family, 20));
        session.discard()?;
    }
    session.end(&mut total)?;
    check(total.wrong.is_empty(), format!("{:?}", total.wrong.first()))?;
    Ok(Outcome::Passed(total.figures.to_string()))
}

fn namespace_vanishes(options: &Options) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    let ruleset = &HANDWRITTEN[1];
    session.load(Place::R, Family::Ipv4, &ruleset.text(Family::Ipv4))?;
    let tracer = Tracer::start(&["--netns", session.lab.r.name(), "-o", "json"], &[])?;
    session.fire(&Planner::new(options.seed, 0, 1).shots(Family::Ipv4, 20));
    drop(session);
    let ended = tracer.stop(Signal::TERM)?;
    expect(&ended, &[0, 1], &[])?;
    check(ended.trace.end.is_some(), format!("no totals: {:?}", ended.errors))?;
    Ok(Outcome::Passed(format!("{:?}", ended.trace.end.unwrap_or_default())))
}

fn expect(ended: &Ended, codes: &[i32], words: &[&str]) -> Result<()> {
    let said = ended.errors.join("\n");
    let code = ended.status.code().unwrap_or(-1);
    check(codes.contains(&code), format!("status {}, expected {codes:?}: {said}", ended.status))?;
    check(!said.contains("panicked"), format!("panicked: {said}"))?;
    for word in words {
        check(said.contains(word), format!("does not name {word}: {said}"))?;
    }
    Ok(())
}
