//! Options, totals, large tables, a full ring.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::compare::Verdict;
use nftracer_tests::lab::{Family, Place, Spread};
use nftracer_tests::netns::{Netns, run};
use nftracer_tests::ruleset::HANDWRITTEN;
use nftracer_tests::tracer::{Step, Trace, Tracer};
use nftracer_tests::traffic::Planner;
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::session::Session;
use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "count_and_duration", run: count_and_duration },
    Test { name: "filtered", run: filtered },
    Test { name: "large_table", run: large_table },
    Test { name: "ring_full", run: ring_full },
    Test { name: "namespaces_have_names", run: namespaces_have_names },
    Test { name: "containers_have_names", run: containers_have_names },
];

const ENDS_WITHIN: Duration = Duration::from_secs(180);

fn simple_rules(session: &Session) -> Result<()> {
    let ruleset = HANDWRITTEN.first().context("there are rulesets")?;
    Family::ALL.iter().try_for_each(|family| session.load(Place::R, *family, &ruleset.text(*family)))
}

fn count_and_duration(options: &Options) -> Result<Outcome> {
    let session = Session::new(&[], Spread::SameCpu)?;
    simple_rules(&session)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let netns = session.lab.r.name();
    for count in ["1", "7"] {
        let mut tracer = Tracer::start(&["--netns", netns, "-o", "json", "-c", count], &[])?;
        wait::until(ENDS_WITHIN, || {
            session.fire(&planner.shots(Family::Ipv4, 3));
            tracer.has_ended().then_some(())
        });
        let ended = tracer.finish(ENDS_WITHIN)?;
        let packets = ended.trace.packets.len();
        check(ended.status.code() == Some(0), format!("-c {count}: {}", ended.status))?;
        check(packets.to_string() == count, format!("-c {count} gave {packets} packets"))?;
        check(ended.trace.started, "the first row is not that of the start")?;
        let totals = ended.trace.end.context("the last row is missing")?;
        check(totals.packets.to_string() == count, format!("-c {count}: {totals:?}"))?;
    }
    let tracer = Tracer::start(&["--netns", netns, "-o", "json", "--for", "300ms"], &[])?;
    let ended = tracer.finish(ENDS_WITHIN)?;
    check(ended.status.code() == Some(0), format!("--for: {}", ended.status))?;
    check(ended.trace.end.is_some(), "--for: the last row is missing")?;
    Ok(Outcome::Passed("1 packet, 7 packets, 300 ms".to_owned()))
}

/// Only packets that the filter wants, and each of them.
fn filtered(options: &Options) -> Result<Outcome> {
    let mut session = Session::new(&[Place::R], Spread::SameCpu)?;
    simple_rules(&session)?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let netns = session.lab.r.name().to_owned();
    let mut figures = Vec::new();
    for (filter, protocol, port) in
        [("udp dst port 4000", 17, Some(4000)), ("icmp", 1, None), ("tcp", 6, None)]
    {
        session.trace_with(&["--netns", &netns, "-o", "json", filter])?;
        session.fire(&planner.shots(Family::Ipv4, 120));
        let wanted = |packet: &nftracer_tests::packet::Identity| {
            packet.protocol == protocol && port.is_none_or(|port| packet.ports[1] == port)
        };
        let (rows, trace) = session.settle_for(&wanted)?;
        let stray = trace.steps.iter().find(|step| !wanted(&step.identity));
        check(stray.is_none(), format!("\"{filter}\" gave {stray:?}"))?;
        let verdict = nftracer_tests::compare::compare(&rows, &trace, &[session.lab.r.inode()], 0);
        check(verdict.wrong.is_empty(), format!("\"{filter}\": {:?}", verdict.wrong.first()))?;
        check(
            verdict.figures.packets > 0 && verdict.figures.unseen * 100 <= verdict.figures.traversals,
            format!("\"{filter}\": {}", verdict.figures),
        )?;
        figures.push(format!("\"{filter}\": {} packets", verdict.figures.packets));
        session.end(&mut Verdict::default())?;
    }
    Ok(Outcome::Passed(figures.join(", ")))
}

/// The largest table that has to work.
fn large_table(options: &Options) -> Result<Outcome> {
    const RULES: usize = 32_768;
    let mut session = Session::new(&[Place::R], Spread::SameCpu)?;
    let mut rules = String::from("*raw\n-A PREROUTING -j TRACE\n-A OUTPUT -j TRACE\nCOMMIT\n*filter\n");
    // Each skips what the tests send; the last does not.
    for number in 0..RULES {
        let [_, _, high, low] = u32::try_from(number)?.to_be_bytes();
        rules += &format!("-A FORWARD -s 198.18.{high}.{low}/32\n");
    }
    rules += "-A FORWARD -p udp -j ACCEPT\nCOMMIT\n";
    session.load(Place::R, Family::Ipv4, &rules)?;
    session.trace()?;
    session.fire(&Planner::new(options.seed, 0, 1).shots(Family::Ipv4, 40));
    let mut verdict = session.judge()?;
    session.end(&mut verdict)?;
    check(verdict.wrong.is_empty(), format!("{:?}", verdict.wrong.first()))?;
    check(verdict.figures.packets > 0 && verdict.figures.inexact == 0, verdict.figures.to_string())?;
    Ok(Outcome::Passed(format!("{RULES} rules; {}", verdict.figures)))
}

