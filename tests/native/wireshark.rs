//! What `-w x.pcapng` writes, as tshark shows it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nftracer_tests::lab::Family;
use nftracer_tests::netns::{Netns, run};
use nftracer_tests::ruleset;
use nftracer_tests::tracer::{Step, Trace, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "wireshark_shows_paths", run: shows_paths }];

/// Sent to a port with a rule, and to one without.
const PACKETS: usize = 12;
/// Nothing that tshark knows has it.
const OTHER: u16 = 40_001;
const SOON: Duration = Duration::from_secs(30);

/// What tshark is asked for of each frame.
const FIELDS: [&str; 6] =
    ["frame.comment", "ip.src", "ipv6.src", "udp.dstport", "frame.interface_name", "_ws.malformed"];

/// tshark reads the file, knows every packet for what it is, and shows its path as its comment.
fn shows_paths() -> Result<String> {
    let netns = crate::netns("w")?;
    for family in Family::ALL {
        let rules = "*filter\n-A INPUT -p udp -m udp --dport 9 -m comment --comment \"no discard, 1 > 0\" -j DROP\nCOMMIT\n";
        ruleset::load(&netns, family, rules)?;
    }
    let file = env::temp_dir().join(format!("nftracer-native-{}.pcapng", std::process::id()));
    let traced = traced(&netns, &file.display().to_string());
    let shown = traced.and_then(|trace| {
        let mut arguments = vec!["-n", "-r", file.to_str().context("a path")?, "-T", "json"];
        arguments.extend(FIELDS.iter().flat_map(|field| ["-e", field]));
        Ok((trace, run("tshark", &arguments, "")?))
    });
    fs::remove_file(&file)?;
    let (trace, shown) = shown?;
    compare(&trace, &serde_json::from_str(&shown)?)
}

/// Traces packets of both families into a file.
fn traced(netns: &Netns, file: &str) -> Result<Trace> {
    let arguments = ["--netns", netns.name(), "--backend", "netlink", "-w", file, "-o", "json", "udp"];
    let tracer = Tracer::start(&arguments, &[])?;
    netns.enter(|| {
        for address in ["127.0.0.1", "::1"] {
            let socket = UdpSocket::bind((address, 0))?;
            for number in 0..PACKETS {
                // Nobody listens: an ICMP error may come back instead of a word that it was sent.
                let _ = socket.send_to(b"path", (address, if number % 2 == 0 { 9 } else { OTHER }));
            }
        }
        Ok(())
    })?;
    wait::until(SOON, || (tracer.look(|trace| trace.packets.len()) >= 2 * PACKETS).then_some(()));
    let ended = tracer.stop(Signal::INT)?;
    let named = |step: &Step| step.netns_name.as_deref() == Some(netns.name());
    check(ended.trace.steps.iter().all(named), "the namespace has another name, or none")?;
    let totals = ended.trace.end.context("no totals")?;
    check(totals.packets == 2 * u64::try_from(PACKETS)?, format!("{totals:?}: {:?}", ended.errors))?;
    Ok(ended.trace)
}

/// Holds the frames against the packets of the trace.
fn compare(trace: &Trace, frames: &Value) -> Result<String> {
    let frames = frames.as_array().context("tshark shows no list")?;
    check(
        frames.len() == trace.packets.len(),
        format!("{} packets were traced, tshark shows {}", trace.packets.len(), frames.len()),
    )?;
    // How often each: packets of this test differ by address, port and path alone.
    let mut expected = BTreeMap::<(String, String, Vec<String>), i32>::new();
    for (number, packet) in &trace.packets {
        let mut steps = trace.steps.iter().filter(|step| step.packet == *number);
        let first = steps.next().context("a packet without steps")?;
        let (src, port) = (first.identity.src.to_string(), first.identity.ports[1].to_string());
        *expected.entry((src, port, packet.path.clone())).or_default() += 1;
    }
    let mut lines = 0;
    for frame in frames {
        let layers = &frame["_source"]["layers"];
        let field = |name: &str| layers[name][0].as_str().map(str::to_owned);
        check(field("_ws.malformed").is_none(), format!("tshark takes it for damaged: {layers}"))?;
        let comment = field("frame.comment").with_context(|| format!("no comment: {layers}"))?;
        let (path, end) = comment.rsplit_once('\n').with_context(|| format!("not a path: {comment:?}"))?;
        check(end.starts_with("= "), format!("no end: {comment:?}"))?;
        let path: Vec<String> =
            path.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect();
        lines += path.len();
        let dropped = comment.contains("filter:INPUT:rule:1 drop  -A INPUT -p udp");
        check(dropped == end.starts_with("= drop"), format!("another end than its path's: {comment:?}"))?;
        let src = field("ip.src").or_else(|| field("ipv6.src")).context("no address")?;
        let port = field("udp.dstport").context("no port")?;
        check(field("frame.interface_name").as_deref() == Some("lo"), format!("not of lo: {layers}"))?;
        let left = expected.get_mut(&(src, port, path)).with_context(|| format!("not traced: {layers}"))?;
        *left -= 1;
        check(*left >= 0, format!("shown too often: {layers}"))?;
    }
    Ok(format!("{} packets with {lines} steps", frames.len()))
}
