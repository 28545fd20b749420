//! Rules of nftables that change while packets meet them, and messages that are lost.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nftracer_tests::netns::Netns;
use nftracer_tests::reload::{self, Least, version};
use nftracer_tests::tracer::{Certainty, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Test, check};

pub(crate) const TESTS: &[Test] =
    &[Test { name: "nft_reloaded", run: reloaded }, Test { name: "nft_losses_count", run: losses_count }];

/// How long rules are reloaded, twenty times a second.
const RELOADED_FOR: Duration = Duration::from_secs(10);
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
const DATAGRAMS: u32 = 20_000;

fn reloaded() -> Result<String> {
    let least = Least { reloads: 50, complete: 200, texts: 100 };
    reload::reloaded(&crate::netns("l")?, &["--backend", "netlink", "--mark", "nft"], RELOADED_FOR, &least)
}

/// Where messages are lost, that is counted, and no path of that time is complete.
fn losses_count() -> Result<String> {
    let netns = crate::netns("o")?;
    netns.command("nft", &["-f", "-"], &version(7))?;
    let arguments = ["--backend", "netlink", "--mark", "nft", "--netns", netns.name(), "-o", "json"];
    // Room for few messages.
    let tracer = Tracer::start(&[&arguments[..], &["--buffer", "64K", "udp"]].concat(), &[])?;
    flood(&netns)?;
    wait::until_steady(SETTLES_WITHIN, 200, || tracer.seen());
    let trace = tracer.stop(Signal::INT)?.trace;
    let totals = trace.end.context("no totals")?;
    check(totals.lost > 0 && totals.inexact > 0, format!("too slow for losses: {totals:?}"))?;
    let expected = ["t:out:rule:3", "t:out:policy:4"];
    for packet in trace.packets.values().filter(|packet| packet.certainty == Certainty::Complete) {
        check(packet.path == expected, format!("a complete path lacks steps: {:?}", packet.path))?;
    }
    Ok(format!("{DATAGRAMS} packets, {totals:?}"))
}

fn flood(netns: &Netns) -> Result<()> {
    let socket = netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?))?;
    for _ in 0..DATAGRAMS {
        let _ = socket.send_to(b"flood", "127.0.0.1:4000");
    }
    Ok(())
}
