//! Orders the entries that one call of `ipt_do_table` counted.
//!
//! The kernel counts an entry each time a packet matches it, before the entry's target runs. So every walk through
//! the table that a packet can have taken uses each count exactly once and ends in the verdict that was returned.
//! [`Walker::walk`] searches all of them: when there is exactly one, it is what happened.

#![forbid(unsafe_code)]

use super::targets::Outcome;
use crate::netfilter::{Hook, Verdict};
use crate::ruleset::{Table, Target};
use std::collections::HashMap;
use tracer_common::legacy::Match;

/// Matches tried in one search; the most that was seen under load is about a thousand.
const MAX_STEPS: u32 = 20_000;
/// After this many the search begins to remember where it has been. Few searches come so far.
const REMEMBER_AFTER: u32 = 100;
/// The largest count that is one; above it a counter has moved backwards.
const MAX_COUNT: u32 = 0x7fff_ffff;

/// Which entries a packet met, as far as the counters tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Exactly one walk is possible: the entries in the order they were met.
    Ordered(Vec<usize>),
    /// Several walks are possible: the entries in the table's order, as often as each was met.
    Unordered(Vec<usize>),
    /// No rule's verdict explains the drop, and there is exactly one way to explain it without: the entries in the
    /// order they were met, and what dropped the packet after the last one.
    Cut(Vec<usize>, Cut),
    /// The counters do not fit the table.
    Inexact(Reason),
}

/// What dropped a packet when no entry's verdict did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A match asked for it, because of a malformed header for example. The rule with this match is not counted.
    Hotdrop,
    /// The jump stack was full. The rule that jumps is the last one counted.
    Overflow,
}

impl Cut {
    /// In words, to follow "dropped by".
    pub fn text(self) -> &'static str {
        match self {
            Self::Hotdrop => "a match of a later rule (hotdrop)",
            Self::Overflow => "the kernel, too many chains were entered",
        }
    }
}

/// Why no walk was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The table has no chain at the hook.
    NoChain(Hook),
    /// An entry was counted that the table does not have.
    Beyond(u32),
    /// The counter of an entry moved backwards.
    Backwards(usize),
    /// An entry was counted that no packet reaches: the head of a chain or the end of the table.
    Unreachable(usize),
    /// No walk uses every count and ends in the verdict.
    NoWay(Verdict),
    /// More than one walk uses every count and ends in a match that drops, and none ends in a rule that does.
    ManyCuts,
    /// The verdict was not seen, and the counts leave it open.
    ManyEnds,
    /// The verdict was not seen, and no walk uses every count.
    NoEnd,
    /// The search was given up.
    TooMany,
}

impl Reason {
    /// In words.
    pub fn text(&self, table: &Table) -> String {
        match self {
            Self::NoChain(hook) => format!("table {} has no chain at {hook}", table.name),
            Self::Beyond(index) => {
                format!("entry {index} was counted, but table {} has {}", table.name, table.entries.len())
            }
            Self::Backwards(entry) => format!("counters moved backwards at {}", table.step_name(*entry)),
            Self::Unreachable(entry) => {
                format!("entry {entry} of table {} was counted, but no packet reaches it", table.name)
            }
            Self::NoWay(verdict) => {
                format!(
                    "no way through table {} meets exactly the counted rules and ends in {verdict}",
                    table.name
                )
            }
            Self::ManyCuts => {
                format!("dropped by a match in table {} (hotdrop), in more than one way", table.name)
            }
            Self::ManyEnds => {
                format!("its end was not seen, and the counted rules of table {} leave it open", table.name)
            }
            Self::NoEnd => format!(
                "its end was not seen, and no way through table {} meets exactly the counted rules",
                table.name
            ),
            Self::TooMany => format!("too many ways to order the counted rules of table {}", table.name),
        }
    }
}

