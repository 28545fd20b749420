//! nftracer's steps against the kernel's, packet by packet.
//!
//! A *traversal* is one packet's way through one table at one hook. Both sides name the packet as it looked then, so
//! NAT on the way does not matter, and each packet of a batch looks different from all others. Packets that do look
//! the same, such as the copies that TEE makes, are compared together.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::AddAssign;

use crate::hash::{Map, Set};
use crate::listener::Row;
use crate::packet::Identity;
use crate::tracer::{Certainty, Step, Trace};

/// The rules that switch TRACE on. The kernel prints them only for packets that are traced already.
pub const TRACE_RULES: [&str; 2] = ["raw:PREROUTING:rule:1", "raw:OUTPUT:rule:1"];
/// The table that does the same for nftables.
const MARKER: &str = "marker:";

/// One packet's way through one table at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Traversal<'a> {
    /// Inode number of the namespace.
    pub netns: u64,
    /// Number of the netfilter hook.
    pub hook: u8,
    /// The table.
    pub table: &'a str,
    /// The packet.
    pub packet: Identity,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets that nftracer told of.
    pub packets: u64,
    /// Of these, stamped complete.
    pub complete: u64,
    /// Of these, stamped unordered.
    pub unordered: u64,
    /// Of these, stamped inexact.
    pub inexact: u64,
    /// Traversals that the kernel told of.
    pub traversals: u64,
    /// Of these, unknown to nftracer.
    pub unseen: u64,
    /// Of these, of packets that are stamped inexact, which says that their paths may lack something.
    pub told: u64,
    /// Traversals compared without their order, because packets that look the same overlapped.
    pub together: u64,
    /// Traversals that could not be judged, because lines of the kernel's were lost.
    pub unjudged: u64,
    /// Lines of the kernel's that were lost.
    pub oracle_lost: u64,
    /// How often packets were sent again because nftracer had missed some.
    pub again: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.complete += other.complete;
        self.unordered += other.unordered;
        self.inexact += other.inexact;
        self.traversals += other.traversals;
        self.unseen += other.unseen;
        self.told += other.told;
        self.together += other.together;
        self.unjudged += other.unjudged;
        self.oracle_lost += other.oracle_lost;
        self.again += other.again;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, complete, unordered, inexact, traversals, unseen, .. } = self;
        write!(f, "{packets} packets: {complete} complete, {unordered} unordered, {inexact} inexact; ")?;
        write!(f, "{traversals} traversals, {unseen} unseen")?;
        for (number, what) in [
            (self.told, "of these of inexact packets"),
            (self.together, "compared together"),
            (self.unjudged, "not judged"),
            (self.oracle_lost, "lines of the kernel lost"),
            (self.again, "sent again after a loss"),
        ] {
            if number > 0 {
                write!(f, ", {number} {what}")?;
            }
        }
        Ok(())
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What it is about.
    pub what: String,
    /// The kernel's steps.
    pub kernel: Vec<String>,
    /// nftracer's steps.
    pub tracer: Vec<String>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "    kernel:   {}", self.kernel.join(" "))?;
        write!(f, "    nftracer: {}", self.tracer.join(" "))
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What was counted.
    pub figures: Figures,
    /// What must not be.
    pub wrong: Vec<Wrong>,
    /// Why packets were inexact, how often, and the path of one of them.
    pub reasons: BTreeMap<String, (u64, String)>,
    /// A traversal of those nftracer does not know, in words.
    pub unseen_example: Option<String>,
}

impl Verdict {
    /// Whether nftracer says of packets that it missed something, and nothing else is wrong.
    pub fn lacks(&self) -> bool {
        self.wrong.is_empty() && self.reasons.keys().any(|reason| reason.contains("missed"))
    }

    /// Adds what another comparison found.
    pub fn add(&mut self, other: Self) {
        self.figures += other.figures;
        self.wrong.extend(other.wrong);
        for (reason, (count, path)) in other.reasons {
            self.reasons.entry(reason).or_insert((0, path)).0 += count;
        }
        self.unseen_example = self.unseen_example.take().or(other.unseen_example);
    }
}

