//! Random tables, packets sent through them by a plain copy of the kernel's loop, and an exhaustive search: what
//! [`Walker`] says must be what happened, and it must say so whenever that is the only possibility.

use crate::netfilter::{Family, Hook, StepKind, Verdict};
use crate::path::attribute::{State, Views, attribute, attribute_unordered};
use crate::path::walk::{Cut, Graph, Reason, Walk, Walker};
use crate::path::walks::Walks;
use crate::ruleset::{Chain, Entry, Extension, Table, Target};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use std::collections::{BTreeMap, HashSet};
use tracer_common::legacy::Match;

/// Extension targets of the random tables: name, may go on, verdicts it may end with.
const EXTENSIONS: &[(Option<&str>, bool, &[u32])] = &[
    (Some("MARK"), true, &[]),
    (Some("TTL"), true, &[0]),
    (Some("SYNPROXY"), true, &[0, 2]),
    (Some("REJECT"), false, &[0]),
    (Some("DNAT"), false, &[0, 1]),
    (Some("NFQUEUE"), false, &[3]),
    (Some("SOMETHING"), true, &[0, 1, 2, 3]),
    (None, true, &[0, 1, 2, 3]),
];

#[derive(Clone, Debug)]
struct Rule {
    unconditional: bool,
    kind: u8,
    argument: u8,
}

/// The rules of each chain, built-in chains first. A chain leads to later chains only, so there are no loops.
#[derive(Clone, Debug)]
struct Ruleset {
    builtin: usize,
    chains: Vec<Vec<Rule>>,
}

impl Ruleset {
    fn table(&self) -> Table {
        let mut heads = Vec::new();
        let mut next = 0;
        for (index, rules) in self.chains.iter().enumerate() {
            next += usize::from(index >= self.builtin);
            heads.push(next);
            next += rules.len() + 1;
        }
        let mut table = Table {
            family: Family::Ipv4,
            name: "filter".to_owned(),
            entries: Vec::new(),
            chains: Vec::new(),
            hook_entry: [None; 5],
            underflow: [None; 5],
            size: 0,
        };
        for (index, rules) in self.chains.iter().enumerate() {
            let hook = Hook::ALL.get(index).copied().filter(|_| index < self.builtin);
            if hook.is_none() {
                table.entries.push(entry(None, Target::Error, true));
            }
            let first = table.entries.len();
            for (number, rule) in rules.iter().enumerate() {
                let target = self.target(rule, index, first + number, &heads);
                table.entries.push(entry(Some(index), target, rule.unconditional));
            }
            let tail = table.entries.len();
            let policy = if hook.is_some() { Target::Verdict(Verdict::Accept) } else { Target::Return };
            table.entries.push(entry(Some(index), policy, true));
            if let Some(hook) = hook {
                table.hook_entry[hook as usize] = Some(first);
                table.underflow[hook as usize] = Some(tail);
            }
            table.chains.push(Chain { name: format!("C{index}"), hook, entries: first..tail + 1 });
        }
        table.entries.push(entry(None, Target::Error, true));
        table
    }

    fn target(&self, rule: &Rule, chain: usize, index: usize, heads: &[usize]) -> Target {
        let argument = usize::from(rule.argument);
        let later = (chain + 1).max(self.builtin)..self.chains.len();
        match rule.kind {
            0 => Target::Verdict(if argument.is_multiple_of(2) { Verdict::Accept } else { Verdict::Drop }),
            1 => Target::Return,
            2 | 3 => Target::Continue,
            4..=11 if !later.is_empty() => Target::Jump { to: heads[later.start + argument % later.len()] },
            12 if !later.is_empty() => Target::Goto { to: heads[later.start + argument % later.len()] },
            // A jump to the next rule, which pushes nothing.
            13 => Target::Jump { to: index + 1 },
            _ => Target::Extension(Extension {
                name: EXTENSIONS[argument % EXTENSIONS.len()].0.map(Into::into),
                revision: 0,
                data: Vec::new(),
            }),
        }
    }
}

fn entry(chain: Option<usize>, target: Target, unconditional: bool) -> Entry {
    Entry { chain, number: 1, kind: StepKind::Rule, tail: false, unconditional, target, text: None }
}

fn can(extension: &Extension) -> (bool, &'static [u32]) {
    let known = EXTENSIONS.iter().find(|known| known.0 == extension.name.as_deref());
    known.map(|known| (known.1, known.2)).unwrap()
}

/// What happened to one packet.
#[derive(Debug, PartialEq)]
struct Truth {
    path: Vec<usize>,
    verdict: u32,
    cut: Option<Cut>,
}

