//! Scenarios: `tests/data/path/*.toml`. A traversal that came out wrong becomes a test by pasting it into a file.
//!
//! `rules` is what `iptables-save` prints. What stands between the chain and `-j` or `-g` only decides whether the
//! rule is unconditional. After an extension target, `--set-xmark` and `--restore-mark` are understood; others are
//! written `-j NAME REVISION HEX`, HEX being the parameters as they are in memory (little-endian).

use crate::netfilter::{Family, Hook, StepKind, Verdict};
use crate::path::attribute::{State, Views, attribute, attribute_unordered};
use crate::path::walk::{Graph, Walk, Walker};
use crate::path::walks::Walks;
use crate::ruleset::{Chain, Entry, Extension, Table, Target};
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::Path;
use tracer_common::legacy::Match;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows.
    #[expect(dead_code, reason = "for the reader of the file")]
    about: String,
    rules: String,
    hook: String,
    /// Counted entries, `CHAIN:kind:number`, with ` x2` or ` x-1` for a count that is not 1.
    counted: Vec<String>,
    /// What the kernel function returned; nothing where its end was not seen.
    verdict: Option<u32>,
    /// `ordered`, `unordered`, `cut` or `inexact`, and why.
    walk: String,
    /// The verdict that it must have had, where that was not seen.
    implied: Option<String>,
    #[serde(default)]
    path: Vec<String>,
    entry: Option<Packet>,
    exit: Option<Packet>,
    /// What the packet looked like at each step, where `entry` is given.
    #[serde(default)]
    views: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet {
    mark: u32,
    len: u32,
    /// Hexadecimal, from the network header on.
    bytes: String,
}

#[test]
fn scenarios_come_out_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/path");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(!files.is_empty());
    let failed: Vec<String> = files.iter().filter_map(|file| check(file).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn check(file: &Path) -> Result<(), String> {
    let name = file.file_name().unwrap().to_string_lossy();
    let text = std::fs::read_to_string(file).unwrap();
    let scenario: Scenario = toml::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    let mut expected = format!("{}\n", scenario.walk);
    if let Some(verdict) = &scenario.implied {
        writeln!(expected, "ends in {verdict}").unwrap();
    }
    for line in scenario.path.iter().chain(&scenario.views) {
        writeln!(expected, "{line}").unwrap();
    }
    let found = scenario.run();
    if found == expected { Ok(()) } else { Err(format!("{name}: expected\n{expected}found\n{found}")) }
}

impl Scenario {
    fn run(&self) -> String {
        let table = parse(&self.rules);
        let hook = Hook::ALL.into_iter().find(|hook| hook.chain() == self.hook).expect("a hook");
        let counted: Vec<Match> = self.counted.iter().map(|line| counted(&table, line)).collect();
        let (mut walker, graph) = (Walker::default(), Graph::new(&table));
        let known = Walks::default().walk(&mut walker, (&table, &graph), hook, &counted, self.verdict);
        let (heading, path) = match &known.walk {
            Walk::Ordered(path) => ("ordered".to_owned(), path.clone()),
            Walk::Unordered(path) => ("unordered".to_owned(), path.clone()),
            Walk::Cut(path, cut) => (format!("cut: {}", cut.text()), path.clone()),
            Walk::Inexact(reason) => (format!("inexact: {}", reason.text(&table)), Vec::new()),
        };
        let mut found = format!("{heading}\n");
        if let (None, Some(verdict)) = (self.verdict, known.verdict) {
            writeln!(found, "ends in {}", Verdict::from_return(verdict)).unwrap();
        }
        for step in &path {
            writeln!(found, "{}", table.step_name(*step)).unwrap();
        }
        if let Some(entry) = &self.entry {
            let (entry_bytes, exit_bytes) =
                (hex(&entry.bytes), self.exit.as_ref().map(|exit| hex(&exit.bytes)));
            let exit = self.exit.as_ref().zip(exit_bytes.as_deref()).map(|(exit, bytes)| exit.state(bytes));
            let attribute = if heading == "unordered" { attribute_unordered } else { attribute };
            let views = attribute(&table, &path, entry.state(&entry_bytes), exit);
            for step in 0..path.len() {
                writeln!(found, "{}", show(&views, step, &entry_bytes)).unwrap();
            }
        }
        found
    }
}

impl Packet {
    fn state<'a>(&self, bytes: &'a [u8]) -> State<'a> {
        State { mark: self.mark, len: self.len, bytes }
    }
}

/// `mark 0x1 len 84`, the bytes that are not as at entry, and what is in doubt.
fn show(views: &Views<'_>, step: usize, entry: &[u8]) -> String {
    let (state, doubt) = views.at(step);
    let mut line = format!("mark {:#x} len {}", state.mark, state.len);
    for (index, byte) in
        state.bytes.iter().enumerate().filter(|(index, byte)| entry.get(*index) != Some(byte))
    {
        write!(line, " [{index}]={byte:02x}").unwrap();
    }
    if let Some(doubt) = doubt {
        write!(line, " ({doubt})").unwrap();
    }
    line
}

