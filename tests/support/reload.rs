//! Rules of nftables that are replaced all at once, twenty times a second, while packets meet them.

use std::io::Write as _;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::check;
use crate::netns::{self, Netns};
use crate::tracer::{Certainty, Tracer};

/// From one version of the rules to the next.
const PERIOD: Duration = Duration::from_millis(50);

/// Rules, in one line, that say of themselves which version they are, by their text, by the mark that they set, and by the number of
/// rules before them.
pub fn version(number: u32) -> String {
    let filler: String = (0..number % 5).map(|at| format!("udp dport {} counter; ", 100 + at)).collect();
    format!(
        "flush ruleset; table ip t {{ chain out {{ type filter hook output priority 0; policy accept; {filler}\
         meta l4proto udp meta mark set {number}; }}; }}\n"
    )
}

/// All rules are replaced at once, a run's own ones left alone as far as they are owned. One `nft` does it all: starting
/// one takes an emulated machine longer than the time between two versions.
fn reload(netns: &str, lasts: Duration) -> Result<u32> {
    netns::move_here(netns)?;
    let mut nft = Command::new("nft")
        .arg("-i")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start nft")?;
    let mut input = nft.stdin.take().context("its input is piped")?;
    let (mut number, began) = (1, Instant::now());
    while began.elapsed() < lasts {
        number += 1;
        // One that has ended says why.
        if input.write_all(version(number).as_bytes()).is_err() {
            break;
        }
        thread::sleep((PERIOD * (number - 1)).saturating_sub(began.elapsed()));
    }
    drop(input);
    let output = nft.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    // Without a terminal it complains of that as well.
    let is_well = output.status.success() && !complaint.contains("Error:");
    check(is_well, format!("nft: {}: {complaint}", output.status))?;
    let last = format!("meta mark set 0x{number:08x}");
    let loaded = netns::run("nft", &["list", "ruleset"], "")?;
    check(loaded.contains(&last), format!("not {last}, but {loaded}"))?;
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
    let began = Instant::now();
    let (reloads, sent, took) = thread::scope(|scope| -> Result<(u32, u32, Duration)> {
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u32>>| {
            thread.join().unwrap_or_else(|_| bail!("a thread failed"))
        };
        let sender = scope.spawn(|| send(&name, &stop));
        let reloads = join(scope.spawn(|| reload(&name, lasts)));
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        Ok((reloads?, join(sender)?, took))
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
        "{reloads} reloads in {took:.1?}, {sent} packets sent, {} shown, {inexact} inexact, {complete} steps of complete ones, \
         {texts} texts",
        trace.packets.len()
    );
    check(reloads >= least.reloads && complete >= least.complete && texts >= least.texts, said.clone())?;
    Ok(said)
}