/// The loop of `ipt_do_table`. `decide(n)` chooses one of `n` possibilities.
fn ipt_do_table(table: &Table, hook: usize, mut decide: impl FnMut(usize) -> usize) -> Truth {
    let stacksize = table.entries.iter().filter(|entry| entry.target == Target::Error).count();
    let mut jumpstack = Vec::new();
    let mut path = Vec::new();
    let mut e = table.hook_entry[hook].unwrap();
    loop {
        let entry = &table.entries[e];
        if !entry.unconditional {
            match decide(64) {
                0 => return Truth { path, verdict: 0, cut: Some(Cut::Hotdrop) },
                1..=32 => {
                    e += 1;
                    continue;
                }
                _ => {}
            }
        }
        path.push(e);
        let to = match &entry.target {
            Target::Verdict(verdict) => {
                let verdict = u32::from(*verdict == Verdict::Accept);
                return Truth { path, verdict, cut: None };
            }
            Target::Return => {
                e = jumpstack.pop().unwrap_or_else(|| table.underflow[hook].unwrap());
                continue;
            }
            Target::Continue => e + 1,
            Target::Goto { to } => *to,
            Target::Jump { to } => {
                if *to != e + 1 {
                    if jumpstack.len() >= stacksize {
                        return Truth { path, verdict: 0, cut: Some(Cut::Overflow) };
                    }
                    jumpstack.push(e + 1);
                }
                *to
            }
            Target::Extension(extension) => {
                let (continues, verdicts) = can(extension);
                let choice = decide(verdicts.len() + usize::from(continues));
                if let Some(verdict) = verdicts.get(choice) {
                    return Truth { path, verdict: *verdict, cut: None };
                }
                e + 1
            }
            Target::Error => panic!("reached the head of a chain"),
        };
        e = to;
    }
}

/// All walks that fit, by trying everything entry by entry.
struct Exhaustive<'a> {
    table: &'a Table,
    hook: usize,
    verdict: u32,
    ends: HashSet<Vec<usize>>,
    cuts: HashSet<Vec<usize>>,
    visited: u32,
}

impl Exhaustive<'_> {
    fn from(&mut self, e: usize, left: &BTreeMap<usize, u32>, stack: &[usize], path: &[usize]) {
        self.visited += 1;
        if self.visited > 50_000 {
            return;
        }
        let entry = &self.table.entries[e];
        let total: u32 = left.values().sum();
        if !entry.unconditional {
            if total == 0 && self.verdict == 0 {
                self.cuts.insert(path.to_vec());
            }
            self.from(e + 1, left, stack, path);
        }
        if left.get(&e).copied().unwrap_or(0) == 0 {
            return;
        }
        let mut left = left.clone();
        *left.get_mut(&e).unwrap() -= 1;
        let mut path = path.to_vec();
        path.push(e);
        let mut stack = stack.to_vec();
        match &entry.target {
            Target::Verdict(verdict) => {
                if total == 1 && u32::from(*verdict == Verdict::Accept) == self.verdict {
                    self.ends.insert(path);
                }
            }
            Target::Return => {
                let to = stack.pop().unwrap_or_else(|| self.table.underflow[self.hook].unwrap());
                self.from(to, &left, &stack, &path);
            }
            Target::Continue => self.from(e + 1, &left, &stack, &path),
            Target::Goto { to } => self.from(*to, &left, &stack, &path),
            Target::Jump { to } => {
                if *to != e + 1 {
                    stack.push(e + 1);
                }
                self.from(*to, &left, &stack, &path);
            }
            Target::Extension(extension) => {
                let (continues, verdicts) = can(extension);
                if total == 1 && verdicts.contains(&self.verdict) {
                    self.ends.insert(path.clone());
                }
                if continues {
                    self.from(e + 1, &left, &stack, &path);
                }
            }
            Target::Error => {}
        }
    }

    fn expected(&self, multiset: &[usize]) -> Walk {
        let mut ends = self.ends.iter().cloned();
        let mut cuts = self.cuts.iter().cloned();
        match (self.ends.len(), self.cuts.len()) {
            (1, 0) => Walk::Ordered(ends.next().unwrap()),
            (1, 1) if self.ends == self.cuts => Walk::Ordered(ends.next().unwrap()),
            (0, 0) => Walk::Inexact(Reason::NoWay(Verdict::from_return(self.verdict))),
            (0, 1) => Walk::Cut(cuts.next().unwrap(), Cut::Hotdrop),
            (0, _) => Walk::Inexact(Reason::ManyCuts),
            _ => Walk::Unordered(multiset.to_vec()),
        }
    }
}

