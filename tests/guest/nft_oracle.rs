//! nftracer against the kernel's own trace of nftables, packet by packet.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nftracer_tests::compare::{Verdict, compare, is_finished, is_settled};
use nftracer_tests::lab::{Family, Lab, Place, Spread, addresses};
use nftracer_tests::netns::{self, Netns};
use nftracer_tests::nft_rules::{
    ARP, BRIDGES, DEVICES, FLOWTABLE, HANDWRITTEN, STATEMENTS, generate, generate_with_bridges,
    generate_with_devices,
};
use nftracer_tests::nftrace::{self, MARKER};
use nftracer_tests::packet::{Packet as Sent, Transport};
use nftracer_tests::reload::{self, Least};
use nftracer_tests::ruleset::TABLES;
use nftracer_tests::tracer::{Certainty, Ended, Packet, Step, Trace, Tracer};
use nftracer_tests::traffic::{OPEN, Planner, Senders, Server, Shot, connection, questions};
use nftracer_tests::{corpus, monitored, wait};
use rustix::process::Signal;

use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "nft_oracle_handwritten", run: handwritten },
    Test { name: "nft_oracle_statements", run: statements },
    Test { name: "nft_oracle_generated", run: generated },
    Test { name: "nft_oracle_devices", run: devices },
    Test { name: "nft_oracle_bridge", run: bridge },
    Test { name: "nft_oracle_arp", run: arp },
    Test { name: "nft_oracle_iptables", run: iptables },
    Test { name: "nft_oracle_monitors", run: monitors },
    Test { name: "nft_oracle_edited", run: edited },
    Test { name: "nft_oracle_netlink", run: netlink },
    Test { name: "nft_oracle_netlink_devices", run: netlink_devices },
    Test { name: "nft_oracle_netlink_bridge", run: netlink_bridge },
    Test { name: "nft_oracle_netlink_arp", run: netlink_arp },
    Test { name: "nft_oracle_nat", run: nat },
    Test { name: "nft_mark_none", run: mark_none },
    Test { name: "nft_reloaded", run: reloaded },
    Test { name: "nft_corpus", run: corpus },
];

/// What iptables-nft loads, with compat matches and targets.
const IPTABLES: &str = "\
*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
-A OUTPUT -p udp -m udp --dport 443 -j TRACE
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
-A PREROUTING -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x7/0xffffffff
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:IN_public -
:IN_deny -
-A INPUT -j IN_public
-A INPUT -p udp -m length --length 100:65535 -j ACCEPT
-A IN_public -j IN_deny
-A IN_public -p udp -m multiport --dports 53,443,5000:6000 -g IN_deny
-A IN_public -m comment --comment \"what is left\" -j RETURN
-A IN_deny -p udp -m udp --dport 53 -j DROP
-A IN_deny -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 80 -m mark --mark 0x7 -j ACCEPT
-A FORWARD -p udp -m udp --dport 53 -j ACCEPT
-A FORWARD -m statistic --mode nth --every 2 --packet 0 -j ACCEPT
COMMIT
";

/// Packets of one family that share a ruleset.
const SHOTS: usize = 40;
/// Marks what comes in by the router's devices before all other chains.
const DEVICE_MARKER: &str = "\
table netdev marker {
    chain in { type filter hook ingress devices = { ra, rb, lo } priority -500; meta nftrace set 1; }
}
";

/// Marks what a bridge takes, from its ports or from IP.
const BRIDGE_MARKER: &str = "\
table netdev marker {
    chain in { type filter hook ingress devices = { ra, rb } priority -500; meta nftrace set 1; }
}
table bridge marker {
    chain pre { type filter hook prerouting priority -500; meta nftrace set 1; }
    chain out { type filter hook output priority -500; meta nftrace set 1; }
}
";

/// Marks packets of ARP, beside [`BRIDGE_MARKER`].
const ARP_MARKER: &str = "\
table arp marker {
    chain in { type filter hook input priority -500; meta nftrace set 1; }
    chain out { type filter hook output priority -500; meta nftrace set 1; }
}
";

/// Generated rulesets with chains of devices, and with chains of a bridge.
const DEVICE_RULESETS: u64 = 8;
const BRIDGE_RULESETS: u64 = 4;
/// Generated rulesets that one run of the tracer sees.
const RULESETS_PER_RUN: usize = 20;
/// Generated rulesets that are traced without probes.
const NETLINK_RULESETS: u64 = 4;
/// The same with chains of devices, and with those of a bridge.
const NETLINK_FAMILY_RULESETS: u64 = 1;
const SETTLES_WITHIN: Duration = Duration::from_secs(180);
/// How often packets are sent again that one tracer missed something of.
const MOST_AGAIN: u64 = 2;
/// Looks without a change: enough when both sides agree, and enough for what never comes.
const SILENCE: [u32; 2] = [60, 200];