/// Compares what both told of these namespaces. `oracle_lost` lines of the kernel's are known to be missing.
pub fn compare(rows: &[Row], trace: &Trace, namespaces: &[u64], oracle_lost: u64) -> Verdict {
    let mut verdict = Verdict::default();
    let kernel = kernel_traversals(rows, trace.detailed);
    let tracer = tracer_traversals(trace, namespaces);
    count_packets(trace, namespaces, &mut verdict);
    verdict.figures.traversals = u64::try_from(kernel.len()).unwrap_or(u64::MAX);
    verdict.figures.oracle_lost = oracle_lost;
    // Packets of which the kernel shows that there are several that look the same.
    let several = kernel.iter().filter(|(_, theirs)| starts_again(theirs));
    let twins: Set<_> = several.map(|(traversal, _)| (traversal.netns, &traversal.packet)).collect();
    for (traversal, steps) in &tracer {
        let theirs = kernel.get(traversal).map(Vec::as_slice).unwrap_or_default();
        let doubts = Doubts {
            oracle_short: oracle_lost > 0,
            twins: twins.contains(&(traversal.netns, &traversal.packet)),
        };
        judge(traversal, theirs, steps, trace, doubts, &mut verdict);
    }
    let doubtful: Set<_> = tracer
        .iter()
        .filter(|(_, steps)| steps.iter().any(|step| is_inexact(trace, step.packet)))
        .map(|(traversal, _)| (traversal.netns, &traversal.packet))
        .collect();
    for traversal in kernel.keys().filter(|traversal| !tracer.contains_key(*traversal)) {
        verdict.figures.unseen += 1;
        verdict.figures.told += u64::from(doubtful.contains(&(traversal.netns, &traversal.packet)));
        verdict.unseen_example.get_or_insert_with(|| format!("{traversal:?}"));
    }
    check_paths(trace, &mut verdict);
    check_order(&kernel, trace, &mut verdict);
    verdict
}

/// Whether nftracer finished all packets of which it told.
pub fn is_finished(trace: &Trace) -> bool {
    trace.steps.iter().all(|step| trace.packets.contains_key(&step.packet))
}

/// Whether both sides told of the same traversals in these namespaces, and nftracer finished all packets.
pub fn is_settled(rows: &[Row], trace: &Trace, namespaces: &[u64]) -> bool {
    // As long as one of them has more to tell there is nothing to compare.
    let told = rows.iter().filter(|row| is_ours(&row.packet, &row.step)).count();
    if told != trace.steps.iter().filter(|step| is_compared(step, namespaces)).count() || !is_finished(trace)
    {
        return false;
    }
    let kernel = kernel_traversals(rows, trace.detailed);
    let tracer = tracer_traversals(trace, namespaces);
    let steps = |traversal| tracer.get(traversal).map_or(0, Vec::len);
    kernel.len() == tracer.len() && kernel.iter().all(|(traversal, theirs)| steps(traversal) == theirs.len())
}

type Kernel<'a> = Map<Traversal<'a>, Vec<(usize, &'a Row)>>;

fn kernel_traversals(rows: &[Row], detailed: bool) -> Kernel<'_> {
    let mut traversals = Kernel::default();
    for (at, row) in rows.iter().enumerate() {
        if is_ours(&row.packet, &row.step) {
            let traversal = traversal(row.netns, row.hook, &row.step, &row.packet, detailed);
            traversals.entry(traversal).or_default().push((at, row));
        }
    }
    traversals
}

fn tracer_traversals<'a>(trace: &'a Trace, namespaces: &[u64]) -> Map<Traversal<'a>, Vec<&'a Step>> {
    let mut traversals = Map::<_, Vec<_>>::default();
    for step in trace.steps.iter().filter(|step| is_compared(step, namespaces)) {
        let traversal = traversal(step.netns, step.hook, &step.step, &step.identity, trace.detailed);
        traversals.entry(traversal).or_default().push(step);
    }
    traversals
}

/// Of a namespace in which nobody listens to the kernel: a trace of all namespaces tells of those, too.
fn is_foreign(step: &Step, namespaces: &[u64]) -> bool {
    step.netns != 0 && !namespaces.contains(&step.netns)
}

/// What both sides tell of.
fn is_compared(step: &Step, namespaces: &[u64]) -> bool {
    is_ours(&step.identity, &step.step) && !is_foreign(step, namespaces)
}

/// Not what the kernel sends on its own account, and not the rules that switch TRACE on.
fn is_ours(packet: &Identity, step: &str) -> bool {
    let multicast = match packet.dst {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    !multicast && !TRACE_RULES.contains(&step) && !step.starts_with(MARKER)
}

fn traversal<'a>(netns: u64, hook: u8, step: &'a str, packet: &Identity, detailed: bool) -> Traversal<'a> {
    let table = step.split(':').next().unwrap_or_default();
    let packet = if detailed { packet.clone() } else { packet.clone().plain() };
    Traversal { netns, hook, table, packet }
}

