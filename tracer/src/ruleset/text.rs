//! Gives the entries of a table the lines that `iptables-save` prints for them.
//!
//! Nothing in such a line says which entry of the blob it is. So all of the output is held against all of the table,
//! and one contradiction is enough to attach nothing.

use super::{Extension, Table, Target};
use crate::netfilter::Verdict;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Why the output does not describe the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Nothing between `*TABLE` and `COMMIT`.
    #[error("iptables-save printed no complete table {0:?}")]
    NoTable(String),
    /// A line that is neither chain nor rule.
    #[error("iptables-save printed a line that is not understood: {0:?}")]
    Line(String),
    /// Other chains, or in another order.
    #[error("iptables-save lists the chains {printed:?}, the kernel holds {loaded:?}")]
    Chains {
        /// As printed.
        printed: Vec<String>,
        /// As in the table.
        loaded: Vec<String>,
    },
    /// Another policy.
    #[error("iptables-save prints policy {printed} for chain {chain:?}, the kernel holds another")]
    Policy {
        /// The chain.
        chain: String,
        /// As printed.
        printed: String,
    },
    /// More rules or fewer.
    #[error("iptables-save prints {printed} rules for chain {chain:?}, the kernel holds {loaded}")]
    Count {
        /// The chain.
        chain: String,
        /// As printed.
        printed: usize,
        /// As in the table.
        loaded: usize,
    },
    /// A rule with another target.
    #[error(
        "iptables-save prints {line:?} as rule {number} of chain {chain:?}, the kernel holds another target"
    )]
    Target {
        /// The chain.
        chain: String,
        /// Number of the rule.
        number: u32,
        /// As printed.
        line: String,
    },
}

/// Sets the text of all rules of `table` from the output of `iptables-save`, with or without `-c`; or of none, when
/// the output contradicts the table.
pub fn attach(table: &mut Table, save: &[u8]) -> Result<(), Mismatch> {
    let save = String::from_utf8_lossy(save);
    let printed = Section::parse(&table.name, &save)?;
    let texts = printed.compare(table)?;
    for (index, text) in texts {
        table.entries[index].text = Some(text);
    }
    Ok(())
}

/// What stands between `*TABLE` and `COMMIT`.
struct Section<'a> {
    /// Names and policies, in order.
    chains: Vec<(&'a str, &'a str)>,
    /// Rules by chain, in order.
    rules: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Section<'a> {
    fn parse(table: &str, save: &'a str) -> Result<Self, Mismatch> {
        let mut section = Self { chains: Vec::new(), rules: HashMap::new() };
        let mut rest = save;
        let mut inside = false;
        while let Some((line, after)) = logical_line(rest) {
            rest = after;
            if let Some(name) = line.strip_prefix('*') {
                inside = name == table;
            } else if !inside || line.is_empty() || line.starts_with('#') {
            } else if line == "COMMIT" {
                return Ok(section);
            } else if let Some((name, policy)) = line.strip_prefix(':').and_then(|line| line.split_once(' '))
            {
                section.chains.push((name, policy.split(' ').next().unwrap_or_default()));
            } else if let Some((chain, _)) = rule(line) {
                section.rules.entry(chain).or_default().push(without_counters(line));
            } else {
                return Err(Mismatch::Line(line.to_owned()));
            }
        }
        Err(Mismatch::NoTable(table.to_owned()))
    }

    /// The text of every rule of `table`, by index.
    fn compare(&self, table: &Table) -> Result<Vec<(usize, Arc<str>)>, Mismatch> {
        let printed: Vec<&str> = self.chains.iter().map(|(name, _)| *name).collect();
        let loaded: Vec<&str> = table.chains.iter().map(|chain| chain.name.as_str()).collect();
        let known: HashSet<&str> = printed.iter().copied().collect();
        if printed != loaded || self.rules.keys().any(|chain| !known.contains(chain)) {
            let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
            return Err(Mismatch::Chains { printed: owned(printed), loaded: owned(loaded) });
        }
        let mut texts = Vec::new();
        for (chain, (name, policy)) in table.chains.iter().zip(&self.chains) {
            let lines = self.rules.get(name).map(Vec::as_slice).unwrap_or_default();
            let (entries, tail): (Vec<usize>, Vec<usize>) =
                chain.entries.clone().partition(|index| !table.entries[*index].tail);
            let expected = match (chain.hook, tail.first().map(|index| &table.entries[*index].target)) {
                (None, _) => "-",
                (Some(_), Some(Target::Verdict(Verdict::Accept))) => "ACCEPT",
                (Some(_), Some(Target::Verdict(Verdict::Drop))) => "DROP",
                (Some(_), _) => "",
            };
            if *policy != expected {
                return Err(Mismatch::Policy { chain: chain.name.clone(), printed: (*policy).to_owned() });
            }
            if lines.len() != entries.len() {
                let (printed, loaded) = (lines.len(), entries.len());
                return Err(Mismatch::Count { chain: chain.name.clone(), printed, loaded });
            }
            for (index, line) in entries.into_iter().zip(lines) {
                let entry = &table.entries[index];
                if !names_target(table, &entry.target, line) {
                    let (chain, line) = (chain.name.clone(), (*line).to_owned());
                    return Err(Mismatch::Target { chain, number: entry.number, line });
                }
                texts.push((index, Arc::from(*line)));
            }
        }
        Ok(texts)
    }
}

