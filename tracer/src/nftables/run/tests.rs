//! Scenarios: `tests/data/nft-runs/*.toml`, over the rules of `tests/data/nftables/ruleset.nft`. A run that came out
//! wrong becomes a test by pasting it into a file.

use super::*;
use crate::netlink::messages;
use crate::nftables::decode;
use proptest::prelude::*;
use serde::Deserialize;
use std::fs;
use std::path::Path;
use zerocopy::FromZeros as _;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows.
    #[expect(dead_code, reason = "for the reader of the file")]
    about: String,
    /// `FAMILY TABLE CHAIN` of the base chain.
    chain: String,
    /// What the kernel told: `HANDLE continue`, `HANDLE accept`, `HANDLE jump CHAIN`, `end`, `policy`, `left VERDICT`;
    /// `missed` for one that was not seen, `changed` for a change of the rules before the next.
    events: Vec<String>,
    /// Whether only the verdict that dropped the packet was looked for.
    #[serde(default)]
    last: bool,
    /// `table:chain:kind:number` and what it did.
    path: Vec<String>,
    /// What the base chain decided.
    verdict: Option<String>,
    /// What is in doubt.
    doubt: Option<String>,
}

fn ruleset() -> Ruleset {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nftables/ruleset.bin");
    let dump = fs::read(file).unwrap();
    let mut parts = decode::Parts::default();
    messages(&dump).filter_map(|message| message.netfilter()).for_each(|message| parts.add(&message));
    parts.finish(7)
}

#[test]
fn scenarios_come_out_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nft-runs");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let ruleset = ruleset();
    let failed: Vec<String> = files.iter().filter_map(|file| check(&ruleset, file).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn check(ruleset: &Ruleset, file: &Path) -> Result<(), String> {
    let name = file.file_name().unwrap().to_string_lossy();
    let scenario: Scenario =
        toml::from_str(&fs::read_to_string(file).unwrap()).map_err(|error| format!("{name}: {error}"))?;
    let (run, events) = scenario.told(ruleset);
    let followed = follow(ruleset, &run, &events);
    let path: Vec<String> = followed.met.iter().map(show).collect();
    let verdict = followed.verdict.map(|verdict| verdict.to_string());
    if (&path, &verdict, &followed.doubt) == (&scenario.path, &scenario.verdict, &scenario.doubt) {
        return Ok(());
    }
    Err(format!("{name}: found {path:#?}, verdict {verdict:?}, doubt {:?}", followed.doubt))
}

fn show(met: &Met<'_>) -> String {
    let Located { table, chain, kind, number, .. } = &met.located;
    format!("{}:{}:{kind}:{number} {}", table.name, chain.name, met.action)
}

impl Scenario {
    fn told(&self, ruleset: &Ruleset) -> (Run, Vec<Event>) {
        let [family, table, chain] = self.chain.split(' ').collect::<Vec<_>>()[..] else { panic!("a chain") };
        let found = |held: &&Table| held.family.name() == family && *held.name == *table;
        let table = ruleset.tables.iter().find(found).expect("a table");
        let handle = |name: &str| table.chain(name).expect("a chain").handle;
        let facts = if self.last { fact::LAST_RULE } else { 0 };
        let run = Run { table: table.handle, chain: handle(chain), facts, ..Run::new_zeroed() };
        let (mut events, mut index, mut commits) = (Vec::new(), 0, 0);
        for line in &self.events {
            let words: Vec<&str> = line.split(' ').collect();
            let mut event = Event { index, commits, what: what::RULE, ..Event::new_zeroed() };
            match words[..] {
                ["missed"] => {}
                ["changed"] => {
                    commits += 1;
                    continue;
                }
                ["end"] => (event.what, event.code) = (what::RETURN, code::CONTINUE),
                ["policy"] => (event.what, event.code) = (what::POLICY, code::CONTINUE),
                ["left", verdict] => (event.what, event.code) = (what::LEFT, code_of(verdict)),
                [rule, word, ref rest @ ..] => {
                    (event.rule, event.code) = (rule.parse().expect("a handle"), code_of(word));
                    event.target = rest.first().map_or(0, |chain| handle(chain));
                }
                _ => panic!("{line}"),
            }
            index += 1;
            if words != ["missed"] {
                events.push(event);
            }
        }
        (run, events)
    }
}

fn code_of(word: &str) -> i32 {
    match word {
        "continue" => code::CONTINUE,
        "jump" => code::JUMP,
        "goto" => code::GOTO,
        "return" => code::RETURN,
        "drop" => 0,
        "accept" => 1,
        "stolen" => 2,
        _ => panic!("{word}"),
    }
}

proptest! {
    /// Whatever is told, no more steps come out than went in, and only a whole run is without doubt.
    #[test]
    fn any_events_do_no_harm(
        told in prop::collection::vec((0..30_u64, 0..30_u64, 0..5_u32, -6..4_i32), 0..12),
        (table, chain) in (0..10_u64, 0..6_u64),
    ) {
        let ruleset = ruleset();
        let run = Run { table, chain, ..Run::new_zeroed() };
        let events: Vec<Event> = (0..)
            .zip(&told)
            .map(|(index, (rule, target, what, code))| Event {
                index,
                rule: *rule,
                target: *target,
                what: *what,
                code: *code,
                ..Event::new_zeroed()
            })
            .collect();
        let followed = follow(&ruleset, &run, &events);
        prop_assert!(followed.met.len() <= events.len());
        if followed.doubt.is_none() {
            let last = followed.met.last().map(|met| met.action.clone());
            prop_assert_eq!(last, followed.verdict.map(Action::Verdict));
        }
    }
}
