//! How packets end, and what is said of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::lab::{Family, Lab, Place, Spread};
use nftracer_tests::netns::{self, Netns};
use nftracer_tests::nfqueue::Queue;
use nftracer_tests::packet::{Packet, SYN, Transport, protocol};
use nftracer_tests::ruleset;
use nftracer_tests::tracer::{self, Tracer};
use nftracer_tests::traffic::{CLOSED, OPEN, Senders, Server, Shot};
use nftracer_tests::{check, faults, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Options, Outcome, Test};

pub(crate) const TESTS: &[Test] = &[Test { name: "endings", run: endings }];

/// Source ports of packets come behind it.
const FIRST: u16 = 20_000;
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// Tables at every hook, so that a packet is seen wherever it comes; in filter what some of the packets need.
const RULES: &str = "*raw\nCOMMIT\n*mangle\n-A PREROUTING -p udp -m udp --dport 5003 -j TTL --ttl-set 1\nCOMMIT\n\
    *filter\n:INPUT DROP\n-A INPUT -p udp -m udp --dport 4000:4001 -j ACCEPT\n\
    -A INPUT -p tcp -m tcp --dport 5007 -j SYNPROXY --mss 1460\n\
    -A FORWARD -p udp -m udp --dport 5001 -j DROP\n\
    -A FORWARD -p udp -m udp --dport 5005 -j NFQUEUE --queue-num 5\n\
    -A FORWARD -p udp -m udp --dport 5006 -j NFQUEUE --queue-num 6\n\
    -A FORWARD -p udp -m conntrack --ctstate INVALID\nCOMMIT\n";
/// The same for IPv6, as far as its packets need it.
const RULES_6: &str = "*raw\nCOMMIT\n*mangle\n-A PREROUTING -p udp -m udp --dport 5003 -j HL --hl-set 1\nCOMMIT\n\
    *filter\n:INPUT DROP\n-A INPUT -p udp -m udp --dport 4000:4001 -j ACCEPT\n\
    -A FORWARD -p udp -m udp --dport 5001 -j DROP\n\
    -A FORWARD -p udp -m udp --dport 5005 -j NFQUEUE --queue-num 5\n\
    -A FORWARD -p udp -m udp --dport 5006 -j NFQUEUE --queue-num 6\nCOMMIT\n";
/// Without a nat table here, with a base chain behind the table, and one at a device.
const BASE_CHAINS: &str = "table inet fw { chain forward { type filter hook forward priority 10; policy accept; \
    udp dport 5002 drop; }\n}\n\
    table netdev d { chain in { type filter hook ingress device ra priority 0; policy accept; udp dport 5008 drop; }\n}\n";
/// One more at a device, which kernels before 5.16 do not know.
const EGRESS: &str = "table netdev d { chain out { type filter hook egress device rb priority 0; policy accept; \
    udp dport 5009 drop; }\n}";

/// What becomes of a datagram.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    at: Place,
    to: &'static str,
    from: &'static str,
    port: u16,
    verdict: &'static str,
    /// The fields that have to be in the ending, and what they are.
    ending: fn() -> Value,
    /// Reasons of which the kernel may give one, if it has reasons at all.
    reasons: &'static [&'static str],
    /// Functions that may have freed it: compilers put one into another.
    freed_in: &'static [&'static str],
}

const USUAL: Case = Case {
    name: "",
    at: Place::A,
    to: "10.0.2.2",
    from: "10.0.1.2",
    port: OPEN,
    verdict: "accept",
    ending: || json!({}),
    reasons: &[],
    freed_in: &[],
};

/// The same with IPv6.
const USUAL_6: Case = Case { to: "fd00:2::2", from: "fd00:1::2", ..USUAL };

