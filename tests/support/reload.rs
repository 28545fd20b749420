//! Rules of nftables that are replaced all at once, twenty times a second, while packets meet them.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::netns::{self, Netns};
use crate::tracer::{Certainty, Tracer};
use crate::{check, wait};

/// Rules that say of themselves which version they are, by their text, by the mark that they set, and by the number of
/// rules before them.
pub fn version(number: u32) -> String {
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

/// How much has to happen at least.
pub struct Least {
    /// Rules are replaced so often.
    pub reloads: u32,
    /// Steps of complete paths.
    pub complete: u64,
    /// Steps with a text.
    pub texts: u64,
}

/// Traces with these arguments for a while. No text is that of another version of the rules than the packet met.
pub fn reloaded(netns: &Netns, way: &[&str], lasts: Duration, least: &Least) -> Result<String> {
    netns.command("nft", &["-f", "-"], &version(1))?;
    let tracer = Tracer::start(&[way, &["--netns", netns.name(), "-o", "json", "udp"]].concat(), &[])?;
    let (stop, name) = (AtomicBool::new(false), netns.name().to_owned());
    let (reloads, sent) = thread::scope(|scope| -> Result<(u32, u32)> {
        let reloads = scope.spawn(|| reload(&name, &stop));
        let sender = scope.spawn(|| send(&name, &stop));
        let end = Instant::now() + lasts;
        wait::until(lasts, || (reloads.is_finished() || Instant::now() >= end).then_some(()));
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
    check(reloads >= least.reloads && complete >= least.complete && texts >= least.texts, said.clone())?;
    Ok(said)
}