struct Session {
    lab: Lab,
    senders: Senders,
    tracer: Option<Tracer>,
    /// There are legacy tables, with policies alone.
    legacy: bool,
    /// How often packets were sent again.
    again: Cell<u64>,
    _servers: Vec<Server>,
}

impl Session {
    fn new() -> Result<Self> {
        let session = Self::without_legacy()?;
        for netns in session.lab.all() {
            netns.clear_rules()?;
        }
        Ok(Self { legacy: true, ..session })
    }

    fn without_legacy() -> Result<Self> {
        crate::load_modules();
        let lab = Lab::build("nft", Spread::SameCpu)?;
        let (senders, servers) = (Senders::open(&lab)?, Server::everywhere(&lab)?);
        Ok(Self { senders, _servers: servers, lab, tracer: None, legacy: false, again: Cell::new(0) })
    }

    /// Whether the kernel has the hook where packets leave a device.
    fn has_egress(&self) -> bool {
        let chain = "table netdev d {\n chain e { type filter hook egress device ra priority 0; }\n}\n";
        self.lab.r.command("nft", &["-f", "-"], chain).is_ok()
    }

    /// Replaces all rules of the router but those of a running tracer.
    fn load(&self, text: &str) -> Result<()> {
        let tables = self.lab.r.command("nft", &["list", "tables"], "")?;
        let ours = tables.lines().filter(|line| !line.contains("nftracer_"));
        let mut all: String = ours.map(|line| format!("delete {line}\n")).collect();
        all += MARKER;
        all += text;
        self.lab.r.command("nft", &["-f", "-"], &all).with_context(|| format!("ruleset:\n{all}"))?;
        Ok(())
    }

    /// So many packets of each family. Where IPv6 comes in pieces, the kernel's trace does not tell what they carry.
    fn shots(planner: &mut Planner, count: usize) -> Vec<Shot> {
        let mut shots: Vec<Shot> =
            Family::ALL.iter().flat_map(|family| planner.shots(*family, count)).collect();
        shots.retain(|shot| shot.packet.fragment.is_none() || shot.packet.dst.is_ipv4());
        shots
    }

    fn trace(&mut self) -> Result<()> {
        let name = self.lab.r.name().to_owned();
        self.tracer = Some(Tracer::start(&["--backend", "ebpf", "--netns", &name, "-o", "json"], &[])?);
        Ok(())
    }

    fn fire(&self, shots: &[Shot]) {
        shots.iter().for_each(|shot| self.senders.fire(shot));
    }

    /// Sends and compares.
    fn judge(&self, send: impl Fn(&Self) -> Result<()>) -> Result<Verdict> {
        self.judge_traced(send).map(|(verdict, _)| verdict)
    }

    /// The same, with what nftracer told. Where it missed something, everything is sent once more.
    fn judge_traced(&self, send: impl Fn(&Self) -> Result<()>) -> Result<(Verdict, Trace)> {
        let mut again = 0;
        loop {
            let (mut verdict, trace) = self.judge_once(&send)?;
            if !verdict.lacks() || self.again.get() == MOST_AGAIN {
                verdict.figures.again = again;
                return Ok((verdict, trace));
            }
            again += 1;
            self.again.set(self.again.get() + 1);
        }
    }

    fn judge_once(&self, send: impl Fn(&Self) -> Result<()>) -> Result<(Verdict, Trace)> {
        let Some(tracer) = &self.tracer else { bail!("no tracer runs") };
        let steady = wait::until_steady(SETTLES_WITHIN, 2, || tracer.seen());
        check(steady, format!("nftracer does not come to rest within {SETTLES_WITHIN:?}"))?;
        tracer.take();
        let listener = nftrace::listen(&self.lab.r)?;
        send(self)?;
        let (mut rows, mut trace) = (Vec::new(), Trace::default());
        let mut silence = SILENCE[0];
        let namespaces = [self.lab.r.inode()];
        let settled = wait::until(SETTLES_WITHIN, || {
            let looks = std::mem::replace(&mut silence, SILENCE[1]);
            wait::until_steady(SETTLES_WITHIN, looks, || (listener.waiting(), tracer.seen()));
            rows.extend(listener.take());
            trace.append(tracer.take());
            // Legacy tables are there as well, and have an oracle of their own.
            trace.keep(|table| !self.legacy || TABLES.iter().all(|(legacy, _)| *legacy != table));
            let silent = looks == SILENCE[1] && is_finished(&trace);
            // Either side may be the slower one.
            let agreed = || {
                !rows.is_empty()
                    && is_settled(&rows, &trace, &namespaces)
                    && compare(&rows, &trace, &namespaces, 0).wrong.is_empty()
            };
            (silent || agreed()).then_some(())
        });
        let (lines, steps) = (rows.len(), trace.steps.len());
        check(
            settled.is_some(),
            format!("not settled within {SETTLES_WITHIN:?}: {lines} lines of the kernel, {steps} steps"),
        )?;
        let verdict = compare(&rows, &trace, &namespaces, listener.lost());
        Ok((verdict, trace))
    }