const CASES: &[Case] = &[
    Case { name: "forwarded", ending: || json!({"kind": "forwarded", "device": "rb"}), ..USUAL },
    Case {
        name: "taken in",
        to: "10.0.1.1",
        ending: || json!({"kind": "accepted", "hook": "input"}),
        ..USUAL
    },
    Case {
        name: "a rule drops it",
        port: 5001,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "filter:FORWARD:rule:1"}),
        ..USUAL
    },
    Case {
        name: "a rule of nftables drops it",
        port: 5002,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "fw:forward:rule:1"}),
        ..USUAL
    },
    Case {
        name: "the policy drops it",
        to: "10.0.1.1",
        port: 5001,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "filter:INPUT:policy:3"}),
        ..USUAL
    },
    Case {
        name: "nobody listens",
        to: "10.0.1.1",
        port: CLOSED,
        ending: || json!({"kind": "freed"}),
        reasons: &["NO_SOCKET"],
        freed_in: &["__udp4_lib_rcv", "udp_rcv"],
        ..USUAL
    },
    Case {
        name: "it has lived too long",
        port: 5003,
        ending: || json!({"kind": "freed"}),
        reasons: &["IP_INHDR", "NOT_SPECIFIED"],
        freed_in: &["ip_forward"],
        ..USUAL
    },
    Case {
        name: "the reverse path filter drops it",
        from: "10.0.9.9",
        port: 5004,
        ending: || json!({"kind": "freed"}),
        reasons: &["IP_RPFILTER"],
        freed_in: &["ip_rcv_finish_core", "ip_rcv_finish"],
        ..USUAL
    },
    Case {
        name: "there is no route",
        to: "10.99.0.1",
        ending: || json!({"kind": "freed"}),
        reasons: &["IP_INNOROUTES", "NOT_SPECIFIED"],
        freed_in: &["ip_error"],
        ..USUAL
    },
    Case {
        name: "nobody takes it out of the queue",
        port: 5006,
        verdict: "queue",
        ending: || json!({"kind": "freed"}),
        freed_in: &["nf_queue", "nf_hook_slow"],
        ..USUAL
    },
    Case {
        name: "sent",
        at: Place::R,
        from: "10.0.2.1",
        ending: || json!({"kind": "sent", "device": "rb"}),
        ..USUAL
    },
    Case {
        name: "a rule at the device drops it",
        port: 5008,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "d:in:rule:1"}),
        ..USUAL
    },
    Case { name: "forwarded, IPv6", ending: || json!({"kind": "forwarded", "device": "rb"}), ..USUAL_6 },
    Case {
        name: "sent, IPv6",
        at: Place::R,
        from: "fd00:2::1",
        ending: || json!({"kind": "sent", "device": "rb"}),
        ..USUAL_6
    },
    Case {
        name: "taken in, IPv6",
        to: "fd00:1::1",
        ending: || json!({"kind": "accepted", "hook": "input"}),
        ..USUAL_6
    },
    Case {
        name: "a rule drops it, IPv6",
        port: 5001,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "filter:FORWARD:rule:1"}),
        ..USUAL_6
    },
    Case {
        name: "a rule of nftables drops it, IPv6",
        port: 5002,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "fw:forward:rule:1"}),
        ..USUAL_6
    },
    Case {
        name: "a rule at the device drops it, IPv6",
        port: 5008,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "d:in:rule:1"}),
        ..USUAL_6
    },
    Case {
        name: "the policy drops it, IPv6",
        to: "fd00:1::1",
        port: 5001,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "filter:INPUT:policy:2"}),
        ..USUAL_6
    },
    Case {
        name: "nobody listens, IPv6",
        to: "fd00:1::1",
        port: CLOSED,
        ending: || json!({"kind": "freed"}),
        reasons: &["NO_SOCKET"],
        freed_in: &["__udp6_lib_rcv", "udpv6_rcv"],
        ..USUAL_6
    },
    Case {
        name: "it has lived too long, IPv6",
        port: 5003,
        ending: || json!({"kind": "freed"}),
        reasons: &["IP_INHDR", "NOT_SPECIFIED"],
        freed_in: &["ip6_forward"],
        ..USUAL_6
    },
    Case {
        name: "there is no route, IPv6",
        to: "fd00:99::1",
        ending: || json!({"kind": "freed"}),
        reasons: &["IP_INNOROUTES", "NOT_SPECIFIED"],
        freed_in: &["ip6_pkt_drop", "ip6_pkt_discard"],
        ..USUAL_6
    },
    Case {
        name: "nobody takes it out of the queue, IPv6",
        port: 5006,
        verdict: "queue",
        ending: || json!({"kind": "freed"}),
        freed_in: &["nf_queue", "nf_hook_slow"],
        ..USUAL_6
    },
];