fn count_packets(trace: &Trace, namespaces: &[u64], verdict: &mut Verdict) {
    let foreign = trace.steps.iter().filter(|step| is_foreign(step, namespaces));
    let foreign: Set<u64> = foreign.map(|step| step.packet).collect();
    for packet in
        trace.packets.iter().filter(|(number, _)| !foreign.contains(number)).map(|(_, packet)| packet)
    {
        let figures = &mut verdict.figures;
        figures.packets += 1;
        match packet.certainty {
            Certainty::Complete => figures.complete += 1,
            Certainty::Unordered => figures.unordered += 1,
            Certainty::Inexact => {
                figures.inexact += 1;
                let reason = verdict.reasons.entry(packet.why.clone());
                reason.or_insert_with(|| (0, packet.path.join(" "))).0 += 1;
            }
        }
    }
}

fn is_inexact(trace: &Trace, packet: u64) -> bool {
    trace.packets.get(&packet).is_some_and(|packet| packet.certainty == Certainty::Inexact)
}

/// What may excuse a difference.
#[derive(Clone, Copy)]
struct Doubts {
    /// Lines of the kernel's were lost.
    oracle_short: bool,
    /// Several packets look like this one.
    twins: bool,
}

fn judge(
    traversal: &Traversal<'_>,
    theirs: &[(usize, &Row)],
    steps: &[&Step],
    trace: &Trace,
    doubts: Doubts,
    verdict: &mut Verdict,
) {
    let kernel: Vec<&str> = theirs.iter().map(|(_, row)| row.step.as_str()).collect();
    let tracer: Vec<&str> = steps.iter().map(|step| step.step.as_str()).collect();
    let mut packets: Vec<u64> = steps.iter().map(|step| step.packet).collect();
    packets.dedup();
    let several = packets.len() > 1;
    let certainty = packets
        .iter()
        .map(|packet| trace.packets.get(packet).map_or(Certainty::Complete, |packet| packet.certainty))
        .max()
        .unwrap_or(Certainty::Complete);
    if certainty == Certainty::Inexact {
        return;
    }
    if kernel == tracer {
        judge_marks(traversal, theirs, steps, several, verdict);
        return;
    }
    let same_set = sorted(&kernel) == sorted(&tracer);
    match certainty {
        Certainty::Unordered if same_set => {}
        Certainty::Complete if same_set && several => verdict.figures.together += 1,
        // One of several that look the same was not seen.
        _ if contains(&kernel, &tracer) && kernel.len() > tracer.len() && doubts.twins => {
            verdict.figures.unseen += 1;
            verdict.unseen_example.get_or_insert_with(|| format!("{traversal:?}"));
        }
        _ if doubts.oracle_short && contains(&tracer, &kernel) => verdict.figures.unjudged += 1,
        _ => verdict.wrong.push(Wrong {
            what: format!("{certainty:?}, packets {packets:?}: {traversal:?}"),
            kernel: owned(&kernel),
            tracer: owned(&tracer),
        }),
    }
}

/// Whether the kernel's steps are certainly those of more than one packet: the first step comes again, or a built-in
/// chain ends twice.
fn starts_again(theirs: &[(usize, &Row)]) -> bool {
    let first = theirs.first().map(|(_, row)| &row.step);
    let policies = theirs.iter().filter(|(_, row)| row.step.contains(":policy:")).count();
    policies > 1 || theirs.iter().skip(1).any(|(_, row)| Some(&row.step) == first)
}

/// Holds the marks against each other. Which of several packets that look the same is which is not known: of those it
/// is asked whether each step came with each mark as often.
fn judge_marks(
    traversal: &Traversal<'_>,
    theirs: &[(usize, &Row)],
    steps: &[&Step],
    several: bool,
    verdict: &mut Verdict,
) {
    let wrong = |step: &str, kernel: &[u32], tracer: &[u32]| {
        let hex = |marks: &[u32]| marks.iter().map(|mark| format!("{mark:#x}")).collect();
        Wrong { what: format!("mark at {step} of {traversal:?}"), kernel: hex(kernel), tracer: hex(tracer) }
    };
    if !several {
        let differs = |((_, row), step): &(&(usize, &Row), &&Step)| !step.doubt && row.mark != step.mark;
        let found = theirs.iter().zip(steps).find(differs);
        verdict.wrong.extend(found.map(|((_, row), step)| wrong(&step.step, &[row.mark], &[step.mark])));
        return;
    }
    let mut marks = BTreeMap::<&str, (Vec<u32>, Vec<u32>, usize)>::new();
    for (_, row) in theirs {
        marks.entry(&row.step).or_default().0.push(row.mark);
    }
    for step in steps {
        let (_, sure, doubtful) = marks.entry(&step.step).or_default();
        if step.doubt { *doubtful += 1 } else { sure.push(step.mark) }
    }
    for (step, (mut kernel, tracer, doubtful)) in marks {
        let all = kernel.clone();
        for mark in &tracer {
            if let Some(at) = kernel.iter().position(|other| other == mark) {
                kernel.swap_remove(at);
            }
        }
        if kernel.len() > doubtful {
            verdict.wrong.push(wrong(step, &all, &tracer));
            return;
        }
    }
}