    fn end(&mut self) -> Result<()> {
        let ended = self.tracer.take().context("a tracer runs")?.stop(Signal::TERM)?;
        check(ended.status.code() == Some(0), format!("ended with {}: {:?}", ended.status, ended.errors))?;
        let is_told = self.again.take() == 0 || ended.missed() > 0;
        check(is_told, format!("packets are missing: {:?}", ended.trace.end))?;
        check(ended.trace.odd.is_empty(), format!("rows that cannot be read: {:#?}", ended.trace.odd))
    }
}

fn handwritten(options: &Options) -> Result<Outcome> {
    let mut session = Session::new()?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut total = Verdict::default();
    for ruleset in HANDWRITTEN {
        session.load(ruleset.text)?;
        session.trace()?;
        let shots = Session::shots(&mut planner, SHOTS);
        let mut verdict = session.judge(|session| {
            session.fire(&shots);
            Ok(())
        })?;
        verdict.add(session.judge(|session| {
            for at in Family::ALL.map(addresses) {
                for (to, port) in [(at.b, OPEN), (at.r, OPEN), (at.r_dnat, 80)] {
                    connection(&session.lab.a, to, port)?;
                }
                connection(&session.lab.r, at.lo, OPEN)?;
            }
            Ok(())
        })?);
        session.end()?;
        if options.verbose {
            println!(
                "  {}: {} {:?}, unseen such as {:?}",
                ruleset.name, verdict.figures, verdict.reasons, verdict.unseen_example
            );
        }
        examine(&verdict, ruleset.name, ruleset.text)?;
        total.add(verdict);
    }
    conclude(&total)
}

fn generated(options: &Options) -> Result<Outcome> {
    let mut session = Session::new()?;
    let egress = session.has_egress();
    let mut planner = Planner::new(options.seed, 0, 1);
    let (mut total, mut refused) = (Verdict::default(), 0);
    // They take longer to load than legacy ones.
    let rulesets = options.rulesets.div_ceil(4);
    let each = options.packets.div_ceil(4 * rulesets.max(1));
    for number in 0..rulesets {
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(u64::try_from(number)?);
        // Tables of inet, ip and ip6, and of devices with them.
        let with_devices = number % 3 == 2;
        let text = match with_devices {
            true => format!("{DEVICE_MARKER}{}", generate_with_devices(seed, egress)),
            false => generate(seed),
        };
        session.load(&text)?;
        if number % RULESETS_PER_RUN == 0 {
            session.trace()?;
        }
        let shots = Session::shots(&mut planner, each);
        let verdict = session.judge(|session| {
            session.fire(&shots);
            Ok(())
        })?;
        if options.verbose {
            println!("  seed {seed}: {} {:?}", verdict.figures, verdict.reasons);
        }
        examine(&verdict, &format!("seed {seed}"), &text)?;
        refused += u64::from(verdict.figures.traversals == 0);
        total.add(verdict);
        if (number + 1) % RULESETS_PER_RUN == 0 || number + 1 == rulesets {
            session.end()?;
        }
    }
    check(total.figures.packets >= u64::try_from(options.packets / 2)?, "too few packets")?;
    let Outcome::Passed(figures) = conclude(&total)? else { bail!("concluded otherwise") };
    Ok(Outcome::Passed(format!("{rulesets} rulesets, {refused} without packets; {figures}")))
}