const AT_EGRESS: [Case; 2] = [
    Case {
        name: "a rule at the device that it leaves by drops it",
        port: 5009,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "d:out:rule:1"}),
        ..USUAL
    },
    Case {
        name: "a rule at the device that it leaves by drops it, IPv6",
        port: 5009,
        verdict: "drop",
        ending: || json!({"kind": "dropped", "step": "d:out:rule:1"}),
        ..USUAL_6
    },
];

fn endings(options: &Options) -> Result<Outcome> {
    crate::load_modules();
    for module in ["xt_HL", "xt_NFQUEUE", "xt_SYNPROXY", "xt_conntrack", "nfnetlink_queue"] {
        let _ = netns::run("modprobe", &["-q", module], "");
    }
    let lab = Lab::build("end", Spread::SameCpu)?;
    let _servers = Server::everywhere(&lab)?;
    let senders = Senders::open(&lab)?;
    lab.all().into_iter().try_for_each(Netns::clear_rules)?;
    ruleset::load(&lab.r, Family::Ipv4, RULES)?;
    ruleset::load(&lab.r, Family::Ipv6, RULES_6)?;
    lab.r.command("nft", &["-f", "-"], BASE_CHAINS)?;
    let egress = lab.r.command("nft", &["-f", "-"], EGRESS).is_ok();
    lab.r.sysctl("net/ipv4/conf/ra/rp_filter", "1")?;
    let filter = "src net 10.0.0.0/16 or src net fd00::/16";
    let tracer = Tracer::start(&["--netns", lab.r.name(), "-o", "json", filter], &[])?;
    // The same packets again, but only those that are dropped: with all that they met, and with what dropped them.
    let arguments = ["--backend", "ebpf", "--netns", lab.r.name(), "-o", "json", "--verdict", "drop", filter];
    let dropped = Tracer::start(&[&arguments[..], &["--whole-path"]].concat(), &[])?;
    let droppers = Tracer::start(&arguments, &[])?;
    let has_reasons = faults::kernel_has_reasons()?;
    let mut seen = Watch {
        tracer,
        senders,
        said: tracer::Trace::default(),
        freed: Vec::new(),
        number: 0,
        dropped: BTreeSet::new(),
    };
    let cases = CASES.iter().chain(AT_EGRESS.iter().filter(|_| egress));
    let count = cases.clone().count();
    let mut fired = Vec::new();
    for case in cases {
        fired.push((case, seen.fire(case)?));
        if case.verdict == "drop" {
            seen.dropped.insert(seen.number);
        }
    }
    for (case, number) in fired {
        let packet = seen.packet(number).with_context(|| case.name)?;
        let said = || format!("{}: {packet:?}", case.name);
        if options.verbose {
            println!("  {}: {} {}", case.name, packet.ending, packet.why);
        }
        check(packet.verdict == case.verdict, said())?;
        check(packet.certainty == tracer::Certainty::Complete, said())?;
        let expected = (case.ending)();
        let fields = expected.as_object().context("fields")?;
        check(fields.iter().all(|(name, value)| packet.ending[name] == *value), said())?;
        if !case.freed_in.is_empty() {
            let symbol = packet.ending["symbol"].as_str().unwrap_or_default();
            let function = symbol.split(['+', '.']).next().unwrap_or_default();
            check(case.freed_in.contains(&function), said())?;
        }
        let reason = packet.ending["reason"].as_str();
        check(packet.ending["kind"] != "freed" || reason.is_some() == has_reasons, said())?;
        if let Some(reason) = reason.filter(|_| !case.reasons.is_empty()) {
            check(case.reasons.contains(&reason), said())?;
        }
    }
    for usual in [USUAL, USUAL_6] {
        queued(&lab, &mut seen, usual)?;
    }
    left(&lab, &mut seen)?;
    stolen(&mut seen)?;
    by_function(&mut seen)?;
    only_dropped(dropped, &seen.dropped, false)?;
    only_dropped(droppers, &seen.dropped, true)?;
    let ended = seen.tracer.stop(Signal::INT)?;
    let totals = ended.trace.end.context("the last row is missing")?;
    check(totals.missed == 0 && totals.lost == 0, format!("{totals:?}"))?;
    let egress = if egress { "with" } else { "without" };
    let reasons = if has_reasons { "with" } else { "without" };
    Ok(Outcome::Passed(format!("{} packets, {egress} egress, {reasons} reasons", count + 7)))
}

