//! Two ways of tracing that watched the same packets, held against each other: every packet, step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use anyhow::{Context, Result};

use crate::check;
use crate::packet::Identity;
use crate::tracer::{Certainty, Step, Trace};

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets with the same path.
    pub packets: usize,
    /// Their steps.
    pub steps: usize,
    /// Last steps of which only the first way knows what they did with the packet.
    pub less_known: usize,
    /// Packets that the first way says itself not to have seen whole; these are not compared.
    pub doubtful: usize,
    /// Steps of packets that only the second way has seen: the first has to have counted what it missed.
    pub missed: usize,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.steps += other.steps;
        self.less_known += other.less_known;
        self.doubtful += other.doubtful;
        self.missed += other.missed;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, steps, less_known, doubtful, missed } = self;
        write!(f, "{packets} packets, {steps} steps the same, {less_known} less known, {doubtful} doubtful")?;
        if *missed > 0 { write!(f, ", {missed} steps missed") } else { Ok(()) }
    }
}

/// A packet as one way tells of it.
#[derive(Clone, Debug)]
struct Told<'a> {
    steps: Vec<&'a Step>,
    certainty: Certainty,
    why: &'a str,
    verdict: &'a str,
}

impl Told<'_> {
    fn shown(&self) -> String {
        let steps: Vec<&str> = self.steps.iter().map(|step| step.step.as_str()).collect();
        format!("{} = {} {:?} {}", steps.join(" "), self.verdict, self.certainty, self.why)
    }

    fn path(&self) -> Vec<(u8, &str)> {
        self.steps.iter().map(|step| (step.hook, step.step.as_str())).collect()
    }
}

/// Says how much is the same, or the first packet of which the second way tells something else. The second has to be
/// sure of all packets, but of those that were on their way together with one just like them.
pub fn compare(first: &Trace, second: &Trace) -> Result<Figures> {
    let (firsts, mut seconds) = (packets(first)?, packets(second)?);
    let mut figures = Figures::default();
    for (identity, mut told) in firsts {
        let mut others = seconds.remove(&identity).unwrap_or_default();
        // Two resets of one connection differ in nothing.
        let alike = |other: &Told<'_>| other.why.contains("another packet with the same headers");
        if told.iter().any(|told| told.certainty == Certainty::Inexact) || others.iter().any(alike) {
            figures.doubtful += told.len();
            continue;
        }
        told.sort_by(|one, other| one.path().cmp(&other.path()));
        others.sort_by(|one, other| one.path().cmp(&other.path()));
        if others.len() > told.len() {
            // What is left over when each that the first way knows has found its like.
            others.sort_by_key(|other| !told.iter().any(|told| told.path() == other.path()));
            let missed: usize = others.drain(told.len()..).map(|other| other.steps.len()).sum();
            figures.missed += missed;
        }
        let paths = |told: &[Told<'_>]| told.iter().map(Told::shown).collect::<Vec<_>>().join("\n    and ");
        check(
            told.len() == others.len(),
            format!("{identity:?}:\n    {}\n  but\n    {}", paths(&told), paths(&others)),
        )?;
        for (told, other) in told.iter().zip(&others) {
            same(told, other, &mut figures).with_context(|| format!("{identity:?}"))?;
        }
    }
    figures.missed += seconds.values().flatten().map(|told| told.steps.len()).sum::<usize>();
    Ok(figures)
}

/// The packets of the tests, by how each looked at its first step.
fn packets(trace: &Trace) -> Result<BTreeMap<&Identity, Vec<Told<'_>>>> {
    check(trace.odd.is_empty(), format!("rows that cannot be read: {:?}", trace.odd))?;
    let mut steps = BTreeMap::<u64, Vec<&Step>>::new();
    for step in &trace.steps {
        steps.entry(step.packet).or_default().push(step);
    }
    let mut packets = BTreeMap::<_, Vec<_>>::new();
    for (number, steps) in steps {
        let identity = &steps.first().context("a step")?.identity;
        if identity.dst.is_multicast() {
            continue;
        }
        let packet = trace.packets.get(&number).with_context(|| format!("no end of {steps:?}"))?;
        let (why, verdict) = (packet.why.as_str(), packet.verdict.as_str());
        packets.entry(identity).or_default().push(Told { steps, certainty: packet.certainty, why, verdict });
    }
    Ok(packets)
}

