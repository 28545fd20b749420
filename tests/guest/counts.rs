//! Where not every packet is shown: samples, limits.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::{Certainty, Ended, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Options, Outcome, Test, check, load_modules};

pub(crate) const TESTS: &[Test] = &[Test { name: "sample_and_limit", run: sample_and_limit }];

const SETTLES_WITHIN: Duration = Duration::from_secs(120);
/// Looks without a change, after which nothing more will come.
const SILENCE: u32 = 100;
/// The port of most packets.
const PORT: u16 = 4001;

/// What packets meet in all tests: each sees eight tables, twice one with rules.
const RULES: &str = "\
*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:ours -
-A INPUT -p udp -j ours
-A INPUT -s 192.0.2.0/24 -j DROP
-A OUTPUT -p udp --dport 4002 -m comment --comment second
-A ours -p udp --dport 4002 -j ACCEPT
-A ours -p tcp -j DROP
COMMIT
";

/// A namespace of its own, with rules in its legacy tables.
fn netns() -> Result<Netns> {
    load_modules();
    let netns = Netns::create("counts")?;
    netns.command("iptables-legacy-restore", &[], RULES)?;
    Ok(netns)
}

/// Datagrams over loopback, each received before the next one is sent.
fn send(netns: &Netns, port: u16, count: usize) -> Result<()> {
    netns.enter(|| {
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        to.set_read_timeout(Some(Duration::from_secs(30)))?;
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut buffer = [0; 64];
        for _ in 0..count {
            from.send_to(b"counted", (Ipv4Addr::LOCALHOST, port))?;
            to.recv(&mut buffer).context("a datagram did not come")?;
        }
        Ok(())
    })
}

/// Traces while datagrams are sent, until nothing more is shown.
fn trace(netns: &Netns, options: &[&str], count: usize) -> Result<Ended> {
    let arguments = [&["--netns", netns.name(), "-o", "json"], options, &["udp"]].concat();
    let tracer = Tracer::start(&arguments, &[])?;
    send(netns, PORT, count)?;
    wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.seen());
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{arguments:?}: {}: {:?}", ended.status, ended.errors))?;
    Ok(ended)
}

/// Each packet is shown all its way or counted as left out.
fn sample_and_limit(_: &Options) -> Result<Outcome> {
    const PACKETS: usize = 1_000;
    let netns = netns()?;
    let mut figures = Vec::new();
    for options in [
        &["--sample", "1/4"][..],
        &["--limit", "20/s"],
        &["--sample", "1/2", "--limit", "20/s"],
        &["--sample", "1/4", "--attach", "kprobe"],
    ] {
        let ended = trace(&netns, options, PACKETS)?;
        let totals = ended.trace.end.context("the last row is missing")?;
        let said = format!("{options:?}: {totals:?}");
        let is_asked = |option: &str| options.contains(&option);
        check(totals.sampled_out.is_some() == is_asked("--sample"), &said)?;
        check(totals.limited_out.is_some() == is_asked("--limit"), &said)?;
        let left_out = totals.sampled_out.unwrap_or(0) + totals.limited_out.unwrap_or(0);
        check(totals.packets + left_out == PACKETS as u64, &said)?;
        check(totals.lost + totals.missed > 0 || totals.inexact == 0, &said)?;
        let complete =
            ended.trace.packets.values().filter(|packet| packet.certainty == Certainty::Complete).count();
        check(complete as u64 == totals.packets - totals.inexact, &said)?;
        if is_asked("--limit") {
            check((1..PACKETS as u64 / 2).contains(&totals.packets), &said)?;
        } else {
            // Seven standard deviations.
            check((155..=345).contains(&totals.packets), &said)?;
        }
        figures.push(format!("{} {}", options.join(" "), totals.packets));
    }
    Ok(Outcome::Passed(format!("of {PACKETS} packets shown: {}", figures.join(", "))))
}