impl Table {
    /// The name of a step, `filter:INPUT:rule:2`.
    pub(super) fn step_name(&self, entry: usize) -> String {
        let chain = self.chain_of(entry).map_or("?", |chain| chain.name.as_str());
        match self.entries.get(entry) {
            Some(found) => format!("{}:{chain}:{}:{}", self.name, found.kind, found.number),
            None => format!("{}:{chain}:?:{entry}", self.name),
        }
    }
}

/// A table, prepared for walking. Made once for each version of it.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: Vec<Node>,
    hook_entry: [Option<usize>; 5],
    underflow: [Option<usize>; 5],
    /// Jumps that the kernel's stack holds: `xt_table_info.stacksize`, one for each entry with the error target.
    stack_size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    action: Action,
    unconditional: bool,
    /// The nearest entry from here on, this one included, that lets no packet pass unmatched.
    barrier: usize,
    /// Entries of equal number follow one another, and only a jump or goto leads from one number to another.
    segment: u32,
}

/// What the kernel does after it counted an entry.
#[derive(Clone, Copy, Debug)]
enum Action {
    End(Verdict),
    Return,
    Jump(usize),
    Goto(usize),
    Continue,
    Extension(Outcome),
    Error,
}

impl Graph {
    /// Prepares `table`.
    pub fn new(table: &Table) -> Self {
        let mut nodes = Vec::with_capacity(table.entries.len());
        let mut segment = 0;
        for (index, entry) in table.entries.iter().enumerate() {
            let action = match &entry.target {
                Target::Verdict(verdict) => Action::End(*verdict),
                Target::Return => Action::Return,
                // The kernel pushes nothing when a jump leads to the next entry, as "no target" does.
                Target::Jump { to } | Target::Goto { to } if *to == index + 1 => Action::Continue,
                Target::Jump { to } => Action::Jump(*to),
                Target::Goto { to } => Action::Goto(*to),
                Target::Continue => Action::Continue,
                Target::Extension(extension) => Action::Extension(Outcome::of(extension)),
                Target::Error => Action::Error,
            };
            let unconditional = entry.unconditional || matches!(action, Action::Error);
            nodes.push(Node { action, unconditional, barrier: index, segment });
            let passable =
                !matches!(action, Action::End(_) | Action::Return | Action::Goto(_) | Action::Error);
            segment += u32::from(unconditional && !passable);
        }
        let mut barrier = nodes.len();
        for (index, node) in nodes.iter_mut().enumerate().rev() {
            if node.unconditional {
                barrier = index;
            }
            node.barrier = barrier;
        }
        let stack_size = nodes.iter().filter(|node| matches!(node.action, Action::Error)).count();
        Self { nodes, hook_entry: table.hook_entry, underflow: table.underflow, stack_size }
    }
}

/// Walks graphs. Keeps its memory from one walk to the next.
#[derive(Debug, Default)]
pub struct Walker {
    /// What is left to be met, by entry.
    counts: Vec<Count>,
    /// Which of `counts` are jumps and gotos.
    jumps: Vec<usize>,
    /// Where returns lead to.
    stack: Vec<usize>,
    /// The walk so far.
    taken: Vec<Taken>,
    /// Where it could have gone another way.
    choices: Vec<Choice>,
    /// Situations in which there was a choice, and what they led to.
    memory: Memory,
}

/// What was found from situations that were met before. Two walks that meet the same situation, that is entry, jump
/// stack and counts left, go on in the same ways.
#[derive(Debug, Default)]
struct Memory {
    index: HashMap<Box<[usize]>, usize>,
    outcomes: Vec<Outcomes>,
    /// Situations of the walk so far: number of entries taken before, and index into `outcomes`.
    current: Vec<(usize, usize)>,
}

/// Whether a situation led to walks.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    found: bool,
    cut: bool,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    entry: usize,
    left: u32,
    all: u32,
}

/// An entry that matched, and how to undo it.
#[derive(Clone, Copy, Debug)]
struct Taken {
    count: usize,
    stack: Stack,
}

