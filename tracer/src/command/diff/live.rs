//! Two filters, traced in one run.

use super::{Met, Story, begin, write_difference};
use crate::cli::trace::TraceConfig;
use crate::command::choice::matches;
use crate::command::trace;
use crate::error::Failure;
use crate::filter::{self, Filter};
use crate::path::{Path, Step};
use crate::sink::{Row, Sink, outcome};
use crate::sys::pcap;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Packets on their way that are kept; beyond that the oldest is forgotten.
const PENDING: usize = 100_000;

/// Traces packets of both filters until enough of each have come to their end, and shows where they part.
pub(super) fn run(first: &str, second: &str, packets: usize, config: &TraceConfig) -> Result<(), Failure> {
    let compile = |text: &str| {
        filter::compile(text, &pcap::compile).map_err(|error| {
            let remedy =
                format!("there is no file {text} either: record one with `nftracer trace -w FILE FILTER`");
            Failure::usage(error).with_remedy(remedy)
        })
    };
    let filters = [compile(first)?, compile(second)?];
    let config = TraceConfig { filter: format!("({first}) or ({second})"), ..config.clone() };
    trace::run_into(&config, &|| {
        Ok(Box::new(Comparing::new(Box::new(io::stdout()), filters.clone(), packets)))
    })
}

/// Keeps packets of two filters, and in the end tells where they part.
struct Comparing {
    out: Box<dyn Write>,
    filters: [Filter; 2],
    /// So many of each are wanted.
    packets: usize,
    /// Packets on their way, and of which filter they are; of those that are not wanted there is nothing.
    pending: BTreeMap<u64, Option<(usize, Story)>>,
    done: [Vec<Story>; 2],
    /// Packets that match both filters.
    both: u64,
}

impl Comparing {
    fn new(out: Box<dyn Write>, filters: [Filter; 2], packets: usize) -> Self {
        Self { out, filters, packets, pending: BTreeMap::new(), done: [Vec::new(), Vec::new()], both: 0 }
    }

    /// Which of the filters a packet is of.
    fn choose(&mut self, step: &Step<'_>) -> Option<(usize, Story)> {
        let which = match self.filters.each_ref().map(|filter| matches(filter, &step.view)) {
            [true, false] => 0,
            [false, true] => 1,
            [true, true] => {
                self.both += 1;
                return None;
            }
            // The kernel saw more of it.
            [false, false] => return None,
        };
        Some((which, begin(step)))
    }

    fn step(&mut self, step: &Step<'_>) {
        if !self.pending.contains_key(&step.packet) {
            let chosen = self.choose(step);
            self.pending.insert(step.packet, chosen);
            if self.pending.len() > PENDING {
                self.pending.pop_first();
            }
        }
        if let Some(Some((_, story))) = self.pending.get_mut(&step.packet) {
            story.steps.push(Met::of(step));
        }
    }

    fn path(&mut self, path: &Path) {
        if let Some(Some((which, mut story))) = self.pending.remove(&path.packet)
            && self.done[which].len() < self.packets
        {
            story.outcome = outcome(path);
            self.done[which].push(story);
        }
    }

    fn end(&mut self) -> io::Result<()> {
        let mut text = String::new();
        let [first, second] = &self.done;
        // A string takes all.
        let _ = match (first.as_slice(), second.as_slice()) {
            ([], []) => writeln!(text, "no packet of A and none of B came to its end"),
            ([], _) => writeln!(text, "no packet of A came to its end"),
            (_, []) => writeln!(text, "no packet of B came to its end"),
            (first, second) => write_difference(&mut text, first, second),
        };
        if self.both > 0 {
            let _ = writeln!(text, "{} packets match both filters and were left out", self.both);
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl Sink for Comparing {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Step(step) => self.step(step),
            Row::Path(path) => self.path(path),
            Row::End(_) => return self.end(),
            Row::Start(_)
            | Row::Namespace(..)
            | Row::LogStyle(_)
            | Row::Logged(..)
            | Row::Told(..)
            | Row::Sender(..)
            | Row::Spent(..)
            | Row::Freed(..)
            | Row::Why(_)
            | Row::NoDrop(_) => {}
        }
        Ok(())
    }

    fn enough(&self) -> bool {
        self.done.iter().all(|done| done.len() >= self.packets)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::Comparing;
    use crate::filter;
    use crate::sink::Sink as _;
    use crate::sys::pcap;
    use expect_test::{Expect, expect};
    use std::cell::RefCell;
    use std::io::{self, Write};
    use std::rc::Rc;

    #[derive(Clone, Default)]
    struct Shared(Rc<RefCell<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[track_caller]
    fn check(filters: [&str; 2], expected: Expect) {
        let out = Shared::default();
        let filters = filters.map(|text| filter::compile(text, &pcap::compile).expect("a filter"));
        let mut comparing = Comparing::new(Box::new(out.clone()), filters, 1);
        crate::sink::tests::play(&mut comparing).expect("memory can be written to");
        assert!(!comparing.enough());
        expected.assert_eq(&String::from_utf8(out.0.take()).expect("UTF-8"));
    }

    /// One packet has addresses, of another they are not known.
    #[test]
    fn packets_are_told_apart_by_the_filters() {
        check(
            ["host 10.0.0.1", "host 10.0.0.3"],
            expect![[r#"
                no packet of B came to its end
            "#]],
        );
        check(
            ["host 10.0.0.1", "tcp port 80"],
            expect![[r#"
                no packet of A and none of B came to its end
                1 packets match both filters and were left out
            "#]],
        );
    }
}