/// The path of a packet is the list of its steps, and there is one for each packet.
fn check_paths(trace: &Trace, verdict: &mut Verdict) {
    let mut steps = Map::<u64, Vec<&str>>::default();
    for step in &trace.steps {
        steps.entry(step.packet).or_default().push(&step.step);
    }
    for (number, steps) in &steps {
        let packet = trace.packets.get(number);
        let path: Vec<&str> =
            packet.map(|packet| packet.path.iter().map(String::as_str).collect()).unwrap_or_default();
        if packet.is_none_or(|packet| packet.certainty != Certainty::Inexact) && path != *steps {
            let what = match packet {
                Some(_) => format!("the path of packet {number} is not its steps"),
                None => format!("packet {number} has steps but no end"),
            };
            verdict.wrong.push(Wrong { what, kernel: owned(&path), tracer: owned(steps) });
        }
    }
}

/// The traversals of a complete packet come in the kernel's order.
fn check_order(kernel: &Kernel<'_>, trace: &Trace, verdict: &mut Verdict) {
    let mut last = Map::<u64, (usize, &str)>::default();
    for step in trace.steps.iter().filter(|step| is_ours(&step.identity, &step.step)) {
        let complete = trace.packets.get(&step.packet).is_some_and(|it| it.certainty == Certainty::Complete);
        let key = traversal(step.netns, step.hook, &step.step, &step.identity, trace.detailed);
        let Some(theirs) = kernel.get(&key).filter(|_| complete) else { continue };
        // Where the step occurs once, its place is certain.
        let mut places = theirs.iter().filter(|(_, row)| row.step == step.step);
        let (Some((at, _)), None) = (places.next(), places.next()) else { continue };
        if let Some((before, earlier)) = last.insert(step.packet, (*at, &step.step))
            && before > *at
        {
            verdict.wrong.push(Wrong {
                what: format!("order within packet {}: {key:?}", step.packet),
                kernel: vec![step.step.clone(), earlier.to_owned()],
                tracer: vec![earlier.to_owned(), step.step.clone()],
            });
        }
    }
}

fn sorted<'a>(steps: &[&'a str]) -> Vec<&'a str> {
    let mut steps = steps.to_vec();
    steps.sort_unstable();
    steps
}

/// Whether `all` has each of `some`, as often.
fn contains(all: &[&str], some: &[&str]) -> bool {
    let count = |steps: &[&str], step: &str| steps.iter().filter(|other| **other == step).count();
    some.iter().all(|step| count(all, step) >= count(some, step))
}

