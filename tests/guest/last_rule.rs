//! `--last-rule`: the rule that dropped a packet, and never another one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nftracer_tests::lab::{Family, Lab, Place, Spread};
use nftracer_tests::netns;
use nftracer_tests::packet::{self, Identity, Transport, protocol};
use nftracer_tests::tracer::{Certainty, Packet, Step, Trace, Tracer};
use nftracer_tests::traffic::{OPEN, Senders, Shot};
use nftracer_tests::{check, ruleset, wait};
use rustix::process::Signal;

use crate::kprobe_session::with_session;
use crate::{Options, Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "last_rule", run: |options| last_rule(options, &["auto", "kprobe"]) },
    Test {
        name: "session_last_rule",
        run: |options| with_session(options, |options, session| last_rule(options, &session[1..])),
    },
    Test { name: "last_rule_nft", run: last_rule_nft },
];

const SHOWN_WITHIN: Duration = Duration::from_secs(20);
/// Looks without a change.
const STEADY: u32 = 100;
const MAY_BE_SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// Source ports come behind it: of packets that come one by one, of those among them that are let through, and of a flood.
const FIRST: u16 = 20_000;
const LET_THROUGH: u16 = 10_000;
const FLOOD: u16 = 30_000;
const WHY: &str = "only the rule that dropped it was looked for, not those before";

/// Rules that drop in every way, and others that packets meet before. What is sent by REJECT is dropped sometimes, while
/// its packet still is in the table. More than 256 entries have counters in several pages.
fn rules(family: Family, many: bool, answers: bool) -> String {
    let (ttl, more) = match family {
        Family::Ipv4 => ("TTL --ttl-set 60", "icmp"),
        Family::Ipv6 => ("HL --hl-set 60", "ipv6-icmp"),
    };
    let answers = if answers {
        String::new()
    } else {
        format!("-A OUTPUT -p {more} -m statistic --mode random --probability 0.30000000000 -j DROP\n")
    };
    let fill = if many { "-A FILL -p udp -m udp --dport 9 -j DROP\n".repeat(600) } else { String::new() };
    format!(
        "*raw\n-A PREROUTING -p udp -m udp --dport 5006 -j DROP\nCOMMIT\n\
         *mangle\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n-A PREROUTING -p udp -j {ttl}\nCOMMIT\n\
         *filter\n:INPUT DROP\n:USER -\n:FILL -\n\
         -A INPUT -p {more} -j ACCEPT\n\
         -A INPUT -p udp -m udp --dport {OPEN} -j ACCEPT\n\
         -A FORWARD -p udp -m udp --dport 5001 -j DROP\n\
         -A FORWARD -p udp -m udp --dport 5002 -j REJECT\n\
         -A FORWARD -p udp -m udp --dport 5003:5004 -j USER\n\
         {answers}{fill}\
         -A USER -p udp -m udp --dport 5003 -g FILL\n-A USER -j DROP\n-A FILL -p udp -j DROP\nCOMMIT\n"
    )
}

/// What becomes of a datagram to a port, from the client to where `to` says: to the server, or to the router itself.
struct Case {
    port: u16,
    to_router: bool,
    step: fn(bool) -> &'static str,
}

const CASES: &[Case] = &[
    Case { port: 5001, to_router: false, step: |_| "filter:FORWARD:rule:1" },
    Case { port: 5002, to_router: false, step: |_| "filter:FORWARD:rule:2" },
    Case {
        port: 5003,
        to_router: false,
        step: |many| if many { "filter:FILL:rule:601" } else { "filter:FILL:rule:1" },
    },
    // The kernel's name for a rule that asks for nothing, at the end or not.
    Case { port: 5004, to_router: false, step: |_| "filter:USER:return:2" },
    Case { port: 5005, to_router: true, step: |_| "filter:INPUT:policy:3" },
    Case { port: 5006, to_router: true, step: |_| "raw:PREROUTING:rule:1" },
];
/// Ports that are let through.
const ACCEPTED: [u16; 2] = [OPEN, 5007];

/// The same in nftables, at a device, too, in a chain that is jumped to, by a map, and by the policy.
const NFT: &str = "table netdev d {
 chain in { type filter hook ingress device ra priority 0; meta mark set 1; udp dport 5006 drop; }
}
table inet t {
 chain pre { type filter hook prerouting priority 0; counter; }
 chain in { type filter hook input priority 0; policy drop; meta l4proto { icmp, ipv6-icmp } accept; udp dport 4000 accept; }
 chain pass { type filter hook forward priority 0; ip ttl set 60; udp dport vmap { 5001 : drop, 5003 : jump user, 5004 : goto user }; udp dport 5002 reject; }
 chain user { counter; udp dport 5003 drop; meta mark set 2; udp dport 5004 drop; }
}
";

