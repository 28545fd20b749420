//! What nftracer says against `nft monitor trace` and `xtables-monitor --trace`, base chain by base chain.

mod families;

use families::doubts;
pub use families::{arp, bridge, devices};

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nftracer::fetch::nft::Nftables;
use nftracer::nftables::Ruleset;
use nftracer::path::group::join::At;
use rustix::process::Signal;

use crate::lab::{Family, Lab, Spread, addresses};
use crate::monitor::{self, Monitor, Program, Told, Traversal, of_nftracer};
use crate::netns::Netns;
use crate::nft_rules::{HANDWRITTEN, generate};
use crate::tracer::{Certainty, Step, Trace, Tracer};
use crate::traffic::{OPEN, Planner, Senders, Server, connection, questions};
use crate::{check, ruleset, wait};

/// Packets of each family for one ruleset: the monitors have small buffers.
const SHOTS: usize = 12;
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Looks without a change after which nothing more comes.
const LOOKS: u32 = 60;
const FEW_LOOKS: u32 = 3;
/// A monitor that lost something is asked so often.
const ATTEMPTS: usize = 20;

/// As a user would mark, before everything else, at a device as well.
const MARKER: &str = "\
table netdev marker {
    chain in { type filter hook ingress devices = { ra, rb, lo } priority -500; meta nftrace set 1; }
}
table inet marker {
    chain pre { type filter hook prerouting priority -500; meta nftrace set 1; }
    chain out { type filter hook output priority -500; meta nftrace set 1; }
}
";

/// A device's own chain.
const NETDEV: &str = "\
table netdev t {
    chain in { type filter hook ingress device ra priority 0; policy accept; ip protocol udp jump more; ip6 nexthdr udp counter; }
    chain more { udp dport 53 counter; udp dport { 443, 5001 } return; counter; }
}
";

/// Rules of iptables-nft for both families.
const IPTABLES: &str = "\
*mangle\n:X - [0:0]\n-A PREROUTING -p udp -m udp --dport 53 -j X\n-A X -m comment --comment \"a b\" -j MARK --set-xmark 0x3/0xffffffff\nCOMMIT\n\
*filter\n:CH - [0:0]\n:DEEP - [0:0]\n-A INPUT -p udp -m udp --dport 53 -j CH\n-A INPUT -p tcp -g CH\n\
-A CH -m length --length 0:65535\n-A CH -p udp -j DEEP\n-A DEEP -m mark --mark 0x3 -j RETURN\n-A DEEP -j DROP\n\
-A FORWARD -p udp -m multiport --dports 443,5001 -j DROP\n-A FORWARD -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";

/// Not for IPv6: nft cannot print targets of iptables that it has printed for the other family.
const IPTABLES_NAT: &str = "*nat\n-A POSTROUTING -o rb -p udp -j MASQUERADE\nCOMMIT\n";

/// Legacy tables beside them.
const LEGACY: &str = "\
*raw\n-A PREROUTING -p udp -m udp --dport 7001 -j DROP\nCOMMIT\n\
*mangle\n:M - [0:0]\n-A PREROUTING -p udp -j M\n-A M -p udp -m udp --dport 80 -j RETURN\n-A M -j TOS --set-tos 0x04/0xff\nCOMMIT\n\
*filter\n:CH - [0:0]\n-A INPUT -p udp -m udp --dport 53 -j CH\n-A CH -m length --length 0:65535\n-A FORWARD -p tcp -m tcp --dport 5001 -j DROP\nCOMMIT\n";

/// The backend that sees what it marks, or others have marked.
const NETLINK: &str = "netlink";

/// The programs to compare with.
const BOTH: &[Program] = &[Program::Nft, Program::Xtables];

/// What the router holds.
#[derive(Clone, Debug)]
struct Rules {
    name: String,
    nft: String,
    iptables: bool,
    legacy: bool,
    mark: &'static str,
    sent: Sent,
}

/// What is sent through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Shots,
    /// And these.
    Connections,
    /// What somebody does not know who has an address.
    Questions,
}

#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    packets: usize,
    steps: usize,
    inexact: usize,
    traversals: usize,
    mixed: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, steps, inexact, traversals, mixed } = self;
        write!(
            f,
            "{packets} packets, {steps} steps, {inexact} inexact, {traversals} base chains compared, {mixed} packets \
             in both engines"
        )
    }
}

struct Session {
    backend: &'static str,
    lab: Lab,
    senders: Senders,
    planner: Planner,
    programs: &'static [Program],
    /// Packets of each family for one ruleset.
    shots: usize,
    _servers: Vec<Server>,
}