fn counts(path: &[usize]) -> BTreeMap<usize, u32> {
    let mut counts = BTreeMap::new();
    for entry in path {
        *counts.entry(*entry).or_insert(0) += 1;
    }
    counts
}

fn matches(counts: &BTreeMap<usize, u32>) -> Vec<Match> {
    counts.iter().map(|(entry, count)| Match { index: *entry as u32, count: *count }).collect()
}

fn multiset(counts: &BTreeMap<usize, u32>) -> Vec<usize> {
    counts.iter().flat_map(|(entry, count)| std::iter::repeat_n(*entry, *count as usize)).collect()
}

/// Whether a chain was entered twice.
fn entered_twice(table: &Table, truth: &Truth) -> bool {
    let mut seen = HashSet::from([0]);
    truth.path.iter().any(|entry| match table.entries[*entry].target {
        Target::Jump { to } | Target::Goto { to } if to != entry + 1 => {
            !seen.insert(table.entries[to].chain.unwrap())
        }
        _ => false,
    })
}

fn rulesets(rules: usize, chains: usize) -> impl Strategy<Value = Ruleset> {
    let rule = (prop::bool::weighted(0.2), 0..16u8, 0..64u8)
        .prop_map(|(unconditional, kind, argument)| Rule { unconditional, kind, argument });
    let chain = prop::collection::vec(rule, 0..rules);
    (1..3usize, prop::collection::vec(chain, 3..=chains))
        .prop_map(|(builtin, chains)| Ruleset { builtin, chains })
}

/// Sends a packet. Unlike the tables, the packet's luck does not shrink.
fn send(table: &Table, mut luck: u64) -> Truth {
    ipt_do_table(table, 0, |n| {
        luck ^= luck << 13;
        luck ^= luck >> 7;
        luck ^= luck << 17;
        (luck >> 33) as usize % n
    })
}

fn check_truth(table: &Table, truth: &Truth) -> Result<Walk, TestCaseError> {
    let counts = counts(&truth.path);
    let walk = Walker::default().walk(&Graph::new(table), Hook::Prerouting, &matches(&counts), truth.verdict);
    match &walk {
        Walk::Ordered(path) => prop_assert_eq!(path, &truth.path),
        Walk::Cut(path, cut) => prop_assert_eq!((path, Some(*cut)), (&truth.path, truth.cut)),
        Walk::Unordered(set) => {
            prop_assert_eq!(set, &multiset(&counts));
            // A packet that a match dropped can look as if one of several rules had dropped it.
            prop_assert!(entered_twice(table, truth), "nothing to choose from");
        }
        Walk::Inexact(reason) => {
            let allowed = match reason {
                Reason::ManyCuts => truth.cut.is_some(),
                Reason::TooMany => truth.path.len() > 20,
                _ => false,
            };
            prop_assert!(allowed && entered_twice(table, truth), "{:?} for {:?}", reason, truth);
        }
    }
    Ok(walk)
}

/// Cases of each property; `PROPTEST_CASES` raises it.
pub(super) fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, max_global_rejects: u32::MAX, ..ProptestConfig::default() }
}

/// The random tables are no good if a result never comes up.
#[test]
fn random_tables_show_every_result() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = (rulesets(12, 8), 1..u64::MAX);
    let mut seen = BTreeMap::new();
    let cases = std::env::var("PROPTEST_CASES").map_or(20_000, |cases| cases.parse().unwrap());
    for _ in 0..cases {
        let (ruleset, luck) = strategy.new_tree(&mut runner).unwrap().current();
        let table = ruleset.table();
        let truth = send(&table, luck);
        let name = match check_truth(&table, &truth).unwrap() {
            Walk::Ordered(path) if path.iter().collect::<HashSet<_>>().len() < path.len() => {
                "ordered, one rule twice"
            }
            Walk::Ordered(_) if entered_twice(&table, &truth) => "ordered, one chain twice",
            Walk::Ordered(_) => "ordered",
            Walk::Unordered(_) => "unordered",
            Walk::Cut(..) => "cut",
            Walk::Inexact(_) => "inexact",
        };
        *seen.entry(name).or_insert(0) += 1;
    }
    println!("{seen:?}");
    let common = ["cut", "ordered", "ordered, one chain twice", "ordered, one rule twice", "unordered"];
    assert!(seen.get("inexact").is_none_or(|count| count * 100 < cases), "{seen:?}");
    assert!(common.iter().all(|name| seen.get(name).is_some_and(|count| *count >= 100)), "{seen:?}");
}