/// Whether a rule's line can be that of an entry with this target.
fn names_target(table: &Table, target: &Target, line: &str) -> bool {
    let ends = |option: &str, name: &str| {
        line.strip_suffix(name)
            .and_then(|line| line.strip_suffix(option))
            .is_some_and(|line| line.ends_with(' '))
    };
    let chain = |entry: &usize| table.chain_of(*entry).map_or("", |chain| chain.name.as_str());
    match target {
        Target::Verdict(Verdict::Accept) => ends("-j ", "ACCEPT"),
        Target::Verdict(Verdict::Drop) => ends("-j ", "DROP"),
        Target::Verdict(Verdict::Queue) => ends("-j ", "QUEUE"),
        Target::Return => ends("-j ", "RETURN"),
        Target::Jump { to } => ends("-j ", chain(to)),
        Target::Goto { to } => ends("-g ", chain(to)),
        Target::Extension(Extension { name: Some(name), .. }) => {
            // iptables may print `CT --notrack` under its old name.
            let mut targets = line.split(" -j ").skip(1).filter_map(|rest| rest.split(' ').next());
            targets.any(|target| target == &**name || (target == "NOTRACK" && &**name == "CT"))
        }
        Target::Verdict(_) | Target::Continue | Target::Extension(_) => true,
        Target::Error => false,
    }
}

/// The first line, and what comes after it. A rule's line goes on as long as a quoted comment in it is open.
pub(crate) fn logical_line(rest: &str) -> Option<(&str, &str)> {
    if rest.is_empty() {
        return None;
    }
    let first = rest.split('\n').next().unwrap_or_default();
    let mut quoted = false;
    let mut escaped = false;
    let start = rule(first).map_or(rest.len(), |(_, rule)| first.len() - rule.len());
    for (at, byte) in rest.bytes().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'\n' if !quoted => return Some((&rest[..at], &rest[at + 1..])),
            _ => {}
        }
    }
    if start == rest.len() {
        return Some((first, rest.get(first.len() + 1..).unwrap_or_default()));
    }
    Some((rest, ""))
}

/// The chain of a rule's line, and what comes after the chain.
pub(crate) fn rule(line: &str) -> Option<(&str, &str)> {
    let line = without_counters(line).strip_prefix("-A ")?;
    Some(line.split_once(' ').unwrap_or((line, "")))
}

/// Takes off what `-c` adds: `[12:3456] `.
pub(crate) fn without_counters(line: &str) -> &str {
    let counters = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((inner, rule)) if counters(inner) => rule,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::Family;
    use crate::xtables::{TargetNames, tests::captured};
    use expect_test::{Expect, expect};

    const SAVE: &str = include_str!("../../../tests/data/xtables/ip-filter.save");

    fn filter() -> Table {
        captured(Family::Ipv4, "filter").decode(&TargetNames::default()).unwrap()
    }

    #[track_caller]
    fn check(from: &str, to: &str, expected: Expect) {
        assert!(SAVE.contains(from));
        let mut table = filter();
        let mismatch = attach(&mut table, SAVE.replacen(from, to, 1).as_bytes()).unwrap_err();
        expected.assert_eq(&mismatch.to_string());
        assert_eq!(table, filter());
    }

    #[test]
    fn counters_and_other_tables_are_passed_over() {
        let (mut plain, mut counted) = (filter(), filter());
        attach(&mut plain, SAVE.as_bytes()).unwrap();
        let save = SAVE.replace("\n-A ", "\n[17:2048] -A ").replace("two\n[17:2048] ", "two\n");
        let save = format!("# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING\nCOMMIT\n{save}");
        attach(&mut counted, save.as_bytes()).unwrap();
        assert_eq!(plain, counted);
        let texts: Vec<_> = plain.entries.iter().filter_map(|entry| entry.text.as_deref()).collect();
        assert_eq!(texts.len(), SAVE.lines().filter(|line| line.starts_with("-A ")).count() - 1);
        assert_eq!(
            plain.entries[26].text.as_deref(),
            Some("-A INNER -m comment --comment \"two\n-A INNER -j ACCEPT\" -j ACCEPT")
        );
    }

    #[test]
    fn one_contradiction_is_enough() {
        check(
            "-A INPUT -i lo -j ACCEPT\n",
            "",
            expect![[r#"iptables-save prints 8 rules for chain "INPUT", the kernel holds 9"#]],
        );
        check(
            ":FORWARD DROP",
            ":FORWARD ACCEPT",
            expect![[r#"iptables-save prints policy ACCEPT for chain "FORWARD", the kernel holds another"#]],
        );
        check(
            ":EMPTY - [0:0]\n:FOO - [0:0]\n",
            ":FOO - [0:0]\n:EMPTY - [0:0]\n",
            expect![[
                r#"iptables-save lists the chains ["INPUT", "FORWARD", "OUTPUT", "FOO", "EMPTY", "INNER", "PREROUTING"], the kernel holds ["INPUT", "FORWARD", "OUTPUT", "EMPTY", "FOO", "INNER", "PREROUTING"]"#
            ]],
        );
        check(
            "-A FOO -g INNER",
            "-A FOO -j INNER",
            expect![[
                r#"iptables-save prints "-A FOO -j INNER" as rule 3 of chain "FOO", the kernel holds another target"#
            ]],
        );
        check(
            "-j LOG",
            "-j NFLOG",
            expect![[
                r#"iptables-save prints "-A INPUT -m limit --limit 5/min -j NFLOG --log-prefix \"input: \"" as rule 6 of chain "INPUT", the kernel holds another target"#
            ]],
        );
        check("COMMIT\n", "", expect![[r#"iptables-save printed no complete table "filter""#]]);
        check(
            "-A FOO",
            "iptables: broken",
            expect![[
                r#"iptables-save printed a line that is not understood: "iptables: broken -s 192.0.2.0/24 -j INNER""#
            ]],
        );
    }
}