fn session(seed: u64, programs: &'static [Program]) -> Result<Session> {
    let lab = Lab::build(&format!("nftn{}", std::process::id()), Spread::SameCpu)?;
    let (senders, servers) = (Senders::open(&lab)?, Server::everywhere(&lab)?);
    let planner = Planner::new(seed, 0, 1);
    Ok(Session { backend: NETLINK, lab, senders, planner, programs, shots: SHOTS, _servers: servers })
}

/// All hand-written rulesets, alone and beside legacy tables, marked by nftracer and by rules that are there. Says what was
/// compared.
pub fn handwritten() -> Result<String> {
    let mut session = session(1, BOTH)?;
    let mut total = Figures::default();
    let mut all: Vec<Rules> = HANDWRITTEN
        .iter()
        .flat_map(|ruleset| alone_and_mixed(ruleset.name, ruleset.text.to_owned(), false))
        .collect();
    all.extend(of_iptables());
    for rules in &all {
        let figures = session.judge(rules).with_context(|| format!("{rules:?}"))?;
        total.add(figures);
    }
    conclude(all.len(), total)
}

/// Rules of iptables-nft by the probes, which see what others have marked as well: alone beside legacy tables, and without them
/// beside a device's. Says what was compared.
pub fn iptables_by_probes() -> Result<String> {
    let mut session = Session { backend: "ebpf", shots: SHOTS / 2, ..session(6, BOTH)? };
    let mut total = Figures::default();
    let all: Vec<Rules> =
        of_iptables().filter(|rules| rules.mark == "none" && rules.legacy == rules.nft.is_empty()).collect();
    for rules in &all {
        total.add(session.judge(rules).with_context(|| format!("{rules:?}"))?);
    }
    conclude(all.len(), total)
}

/// A ruleset, with legacy tables and without, marked by nftracer and by rules of its own.
fn alone_and_mixed(name: &str, nft: String, iptables: bool) -> Vec<Rules> {
    let of = |(legacy, mark)| {
        let (name, nft) = (name.to_owned(), nft.clone());
        Rules { name, nft, iptables, legacy, mark, sent: Sent::Connections }
    };
    [(false, "nft"), (true, "nft"), (false, "none"), (true, "none")].map(of).into()
}

/// Those with rules of iptables-nft.
fn of_iptables() -> impl Iterator<Item = Rules> {
    // The mark that a run sets comes after a device's chain.
    let with_device = alone_and_mixed("a device", NETDEV.to_owned() + HANDWRITTEN[0].text, true);
    let with_device = with_device.into_iter().filter(|rules| rules.mark == "none");
    alone_and_mixed("iptables-nft", String::new(), true).into_iter().chain(with_device)
}

/// So many generated rulesets. On older kernels what `xtables-monitor` says does not tell base chains apart: there it is
/// left out by `only_nft`.
pub fn generated(seeds: u64, only_nft: bool) -> Result<String> {
    let mut session = session(2, if only_nft { &BOTH[..1] } else { BOTH })?;
    let mut total = Figures::default();
    for seed in 0..seeds {
        let mark = if seed % 2 == 0 { "nft" } else { "none" };
        let mut nft = generate(seed);
        if mark == "none" {
            nft += NETDEV;
        }
        let name = format!("seed {seed}");
        let (iptables, legacy) = (seed % 4 == 3, seed % 3 != 0);
        let rules = Rules { name, nft, iptables, legacy, mark, sent: Sent::Shots };
        let figures = session.judge(&rules).with_context(|| format!("{}\n{}", rules.name, rules.nft))?;
        total.add(figures);
    }
    conclude(usize::try_from(seeds)?, total)
}

fn conclude(rulesets: usize, total: Figures) -> Result<String> {
    let said = format!("{rulesets} rulesets, {total}");
    check(total.inexact * 50 <= total.packets && total.mixed * 5 > total.packets, said.clone())?;
    Ok(said)
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.steps += other.steps;
        self.inexact += other.inexact;
        self.traversals += other.traversals;
        self.mixed += other.mixed;
    }
}