/// Statements after which a packet is somebody else's, and connections that a flowtable takes past all hooks: that they do is
/// said, when the trace begins and of the packets that make them.
fn statements(options: &Options) -> Result<Outcome> {
    for module in ["nfnetlink_queue", "nft_queue", "nft_synproxy", "nft_flow_offload", "nf_flow_table_inet"] {
        let _ = netns::run("modprobe", &["-q", module], "");
    }
    let mut session = Session::new()?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut total = Verdict::default();
    for ruleset in STATEMENTS {
        session.load(ruleset.text)?;
        session.trace()?;
        let shots = Session::shots(&mut planner, 2 * SHOTS);
        let (mut verdict, trace) = session.judge_traced(|session| {
            session.fire(&shots);
            Ok(())
        })?;
        session.end()?;
        if options.verbose {
            println!("  {}: {} {:?}", ruleset.name, verdict.figures, verdict.reasons);
        }
        // Linux 5.10 asks a packet that it no longer has whether to tell of it.
        let stolen = |step: &str| {
            let is = |other: &&Step| other.step == step && other.verdict.as_deref() == Some("stolen");
            trace.steps.iter().any(|other| is(&other))
        };
        verdict.wrong.retain(|wrong| {
            let last = wrong.tracer.strip_prefix(&wrong.kernel[..]);
            !matches!(last, Some([last]) if stolen(last))
        });
        examine(&verdict, ruleset.name, ruleset.text)?;
        total.add(verdict);
    }
    session.load(FLOWTABLE.text)?;
    session.trace()?;
    let (verdict, trace) = session.judge_traced(|session| {
        Family::ALL.map(addresses).iter().try_for_each(|at| connection(&session.lab.a, at.b, OPEN))
    })?;
    examine(&verdict, FLOWTABLE.name, FLOWTABLE.text)?;
    total.add(verdict);
    let said = session.tracer.as_ref().context("a tracer runs")?.errors().join("\n");
    check(said.contains("packets that flowtable inet t:f forwards"), said)?;
    session.end()?;
    let note = "a flowtable forwards its connection, past all hooks";
    let notes = trace.packets.values().filter_map(|packet| packet.note.as_deref());
    let offloaded = notes.filter(|said| said.contains(note)).count();
    check(offloaded > 0, format!("no packet says that {note}: {:#?}", trace.packets))?;
    let Outcome::Passed(figures) = conclude(&total)? else { bail!("concluded otherwise") };
    Ok(Outcome::Passed(format!("{figures}; {offloaded} packets whose connections go past all hooks")))
}

/// Chains at ingress and egress, among those of IP. Kernels before 5.16 have no egress.
fn devices(options: &Options) -> Result<Outcome> {
    let mut session = Session::new()?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut total = Verdict::default();
    let egress = session.has_egress();
    let written = DEVICES.iter().filter(|ruleset| egress || !ruleset.text.contains("egress"));
    let mut rulesets: Vec<_> =
        written.map(|ruleset| (ruleset.name.to_owned(), ruleset.text.to_owned())).collect();
    rulesets.extend(
        (0..DEVICE_RULESETS).map(|seed| (format!("seed {seed}"), generate_with_devices(seed, egress))),
    );
    for (number, (name, text)) in rulesets.iter().enumerate() {
        session.load(&format!("{DEVICE_MARKER}{text}"))?;
        if number == 0 {
            session.trace()?;
        }
        let shots = Session::shots(&mut planner, SHOTS / 2);
        let verdict = session.judge(|session| {
            session.fire(&shots);
            for at in Family::ALL.map(addresses) {
                connection(&session.lab.a, at.b, OPEN)?;
                connection(&session.lab.r, at.lo, OPEN)?;
            }
            Ok(())
        })?;
        if options.verbose {
            println!(
                "  {name}: {} {:?}, unseen such as {:?}",
                verdict.figures, verdict.reasons, verdict.unseen_example
            );
        }
        examine(&verdict, name, text)?;
        total.add(verdict);
    }
    session.end()?;
    let Outcome::Passed(figures) = conclude(&total)? else { bail!("concluded otherwise") };
    let egress = if egress { "with" } else { "without" };
    Ok(Outcome::Passed(format!("{egress} egress; {figures}")))
}

/// Chains of a bridge among the others, without br_netfilter and with it.
fn bridge(options: &Options) -> Result<Outcome> {
    let mut session = Session::new()?;
    session.lab.bridge()?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let mut total = Verdict::default();
    let mut rulesets: Vec<_> = BRIDGES.iter().map(|it| (it.name.to_owned(), it.text.to_owned())).collect();
    rulesets.extend((0..BRIDGE_RULESETS).map(|seed| (format!("seed {seed}"), generate_with_bridges(seed))));
    for (number, (name, text)) in rulesets.iter().enumerate() {
        session.load(&format!("{BRIDGE_MARKER}{text}"))?;
        if number == 0 {
            session.trace()?;
        }
        for netfilter in ["0", "1"] {
            if netfilter == "1" {
                netns::run("modprobe", &["br_netfilter"], "")?;
            }
            for program in ["iptables", "ip6tables"] {
                let _ = session.lab.r.sysctl(&format!("net/bridge/bridge-nf-call-{program}"), netfilter);
            }
            let shots = Session::shots(&mut planner, SHOTS / 4);
            let verdict = session.judge(|session| {
                session.fire(&shots);
                for at in Family::ALL.map(addresses) {
                    connection(&session.lab.a, at.b, OPEN)?;
                    connection(&session.lab.r, at.b, OPEN)?;
                }
                Ok(())
            })?;
            let name = format!("{name}, bridge-nf-call {netfilter}");
            if options.verbose {
                println!(
                    "  {name}: {} {:?}, unseen such as {:?}",
                    verdict.figures, verdict.reasons, verdict.unseen_example
                );
            }
            examine(&verdict, &name, text)?;
            total.add(verdict);
        }
    }
    session.end()?;
    conclude(&total)
}