/// User space lets one packet go on, and drops one.
fn queued(lab: &Lab, seen: &mut Watch, usual: Case) -> Result<()> {
    let queue = lab.r.enter(|| Queue::open(5))?;
    let cases = [
        (1, "accept", json!({"kind": "forwarded", "device": "rb"})),
        (0, "drop", json!({"kind": "dropped", "queue": 5, "by": "user"})),
    ];
    for (verdict, word, ending) in cases {
        let number = seen.fire(&Case { port: 5005, ..usual })?;
        queue.decide(verdict)?;
        if word == "drop" {
            seen.dropped.insert(seen.number);
        }
        let packet = seen.packet(number)?;
        let said = || format!("{word} out of the queue: {packet:?}");
        check(packet.ending == ending, said())?;
        check(packet.certainty == tracer::Certainty::Complete, said())?;
        let waited = &packet.queues[0];
        check(waited["queue"] == 5 && waited["verdict"] == word, said())?;
        check(waited["waited_ns"].as_u64().is_some_and(|ns| ns > 0), said())?;
    }
    Ok(())
}

/// Nobody answers for the address of the neighbour, which takes the kernel a while to find out.
fn left(lab: &Lab, seen: &mut Watch) -> Result<()> {
    lab.r.sysctl("net/ipv4/neigh/rb/retrans_time_ms", "50")?;
    let packet = seen.send(&Case { to: "10.0.2.77", ..USUAL })?;
    let said = || format!("no neighbour: {packet:?}");
    if packet.ending["kind"] == "freed" {
        // Before its path was given out.
        return check(packet.ending["reason"].as_str().is_none_or(|reason| reason == "NEIGH_FAILED"), said());
    }
    check(packet.ending == json!({"kind": "forwarded", "device": "rb"}), said())?;
    let freed = wait::until(SHOWN_WITHIN, || {
        seen.freed.extend(seen.tracer.take_lines().iter().filter_map(|line| serde_json::from_str(line).ok()));
        seen.freed.iter().find(|freed: &&Value| freed["type"] == "freed").cloned()
    });
    let freed = freed.context("that it was freed later was not shown")?;
    let reason = freed["reason"].as_str();
    check(reason.is_none_or(|reason| reason == "NEIGH_FAILED"), freed.to_string())
}

/// A target takes a packet for itself.
fn stolen(seen: &mut Watch) -> Result<()> {
    let number = seen.next();
    let transport = Transport::Tcp { sport: number, dport: 5007, flags: SYN };
    let (src, dst): (IpAddr, IpAddr) = ("10.0.1.2".parse()?, "10.0.1.1".parse()?);
    let packet = Packet { src, dst, transport, payload: 0, id: number, tos: 0, fragment: None };
    seen.senders.fire(&Shot { from: Place::A, packet });
    let packet = seen.packet(number)?;
    let said = || format!("SYNPROXY: {packet:?}");
    check(packet.verdict == "stolen", said())?;
    check(packet.ending == json!({"kind": "stolen", "step": "filter:INPUT:rule:2"}), said())
}

/// Conntrack drops what finds no room in its table, between raw and mangle.
fn by_function(seen: &mut Watch) -> Result<()> {
    let most = "/proc/sys/net/netfilter/nf_conntrack_max";
    let before = std::fs::read_to_string(most)?;
    // There are connections in the namespace already.
    std::fs::write(most, "1")?;
    // Now and then conntrack makes room instead, where an unanswered connection lies in the same place of its table.
    let mut packet = seen.send(&USUAL);
    for _ in 0..5 {
        if !packet.as_ref().is_ok_and(|packet| packet.ending["kind"] == "forwarded") {
            break;
        }
        packet = seen.send(&USUAL);
    }
    std::fs::write(most, before)?;
    let packet = packet?;
    seen.dropped.insert(seen.number);
    let said = || format!("conntrack has no room: {packet:?}");
    check(packet.verdict == "accept" && packet.certainty == tracer::Certainty::Complete, said())?;
    check(packet.path.last().is_some_and(|step| step.starts_with("raw:PREROUTING")), said())?;
    let ending = &packet.ending;
    check(ending["kind"] == "dropped" && ending["by"] == "function", said())?;
    check(ending["functions"] == json!([{"name": "ipv4_conntrack_in", "priority": -200}]), said())?;
    check(ending["hooks"] == json!(["prerouting"]), said())
}

