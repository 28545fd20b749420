//! `nftracer diff`

mod live;

use crate::cli::diff::DiffConfig;
use crate::cli::trace::TraceConfig;
use crate::error::Failure;
use crate::netfilter::Hook;
use crate::path::Step;
use crate::recording::{Event, Reader};
use crate::sink::{outcome, packet_line};
use crate::text::Escaped;
use anyhow::{Context as _, anyhow};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::path::Path;

/// Packets of a recording that are compared, from its beginning.
const PACKETS: usize = 100_000;

/// Shows where two recordings, or the packets of two filters, part.
pub fn run(config: &DiffConfig) -> Result<(), Failure> {
    let DiffConfig { first, second, live, count, trace } = config;
    match (live, first.exists(), second.exists()) {
        (false, true, true) => {}
        (false, true, false) | (false, false, true) => {
            let (file, other) = if first.exists() { (first, second) } else { (second, first) };
            let (file, other) = (file.display(), other.display());
            let failure = Failure::usage(anyhow!("{file} is a file, and there is no file {other}"));
            return Err(failure.with_remedy("give two recordings, or take both for filters with --live"));
        }
        _ => {
            let packets = count.map_or(1, |count| usize::try_from(count.get()).unwrap_or(usize::MAX));
            return live::run(filter_of(first)?, filter_of(second)?, packets, trace);
        }
    }
    if (count, trace) != (&None, &TraceConfig::default()) {
        let failure = Failure::usage(anyhow!("nothing is traced: A and B are recordings"));
        return Err(failure.with_remedy("leave the options out, or take both for filters with --live"));
    }
    let (first, second) = (stories(first)?, stories(second)?);
    let mut text = String::new();
    write_difference(&mut text, &first, &second).context("cannot format the difference")?;
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(())
}

/// The text of a filter.
fn filter_of(typed: &Path) -> Result<&str, Failure> {
    let text = typed.to_str().map(str::trim).filter(|text| !text.is_empty());
    text.ok_or_else(|| Failure::usage(anyhow!("{typed:?} is neither a recording nor a filter")))
}

/// What one packet met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Story {
    /// The packet, as it was at its first step.
    packet: String,
    steps: Vec<Met>,
    /// How it ended.
    outcome: String,
}

/// One step, without the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Met {
    hook: Option<Hook>,
    name: String,
    action: String,
    text: Option<String>,
}

/// The packets of a recording, in the order in which they came.
fn stories(path: &Path) -> Result<Vec<Story>, Failure> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let reading = || format!("cannot read {}", path.display());
    let mut reader = Reader::new(BufReader::new(file)).with_context(reading)?;
    let mut stories: BTreeMap<u64, Story> = BTreeMap::new();
    while let Some(event) = reader.next_event().with_context(reading)? {
        match event {
            Event::Step(step) => {
                // Of the packets that are compared, everything is read to the end.
                if stories.len() < PACKETS || stories.contains_key(&step.packet) {
                    let story = stories.entry(step.packet).or_insert_with(|| begin(&step));
                    story.steps.push(Met::of(&step));
                }
            }
            Event::Path(path) => {
                if let Some(story) = stories.get_mut(&path.packet) {
                    story.outcome = outcome(&path);
                }
            }
            Event::Start(_) | Event::Namespace(..) | Event::Totals(_) => {}
        }
    }
    if stories.is_empty() {
        let failure = Failure::running(anyhow!("{}: no packet was recorded", path.display()));
        return Err(failure.with_remedy("record one with `nftracer trace -w FILE FILTER`"));
    }
    Ok(stories.into_values().collect())
}

fn begin(step: &Step<'_>) -> Story {
    Story { packet: packet_line(&step.view), ..Story::default() }
}

impl Met {
    fn of(step: &Step<'_>) -> Self {
        Self {
            hook: step.hook,
            name: step.name.to_owned(),
            action: step.action.as_ref().map(ToString::to_string).unwrap_or_default(),
            text: step.rule.text.map(|text| text.to_string()),
        }
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = self.hook.map_or("", Hook::name);
        write!(f, "{hook:<11}  {}  {}", Escaped(&self.name), Escaped(&self.action))?;
        self.text.iter().try_for_each(|text| write!(f, "  {}", Escaped(text)))
    }
}