/// Requests and answers at the hooks of ARP, of a device and of a bridge: as the kernel tells of them, and those that are
/// known.
fn arp(options: &Options) -> Result<Outcome> {
    let mut total = Verdict::default();
    let mut session = Session::without_legacy()?;
    for (number, ruleset) in ARP.iter().enumerate() {
        if ruleset.text.contains("bridge") {
            session.lab.bridge()?;
        }
        session.load(&format!("{BRIDGE_MARKER}{ARP_MARKER}{}", ruleset.text))?;
        if number == 0 {
            session.trace()?;
        }
        let verdict = session.judge(|session| questions(&session.lab).collect())?;
        if options.verbose {
            println!("  {}: {} {:?}", ruleset.name, verdict.figures, verdict.reasons);
        }
        examine(&verdict, ruleset.name, ruleset.text)?;
        total.add(verdict);
    }
    session.end()?;
    let figures = total.figures;
    check(figures.traversals > 10 && figures.unseen == 0, format!("{figures}"))?;
    // What a new bridge sends by itself, six to eight packets, comes from nowhere.
    check(figures.inexact * 5 <= figures.packets, format!("{figures}: {:?}", total.reasons))?;
    known_arp()?;
    Ok(Outcome::Passed(format!("{figures}; known requests and replies at a device and at a bridge")))
}

fn known_arp() -> Result<()> {
    let session = Session::without_legacy()?;
    let name = session.lab.r.name().to_owned();
    let at = addresses(Family::Ipv4);
    let rules = |device: &str| {
        format!(
            "table arp a {{\n chain in {{ type filter hook input priority 0; arp operation request counter; }}\n \
             chain out {{ type filter hook output priority 0; arp operation request drop; meta mark set 1; }}\n}}\n\
             table netdev d {{\n chain in {{ type filter hook ingress device {device} priority 0; counter; }}\n}}\n\
             table bridge b {{\n chain in {{ type filter hook input priority 0; ether type arp counter; }}\n \
             chain out {{ type filter hook output priority 0; counter; }}\n}}\n\
             table inet t {{\n chain in {{ type filter hook input priority 0; counter; }}\n}}\n"
        )
    };
    let ways: [(&str, &str, &[&str], &[&str]); 2] = [
        (
            "ra",
            "arp host 10.0.1.1",
            &["d:in:rule:1", "d:in:policy:2", "a:in:rule:1", "a:in:policy:2"],
            &["a:out:rule:2", "a:out:policy:3"],
        ),
        (
            "br0",
            "",
            &["b:in:rule:1", "b:in:policy:2", "d:in:rule:1", "d:in:policy:2", "a:in:rule:1", "a:in:policy:2"],
            &["a:out:rule:2", "a:out:policy:3", "b:out:rule:1", "b:out:policy:2"],
        ),
    ];
    for (device, filter, request, reply) in ways {
        if device == "br0" {
            session.lab.bridge()?;
        }
        session.load(&rules(device))?;
        let ended = trace_again(|| {
            let tracer = Tracer::start(&["--backend", "ebpf", "--netns", &name, "-o", "json", filter], &[])?;
            session.lab.a.command("ip", &["neigh", "del", &at.r.to_string(), "dev", "a0"], "")?;
            connection(&session.lab.a, at.r, OPEN)?;
            wait::until_steady(SETTLES_WITHIN, SILENCE[0], || tracer.seen());
            tracer.stop(Signal::TERM)
        })?;
        let others = ended
            .trace
            .packets
            .values()
            .filter(|packet| packet.path.iter().any(|step| step.starts_with("t:")));
        check((others.count() > 0) == filter.is_empty(), format!("{filter:?}: {:#?}", ended.trace))?;
        for way in [request, reply] {
            let of_way = |packet: &&Packet| packet.path == way && packet.certainty == Certainty::Complete;
            let found = ended.trace.packets.values().filter(of_way).count();
            check(found == 1, format!("{device}, {filter:?}: {found} of {way:?}: {:#?}", ended.trace))?;
        }
    }
    tool_texts(&session)
}

/// Traces once more where something was missed.
fn trace_again(trace: impl Fn() -> Result<Ended>) -> Result<Ended> {
    for _ in 0..MOST_AGAIN {
        let ended = trace()?;
        if ended.missed() == 0 {
            return Ok(ended);
        }
        println!("  traced once more: {:?}", ended.trace.end);
    }
    trace()
}

