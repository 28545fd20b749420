//! `nftracer read`

mod input;
mod log;
mod recording;
#[cfg(test)]
mod tests;

use super::choice::{matches, resolved};
use crate::cli::read::ReadConfig;
use crate::error::Failure;
use crate::filter::{self, Filter};
use crate::packet::PacketView;
use crate::predicate::Predicates;
use crate::recording::MAGIC;
use crate::sys::pcap;
use anyhow::Context as _;
use input::Input;
use std::collections::HashSet;
use std::num::NonZeroU32;

/// Shows what a file tells of packets.
pub fn run(config: ReadConfig) -> Result<(), Failure> {
    let filter = filter::compile(&config.filter, &pcap::compile).map_err(Failure::usage)?;
    let choice = Choice::new(filter, resolved(&config.predicates)?, config.limit_per_rule);
    let mut input = Input::open(config.file.as_deref())?;
    let begins = input.peek(MAGIC.len()).with_context(|| format!("cannot read {}", input.name))?;
    if begins == MAGIC { recording::show(input, choice, &config) } else { log::show(input, choice, &config) }
}

/// Which packets are shown: the filter is asked about each once, as it is at its first step.
struct Choice {
    filter: Filter,
    /// What else is asked, of those that match.
    predicates: Predicates,
    /// Of those that do, so many in a second of each rule.
    per_rule: Option<NonZeroU32>,
    /// Packets on their way that are not shown.
    refused: HashSet<u64>,
    /// Packets on their way that are.
    chosen: HashSet<u64>,
}

impl Choice {
    fn new(filter: Filter, predicates: Predicates, per_rule: Option<NonZeroU32>) -> Self {
        Self { filter, predicates, per_rule, refused: HashSet::new(), chosen: HashSet::new() }
    }

    /// Whether a step of a packet is shown.
    fn takes_step(&mut self, packet: u64, view: &PacketView<'_>) -> bool {
        if self.filter.text.trim().is_empty() || self.chosen.contains(&packet) {
            return true;
        }
        if self.refused.contains(&packet) {
            return false;
        }
        let takes = matches(&self.filter, view);
        if takes { &mut self.chosen } else { &mut self.refused }.insert(packet);
        takes
    }

    /// Whether anything else of a packet is shown.
    fn takes(&self, packet: u64) -> bool {
        !self.refused.contains(&packet)
    }

    /// Whether the path of a packet is shown, which comes last.
    fn takes_path(&mut self, packet: u64) -> bool {
        self.chosen.remove(&packet);
        !self.refused.remove(&packet)
    }
}