const NFT_CASES: &[Case] = &[
    Case { port: 5001, to_router: false, step: |_| "t:pass:rule:2" },
    Case { port: 5002, to_router: false, step: |_| "t:pass:rule:3" },
    Case { port: 5003, to_router: false, step: |_| "t:user:rule:2" },
    Case { port: 5004, to_router: false, step: |_| "t:user:rule:4" },
    Case { port: 5005, to_router: true, step: |_| "t:in:policy:3" },
    Case { port: 5006, to_router: true, step: |_| "d:in:rule:2" },
];

fn last_rule_nft(options: &Options) -> Result<Outcome> {
    crate::load_modules();
    let lab = Lab::build("lsn", Spread::TwoCpus)?;
    let senders = Senders::open(&lab)?;
    lab.r.command("nft", &["-f", "-"], NFT)?;
    let drops = ["--backend", "ebpf", "--netns", lab.r.name(), "-o", "json", "--verdict", "drop"];
    let whole = [&drops[..], &["--whole-path", "udp"]].concat();
    let last = [&drops[..], &["--last-rule", "udp"]].concat();
    let mut known = 0;
    let mut number = FIRST;
    for attach in ["auto", "kprobe"] {
        let tracer = Tracer::start(&[&last[..], &["--attach", attach]].concat(), &[])?;
        known += one_by_one(&senders, &mut number, NFT_CASES, false, &tracer, Some(attach))?;
        tracer.stop(Signal::INT)?;
    }
    let tracers = [Tracer::start(&whole, &[])?, Tracer::start(&last, &[])?];
    // The rules stay what they are: each rule has to be known.
    flood(&senders, NFT_CASES, Instant::now() + Duration::from_secs(options.seconds), |_| Ok(()))?;
    for tracer in &tracers {
        wait::until_steady(SHOWN_WITHIN, STEADY, || tracer.seen());
    }
    let [whole, last] = tracers.map(|tracer| tracer.stop(Signal::INT));
    let (whole, last) = (whole?.trace, last?.trace);
    let compared = compare(&whole, &last)?;
    let unknown = unknown(&last);
    check(unknown.is_empty(), format!("{unknown:?}"))?;
    Ok(Outcome::Passed(format!("{known} one by one, {compared}")))
}

/// Each in these ways of placing probes, and a flood in the first of them.
fn last_rule(options: &Options, attached: &[&str]) -> Result<Outcome> {
    crate::load_modules();
    for module in ["xt_HL", "xt_statistic", "ipt_REJECT", "ip6t_REJECT"] {
        let _ = netns::run("modprobe", &["-q", module], "");
    }
    let lab = Lab::build("lst", Spread::TwoCpus)?;
    let senders = Senders::open(&lab)?;
    let put = |many, answers| {
        let one = |family| ruleset::load(&lab.r, family, &rules(family, many, answers));
        Family::ALL.into_iter().try_for_each(one)
    };
    let load = |many| put(many, false);
    put(false, true)?;
    let filter = "src net 10.0.0.0/16 or src net fd00::/16";
    let drops = ["--backend", "ebpf", "--netns", lab.r.name(), "-o", "json", "--verdict", "drop"];
    let whole = [&drops[..], &["--whole-path", filter]].concat();
    // As is usual where nothing else is asked for.
    let last = [&drops[..], &[filter]].concat();
    let mut known = 0;
    let mut number = FIRST;
    for attach in attached {
        let tracer = Tracer::start(&[&last[..], &["--attach", *attach]].concat(), &[])?;
        for many in [false, true] {
            put(many, true)?;
            // On the CPU where the counters were put back, one rule may stay unknown.
            one_by_one(&senders, &mut number, CASES, many, &tracer, None)?;
            known += one_by_one(&senders, &mut number, CASES, many, &tracer, Some(attach))?;
        }
        tracer.stop(Signal::INT)?;
    }
    load(false)?;
    let start = |arguments: &[&str]| Tracer::start(&[arguments, &["--attach", attached[0]]].concat(), &[]);
    let tracers = [start(&whole)?, start(&last)?];
    let until = Instant::now() + Duration::from_secs(options.seconds);
    flood(&senders, CASES, until, load)?;
    for tracer in &tracers {
        wait::until_steady(SHOWN_WITHIN, STEADY, || tracer.seen());
    }
    let [whole, last] = tracers.map(|tracer| tracer.stop(Signal::INT));
    let (whole, last) = (whole?.trace, last?.trace);
    let compared = compare(&whole, &last)?;
    Ok(Outcome::Passed(format!("{known} one by one, {compared}")))
}