/// The rules of ebtables-nft and arptables-nft are shown as their save programs print them.
fn tool_texts(session: &Session) -> Result<()> {
    session.load("")?;
    let at = addresses(Family::Ipv4);
    let router = &session.lab.r;
    let tools: [(&str, &str, &[&str]); 2] = [
        ("ebtables-nft", "bridge", &["-A", "INPUT", "-p", "0x0806", "-j", "ACCEPT"]),
        ("arptables-nft", "arp", &["-A", "INPUT", "--opcode", "1", "-j", "ACCEPT"]),
    ];
    for (tool, _, rule) in tools {
        router.command(tool, rule, "")?;
    }
    let tracer = Tracer::start(&["--backend", "ebpf", "--netns", router.name(), "-o", "json"], &[])?;
    session.lab.a.command("ip", &["neigh", "del", &at.r.to_string(), "dev", "a0"], "")?;
    connection(&session.lab.a, at.r, OPEN)?;
    wait::until_steady(SETTLES_WITHIN, SILENCE[0], || tracer.seen());
    let ended = tracer.stop(Signal::TERM)?;
    for (tool, family, _) in tools {
        let saved = router.command(&format!("{tool}-save"), &[], "")?;
        let is_rule =
            |step: &&Step| step.nft.as_ref().is_some_and(|nft| nft.family == family && nft.handle.is_some());
        let texts: Vec<&str> =
            ended.trace.steps.iter().filter(is_rule).filter_map(|step| step.text.as_deref()).collect();
        let right = |text: &&str| saved.lines().any(|line| line == *text);
        check(
            !texts.is_empty() && texts.iter().all(right),
            format!("{texts:?} of {saved}: {:#?}", ended.trace),
        )?;
    }
    Ok(())
}

/// Rules of iptables-nft: steps, numbers and texts as iptables-nft has them.
fn iptables(options: &Options) -> Result<Outcome> {
    let mut session = Session::without_legacy()?;
    let mut planner = Planner::new(options.seed, 0, 1);
    session.load("")?;
    for restore in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        session.lab.r.command(restore, &[], IPTABLES)?;
    }
    let saved = session.lab.r.command("iptables-nft-save", &[], "")?;
    session.trace()?;
    let shots = Session::shots(&mut planner, 4 * SHOTS);
    let (verdict, trace) = session.judge_traced(|session| {
        session.fire(&shots);
        Ok(())
    })?;
    session.end()?;
    examine(&verdict, "iptables-nft", IPTABLES)?;
    let mut texts = 0;
    for step in &trace.steps {
        let Some(place) = text_of(step).and_then(|text| place_in(&saved, text)) else { continue };
        check(step.step.ends_with(&place), format!("{} is shown as {:?}", step.step, step.text))?;
        texts += 1;
    }
    check(texts > 100, format!("{texts} texts"))?;
    let Outcome::Passed(figures) = conclude(&verdict)? else { bail!("concluded otherwise") };
    Ok(Outcome::Passed(format!("{texts} texts as iptables-nft-save has them; {figures}")))
}

/// The text of a rule that nftables holds.
fn text_of(step: &Step) -> Option<&str> {
    step.text.as_deref().filter(|_| step.nft.is_some())
}

/// Where a rule is: `CHAIN:rule:NUMBER`, counted as `iptables -L --line-numbers` does.
fn place_in(saved: &str, text: &str) -> Option<String> {
    let chain = text.strip_prefix("-A ")?.split(' ').next()?;
    let mut rules = saved.lines().filter(|line| line.split(' ').nth(1) == Some(chain));
    let number = rules.position(|line| line == text)? + 1;
    Some(format!(":{chain}:rule:{number}"))
}

