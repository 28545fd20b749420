//! Expression to program.
//!
//! An expression is lowered from its end to its beginning, each part knowing where to go on for yes and for no, so
//! that every step leads to one that exists already. Equal steps are made once. Then steps whose answer follows from
//! the answers on the way to them are taken out.

use super::error::FilterErrorKind;
use super::expr::{Addresses, Direction, Expr, Primitive, Transport, Version};
use std::collections::HashMap;
use tracer_common::filter::{ACCEPT, MAX_NODES, Node, Program, REJECT, word};

/// The program for an expression.
pub(super) fn program(expr: &Expr) -> Result<Program, FilterErrorKind> {
    let mut graph = Graph::default();
    graph.entry = graph.lower(expr, Target::Accept, Target::Reject);
    graph.simplified().emit()
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    Accept,
    Reject,
    /// Index into [`Graph::steps`].
    Step(usize),
}

/// Is `words[word] & mask` within `low..=high`?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Test {
    word: u8,
    mask: u32,
    low: u32,
    high: u32,
}

impl Test {
    fn equal(word: u8, value: u32) -> Self {
        Self { word, mask: u32::MAX, low: value, high: value }
    }

    fn masked(word: u8, mask: u32, value: u32) -> Self {
        Self { word, mask, low: value, high: value }
    }

    fn is_always_true(self) -> bool {
        self.low == 0 && self.high >= self.mask
    }