/// Sends a packet of each kind after the other. Each rule has to be the right one, and where it `must`, it has to be known.
fn one_by_one(
    senders: &Senders,
    number: &mut u16,
    cases: &[Case],
    many: bool,
    tracer: &Tracer,
    must: Option<&str>,
) -> Result<u32> {
    let mut known = 0;
    for family in Family::ALL {
        for case in cases {
            for port in ACCEPTED {
                senders.fire(&shot(family, LET_THROUGH, port, false)?);
            }
            *number += 1;
            senders.fire(&shot(family, *number, case.port, case.to_router)?);
            let sport = *number;
            let within = if must.is_some() { SHOWN_WITHIN } else { MAY_BE_SHOWN_WITHIN };
            let shown = wait::until(within, || {
                tracer.look(|trace| {
                    let step = trace.steps.iter().find(|step| step.identity.ports[0] == sport)?;
                    Some((step.text.clone(), trace.packets.get(&step.packet)?.clone()))
                })
            });
            let said = || {
                let unknown = tracer.look(unknown);
                format!("{family:?}, many {many}, port {}, {must:?}: {shown:?}; {unknown:?}", case.port)
            };
            let Some((text, packet)) = &shown else {
                check(must.is_none(), said())?;
                continue;
            };
            check(packet.path == [(case.step)(many)], said())?;
            check(
                packet.certainty == Certainty::Inexact && packet.why == WHY && packet.verdict == "drop",
                said(),
            )?;
            // Policies have none.
            check(text.is_some() != packet.path[0].contains(":policy:"), said())?;
            known += 1;
        }
    }
    // What was let through is not shown.
    let strays =
        tracer.look(|trace| trace.steps.iter().filter(|step| step.identity.ports[0] == LET_THROUGH).count());
    check(strays == 0, format!("{strays} packets that were let through are shown"))?;
    Ok(known)
}

fn shot(family: Family, sport: u16, dport: u16, to_router: bool) -> Result<Shot> {
    let (src, dst): (IpAddr, IpAddr) = match (family, to_router) {
        (Family::Ipv4, false) => ("10.0.1.2".parse()?, "10.0.2.2".parse()?),
        (Family::Ipv4, true) => ("10.0.1.2".parse()?, "10.0.1.1".parse()?),
        (Family::Ipv6, false) => ("fd00:1::2".parse()?, "fd00:2::2".parse()?),
        (Family::Ipv6, true) => ("fd00:1::2".parse()?, "fd00:1::1".parse()?),
    };
    let transport = Transport::Udp { sport, dport };
    let packet = packet::Packet { src, dst, transport, payload: 32, id: sport, tos: 0, fragment: None };
    Ok(Shot { from: Place::A, packet })
}

/// Many packets at once, while rules are replaced.
fn flood(
    senders: &Senders,
    cases: &[Case],
    until: Instant,
    load: impl Fn(bool) -> Result<()> + Sync,
) -> Result<()> {
    thread::scope(|scope| {
        let editor = scope.spawn(|| {
            let mut many = false;
            while Instant::now() < until {
                many = !many;
                load(many)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let mut sport = FLOOD;
        while Instant::now() < until && sport < u16::MAX {
            for family in Family::ALL {
                let case = &cases[usize::from(sport) % cases.len()];
                sport += 1;
                senders.fire(&shot(family, sport, case.port, case.to_router)?);
                senders.fire(&shot(family, LET_THROUGH, ACCEPTED[usize::from(sport) % 2], false)?);
            }
        }
        editor.join().unwrap_or_else(|_| Err(anyhow!("the editor panicked")))
    })
}

/// Why rules are not known, and how many packets that concerns.
fn unknown(trace: &Trace) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for packet in trace.packets.values().filter(|packet| packet.path.is_empty()) {
        *reasons.entry(packet.why.clone()).or_default() += 1;
    }
    reasons
}

/// Where both traces tell of a packet, the last rule has to be the same.
fn compare(whole: &Trace, last: &Trace) -> Result<String> {
    let of_flood = |trace: &Trace| -> BTreeMap<Identity, (String, Packet)> {
        let of_flood = trace.steps.iter().filter(|step| step.identity.ports[0] > FLOOD);
        let known = of_flood.filter_map(|step| {
            let packet = trace.packets.get(&step.packet)?;
            let is_sure = packet.certainty == Certainty::Complete || packet.why == WHY;
            let last = packet.path.last().filter(|_| is_sure)?.clone();
            Some((step.identity.clone().plain(), (last, packet.clone())))
        });
        known.collect()
    };
    let (expected, found) = (of_flood(whole), of_flood(last));
    for (identity, (step, packet)) in &found {
        if let Some((expected, other)) = expected.get(identity)
            && expected != step
        {
            let of_it = |of: &&Step| of.identity.clone().plain() == *identity;
            let steps: Vec<&Step> = whole.steps.iter().filter(of_it).collect();
            bail!("{identity:?}: {step} instead of {expected}: {packet:?}; {other:?}; {steps:?}");
        }
    }
    // What REJECT sends from inside its own traversal.
    for step in last.steps.iter().filter(|step| step.identity.protocol != protocol::UDP) {
        check(&*step.step == "filter:OUTPUT:rule:1", format!("{step:?}"))?;
    }
    let both = expected.keys().filter(|identity| found.contains_key(identity)).count();
    let reasons = unknown(last);
    let end = last.end.context("the last row is missing")?;
    let shown = end.packets + end.lost + end.missed;
    check(shown >= expected.len() as u64, format!("of {} are shown: {end:?}", expected.len()))?;
    let said =
        format!("of {} dropped in a flood {both} known, {end:?}, not known: {reasons:?}", expected.len());
    check(both * 2 > expected.len(), &*said)?;
    Ok(said)
}