/// A rule that is replaced all the time sets the mark to the number of its version: text and mark have to agree.
fn edited(options: &Options) -> Result<Outcome> {
    let mut session = Session::new()?;
    session.load(
        "table inet t {\n chain in { type filter hook prerouting priority -150; policy accept; }\n}\n",
    )?;
    session.trace()?;
    let mut planner = Planner::new(options.seed, 0, 1);
    let (stop, netns) = (AtomicBool::new(false), session.lab.r.name().to_owned());
    let mut trace = Trace::default();
    let edits = thread::scope(|scope| -> Result<u32> {
        let editor = scope.spawn(|| edit(&netns, &stop));
        let end = Instant::now() + Duration::from_secs(options.seconds);
        while Instant::now() < end {
            session.fire(&planner.shots(Family::Ipv4, SHOTS));
            trace.append(session.tracer.as_ref().context("a tracer runs")?.take());
        }
        stop.store(true, Ordering::Relaxed);
        editor.join().unwrap_or_else(|_| bail!("the editor failed"))
    })?;
    let ended = session.tracer.take().context("a tracer runs")?.stop(Signal::TERM)?;
    trace.append(ended.trace);
    let (mut right, mut complete) = (0, 0);
    for step in trace.steps.iter().filter(|step| step.step.starts_with("t:in:rule:")) {
        let certainty = trace.packets.get(&step.packet).map(|packet| packet.certainty);
        complete += u64::from(certainty == Some(Certainty::Complete));
        let Some(text) = text_of(step) else { continue };
        let said = text.split("set 0x").nth(1).and_then(|rest| rest.get(..8));
        let said =
            said.and_then(|digits| u32::from_str_radix(digits, 16).ok()).with_context(|| text.to_owned())?;
        check(
            said == step.mark || certainty != Some(Certainty::Complete),
            format!("a rule is shown as {text:?}, but set the mark to {:#x}", step.mark),
        )?;
        right += u64::from(said == step.mark);
    }
    check(edits > 2 && complete > 100, format!("{edits} edits, {complete} complete steps"))?;
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for packet in trace.packets.values().filter(|packet| packet.certainty == Certainty::Inexact) {
        *reasons.entry(&packet.why).or_default() += 1;
    }
    let (packets, inexact) = (trace.packets.len(), reasons.values().sum::<u64>());
    Ok(Outcome::Passed(format!(
        "{edits} edits, {packets} packets, {inexact} inexact {reasons:?}, {complete} steps of complete ones, {right} with the right text"
    )))
}

/// By probes, against the programs that users have.
fn monitors(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    Ok(Outcome::Passed(monitored::iptables_by_probes()?))
}

/// Without probes: against the program that users have. One packet after the other, so there are few.
fn netlink(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    Ok(Outcome::Passed(monitored::generated(NETLINK_RULESETS, true)?))
}

fn netlink_devices(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    Ok(Outcome::Passed(monitored::devices(NETLINK_FAMILY_RULESETS)?))
}

fn netlink_bridge(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    Ok(Outcome::Passed(monitored::bridge(NETLINK_FAMILY_RULESETS)?))
}

fn netlink_arp(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    Ok(Outcome::Passed(monitored::arp()?))
}

/// The first packet of a connection has its address translated; those after it say so, in both directions.
fn nat(_: &Options) -> Result<Outcome> {
    let mut session = Session::without_legacy()?;
    let at = addresses(Family::Ipv4);
    session.load(&format!(
        "table ip t {{\n chain mid {{ type filter hook prerouting priority -150; }}\n \
         chain pre {{ type nat hook prerouting priority -100; ip daddr {} tcp dport 80 dnat to {}:{OPEN}; }}\n \
         chain pass {{ type filter hook forward priority 0; counter; }}\n}}\n",
        at.r_dnat, at.b,
    ))?;
    session.trace()?;
    connection(&session.lab.a, at.r_dnat, 80)?;
    let tracer = session.tracer.take().context("a tracer runs")?;
    wait::until_steady(SETTLES_WITHIN, SILENCE[0], || tracer.seen());
    let ended = tracer.stop(Signal::TERM)?;
    let passed = |packet: &&Packet| packet.path.iter().any(|step| step.starts_with("t:pass:"));
    let (first, later): (Vec<&Packet>, Vec<&Packet>) = ended
        .trace
        .packets
        .values()
        .filter(passed)
        .partition(|packet| packet.path.iter().any(|step| step.starts_with("t:pre:")));
    let note =
        format!("nat: established, not consulted; DNAT to {}:{OPEN} was chosen at its first packet", at.b);
    check(first.iter().all(|packet| packet.note.is_none()), format!("{first:?}"))?;
    check(later.iter().all(|packet| packet.note.as_ref() == Some(&note)), format!("{later:?}"))?;
    check(first.len() == 1 && later.len() > 2, format!("{} and {}", first.len(), later.len()))?;
    Ok(Outcome::Passed(format!("{} packets after the first: {note}", later.len())))
}