/// `--verdict drop` shows what was dropped by a rule, a policy, another function of a hook or user space, and nothing else.
/// Without steps it still says which packet that was, and what dropped it.
fn only_dropped(tracer: Tracer, dropped: &BTreeSet<u16>, without_steps: bool) -> Result<()> {
    let ports = |trace: &tracer::Trace| {
        let done = trace.steps.iter().filter(|step| trace.packets.contains_key(&step.packet));
        // What answers a datagram or a SYN is another packet.
        let sent = done.filter(|step| step.identity.protocol == protocol::UDP);
        let seen = trace.packets.values().filter_map(|packet| packet.sport);
        let ports = sent.map(|step| step.identity.ports[0]).chain(seen);
        ports.filter(|port| *port > FIRST).collect::<BTreeSet<u16>>()
    };
    let expected: BTreeSet<u16> = dropped.iter().map(|number| FIRST + number).collect();
    wait::until(SHOWN_WITHIN, || tracer.look(|trace| (ports(trace) == expected).then_some(())));
    let trace = tracer.stop(Signal::INT)?.trace;
    let shown = ports(&trace);
    check(shown == expected, format!("--verdict drop: {shown:?} instead of {expected:?}"))?;
    let bare: Vec<&tracer::Packet> = trace.packets.values().filter(|packet| packet.path.is_empty()).collect();
    if !without_steps {
        return check(bare.is_empty(), format!("{bare:?}"));
    }
    let said = || format!("{bare:?}");
    let by = |by: &'static str| bare.iter().filter(move |packet| packet.ending["by"] == by);
    check(bare.len() == 3 && bare.iter().all(|packet| packet.verdict == "drop"), said())?;
    // One of each family came back from the queue.
    check(by("user").count() == 2, said())?;
    let functions: Vec<&Value> = by("function").map(|packet| &packet.ending["functions"]).collect();
    let hooks: Vec<&Value> = by("function").map(|packet| &packet.ending["hooks"]).collect();
    check(hooks == [&json!(["prerouting"])], said())?;
    let conntrack = json!({"name": "ipv4_conntrack_in", "priority": -200});
    check(functions[0].as_array().is_some_and(|functions| functions.contains(&conntrack)), said())
}

/// The tracer, and what it has told.
struct Watch {
    tracer: Tracer,
    senders: Senders,
    said: tracer::Trace,
    /// Rows about packets that were shown before.
    freed: Vec<Value>,
    /// The last number, without what makes a port of it.
    number: u16,
    /// Those of packets that were dropped by anybody who may.
    dropped: BTreeSet<u16>,
}

impl Watch {
    /// A number that no packet had.
    fn next(&mut self) -> u16 {
        self.number += 1;
        FIRST + self.number
    }

    fn fire(&mut self, case: &Case) -> Result<u16> {
        let number = self.next();
        let (src, dst): (IpAddr, IpAddr) = (case.from.parse()?, case.to.parse()?);
        let transport = Transport::Udp { sport: number, dport: case.port };
        let packet = Packet { src, dst, transport, payload: 32, id: number, tos: 0, fragment: None };
        self.senders.fire(&Shot { from: case.at, packet });
        Ok(number)
    }

    fn send(&mut self, case: &Case) -> Result<tracer::Packet> {
        let number = self.fire(case)?;
        self.packet(number)
    }

    /// What is said of the packet with this source port, when it is done.
    fn packet(&mut self, number: u16) -> Result<tracer::Packet> {
        let Self { tracer, said, .. } = self;
        let packet = wait::until(SHOWN_WITHIN, || {
            said.append(tracer.take());
            let step = said.steps.iter().find(|step| step.identity.ports[0] == number)?;
            said.packets.get(&step.packet).cloned()
        });
        packet.with_context(|| format!("the packet from port {number} was not shown: {:?}", said.odd))
    }
}
