//! How many packets met what, over time.
//!
//! Pure: totals and times in, rows out.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Looks whose numbers are kept of each row.
const KEPT: usize = 12;

/// By what packets are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The rules that they met.
    Rule,
    /// What became of them.
    Verdict,
    /// The chains whose rules they met.
    Chain,
    /// Their source address.
    Src,
    /// Their destination address.
    Dst,
    /// Addresses, protocol and ports.
    Flow,
    /// Who made the rules that they met.
    Owner,
}

impl By {
    /// `rule`
    pub fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Verdict => "verdict",
            Self::Chain => "chain",
            Self::Src => "src",
            Self::Dst => "dst",
            Self::Flow => "flow",
            Self::Owner => "owner",
        }
    }

    /// What a number is a number of.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Rule | Self::Chain | Self::Owner => "matches",
            Self::Verdict | Self::Src | Self::Dst | Self::Flow => "packets",
        }
    }
}

/// What is counted. Two that say the same are one row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct What {
    /// `filter:INPUT:rule:3`, `accept`, an address, …
    pub name: String,
    /// Family of a rule's table.
    pub family: Option<&'static str>,
    /// Inode number of the namespace, where there may be several.
    pub netns: Option<u32>,
    /// The rule's text.
    pub text: Option<Arc<str>>,
    /// Who made the rule.
    pub owner: Option<String>,
}

impl What {
    /// Something that has a name and nothing else.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), family: None, netns: None, text: None, owner: None }
    }
}

/// `ip filter:INPUT:rule:3`
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(netns) = self.netns {
            write!(f, "netns {netns} ")?;
        }
        if let Some(family) = self.family {
            write!(f, "{family} ")?;
        }
        f.write_str(&self.name)
    }
}

/// One row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Since the beginning.
    pub count: u64,
    /// Of these, since the look before.
    pub new: u64,
    /// What was new at the last looks, the latest one last.
    pub history: VecDeque<u64>,
}

/// All that was counted so far.
#[derive(Debug, Default)]
pub struct Tally {
    rows: HashMap<What, Numbers>,
}

/// The largest rows at a look, and what all others have together.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// By what.
    pub by: By,
    /// Nanoseconds since the epoch.
    pub time_ns: u64,
    /// Since the look before; for the last one since the beginning.
    pub elapsed: Duration,
    /// Whether it is the last one.
    pub is_last: bool,
    /// The largest first.
    pub rows: Vec<(What, Numbers)>,
    /// How many others there are, and their sum.
    pub others: (usize, Numbers),
    /// The sum of all.
    pub sum: Numbers,
}

impl Ranking {
    /// How many in a second: new ones, or in the end all.
    pub fn rate(&self, numbers: &Numbers) -> f64 {
        let count = if self.is_last { numbers.count } else { numbers.new };
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }
}

impl Numbers {
    fn look(&mut self, count: u64) {
        // What was counted stays counted: a row is as large as it ever was.
        let count = count.max(self.count);
        (self.new, self.count) = (count - self.count, count);
        self.history.push_back(self.new);
        while self.history.len() > KEPT {
            self.history.pop_front();
        }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.new += other.new;
        // The latest ones belong together.
        while self.history.len() < other.history.len() {
            self.history.push_front(0);
        }
        self.history.iter_mut().rev().zip(other.history.iter().rev()).for_each(|(to, from)| *to += from);
    }
}

impl Tally {
    /// Takes the totals of all that was counted up to a moment; several of one thing are added up.
    pub fn look(&mut self, totals: impl IntoIterator<Item = (What, u64)>) {
        let mut sums: HashMap<What, u64> = HashMap::new();
        for (what, count) in totals {
            *sums.entry(what).or_default() += count;
        }
        for (what, numbers) in &mut self.rows {
            let count = sums.remove(what).unwrap_or(numbers.count);
            numbers.look(count);
        }
        for (what, count) in sums {
            let mut numbers = Numbers::default();
            numbers.look(count);
            self.rows.insert(what, numbers);
        }
    }

    /// The `top` largest rows.
    pub fn ranking(&self, by: By, top: usize, time_ns: u64, elapsed: Duration, is_last: bool) -> Ranking {
        let mut rows: Vec<(&What, &Numbers)> = self.rows.iter().collect();
        rows.sort_by(|one, other| other.1.count.cmp(&one.1.count).then_with(|| one.0.cmp(other.0)));
        let (mut sum, mut others) = (Numbers::default(), Numbers::default());
        rows.iter().for_each(|(_, numbers)| sum.add(numbers));
        let rest = rows.split_off(top.min(rows.len()));
        rest.iter().for_each(|(_, numbers)| others.add(numbers));
        let rows = rows.into_iter().map(|(what, numbers)| (what.clone(), numbers.clone())).collect();
        Ranking { by, time_ns, elapsed, is_last, rows, others: (rest.len(), others), sum }
    }
}
