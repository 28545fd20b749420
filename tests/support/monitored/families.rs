//! The same for what meets chains of devices, of a bridge and of ARP.
//!
//! Where packets are marked by rules that are there already, before all others of their families, everything is told. Where
//! a run marks them itself, it does so where IP begins: what was met before is not told, and each path has to say so.

use anyhow::{Context as _, Result};

use super::{BOTH, Figures, Rules, Sent, Session, session};
use crate::check;
use crate::netns;
use crate::nft_rules::{ARP, BRIDGES, DEVICES, generate_with_bridges, generate_with_devices};
use crate::tracer::{Certainty, Trace};

/// As a user would mark on a bridge, and packets of ARP.
const MARKER: &str = "\
table bridge marker {
    chain pre { type filter hook prerouting priority -500; meta nftrace set 1; }
    chain out { type filter hook output priority -500; meta nftrace set 1; }
}
table arp marker {
    chain in { type filter hook input priority -500; meta nftrace set 1; }
    chain out { type filter hook output priority -500; meta nftrace set 1; }
}
";
/// Packets of each family for one ruleset.
const SHOTS: usize = 6;
/// What a path says where the mark came too late.
const LATE: &str = "the mark comes after it";
/// Paths that are in doubt for other reasons, such as the end of the trace.
const FEW: usize = 2;
/// How many of the hand-written rulesets are traced with a mark of the run as well.
const MARKED: usize = 1;

fn rules(name: &str, nft: String, mark: &'static str, sent: Sent) -> Rules {
    Rules { name: name.to_owned(), nft, iptables: false, legacy: false, mark, sent }
}

/// Chains at ingress, and at egress where the kernel has it; so many generated rulesets besides.
pub fn devices(seeds: u64) -> Result<String> {
    let mut session = session(3, &BOTH[..1])?;
    session.shots = SHOTS;
    let egress = {
        let chain = "table netdev d {\n chain e { type filter hook egress device ra priority 0; }\n}\n";
        session.lab.r.command("nft", &["-f", "-"], chain).is_ok()
    };
    let mut all: Vec<Rules> = Vec::new();
    let written = DEVICES.iter().filter(|ruleset| egress || !ruleset.text.contains("egress"));
    for (number, ruleset) in written.enumerate() {
        let marks: &[&'static str] = if number < MARKED { &["none", "nft"] } else { &["none"] };
        let of = |mark: &&'static str| rules(ruleset.name, ruleset.text.to_owned(), mark, Sent::Connections);
        all.extend(marks.iter().map(of));
    }
    all.extend((0..seeds).map(|seed| {
        rules(&format!("seed {seed}"), generate_with_devices(seed, egress), "none", Sent::Shots)
    }));
    let total = session.judge_all(&all)?;
    let egress = if egress { "with" } else { "without" };
    Ok(format!("{egress} egress; {} rulesets, {total}", all.len()))
}

/// Chains of a bridge, without br_netfilter and with it.
pub fn bridge(seeds: u64) -> Result<String> {
    let mut session = session(4, &BOTH[..1])?;
    session.shots = SHOTS;
    session.lab.bridge()?;
    let mut all: Vec<Rules> = Vec::new();
    for (number, ruleset) in BRIDGES.iter().enumerate() {
        let marks: &[&'static str] = if number < MARKED { &["none", "nft"] } else { &["none"] };
        let of =
            |mark: &&'static str| rules(ruleset.name, marked(mark, ruleset.text), mark, Sent::Connections);
        all.extend(marks.iter().map(of));
    }
    all.extend((0..seeds).map(|seed| {
        let text = marked("none", &generate_with_bridges(seed));
        rules(&format!("seed {seed}"), text, "none", Sent::Shots)
    }));
    let mut total = Figures::default();
    for netfilter in ["0", "1"] {
        if netfilter == "1" {
            let _ = netns::run("modprobe", &["br_netfilter"], "");
        }
        let set = |program| session.lab.r.sysctl(&format!("net/bridge/bridge-nf-call-{program}"), netfilter);
        let is_set = ["iptables", "ip6tables"].into_iter().all(|program| set(program).is_ok());
        if netfilter == "1" && !is_set {
            return Ok(format!("without br_netfilter: {} rulesets, {total}", all.len()));
        }
        total.add(session.judge_all(&all).with_context(|| format!("bridge-nf-call {netfilter}"))?);
    }
    Ok(format!("{} rulesets, {total}", all.len()))
}

/// Requests and answers of ARP, with chains of a device and of a bridge among them.
pub fn arp() -> Result<String> {
    let mut session = session(5, &BOTH[..1])?;
    let mut total = Figures::default();
    for ruleset in ARP {
        if ruleset.text.contains("bridge") {
            session.lab.bridge()?;
        }
        let rules = rules(ruleset.name, marked("none", ruleset.text), "none", Sent::Questions);
        total.add(session.judge_all(&[rules])?);
    }
    check(total.packets >= 4 * ARP.len(), format!("too few packets: {total}"))?;
    Ok(format!("{} rulesets, {total}", ARP.len()))
}

fn marked(mark: &str, text: &str) -> String {
    format!("{}{text}", if mark == "none" { MARKER } else { "" })
}

impl Session {
    fn judge_all(&mut self, all: &[Rules]) -> Result<Figures> {
        let (mut total, mut in_time) = (Figures::default(), Figures::default());
        for rules in all {
            let figures = self
                .judge(rules)
                .with_context(|| format!("{}, mark {}\n{}", rules.name, rules.mark, rules.nft))?;
            check(figures.traversals > 0, format!("{}: nothing was compared", rules.name))?;
            total.add(figures);
            in_time.add(if rules.mark == "none" { figures } else { Figures::default() });
        }
        check(in_time.inexact <= FEW + in_time.packets / 50, format!("marked before all others: {in_time}"))?;
        Ok(total)
    }
}

/// Where a run marks packets itself and something stands before that, no path may be without a word about it, and there is
/// no other doubt.
pub(super) fn doubts(trace: &Trace, rules: &Rules) -> Result<()> {
    if rules.mark == "none" {
        return Ok(());
    }
    let came_in = |number: &u64| {
        let mut steps = trace.steps.iter().filter(|step| step.packet == *number);
        steps.next().is_some_and(|step| step.devices[0].is_some())
    };
    let (mut late, mut others) = (0, 0);
    for (number, packet) in &trace.packets {
        let is_late = packet.why.contains(LATE);
        late += usize::from(is_late);
        others += usize::from(!is_late && packet.certainty == Certainty::Inexact);
        check(!is_late || came_in(number), format!("it was marked in time: {packet:?}"))?;
    }
    check(others <= FEW, format!("{late} paths say that the mark came late, {others} something else"))?;
    let early = ["ingress", "bridge"].iter().any(|word| rules.nft.contains(word));
    check(!early || late > 0, "no path says that the mark came late")
}