/// With `--mark none` nothing is changed, and only what a packet met and how that ended is told, at a device, a bridge, at
/// ARP and IP; that rules are not told is.
fn mark_none(options: &Options) -> Result<Outcome> {
    let session = Session::without_legacy()?;
    session.lab.bridge()?;
    let router = &session.lab.r;
    let chain = |kind: &str, rest: &str| format!("chain {kind} {{ type filter hook {rest} counter; }}\n");
    router.command("nft", &["flush", "ruleset"], "")?;
    let rules = [
        ("netdev d", chain("in", "ingress device ra priority 0;")),
        ("bridge b", chain("pre", "prerouting priority 0;") + &chain("in", "input priority 0;")),
        ("arp a", chain("in", "input priority 0;") + &chain("out", "output priority 0;")),
        ("inet t", chain("in", &format!("input priority 0; policy drop; udp dport {OPEN} accept;"))),
    ];
    let rules: String =
        rules.iter().map(|(table, chains)| format!("table {table} {{\n{chains}}}\n")).collect();
    router.command("nft", &["-f", "-"], &rules)?;
    let before = router.command("nft", &["-s", "list", "ruleset"], "")?;
    let up = ["netdev d:in", "bridge b:pre", "bridge b:in"];
    let cases: [(&[&str], &str); 4] = [
        (&[up[0], up[1], up[2], "arp a:in"], "accept"),
        (&["arp a:out"], "accept"),
        (&[up[0], up[1], up[2], "inet t:in"], "accept"),
        (&[up[0], up[1], up[2], "inet t:in"], "drop"),
    ];
    let arguments = ["--backend", "ebpf", "--mark", "none", "--netns", router.name(), "-o", "json"];
    let tracer = Tracer::start(&arguments, &[])?;
    let said = tracer.errors().join("\n");
    check(said.contains("footprint: ") && !said.contains("table "), said)?;
    let after = router.command("nft", &["-s", "list", "ruleset"], "")?;
    check(before == after, format!("the rules were changed: {after}"))?;
    questions(&session.lab).next().context("a question")??;
    let shot = Planner::new(options.seed, 0, 1).shots(Family::Ipv4, 1).remove(0);
    for port in [OPEN, 53] {
        let (at, transport) = (addresses(Family::Ipv4), Transport::Udp { sport: 20_000, dport: port });
        let packet = Sent { src: at.a, dst: at.r, transport, fragment: None, ..shot.packet.clone() };
        session.senders.fire(&Shot { from: Place::A, packet });
    }
    let is = |packet: &Packet, (chains, verdict): &(&[&str], &str)| {
        let why = chains.iter().map(|chain| format!("the rules of {chain} are not visible"));
        packet.why == why.collect::<Vec<_>>().join("; ")
            && packet.verdict == *verdict
            && packet.certainty == Certainty::Inexact
    };
    let all = |trace: &Trace| cases.iter().all(|case| trace.packets.values().any(|packet| is(packet, case)));
    let found = wait::until(SETTLES_WITHIN, || tracer.look(all).then_some(()));
    let ended = tracer.stop(Signal::TERM)?;
    check(found.is_some() && ended.trace.steps.is_empty(), format!("{:#?}", ended.trace))?;
    Ok(Outcome::Passed(format!("{} packets", cases.len())))
}

/// All rules are replaced at once, as often as this machine can, up to twenty times a second.
fn reloaded(options: &Options) -> Result<Outcome> {
    crate::load_modules();
    let lasts = Duration::from_secs(options.seconds / 2);
    // Emulated, with kprobes, hardly any packet comes between two reloads.
    let least = Least { reloads: 5, complete: 3, texts: 3 };
    let figures = reload::reloaded(&Netns::create("nftl")?, &["--backend", "ebpf"], lasts, &least)?;
    Ok(Outcome::Passed(figures))
}

/// Rules as programs make them, with this kernel's extensions.
fn corpus(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    Ok(Outcome::Passed(corpus::corpus(&Netns::create("nftk")?)?))
}

/// Adds the rule, replaces it under its handle, and takes it away, twenty times a second.
fn edit(netns: &str, stop: &AtomicBool) -> Result<u32> {
    netns::move_here(netns)?;
    let mut version = 0;
    while !stop.load(Ordering::Relaxed) {
        version += 1;
        let text = match version % 4 {
            1 => format!("flush chain inet t in\nadd rule inet t in meta mark set {version} counter\n"),
            _ => {
                let listed = netns::run("nft", &["-a", "list", "chain", "inet", "t", "in"], "")?;
                let handle =
                    listed.lines().find_map(|line| line.split_once("counter")?.1.split("handle ").nth(1));
                let handle = handle.with_context(|| listed.clone())?;
                format!("replace rule inet t in handle {handle} meta mark set {version} counter\n")
            }
        };
        netns::run("nft", &["-f", "-"], &text)?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(version)
}

/// Fails when a complete path is not the kernel's.
fn examine(verdict: &Verdict, place: &str, text: &str) -> Result<()> {
    let Some(wrong) = verdict.wrong.first() else { return Ok(()) };
    bail!("{place}: {} wrong, the first: {wrong}\n{text}", verdict.wrong.len())
}

fn conclude(total: &Verdict) -> Result<Outcome> {
    let figures = total.figures;
    check(figures.traversals > 100, format!("the kernel told of {} traversals only", figures.traversals))?;
    check(figures.inexact * 100 <= figures.packets, format!("{figures}: {:?}", total.reasons))?;
    let unseen = format!("{figures}, such as {:?}", total.unseen_example);
    check(figures.unseen * 100 <= figures.traversals, unseen)?;
    Ok(Outcome::Passed(format!("{figures} {:?}", total.reasons)))
}