#[derive(Clone, Copy, Debug)]
enum Stack {
    Kept,
    Pushed,
    Popped(usize),
}

/// After `taken` steps the packet may also have passed `entry` without matching it.
#[derive(Clone, Copy, Debug)]
struct Choice {
    taken: usize,
    entry: usize,
}

impl Walker {
    /// Finds the way of a packet that entered at `hook`, was counted by `matches` and left with `verdict`, which is
    /// what the kernel function returned.
    pub fn walk(&mut self, graph: &Graph, hook: Hook, matches: &[Match], verdict: u32) -> Walk {
        let Some(start) = graph.hook_entry[hook as usize] else {
            return Walk::Inexact(Reason::NoChain(hook));
        };
        if let Err(reason) = self.prepare(graph, matches) {
            return Walk::Inexact(reason);
        }
        let search = Search {
            total: self.counts.iter().map(|count| u64::from(count.left)).sum(),
            walker: self,
            graph,
            underflow: graph.underflow[hook as usize],
            verdict: Verdict::from_return(verdict),
            steps: 0,
            found: Found::None,
            cut: Found::None,
        };
        search.run(start)
    }

    fn prepare(&mut self, graph: &Graph, matches: &[Match]) -> Result<(), Reason> {
        self.counts.clear();
        self.jumps.clear();
        self.stack.clear();
        self.taken.clear();
        self.choices.clear();
        self.memory.index.clear();
        self.memory.outcomes.clear();
        self.memory.current.clear();
        for found in matches.iter().filter(|found| found.count != 0) {
            let entry = usize::try_from(found.index).map_err(|_| Reason::Beyond(found.index))?;
            let node = graph.nodes.get(entry).ok_or(Reason::Beyond(found.index))?;
            if found.count > MAX_COUNT {
                return Err(Reason::Backwards(entry));
            }
            if matches!(node.action, Action::Error) {
                return Err(Reason::Unreachable(entry));
            }
            self.counts.push(Count { entry, left: found.count, all: found.count });
        }
        if !self.counts.is_sorted_by(|a, b| a.entry < b.entry) {
            self.counts.sort_unstable_by_key(|count| count.entry);
            self.counts.dedup_by(|next, kept| {
                let same = next.entry == kept.entry;
                if same {
                    kept.all = kept.all.saturating_add(next.all);
                    kept.left = kept.all;
                }
                same
            });
        }
        let is_jump =
            |count: &Count| matches!(graph.nodes[count.entry].action, Action::Jump(_) | Action::Goto(_));
        self.jumps
            .extend(self.counts.iter().enumerate().filter(|(_, count)| is_jump(count)).map(|(slot, _)| slot));
        Ok(())
    }

    /// The counted entries in the table's order.
    fn multiset(&self) -> Vec<usize> {
        self.counts.iter().flat_map(|count| (0..count.all).map(|_| count.entry)).collect()
    }

    /// The walk so far.
    fn path(&self) -> Vec<usize> {
        self.taken.iter().map(|taken| self.counts[taken.count].entry).collect()
    }
}

/// The walks found so far. Two different series of choices never make the same walk.
#[derive(Debug)]
enum Found<T> {
    None,
    One(T),
    Many,
}

struct Search<'a> {
    walker: &'a mut Walker,
    graph: &'a Graph,
    underflow: Option<usize>,
    verdict: Verdict,
    /// Sum of what is left in `walker.counts`.
    total: u64,
    steps: u32,
    /// Walks that end in an entry's verdict.
    found: Found<Vec<usize>>,
    /// Walks that end otherwise.
    cut: Found<(Vec<usize>, Cut)>,
}