fn owned(steps: &[&str]) -> Vec<String> {
    steps.iter().map(|step| (*step).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracer::Packet;

    const PATH: &[&str] =
        &["raw:PREROUTING:policy:2", "filter:INPUT:rule:1", "filter:C:rule:2", "filter:C:return:3"];

    fn identity(length: u32) -> Identity {
        let (src, dst) = ([10, 0, 1, 2].into(), [10, 0, 2, 2].into());
        Identity { src, dst, protocol: 17, ports: [1, 2], length, id: None, echo: None }
    }

    fn hook(step: &str) -> u8 {
        u8::from(step.starts_with("filter"))
    }

    fn rows(length: u32, steps: &[&str]) -> Vec<Row> {
        let row = |step: &&str| Row {
            netns: 1,
            hook: hook(step),
            step: (*step).to_owned(),
            packet: identity(length),
            mark: 0,
        };
        steps.iter().map(row).collect()
    }

    fn trace(packets: &[(u32, Certainty, &[&str])]) -> Trace {
        let mut trace = Trace::default();
        for (number, (length, certainty, steps)) in (1..).zip(packets) {
            trace.steps.extend(steps.iter().map(|step| Step {
                packet: number,
                time: Box::default(),
                netns: 1,
                hook: hook(step),
                step: (*step).to_owned(),
                identity: identity(*length),
                mark: 0,
                doubt: false,
                verdict: None,
                text: None,
                nft: None,
                netns_name: None,
                devices: [None, None],
            }));
            let path = owned(steps);
            trace.packets.insert(
                number,
                Packet {
                    certainty: *certainty,
                    why: String::new(),
                    path,
                    verdict: String::new(),
                    note: None,
                    ending: Default::default(),
                    queues: Default::default(),
                    sport: None,
                },
            );
        }
        trace
    }

    #[track_caller]
    fn check(kernel: &[Row], tracer: &[(u32, Certainty, &[&str])], wrong: usize, unseen: u64) {
        let verdict = compare(kernel, &trace(tracer), &[1], 0);
        assert_eq!((verdict.wrong.len(), verdict.figures.unseen), (wrong, unseen), "{:?}", verdict.wrong);
    }

    #[test]
    fn what_is_equal_is_right() {
        check(&rows(60, PATH), &[(60, Certainty::Complete, PATH)], 0, 0);
        let mut with_trace_rule = vec!["raw:PREROUTING:rule:1"];
        with_trace_rule.extend(PATH);
        check(&rows(60, PATH), &[(60, Certainty::Complete, &with_trace_rule)], 0, 0);
    }

    #[test]
    fn order_matters_only_if_it_is_claimed() {
        let other = [PATH[0], PATH[1], PATH[3], PATH[2]];
        check(&rows(60, PATH), &[(60, Certainty::Complete, &other)], 2, 0);
        check(&rows(60, PATH), &[(60, Certainty::Unordered, &other)], 0, 0);
    }

    #[test]
    fn one_step_more_or_less_is_wrong() {
        for certainty in [Certainty::Complete, Certainty::Unordered] {
            check(&rows(60, PATH), &[(60, certainty, &PATH[..3])], 1, 0);
            check(&rows(60, &PATH[..3]), &[(60, certainty, PATH)], 1, 0);
        }
        check(&rows(60, &PATH[..3]), &[(60, Certainty::Inexact, PATH)], 0, 0);
    }

    #[test]
    fn a_traversal_that_nobody_saw_is_counted() {
        check(&rows(60, PATH), &[(60, Certainty::Complete, &PATH[..1])], 0, 1);
        check(&rows(60, PATH), &[], 0, 2);
    }

    #[test]
    fn invented_traversals_are_wrong() {
        check(&[], &[(60, Certainty::Complete, &PATH[..1])], 1, 0);
        check(&rows(61, PATH), &[(60, Certainty::Complete, PATH)], 2, 2);
    }

    #[test]
    fn twins_are_compared_together() {
        let mut kernel = rows(60, PATH);
        kernel.extend(rows(60, PATH));
        let both: &[_] = &[(60, Certainty::Complete, PATH), (60, Certainty::Complete, PATH)];
        let verdict = compare(&kernel, &trace(both), &[1], 0);
        assert!(verdict.wrong.is_empty(), "{:?}", verdict.wrong);
        assert_eq!((verdict.figures.unseen, verdict.figures.together), (0, 0));
        check(&kernel, &both[..1], 0, 2);
    }

    #[test]
    fn the_hooks_order_is_the_kernels() {
        let other = [PATH[1], PATH[2], PATH[3], PATH[0]];
        check(&rows(60, PATH), &[(60, Certainty::Complete, &other)], 1, 0);
    }

    #[test]
    fn marks_of_twins_are_compared_together() {
        let mut kernel = [rows(60, &PATH[..1]), rows(60, &PATH[..1])].concat();
        let mut both = trace(&[(60, Certainty::Complete, &PATH[..1]), (60, Certainty::Complete, &PATH[..1])]);
        (kernel[0].mark, both.steps[1].mark) = (7, 7);
        let wrong = |trace: &Trace| compare(&kernel, trace, &[1], 0).wrong.len();
        assert_eq!(wrong(&both), 0, "in another order");
        both.steps[0].mark = 7;
        assert_eq!(wrong(&both), 1, "one too often");
        both.steps[0].doubt = true;
        assert_eq!(wrong(&both), 0, "one is in doubt");
        both.steps[1].mark = 8;
        assert_eq!(wrong(&both), 1, "a mark that the kernel does not know");
    }

    #[test]
    fn other_namespaces_are_left_out() {
        let told: &[_] = &[(60, Certainty::Complete, PATH), (60, Certainty::Inexact, &PATH[..1])];
        let mut trace = trace(told);
        trace.steps.iter_mut().filter(|step| step.packet == 2).for_each(|step| step.netns = 2);
        let verdict = compare(&rows(60, PATH), &trace, &[1], 0);
        assert!(verdict.wrong.is_empty(), "{:?}", verdict.wrong);
        assert_eq!((verdict.figures.packets, verdict.figures.inexact), (1, 0));
        assert!(is_settled(&rows(60, PATH), &trace, &[1]));
        assert!(!is_settled(&rows(60, PATH), &trace, &[1, 2]));
    }
}
