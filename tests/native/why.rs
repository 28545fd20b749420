//! What is said of packets that do not get through.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nftracer_tests::faults::FAULTS;
use nftracer_tests::lab::{Family, Lab, Place, Spread, addresses};
use nftracer_tests::netns::Netns;
use nftracer_tests::packet::{Packet, Transport};
use nftracer_tests::ruleset;
use nftracer_tests::tracer::Tracer;
use nftracer_tests::traffic::{Senders, Shot};
use serde_json::{Value, json};

use crate::{Test, check};

pub(crate) const TESTS: &[Test] =
    &[Test { name: "why_netlink", run: netlink }, Test { name: "why_passed", run: passed }];

const ENDS_WITHIN: Duration = Duration::from_secs(60);

fn netlink() -> Result<String> {
    let lab = Lab::build(&format!("nftn{}w", std::process::id()), Spread::SameCpu)?;
    let senders = Senders::open(&lab)?;
    lab.all().into_iter().try_for_each(Netns::clear_rules)?;
    for (fault, number) in FAULTS.iter().zip(0..) {
        fault.examine(&lab, &senders, number, &["--backend", "netlink", "--mark", "nft"])?;
    }
    Ok(format!("{} faults", FAULTS.len()))
}

/// Of a packet that passed a rule it is said by which condition, of one that matched nothing.
fn passed() -> Result<String> {
    const RULE: &str = "-A FORWARD -s 10.0.1.0/24 -p udp -m udp --dport 443 -j ACCEPT";
    let lab = Lab::build(&format!("nftn{}p", std::process::id()), Spread::SameCpu)?;
    let senders = Senders::open(&lab)?;
    lab.r.clear_rules()?;
    ruleset::load(&lab.r, Family::Ipv4, &format!("*filter\n{RULE}\nCOMMIT\n"))?;
    let arguments = ["--netns", lab.r.name(), "--backend", "netlink", "-o", "json", "-c", "3"];
    let explain = ["--explain", "filter:FORWARD:1", "udp"];
    let tracer = Tracer::start(&[arguments.as_slice(), &explain].concat(), &[])?;
    let at = addresses(Family::Ipv4);
    for (src, dport) in [(at.a, 443), (at.a, 80), (at.b, 443)] {
        let from = if src == at.a { Place::A } else { Place::B };
        let dst = if src == at.a { at.b } else { at.a };
        let transport = Transport::Udp { sport: 20_000, dport };
        let packet = Packet { src, dst, transport, payload: 8, id: dport, tos: 0, fragment: None };
        senders.fire(&Shot { from, packet });
    }
    let ended = tracer.finish(ENDS_WITHIN)?;
    let rows: Vec<Value> =
        ended.lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
    let failed: Vec<&Value> = rows.iter().map(|row| &row["failed"]).collect();
    let expected = [
        json!([{"condition": "--dport 443", "value": "80"}]),
        json!([{"condition": "-s 10.0.1.0/24", "value": "10.0.2.2"}]),
    ];
    check(failed.iter().copied().eq(&expected), format!("{rows:?}: {:?}", ended.errors))?;
    check(rows.iter().all(|row| row["text"] == RULE && row["step"] == "filter:FORWARD:rule:1"), "the rule")?;
    let end = ended.trace.end.context("no totals")?;
    check(end.packets == 3 && end.inexact == 0, format!("{end:?}"))?;
    Ok(format!("{} packets passed a rule, one matched it", rows.len()))
}