/// Too small a ring loses packets, says so, and what is told is still right.
fn ring_full(options: &Options) -> Result<Outcome> {
    let mut session = Session::new(&[Place::R], Spread::SameCpu)?;
    simple_rules(&session)?;
    let netns = session.lab.r.name().to_owned();
    session.trace_with(&["--netns", &netns, "-o", "json", "--buffer", "4K"])?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut verdict = Verdict::default();
    for _ in 0..4 {
        session.fire(&planner.shots(Family::Ipv4, 250));
        verdict.add(session.judge()?);
    }
    let totals = session.end(&mut verdict)?;
    check(verdict.wrong.is_empty(), format!("{:?}", verdict.wrong.first()))?;
    check(totals.lost > 0, format!("nothing lost in a ring of one page: {totals:?}, {}", verdict.figures))?;
    Ok(Outcome::Passed(format!("{}; {totals:?}", verdict.figures)))
}

/// Namespaces that are made while all are traced have their names, and devices those that they have there.
fn namespaces_have_names(_: &Options) -> Result<Outcome> {
    const PORT: u16 = 4444;
    crate::load_modules();
    let tracer = Tracer::start(&["--all-netns", "-o", "json", "udp", "dst", "port", "4444"], &[])?;
    let made = ["nft-wan", "nft-lan"].map(|name| (name, Netns::create(name)));
    let mut all = Vec::new();
    for (name, netns) in made {
        let (netns, device) = (netns?, &name[4..]);
        netns.clear_rules()?;
        netns.command("ip", &["link", "add", device, "type", "veth", "peer", "name", "peer"], "")?;
        netns.command("ip", &["address", "add", "10.9.0.1/24", "dev", device], "")?;
        for device in [device, "peer"] {
            netns.command("ip", &["link", "set", device, "up"], "")?;
        }
        netns.enter(|| Ok(UdpSocket::bind("10.9.0.1:0")?.send_to(b"here", ("10.9.0.2", PORT))?))?;
        all.push((netns, device));
    }
    let came = |trace: &Trace| {
        all.iter().all(|(netns, _)| trace.steps.iter().any(|step| step.netns == netns.inode()))
    };
    wait::until(ENDS_WITHIN, || tracer.look(came).then_some(()));
    let ended = tracer.stop(Signal::TERM)?;
    for (netns, device) in &all {
        let mut steps = ended.trace.steps.iter().filter(|step| step.netns == netns.inode()).peekable();
        check(steps.peek().is_some(), format!("nothing of {}: {:?}", netns.name(), ended.errors))?;
        let is_right = |step: &Step| {
            step.netns_name.as_deref() == Some(netns.name()) && step.devices[1].as_deref() == Some(*device)
        };
        let wrong = steps.find(|step| !is_right(step));
        check(wrong.is_none(), format!("of {}: {wrong:?}", netns.name()))?;
    }
    Ok(Outcome::Passed(format!("{} steps", ended.trace.steps.len())))
}

/// A namespace whose process is in a container's cgroup is that container's, by the name that Docker's file has.
fn containers_have_names(_: &Options) -> Result<Outcome> {
    const ID: &str = "3f4e8f1b2c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5";
    const CGROUPS: &str = "/run/cgroups-of-test";
    crate::load_modules();
    let netns = Netns::create("nft-web")?;
    netns.clear_rules()?;
    fs::create_dir_all(CGROUPS)?;
    run("mount", &["-t", "cgroup2", "none", CGROUPS], "")?;
    let (cgroup, files) = (format!("{CGROUPS}/docker/{ID}"), format!("/var/lib/docker/containers/{ID}"));
    fs::create_dir_all(&cgroup)?;
    fs::create_dir_all(&files)?;
    fs::write(format!("{files}/config.v2.json"), format!(r#"{{"ID":"{ID}","Name":"/web"}}"#))?;
    let mut process = Command::new("ip").args(["netns", "exec", netns.name(), "sleep", "600"]).spawn()?;
    let said = fs::write(format!("{cgroup}/cgroup.procs"), process.id().to_string())
        .map_err(Into::into)
        .and_then(|()| said_of(&netns));
    process.kill()?;
    process.wait()?;
    fs::remove_dir_all(&files)?;
    fs::remove_dir(&cgroup)?;
    run("umount", &[CGROUPS], "")?;
    let said = said?;
    let expected = format!("netns {} (nft-web, container web (docker 3f4e8f1b2c6d)) packet 1", netns.inode());
    check(said.contains(&expected), format!("not \"{expected}\":\n{said}"))?;
    Ok(Outcome::Passed(expected))
}

/// What is said of one packet, in words.
fn said_of(netns: &Netns) -> Result<String> {
    let tracer = Tracer::start(&["--netns", netns.name(), "-c", "1", "udp"], &[])?;
    netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?.send_to(b"here", "127.0.0.1:9")?))?;
    Ok(tracer.finish(ENDS_WITHIN)?.lines.join("\n"))
}