proptest! {
    #![proptest_config(config())]

    /// Larger tables: the truth is never contradicted.
    #[test]
    fn says_what_happened(ruleset in rulesets(12, 8), luck in 1..u64::MAX) {
        let table = ruleset.table();
        check_truth(&table, &send(&table, luck))?;
    }

    /// Small tables: exactly as many walks as trying everything finds.
    #[test]
    fn finds_as_many_walks_as_there_are(ruleset in rulesets(5, 5), luck in 1..u64::MAX, lie in 0..20u32) {
        let table = ruleset.table();
        let mut truth = send(&table, luck);
        // Some verdicts and counts are falsified: nothing may be found that is not there.
        if lie < 4 {
            truth.verdict = lie;
        }
        let mut counts = counts(&truth.path);
        if lie == 4 && let Some(count) = counts.values_mut().next() {
            *count += 1;
        }
        let mut all = Exhaustive {
            table: &table, hook: 0, verdict: truth.verdict, ends: HashSet::new(), cuts: HashSet::new(), visited: 0,
        };
        all.from(table.hook_entry[0].unwrap(), &counts, &[], &[]);
        prop_assume!(all.visited <= 50_000);
        let walk = Walker::default().walk(&Graph::new(&table), Hook::Prerouting, &matches(&counts), truth.verdict);
        prop_assert_eq!(walk, all.expected(&multiset(&counts)));
        if lie > 4 {
            check_truth(&table, &truth)?;
        }
    }

    /// What was found before is found again, and nothing else; what cannot change a packet does not.
    #[test]
    fn known_walks(ruleset in rulesets(4, 4), lucks in prop::collection::vec(1..200u64, 1..200), lie in 0..40u32) {
        let table = ruleset.table();
        let graph = Graph::new(&table);
        let (mut walks, mut walker) = (Walks::default(), Walker::default());
        for luck in lucks {
            let truth = send(&table, luck);
            let verdict = if luck % 8 == 0 { lie } else { truth.verdict };
            let found = matches(&counts(&truth.path));
            let known = walks.walk(&mut walker, (&table, &graph), Hook::Prerouting, &found, Some(verdict));
            prop_assert_eq!(&known.walk, &walker.walk(&graph, Hook::Prerouting, &found, verdict));
            let state = State { mark: 1, len: 20, bytes: &[0x45; 20] };
            let views = match &known.walk {
                Walk::Ordered(steps) | Walk::Cut(steps, _) => attribute(&table, steps, state, Some(state)),
                Walk::Unordered(steps) => attribute_unordered(&table, steps, state, Some(state)),
                Walk::Inexact(_) => continue,
            };
            prop_assert!(known.can_change || views == Views::Unchanged(state));
        }
    }

    /// An end that was not seen is told as it was, or not at all.
    #[test]
    fn implied_verdicts(ruleset in rulesets(8, 6), luck in 1..u64::MAX) {
        let table = ruleset.table();
        let truth = send(&table, luck);
        let counts = counts(&truth.path);
        let (mut walks, mut walker) = (Walks::default(), Walker::default());
        let graph = Graph::new(&table);
        let known = walks.walk(&mut walker, (&table, &graph), Hook::Prerouting, &matches(&counts), None);
        match (&known.walk, known.verdict) {
            (Walk::Ordered(path), Some(verdict)) => prop_assert_eq!((path, verdict), (&truth.path, truth.verdict)),
            (Walk::Unordered(set), Some(verdict)) => {
                prop_assert_eq!((set, verdict), (&multiset(&counts), truth.verdict));
            }
            (Walk::Inexact(_), None) => {}
            other => prop_assert!(false, "{:?} for {:?}", other, truth),
        }
    }

    /// Anything at all: no panic, no endless search.
    #[test]
    fn survives_anything(
        ruleset in rulesets(6, 6),
        odd in prop::collection::vec((0..40usize, 0..40usize), 0..6),
        found in prop::collection::vec((0..50u32, 0..5u32), 0..12),
        verdict in 0..5u32,
    ) {
        let mut table = ruleset.table();
        for (entry, to) in odd {
            if let Some(entry) = table.entries.get_mut(entry) {
                entry.target = if to % 2 == 0 { Target::Jump { to } } else { Target::Goto { to } };
            }
        }
        let found: Vec<Match> = found.into_iter().map(|(index, count)| Match { index, count }).collect();
        Walker::default().walk(&Graph::new(&table), Hook::Prerouting, &found, verdict);
    }
}