impl Search<'_> {
    fn run(mut self, start: usize) -> Walk {
        if self.total > u64::from(MAX_STEPS) {
            return Walk::Inexact(Reason::TooMany);
        }
        let mut position = Some(start);
        while let Some(from) = position
            && !matches!(self.found, Found::Many)
        {
            if self.steps >= MAX_STEPS {
                return self.give_up();
            }
            self.steps += 1;
            position = self.step(from).or_else(|| self.step_back());
        }
        match (self.found, self.cut) {
            (Found::One(path), Found::None) => Walk::Ordered(path),
            (Found::One(path), Found::One((cut, _))) if cut == path => Walk::Ordered(path),
            (Found::One(_) | Found::Many, _) => Walk::Unordered(self.walker.multiset()),
            (Found::None, Found::One((path, cut))) => Walk::Cut(path, cut),
            (Found::None, Found::Many) => Walk::Inexact(Reason::ManyCuts),
            (Found::None, Found::None) => Walk::Inexact(Reason::NoWay(self.verdict)),
        }
    }

    /// One walk proves the set right, and says nothing about its order.
    fn give_up(self) -> Walk {
        match self.found {
            Found::None => Walk::Inexact(Reason::TooMany),
            Found::One(_) | Found::Many => Walk::Unordered(self.walker.multiset()),
        }
    }

    /// Goes to the next entry that matches. The result is where the packet goes from there, `None` at an end.
    fn step(&mut self, from: usize) -> Option<usize> {
        let barrier = self.graph.nodes.get(from)?.barrier;
        let Some(slot) = self.next_counted(from, barrier) else {
            // What follows did not match. A match that drops can be in a conditional entry only.
            if from < barrier {
                self.cut_here(Cut::Hotdrop);
            }
            return None;
        };
        let entry = self.walker.counts[slot].entry;
        let node = self.graph.nodes[entry];
        let undecided = !self.walker.choices.is_empty();
        if undecided && self.steps > REMEMBER_AFTER && self.is_hopeless(entry) {
            return None;
        }
        if !node.unconditional && self.visits_to_come(entry) >= u64::from(self.walker.counts[slot].left) {
            if self.steps > REMEMBER_AFTER && self.remembers(entry) {
                return None;
            }
            self.walker.choices.push(Choice { taken: self.walker.taken.len(), entry });
        }
        self.walker.counts[slot].left -= 1;
        self.total -= 1;
        self.walker.taken.push(Taken { count: slot, stack: Stack::Kept });
        self.follow(entry, node.action)
    }

    /// Takes back what was done since the last choice, and takes the other way. `None` when no choice is left.
    fn step_back(&mut self) -> Option<usize> {
        let walker = &mut *self.walker;
        let choice = walker.choices.pop()?;
        while walker.memory.current.pop_if(|(taken, _)| *taken > choice.taken).is_some() {}
        for taken in walker.taken.drain(choice.taken..).rev() {
            walker.counts[taken.count].left += 1;
            self.total += 1;
            match taken.stack {
                Stack::Kept => {}
                Stack::Pushed => drop(walker.stack.pop()),
                Stack::Popped(position) => walker.stack.push(position),
            }
        }
        Some(choice.entry + 1)
    }

    /// What the kernel does with a packet that `entry` matched.
    fn follow(&mut self, entry: usize, action: Action) -> Option<usize> {
        match action {
            Action::End(verdict) => {
                if verdict == self.verdict {
                    self.end_here();
                }
                None
            }
            Action::Return => self.pop(),
            Action::Jump(to) => {
                if self.walker.stack.len() >= self.graph.stack_size {
                    self.cut_here(Cut::Overflow);
                    return None;
                }
                self.walker.stack.push(entry + 1);
                self.note(Stack::Pushed);
                Some(to)
            }
            Action::Goto(to) => Some(to),
            Action::Continue => Some(entry + 1),
            Action::Extension(outcome) => {
                if outcome.can_end(self.verdict) {
                    self.end_here();
                }
                outcome.continues.then_some(entry + 1)
            }
            Action::Error => None,
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let Some(position) = self.walker.stack.pop() else { return self.underflow };
        self.note(Stack::Popped(position));
        Some(position)
    }

    fn note(&mut self, stack: Stack) {
        if let Some(last) = self.walker.taken.last_mut() {
            last.stack = stack;
        }
    }

    /// The next entry from `from` up to `barrier` with a count left.
    fn next_counted(&self, from: usize, barrier: usize) -> Option<usize> {
        if self.total == 0 {
            return None;
        }
        let counts = &self.walker.counts;
        let first = counts.partition_point(|count| count.entry < from);
        let within = counts[first..].iter().take_while(|count| count.entry <= barrier);
        let skipped = within.take_while(|count| count.left == 0).count();
        counts.get(first + skipped).filter(|count| count.entry <= barrier).map(|_| first + skipped)
    }

    /// Whether some entry cannot be met as often as it must, from a packet that now comes to `position`.
    fn is_hopeless(&self, position: usize) -> bool {
        let nodes = &self.graph.nodes;
        let here = |entry: usize| {
            position <= entry && nodes.get(position).is_some_and(|node| node.segment == nodes[entry].segment)
        };
        let lacks = |count: &Count| {
            count.left != 0
                && u64::from(count.left) > self.visits_to_come(count.entry) + u64::from(here(count.entry))
        };
        self.walker.counts.iter().any(lacks)
    }

    /// At most how often a packet that now passes `entry` can come to it again.
    fn visits_to_come(&self, entry: usize) -> u64 {
        let nodes = &self.graph.nodes;
        let reaches =
            |from: usize| from <= entry && nodes.get(from).is_some_and(|n| n.segment == nodes[entry].segment);
        let entered = |&slot: &usize| {
            let jump = self.walker.counts[slot];
            match nodes[jump.entry].action {
                Action::Jump(to) | Action::Goto(to) if reaches(to) => u64::from(jump.left),
                _ => 0,
            }
        };
        let by_jump: u64 = self.walker.jumps.iter().map(entered).sum();
        let by_return = self.walker.stack.iter().filter(|&&position| reaches(position)).count() as u64;
        let by_underflow = if self.underflow.is_some_and(reaches) { self.total } else { 0 };
        by_jump + by_return + by_underflow
    }

    /// Whether this situation was met before. What it led to then it leads to again, by another walk.
    fn remembers(&mut self, entry: usize) -> bool {
        let walker = &mut *self.walker;
        let left = walker.counts.iter().map(|count| count.left as usize);
        let situation = std::iter::once(entry).chain(walker.stack.iter().copied()).chain(left).collect();
        let next = walker.memory.outcomes.len();
        let index = *walker.memory.index.entry(situation).or_insert(next);
        if index == next {
            walker.memory.outcomes.push(Outcomes::default());
            walker.memory.current.push((walker.taken.len(), index));
            return false;
        }
        let Outcomes { found, cut } = walker.memory.outcomes[index];
        if found {
            self.found = Found::Many;
        }
        if cut {
            self.cut = Found::Many;
        }
        self.led_to(|outcomes| {
            outcomes.found |= found;
            outcomes.cut |= cut;
        });
        true
    }

    fn led_to(&mut self, record: impl Fn(&mut Outcomes)) {
        let memory = &mut self.walker.memory;
        for (_, index) in &memory.current {
            record(&mut memory.outcomes[*index]);
        }
    }

    fn end_here(&mut self) {
        if self.total == 0 {
            self.led_to(|outcomes| outcomes.found = true);
            self.found = match self.found {
                Found::None => Found::One(self.walker.path()),
                Found::One(_) | Found::Many => Found::Many,
            };
        }
    }

    fn cut_here(&mut self, cut: Cut) {
        if self.total == 0 && self.verdict == Verdict::Drop {
            self.led_to(|outcomes| outcomes.cut = true);
            self.cut = match self.cut {
                Found::None => Found::One((self.walker.path(), cut)),
                Found::One(_) | Found::Many => Found::Many,
            };
        }
    }
}