fn counted(table: &Table, line: &str) -> Match {
    let (name, count) = line.split_once(" x").unwrap_or((line, "1"));
    let count = count.parse::<i32>().expect("a count").cast_unsigned();
    let name = format!("{}:{name}", table.name);
    let index = (0..table.entries.len()).find(|entry| table.step_name(*entry) == name);
    let index = index.unwrap_or_else(|| panic!("no entry {name}"));
    Match { index: u32::try_from(index).unwrap(), count }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).expect("hexadecimal digits");
    digits.chunks(2).map(byte).collect()
}

/// A chain of the text: name, policy and rules.
type Rules<'a> = (&'a str, &'a str, Vec<&'a str>);

/// A table as `rules` of a scenario writes it.
pub(in crate::path) fn parse(text: &str) -> Table {
    let mut name = "";
    let mut chains: Vec<Rules<'_>> = Vec::new();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(first) if first.starts_with('*') => name = &first[1..],
            Some(first) if first.starts_with(':') => {
                chains.push((&first[1..], words.next().expect("a policy"), Vec::new()));
            }
            Some("-A") => {
                let chain = words.next().expect("a chain");
                chains.iter_mut().find(|(name, ..)| *name == chain).expect("a declared chain").2.push(line);
            }
            Some("COMMIT") | None => {}
            Some(other) => panic!("cannot read {other}"),
        }
    }
    build(name, &chains)
}

fn build(name: &str, chains: &[Rules<'_>]) -> Table {
    let mut table = Table {
        family: Family::Ipv4,
        name: name.to_owned(),
        entries: Vec::new(),
        chains: Vec::new(),
        hook_entry: [None; 5],
        underflow: [None; 5],
        size: 0,
    };
    let mut heads = Vec::new();
    let mut next = 0;
    for (name, policy, rules) in chains {
        next += usize::from(*policy == "-");
        heads.push((*name, *policy, next));
        next += rules.len() + 1;
    }
    for (index, (name, policy, rules)) in chains.iter().enumerate() {
        let hook = Hook::ALL.into_iter().find(|hook| *policy != "-" && hook.chain() == *name);
        if hook.is_none() {
            table.entries.push(head());
        }
        let first = table.entries.len();
        for (number, rule) in (1..).zip(rules) {
            let (unconditional, target) = target(rule, &heads);
            table.entries.push(entry(index, number, hook, unconditional, target));
        }
        let tail = table.entries.len();
        let target = standard(policy).unwrap_or(Target::Return);
        let number = u32::try_from(rules.len()).unwrap() + 1;
        table.entries.push(Entry { tail: true, ..entry(index, number, hook, true, target) });
        if let Some(hook) = hook {
            table.hook_entry[hook as usize] = Some(first);
            table.underflow[hook as usize] = Some(tail);
        }
        table.chains.push(Chain { name: (*name).to_owned(), hook, entries: first..tail + 1 });
    }
    table.entries.push(head());
    table
}

fn head() -> Entry {
    Entry {
        chain: None,
        number: 0,
        kind: StepKind::Rule,
        tail: false,
        unconditional: true,
        target: Target::Error,
        text: None,
    }
}

fn entry(chain: usize, number: u32, hook: Option<Hook>, unconditional: bool, target: Target) -> Entry {
    let kind = match target {
        Target::Verdict(_) | Target::Return if unconditional && hook.is_some() => StepKind::Policy,
        Target::Verdict(_) | Target::Return if unconditional => StepKind::Return,
        _ => StepKind::Rule,
    };
    Entry { chain: Some(chain), number, kind, tail: false, unconditional, target, text: None }
}

fn standard(word: &str) -> Option<Target> {
    match word {
        "ACCEPT" => Some(Target::Verdict(Verdict::Accept)),
        "DROP" => Some(Target::Verdict(Verdict::Drop)),
        "QUEUE" => Some(Target::Verdict(Verdict::Queue)),
        "RETURN" => Some(Target::Return),
        _ => None,
    }
}

/// Whether a rule is unconditional, and its target.
fn target(rule: &str, heads: &[(&str, &str, usize)]) -> (bool, Target) {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let Some(jump) = words.iter().position(|word| ["-j", "-g"].contains(word)) else {
        return (words.len() == 2, Target::Continue);
    };
    let name = words[jump + 1];
    let chain = heads.iter().find(|(chain, policy, _)| *chain == name && *policy == "-").map(|chain| chain.2);
    let target = match (chain, words[jump]) {
        (Some(to), "-g") => Target::Goto { to },
        (Some(to), _) => Target::Jump { to },
        (None, _) => standard(name).unwrap_or_else(|| Target::Extension(extension(name, &words[jump + 2..]))),
    };
    (jump == 2, target)
}

fn extension(name: &str, options: &[&str]) -> Extension {
    let number =
        |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number");
    let (revision, data) = match options {
        ["--set-xmark", mark] => {
            let (value, mask) = mark.split_once('/').expect("value/mask");
            (2, [number(value), number(mask)].map(u32::to_ne_bytes).concat())
        }
        ["--restore-mark"] => (1, [[0; 4], [0xff; 4], [0xff; 4], [2, 0, 0, 0]].concat()),
        [revision, data] if revision.bytes().all(|byte| byte.is_ascii_digit()) => {
            (revision.parse().unwrap(), hex(data))
        }
        _ => (0, Vec::new()),
    };
    Extension { name: Some(name.into()), revision, data }
}