    /// The answer, when another test's answer settles it.
    fn follows_from(self, known: Self, answer: bool) -> Option<bool> {
        if (self.word, self.mask) != (known.word, known.mask) {
            return None;
        }
        match answer {
            true if self.low <= known.low && known.high <= self.high => Some(true),
            true if self.high < known.low || known.high < self.low => Some(false),
            false if known.low <= self.low && self.high <= known.high => Some(false),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    test: Test,
    yes: Target,
    no: Target,
}

/// Steps lead only to steps before them; the last is the first to be asked.
#[derive(Debug)]
struct Graph {
    steps: Vec<Step>,
    made: HashMap<Step, usize>,
    entry: Target,
}

impl Default for Graph {
    fn default() -> Self {
        Self { steps: Vec::new(), made: HashMap::new(), entry: Target::Accept }
    }
}

impl Graph {
    fn step(&mut self, test: Test, yes: Target, no: Target) -> Target {
        if yes == no || test.is_always_true() {
            return yes;
        }
        let step = Step { test, yes, no };
        let index = *self.made.entry(step).or_insert_with(|| {
            self.steps.push(step);
            self.steps.len() - 1
        });
        Target::Step(index)
    }

    fn all(&mut self, tests: &[Test], yes: Target, no: Target) -> Target {
        tests.iter().rev().fold(yes, |next, test| self.step(*test, next, no))
    }

    fn lower(&mut self, expr: &Expr, yes: Target, no: Target) -> Target {
        match expr {
            Expr::Primitive(primitive) => self.primitive(primitive, yes, no),
            Expr::Not(inner) => self.lower(inner, no, yes),
            Expr::And(left, right) => {
                let right = self.lower(right, yes, no);
                self.lower(left, right, no)
            }
            Expr::Or(left, right) => {
                let right = self.lower(right, yes, no);
                self.lower(left, yes, right)
            }
        }
    }

    fn primitive(&mut self, primitive: &Primitive, yes: Target, no: Target) -> Target {
        match *primitive {
            Primitive::Version(version) => self.step(of_version(version), yes, no),
            Primitive::Protocol { version, number } => {
                // libpcap looks both at and behind a fragment header, so 44 is asked for by its own word too.
                let fragment = Test::equal(word::FRAGMENT, 1);
                let otherwise = if number == IPV6_FRAGMENT { self.step(fragment, yes, no) } else { no };
                let found = self.step(Test::equal(word::PROTOCOL, number.into()), yes, otherwise);
                version.map_or(found, |version| self.step(of_version(version), found, no))
            }
            Primitive::Address { direction, addresses } => {
                let tests = |first| address_tests(addresses, first);
                let found = self.direction(direction, &tests(word::SRC), &tests(word::DST), yes, no);
                self.step(of_version(addresses.version()), found, no)
            }
            Primitive::Port { transport, direction, low, high } => {
                let test = |word| Test { word, mask: u32::MAX, low: low.into(), high: high.into() };
                // Of 16 bits, all are within 0 to 65535.
                let tests = |word| if (low, high) == (0, u16::MAX) { vec![] } else { vec![test(word)] };
                let found = self.direction(direction, &tests(word::SPORT), &tests(word::DPORT), yes, no);
                let found = self.step(Test::equal(word::HAS_PORTS, 1), found, no);
                transport.map_or(found, |transport| self.step(of_transport(transport), found, no))
            }
        }
    }

    fn direction(
        &mut self,
        direction: Direction,
        source: &[Test],
        destination: &[Test],
        yes: Target,
        no: Target,
    ) -> Target {
        match direction {
            Direction::Source => self.all(source, yes, no),
            Direction::Destination => self.all(destination, yes, no),
            Direction::Either => {
                let otherwise = self.all(destination, yes, no);
                self.all(source, yes, otherwise)
            }
            Direction::Both => {
                let then = self.all(destination, yes, no);
                self.all(source, then, no)
            }
        }
    }

    /// Without the steps that no packet reaches and those whose answer is known when they are reached.
    fn simplified(mut self) -> Self {
        loop {
            let steps = self.steps.len();
            self = self.shortened().rebuilt();
            if self.steps.len() == steps {
                return self;
            }
        }
    }

    /// Lets each answer lead past the steps that it and the answers before it settle.
    fn shortened(mut self) -> Self {
        let mut reached: Vec<Option<Facts>> = vec![None; self.steps.len()];
        if let Target::Step(entry) = self.entry {
            reached[entry] = Some(Facts::default());
        }
        for index in (0..self.steps.len()).rev() {
            let Some(facts) = reached[index].take() else { continue };
            let test = self.steps[index].test;
            for answer in [true, false] {
                let facts = facts.with(test, answer);
                let target = self.follow(self.steps[index].target(answer), &facts);
                *self.steps[index].target_mut(answer) = target;
                if let Target::Step(next) = target {
                    reached[next] = Some(match reached[next].take() {
                        Some(others) => others.shared(&facts),
                        None => facts,
                    });
                }
            }
        }
        self
    }

    fn follow(&self, mut target: Target, facts: &Facts) -> Target {
        while let Target::Step(index) = target {
            let step = self.steps[index];
            match facts.answer(step.test) {
                Some(answer) => target = step.target(answer),
                None => break,
            }
        }
        target
    }

    /// Made anew from the steps that can be reached.
    fn rebuilt(&self) -> Self {
        let mut rebuilt = Self::default();
        let mut moved = vec![Target::Reject; self.steps.len()];
        let place = |moved: &[Target], target| match target {
            Target::Step(index) => moved[index],
            end => end,
        };
        let reachable = self.reachable();
        for (index, step) in self.steps.iter().enumerate().filter(|(index, _)| reachable[*index]) {
            moved[index] = rebuilt.step(step.test, place(&moved, step.yes), place(&moved, step.no));
        }
        rebuilt.entry = place(&moved, self.entry);
        rebuilt
    }

    fn reachable(&self) -> Vec<bool> {
        let mut reachable = vec![false; self.steps.len()];
        let mark = |reachable: &mut Vec<bool>, target| {
            if let Target::Step(index) = target {
                reachable[index] = true;
            }
        };
        mark(&mut reachable, self.entry);
        for (index, step) in self.steps.iter().enumerate().rev() {
            if reachable[index] {
                mark(&mut reachable, step.yes);
                mark(&mut reachable, step.no);
            }
        }
        reachable
    }

    fn emit(&self) -> Result<Program, FilterErrorKind> {
        match self.entry {
            Target::Accept => return Ok(Program::ANY),
            Target::Reject => return Err(FilterErrorKind::NeverMatches),
            Target::Step(_) if self.steps.len() > MAX_NODES => {
                return Err(FilterErrorKind::TooManyNodes { needed: self.steps.len() });
            }
            Target::Step(_) => {}
        }
        let place = |target| match target {
            Target::Accept => ACCEPT,
            Target::Reject => REJECT,
            Target::Step(index) => (self.steps.len() - 1 - index) as u8,
        };
        let mut program = Program { len: self.steps.len() as u32, ..Program::ANY };
        for (node, Step { test, yes, no }) in program.nodes.iter_mut().zip(self.steps.iter().rev()) {
            let Test { word, mask, low, high } = *test;
            *node = Node { word, yes: place(*yes), no: place(*no), reserved: 0, mask, low, high };
        }
        Ok(program)
    }
}

impl Step {
    fn target(self, answer: bool) -> Target {
        if answer { self.yes } else { self.no }
    }

    fn target_mut(&mut self, answer: bool) -> &mut Target {
        if answer { &mut self.yes } else { &mut self.no }
    }
}

/// Answers that every way to a step has given.
#[derive(Clone, Debug, Default)]
struct Facts(Vec<(Test, bool)>);

impl Facts {
    fn with(&self, test: Test, answer: bool) -> Self {
        let mut facts = self.clone();
        facts.0.push((test, answer));
        facts
    }

    fn shared(mut self, others: &Self) -> Self {
        self.0.retain(|fact| others.0.contains(fact));
        self
    }

    fn answer(&self, test: Test) -> Option<bool> {
        self.0.iter().find_map(|(known, answer)| test.follows_from(*known, *answer))
    }
}

const IPV6_FRAGMENT: u8 = 44;

fn of_version(version: Version) -> Test {
    Test::equal(
        word::VERSION,
        match version {
            Version::V4 => 4,
            Version::V6 => 6,
        },
    )
}

fn of_transport(transport: Transport) -> Test {
    Test::equal(word::PROTOCOL, transport.number().into())
}

/// The words of an address that its mask looks at, in the packet's order.
fn address_tests(addresses: Addresses, first: u8) -> Vec<Test> {
    match addresses {
        Addresses::V4 { address, mask } => vec![Test::masked(first, mask, address)],
        Addresses::V6 { address, mask } => {
            let part = |of: u128, index: u8| (of >> (96 - 32 * u32::from(index))) as u32;
            (0..4)
                .filter(|index| part(mask, *index) != 0)
                .map(|index| Test::masked(first + index, part(mask, index), part(address, index)))
                .collect()
        }
    }
}