impl Session {
    fn load(&self, rules: &Rules) -> Result<Ruleset> {
        let router = &self.lab.r;
        router.command("nft", &["flush", "ruleset"], "")?;
        if rules.iptables {
            for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
                router.command(program, &[], IPTABLES)?;
            }
            router.command("iptables-nft-restore", &["--noflush"], IPTABLES_NAT)?;
        }
        let marker = if rules.mark == "none" { MARKER } else { "" };
        router.command("nft", &["-f", "-"], &format!("{marker}{}", rules.nft))?;
        router.clear_rules()?;
        for family in Family::ALL.into_iter().filter(|_| rules.legacy) {
            ruleset::load(router, family, LEGACY)?;
        }
        let namespace = File::open(format!("/run/netns/{}", router.name()))?;
        Ok(Nftables::open(&namespace)?.context("nf_tables is not there")?.structure()?)
    }

    /// Sends packets through the rules and compares, again where a monitor lost something.
    fn judge(&mut self, rules: &Rules) -> Result<Figures> {
        let ruleset = self.load(rules)?;
        for _ in 0..ATTEMPTS {
            let name = self.lab.r.name().to_owned();
            let mark: &[_] = if self.backend == NETLINK { &["--mark", rules.mark] } else { &[] };
            let arguments = ["--backend", self.backend, "--netns", &name, "-o", "json"];
            let tracer = Tracer::start(&[&arguments[..], mark].concat(), &[])?;
            let foreign = ["table ip ", "table ip6 "].iter().any(|table| rules.nft.contains(table));
            let programs = if foreign { &BOTH[..1] } else { self.programs };
            let monitors =
                programs.iter().copied().map(|program| Ok((program, Monitor::start(program, &self.lab.r)?)));
            let mut monitors = monitors.collect::<Result<Vec<_>>>()?;
            let said = || monitors.iter().map(|(_, monitor)| monitor.count()).collect::<Vec<_>>();
            let settle = |netns: &Netns, looks: u32| {
                let is_read = || monitor::is_read(netns).unwrap_or(true).then_some(());
                let read = wait::until(SETTLES_WITHIN, is_read).is_some();
                let steady = wait::until_steady(SETTLES_WITHIN, looks, said);
                check(read && steady, format!("not settled within {SETTLES_WITHIN:?}"))
            };
            self.send(rules.sent, |netns| settle(netns, FEW_LOOKS))?;
            settle(&self.lab.r, LOOKS)?;
            let ended = tracer.stop(Signal::INT)?;
            let errors = ended.errors.join("\n");
            check(ended.status.code() == Some(0), errors.clone())?;
            check(ended.trace.odd.is_empty(), format!("rows that cannot be read: {:#?}", ended.trace.odd))?;
            let trace = ended.trace;
            let totals = trace.end.context("no totals")?;
            check(totals.lost == 0, errors)?;
            let mut compared = Some(0);
            for (program, monitor) in &mut monitors {
                let told = match monitor.take() {
                    Told::All(told) => told,
                    Told::GaveUp => continue,
                    Told::Lost => {
                        compared = None;
                        break;
                    }
                };
                let count = compare(*program, &trace, told).with_context(|| format!("{program:?}"))?;
                compared = compared.map(|sum| sum + count);
            }
            if let Some(traversals) = compared {
                doubts(&trace, rules).with_context(|| reasons(&trace))?;
                return examine(&trace, &ruleset, traversals);
            }
        }
        bail!("the monitors lost something {ATTEMPTS} times")
    }

    /// Sends, and gives the monitors time for each packet.
    fn send(&mut self, sent: Sent, pause: impl Fn(&Netns) -> Result<()>) -> Result<()> {
        if sent == Sent::Questions {
            return questions(&self.lab).try_for_each(|asked| asked.and_then(|()| pause(&self.lab.r)));
        }
        for family in Family::ALL {
            for shot in self.planner.shots(family, self.shots) {
                // The monitors take what is in a later fragment for ports.
                if shot.packet.fragment.is_none() {
                    self.senders.fire(&shot);
                    pause(&self.lab.r)?;
                }
            }
        }
        if sent == Sent::Connections {
            for at in Family::ALL.map(addresses) {
                connection(&self.lab.a, at.b, OPEN)?;
                pause(&self.lab.r)?;
                connection(&self.lab.r, at.lo, OPEN)?;
                pause(&self.lab.r)?;
            }
        }
        Ok(())
    }
}

