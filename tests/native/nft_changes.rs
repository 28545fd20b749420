//! Rules of nftables that change while packets meet them, and messages that are lost.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nftracer_tests::netns::{self, Netns};
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

/// Rules that say of themselves which version they are, by their text, by the mark that they set, and by the number of
/// rules before them.
fn version(number: u32) -> String {
    let filler: String = (0..number % 5).map(|at| format!("udp dport {} counter;\n", 100 + at)).collect();
    format!(
        "flush ruleset\ntable ip t {{\nchain out {{\ntype filter hook output priority 0; policy accept;\n{filler}\
         meta l4proto udp meta mark set {number}\n}}\n}}\n"
    )
}

/// All rules are replaced at once, a run's own ones left alone as far as they are owned.
fn reload(netns: &str, stop: &AtomicBool) -> Result<u32> {
    netns::move_here(netns)?;
    let mut number = 1;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let began = Instant::now();
        netns::run("nft", &["-f", "-"], &version(number))?;
        thread::sleep(Duration::from_millis(50).saturating_sub(began.elapsed()));
    }
    Ok(number)
}

fn send(netns: &str, stop: &AtomicBool) -> Result<u32> {
    netns::move_here(netns)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        // Nobody listens, and the socket is told.
        let _ = socket.send_to(b"x", "127.0.0.1:4000");
        sent += 1;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

fn reloaded() -> Result<String> {
    let netns = crate::netns("l")?;
    netns.command("nft", &["-f", "-"], &version(1))?;
    let arguments = ["--backend", "netlink", "--mark", "nft", "--netns", netns.name(), "-o", "json", "udp"];
    let tracer = Tracer::start(&arguments, &[])?;
    let (stop, name) = (AtomicBool::new(false), netns.name().to_owned());
    let (reloads, sent) = thread::scope(|scope| -> Result<(u32, u32)> {
        let reloads = scope.spawn(|| reload(&name, &stop));
        let sender = scope.spawn(|| send(&name, &stop));
        let end = Instant::now() + RELOADED_FOR;
        wait::until(RELOADED_FOR, || (reloads.is_finished() || Instant::now() >= end).then_some(()));
        stop.store(true, Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u32>>| {
            thread.join().unwrap_or_else(|_| bail!("a thread failed"))
        };
        Ok((join(reloads)?, join(sender)?))
    })?;
    let ended = tracer.stop(Signal::INT)?;
    let trace = ended.trace;
    check(ended.status.code() == Some(0) && trace.odd.is_empty(), ended.errors.join("\n"))?;
    let (mut texts, mut complete) = (0, 0);
    for step in trace.steps.iter().filter(|step| step.step.starts_with("t:out:rule:")) {
        let certainty = trace.packets.get(&step.packet).map(|packet| packet.certainty);
        let said = step.text.as_deref().map(|text| {
            let digits = text.split("mark set 0x").nth(1).and_then(|rest| rest.get(..8));
            digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).context(text.to_owned())
        });
        if let Some(said) = said.transpose()? {
            // Whatever the stamp: a text is that of the rule that was met, or there is none.
            check(said == step.mark, format!("{} {:?} set the mark to {}", step.step, step.text, step.mark))?;
            texts += 1;
        }
        if certainty == Some(Certainty::Complete) {
            complete += 1;
            let number = step.mark % 5 + 1;
            check(step.step == format!("t:out:rule:{number}"), format!("{} set {}", step.step, step.mark))?;
        }
    }
    let inexact = trace.packets.values().filter(|packet| packet.certainty == Certainty::Inexact).count();
    let said = format!(
        "{reloads} reloads, {sent} packets sent, {} shown, {inexact} inexact, {complete} steps of complete ones, \
         {texts} texts",
        trace.packets.len()
    );
    check(reloads > 50 && complete > 200 && texts > 100, said.clone())?;
    Ok(said)
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