fn same(told: &Told<'_>, other: &Told<'_>, figures: &mut Figures) -> Result<()> {
    let both = || format!("{}, but {}", told.shown(), other.shown());
    check(told.path() == other.path() && other.certainty == Certainty::Complete, both())?;
    let known = !other.verdict.is_empty();
    check(!known || told.verdict == other.verdict, both())?;
    for (at, (step, other)) in (1..).zip(told.steps.iter().zip(&other.steps)) {
        let same = (&step.text, step.mark, &step.identity) == (&other.text, other.mark, &other.identity);
        check(same || step.doubt, format!("{step:?}\n{other:?}"))?;
        // What a target did that may do several things, only the next row tells.
        let is_last = at == told.steps.len();
        let less_known = is_last && other.verdict.is_none();
        check(less_known || step.verdict == other.verdict, format!("{step:?}\n{other:?}"))?;
        figures.less_known += usize::from(step.verdict != other.verdict);
    }
    figures.packets += 1;
    figures.steps += told.steps.len();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracer::Packet;

    /// Names and verdicts.
    type Steps = &'static [(&'static str, Option<&'static str>)];

    fn trace(packets: &[(u16, Certainty, Steps)]) -> Trace {
        let mut trace = Trace { detailed: true, ..Trace::default() };
        for (number, (id, certainty, steps)) in (1..).zip(packets) {
            let (src, dst) = ([10, 0, 1, 2].into(), [10, 0, 2, 2].into());
            let (id, echo) = (Some(*id), None);
            let identity = Identity { src, dst, protocol: 17, ports: [1, 2], length: 29, id, echo };
            trace.steps.extend(steps.iter().map(|(step, verdict)| Step {
                packet: number,
                time: Box::default(),
                netns: 1,
                hook: 0,
                step: (*step).to_owned(),
                identity: identity.clone(),
                mark: 0,
                doubt: false,
                verdict: verdict.map(Box::from),
                text: None,
                nft: None,
                netns_name: None,
                devices: [None, None],
            }));
            let path = steps.iter().map(|(step, _)| (*step).to_owned()).collect();
            let (why, verdict) = (String::new(), "accept".to_owned());
            let packet = Packet {
                certainty: *certainty,
                why,
                path,
                verdict,
                note: None,
                ending: Default::default(),
                queues: Default::default(),
                sport: None,
            };
            trace.packets.insert(number, packet);
        }
        trace
    }

    #[test]
    fn every_difference_is_one() {
        const ONE: Steps = &[("a", Some("drop"))];
        const LESS: Steps = &[("a", None)];
        const OTHER: Steps = &[("b", Some("drop"))];
        use Certainty::{Complete, Inexact};
        let first = trace(&[(1, Complete, ONE), (2, Complete, ONE)]);
        let held = |second: &[_]| compare(&first, &trace(second)).ok();
        let figures = Figures { packets: 2, steps: 2, less_known: 0, doubtful: 0, missed: 0 };
        assert_eq!(held(&[(2, Complete, ONE), (1, Complete, ONE)]), Some(figures));
        assert_eq!(
            held(&[(1, Complete, ONE), (2, Complete, LESS)]),
            Some(Figures { less_known: 1, ..figures })
        );
        let more = held(&[(1, Complete, ONE), (2, Complete, ONE), (2, Complete, ONE), (3, Complete, OTHER)]);
        assert_eq!(more, Some(Figures { missed: 2, ..figures }));
        for second in [
            &[(1, Complete, ONE)][..],
            &[(1, Complete, ONE), (2, Complete, OTHER)],
            &[(1, Complete, ONE), (2, Inexact, ONE)],
            &[(1, Complete, ONE), (2, Complete, &[("a", None), ("a", Some("drop"))])],
        ] {
            assert_eq!(held(second), None, "{second:?}");
        }
        let doubtful = trace(&[(1, Inexact, ONE)]);
        let figures = compare(&doubtful, &trace(&[(1, Complete, OTHER)])).ok();
        assert_eq!(figures, Some(Figures { doubtful: 1, ..Figures::default() }));
    }
}