/// The first pair of packets that took different ways, or that all went alike. Packets are paired as they came.
fn write_difference(out: &mut String, first: &[Story], second: &[Story]) -> fmt::Result {
    let differs = |(a, b): &(&Story, &Story)| (&a.steps, &a.outcome) != (&b.steps, &b.outcome);
    let Some((place, (a, b))) = first.iter().zip(second).enumerate().find(|(_, pair)| differs(pair)) else {
        let compared = first.len().min(second.len());
        writeln!(out, "no difference: {compared} packets of each met the same rules")?;
        return match first.len() == second.len() {
            true => Ok(()),
            false => writeln!(out, "A has {} packets, B has {}", first.len(), second.len()),
        };
    };
    writeln!(out, "packet {} of A: {}", place + 1, Escaped(&a.packet))?;
    writeln!(out, "packet {} of B: {}", place + 1, Escaped(&b.packet))?;
    let common = a.steps.iter().zip(&b.steps).take_while(|(a, b)| a == b).count();
    for met in &a.steps[..common] {
        writeln!(out, "    {met}")?;
    }
    for (name, story) in [("A", a), ("B", b)] {
        match story.steps.get(common) {
            Some(met) => writeln!(out, "  {name} {met}")?,
            None => writeln!(out, "  {name} met nothing more")?,
        }
    }
    for (name, story) in [("A", a), ("B", b)] {
        let outcome = if story.outcome.is_empty() { "= not finished" } else { &story.outcome };
        writeln!(out, "{name} {}", Escaped(outcome))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Met, Story, stories, write_difference};
    use crate::netfilter::Hook;
    use crate::recording::Recorder;
    use expect_test::{Expect, expect};

    fn story(packet: &str, steps: &[(&str, &str, Option<&str>)], outcome: &str) -> Story {
        let met = |(name, action, text): &(&str, &str, Option<&str>)| Met {
            hook: Some(Hook::Input),
            name: (*name).to_owned(),
            action: (*action).to_owned(),
            text: text.map(str::to_owned),
        };
        Story {
            packet: packet.to_owned(),
            steps: steps.iter().map(met).collect(),
            outcome: outcome.to_owned(),
        }
    }

    #[track_caller]
    fn check(first: &[Story], second: &[Story], expected: Expect) {
        let mut out = String::new();
        write_difference(&mut out, first, second).expect("a string takes all");
        expected.assert_eq(&out);
    }

    #[test]
    fn the_first_step_that_differs() {
        let jump = ("filter:INPUT:rule:1", "jump web", Some("-A INPUT -j web"));
        let accept = ("filter:web:rule:1", "accept", Some("-A web -p tcp -m tcp --dport 80 -j ACCEPT"));
        let drop = ("filter:INPUT:policy:2", "drop", None);
        let good = story("tcp 80", &[jump, accept], "= accept, complete");
        let bad = story("tcp 81", &[jump, drop], "= drop, complete");
        check(
            &[good.clone(), good.clone()],
            &[good.clone(), bad],
            expect![[r#"
                packet 2 of A: tcp 80
                packet 2 of B: tcp 81
                    input        filter:INPUT:rule:1  jump web  -A INPUT -j web
                  A input        filter:web:rule:1  accept  -A web -p tcp -m tcp --dport 80 -j ACCEPT
                  B input        filter:INPUT:policy:2  drop
                A = accept, complete
                B = drop, complete
            "#]],
        );
        check(
            &[good.clone(), good.clone()],
            std::slice::from_ref(&good),
            expect![[r#"
                no difference: 1 packets of each met the same rules
                A has 2 packets, B has 1
            "#]],
        );
        check(
            std::slice::from_ref(&good),
            &[story("tcp 80", &[jump], "")],
            expect![[r#"
                packet 1 of A: tcp 80
                packet 1 of B: tcp 80
                    input        filter:INPUT:rule:1  jump web  -A INPUT -j web
                  A input        filter:web:rule:1  accept  -A web -p tcp -m tcp --dport 80 -j ACCEPT
                  B met nothing more
                A = accept, complete
                B = not finished
            "#]],
        );
    }

    #[test]
    fn recordings_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("recording");
        let mut recorder = Recorder::new(std::fs::File::create(&path).expect("a file")).expect("a file");
        crate::sink::tests::play(&mut recorder).expect("a file");
        drop(recorder);
        let found = stories(&path).expect("a recording");
        let packets: Vec<&str> = found.iter().map(|story| story.packet.as_str()).collect();
        assert_eq!(
            packets,
            ["in eth0 10.0.0.1:4242 > 10.0.0.2:80 tcp length 60", "in eth0 out eth1 length 60"]
        );
        assert_eq!(found[0].steps.len(), 4);
        let missing = stories(&directory.path().join("none")).expect_err("no file");
        assert!(missing.to_string().contains("cannot open"), "{missing}");
    }
}