/// Each base chain of a complete path is one that the monitor saw, and it saw no others but those of packets that are in
/// doubt.
fn compare(program: Program, trace: &Trace, told: Vec<Traversal>) -> Result<usize> {
    let mut left: HashMap<Traversal, usize> = HashMap::new();
    // One of them does not know devices, nor always packets for which no rule held.
    // What the kernel sends by itself may come before a monitor listens.
    let knows = |traversal: &Traversal| {
        let is_known =
            program == Program::Nft || (!traversal.table.starts_with("netdev") && traversal.has_rule());
        is_known && !traversal.packet.contains("> ff")
    };
    told.into_iter().filter(knows).for_each(|traversal| *left.entry(traversal).or_default() += 1);
    let certain = |packet: &u64| {
        trace.packets.get(packet).is_some_and(|packet| packet.certainty == Certainty::Complete)
    };
    let (mut right, mut doubtful) = (0, 0);
    // Older kernels tell less of rules that return.
    let less = of_nftracer(program, trace, false).into_iter().map(|(_, traversal)| traversal);
    for ((packet, traversal), less) in of_nftracer(program, trace, true).into_iter().zip(less) {
        // What has no words for a monitor: an empty chain's end.
        if !knows(&traversal) {
            continue;
        }
        let is_left = |traversal: &Traversal| left.get(traversal).is_some_and(|count| *count > 0);
        let told = if is_left(&traversal) { &traversal } else { &less };
        match left.get_mut(told).filter(|count| **count > 0) {
            Some(count) => {
                *count -= 1;
                right += 1;
            }
            None if certain(&packet) => {
                let similar: Vec<_> = left
                    .iter()
                    .filter(|(other, count)| **count > 0 && other.packet == traversal.packet)
                    .collect();
                bail!("packet {packet} is complete, and nobody saw {traversal:#?}, but {similar:#?}")
            }
            None => doubtful += 1,
        }
    }
    let missing: Vec<_> = left.into_iter().filter(|(_, count)| *count > 0).collect();
    check(
        missing.iter().map(|(_, count)| count).sum::<usize>() <= doubtful,
        format!("not shown: {missing:#?}"),
    )?;
    Ok(right)
}

/// The steps of a complete path are all of one packet, in the order of the priorities.
fn examine(trace: &Trace, ruleset: &Ruleset, traversals: usize) -> Result<Figures> {
    let mut steps: HashMap<u64, Vec<&Step>> = HashMap::new();
    trace.steps.iter().for_each(|step| steps.entry(step.packet).or_default().push(step));
    let (mut seen, mut mixed) = (HashSet::new(), 0);
    for (number, packet) in &trace.packets {
        let steps = steps.get(number).context("a path without steps")?;
        check(
            steps.iter().map(|step| &step.step).eq(&packet.path),
            format!("other steps than {:?}", packet.path),
        )?;
        let is_mixed =
            steps.iter().any(|step| step.nft.is_none()) && steps.iter().any(|step| step.nft.is_some());
        mixed += usize::from(is_mixed);
        if packet.certainty != Certainty::Complete {
            continue;
        }
        let mut ids: HashSet<_> = steps.iter().map(|step| (step.identity.id, step.identity.length)).collect();
        check(ids.len() == 1, format!("several packets in one path: {ids:?} {:?}", packet.path))?;
        let first = steps.first().context("a step")?;
        let is_shot = first.identity.ports[0] >= 10_000 && first.identity.protocol == 17;
        let key = (first.identity.clone(), ids.drain().next());
        check(!is_shot || seen.insert(key), format!("two paths of one packet: {first:?} {:?}", packet.path))?;
        in_order(steps, ruleset).with_context(|| format!("{:?}", packet.path))?;
    }
    let to_many = |number: &u64| {
        let first = steps.get(number).and_then(|steps| steps.first());
        first.is_some_and(|step| step.identity.dst.is_multicast())
    };
    let inexact = trace.packets.iter().filter(|(number, packet)| {
        // Nobody may be there to take it.
        packet.certainty == Certainty::Inexact && !to_many(number)
    });
    let inexact = inexact.count();
    Ok(Figures { packets: trace.packets.len(), steps: trace.steps.len(), inexact, traversals, mixed })
}

/// Why paths are not complete, with one of each kind.
fn reasons(trace: &Trace) -> String {
    let inexact = trace.packets.values().filter(|packet| packet.certainty == Certainty::Inexact);
    let all: HashMap<&str, String> =
        inexact.map(|packet| (packet.why.as_str(), packet.path.join(" "))).collect();
    format!("{all:#?}")
}

fn in_order(steps: &[&Step], ruleset: &Ruleset) -> Result<()> {
    let mut last: Option<At> = None;
    for step in steps {
        let parts: Vec<&str> = step.step.split(':').collect();
        let [table, chain, ..] = parts[..] else { bail!("{}", step.step) };
        let base = || {
            let table = ruleset.tables.iter().find(|known| {
                Some(known.family.name()) == step.nft.as_ref().map(|nft| nft.family.as_str())
                    && &*known.name == table
            })?;
            table.chain(chain)?.base.as_ref()?.at()
        };
        let at = if step.nft.is_some() { base() } else { At::of_legacy(table, chain) };
        let Some(at) = at else { continue };
        if let Some(last) = last.filter(|last| last.hook == at.hook) {
            check(last.priority <= at.priority, format!("{} is too late", step.step))?;
        }
        last = Some(at);
    }
    Ok(())
}
