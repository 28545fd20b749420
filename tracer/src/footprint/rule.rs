//! TRACE rules in the raw table: first in PREROUTING and OUTPUT, each with the tag of the run that made it.
//!
//! They are added and removed one by one, in one transaction of `iptables-restore --noflush`: other rules and their
//! counters stay as they are.

use super::select::{Field, Selection, Test};
use crate::filter::classic::Instruction;
use crate::filter::{Filter, Form, LinkType};
use crate::netfilter::Family;
use crate::sys::iptables::{Missing, Program, Tool};
use crate::sys::process::{self, Process};
use crate::sys::program::{self, Witness};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

/// How the comment of our rules begins.
const TAG: &str = "nftracer:";
const CHAINS: [&str; 2] = ["PREROUTING", "OUTPUT"];
/// A table that others change at the same moment is tried again this often.
const ATTEMPTS: u32 = 5;
/// `XT_BPF_MAX_NUM_INSTR`
const MOST_INSTRUCTIONS: usize = 64;
/// Longer words iptables-restore refuses, in any release, with some room for its quotes.
const MOST_WORD_BYTES: usize = 1000;

/// The comment of a run's rules.
pub(super) fn tag(owner: Process) -> String {
    format!("{TAG}{owner}")
}

/// Which run a rule is of, if it is one of ours: a line of `iptables-save` like `-A OUTPUT … --comment "TAG" -j TRACE`.
pub(super) fn owner(line: &str) -> Option<Process> {
    let words = line.strip_prefix("-A ")?.strip_suffix(" -j TRACE")?;
    let (_, comment) = words.split_once(" --comment ")?;
    let word = match comment.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => comment.split(' ').next()?,
    };
    word.strip_prefix(TAG)?.parse().ok()
}

/// What rules are to select by.
pub(super) struct Wanted<'a> {
    pub(super) family: Family,
    /// What of the filter is in other matches: the rules select more then.
    pub(super) selections: &'a [&'a Selection],
    /// The match that is the whole filter ([`bytecode`]), where there is one.
    pub(super) bytecode: Option<&'a str>,
    /// When they lose their effect, where the kernel can do that: a time like `2026-01-31T12:00:00` in UTC.
    pub(super) until: &'a str,
}

/// Rules that were added.
pub(super) struct Inserted {
    pub(super) count: usize,
    /// Whether they ask the whole filter.
    pub(super) by_bytecode: bool,
}

/// The match that runs a filter as libpcap compiled it; `None` where it has none of its own, or a longer one than xt_bpf
/// and iptables take.
///
/// A packet begins at its network header there (`net/netfilter/xt_bpf.c`).
pub(super) fn bytecode(filter: &Filter) -> Option<String> {
    let Form::Translated { program, link: LinkType::Raw, .. } = &filter.form else { return None };
    let mut code = program.len().to_string();
    for Instruction { code: opcode, jt, jf, k } in program {
        let _ = write!(code, ",{opcode} {jt} {jf} {k}");
    }
    let fits = program.len() <= MOST_INSTRUCTIONS && code.len() <= MOST_WORD_BYTES;
    fits.then(|| format!(" -m bpf --bytecode \"{code}\""))
}

/// Adds rules to the calling thread's namespace; `witness` as in [`program::feed`].
pub(super) fn insert(owner: Process, wanted: &Wanted<'_>, witness: Witness<'_>) -> Result<Inserted, String> {
    let restore = find(wanted.family, Tool::Restore)?;
    let plain = (all_matches(wanted.selections), false);
    let whole = wanted.bytecode.map(|bytecode| (vec![bytecode.to_owned()], true));
    let lines = |matches: &[String], expiry: &str| -> String {
        let add = |matches: &String| -> String {
            let tag = tag(owner);
            let line = |chain| format!("-I {chain} 1{matches} -m comment --comment {tag}{expiry} -j TRACE\n");
            CHAINS.map(line).concat()
        };
        matches.iter().map(add).collect()
    };
    let expiring = format!(" -m time --datestop {}", wanted.until);
    // Nothing of what is refused has been done. Without xt_bpf the rules select more, without xt_time they have no end of
    // their own.
    let mut refused = String::new();
    for expiry in [&expiring, ""] {
        for (matches, by_bytecode) in whole.iter().chain([&plain]) {
            match feed(&restore, &lines(matches, expiry), witness) {
                Ok(()) => {
                    return Ok(Inserted { count: CHAINS.len() * matches.len(), by_bytecode: *by_bytecode });
                }
                Err(reason) => refused = reason,
            }
        }
    }
    Err(refused)
}

/// Without doubles, and without those that one without conditions makes needless.
fn all_matches(selections: &[&Selection]) -> Vec<String> {
    let mut all: Vec<String> = selections.iter().map(|selection| matches(selection)).collect();
    all.sort();
    all.dedup();
    if all.iter().any(String::is_empty) {
        all = vec![String::new()];
    }
    all
}

/// Gives the rules of a run in the calling thread's namespace another end, all at once.
pub(super) fn renew(owner: Process, family: Family, until: &str, witness: Witness<'_>) -> Result<(), String> {
    let ours = |line: &&String| self::owner(line) == Some(owner);
    let lines: String = rules(family)?.iter().filter(ours).filter_map(|line| renewed(line, until)).collect();
    if lines.is_empty() { Ok(()) } else { feed(&find(family, Tool::Restore)?, &lines, witness) }
}

/// A rule once more with another end, and the old one away. `None` for one that has no end.
fn renewed(line: &str, until: &str) -> Option<String> {
    const OPTION: &str = " --datestop ";
    let rule = line.strip_prefix("-A ")?;
    let (chain, matches) = rule.split_once(' ')?;
    let (before, after) = matches.split_once(OPTION)?;
    let (_, after) = after.split_once(' ')?;
    Some(format!("-I {chain} 1 {before}{OPTION}{until} {after}\n-D {rule}\n"))
}

/// Removes the rules of a run from the calling thread's namespace. Says how many there were.
pub(super) fn remove(owner: Process, family: Family, witness: Witness<'_>) -> Result<usize, String> {
    for _ in 0..ATTEMPTS {
        let ours = |line: &&String| self::owner(line) == Some(owner);
        let rules: Vec<String> = rules(family)?.iter().filter(ours).cloned().collect();
        if rules.is_empty() {
            return Ok(0);
        }
        let delete = |line: &String| format!("-D{}\n", &line[2..]);
        let lines: String = rules.iter().map(delete).collect();
        // Fails when somebody else removed one just now.
        if feed(&find(family, Tool::Restore)?, &lines, witness).is_ok() {
            return Ok(rules.len());
        }
    }
    Err(format!("the raw table of {family} could not be changed"))
}

/// The runs that have rules in the calling thread's namespace.
pub(super) fn owners(family: Family) -> Result<Vec<Process>, String> {
    let mut owners: Vec<Process> = rules(family)?.iter().filter_map(|line| owner(line)).collect();
    owners.sort();
    owners.dedup();
    Ok(owners)
}

/// The rules of the raw table, as `iptables-save` prints them. A table that does not exist is not asked for, because
/// the kernel would make it.
fn rules(family: Family) -> Result<Vec<String>, String> {
    if !table_exists(family) {
        return Ok(Vec::new());
    }
    let saved = program::run(find(family, Tool::Save)?.path(), &["-t", "raw"])?;
    let text = String::from_utf8_lossy(&saved);
    Ok(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// Whether the raw table exists in the calling thread's namespace.
pub(super) fn table_exists(family: Family) -> bool {
    let name = match family {
        Family::Ipv4 => "net/ip_tables_names",
        Family::Ipv6 => "net/ip6_tables_names",
        Family::Arp => "net/arp_tables_names",
    };
    let names = fs::read_to_string(process::thread_file(name)).unwrap_or_default();
    names.lines().any(|name| name == "raw")
}

fn find(family: Family, tool: Tool) -> Result<Program, String> {
    Program::find(family, tool).map_err(|missing: Missing| missing.to_string())
}

/// One transaction. Releases from before 1.6.2 do not know how to wait for others.
fn feed(restore: &Program, lines: &str, witness: Witness<'_>) -> Result<(), String> {
    let text = format!("*raw\n{lines}COMMIT\n");
    program::feed(restore.path(), &["-w", "5", "--noflush"], &text, witness)
        .or_else(|_| program::feed(restore.path(), &["--noflush"], &text, witness))
}

/// The matches of the rule for a selection: addresses, and IPv4's protocol. All others, and IPv6's protocol, drop a
/// packet that is too short for them; leaving them out selects more.
fn matches(selection: &Selection) -> String {
    let Selection { family, tests } = selection;
    let mut text = String::new();
    let whole = |test: &&Test| test.field == Field::Protocol && test.mask == u32::MAX && test.is_one();
    if let Some(test) = tests.iter().find(whole).filter(|_| *family == Family::Ipv4) {
        let _ = write!(text, "{} -p {}", not(test), test.low);
    }
    for (option, is_field) in [("-s", is_source as fn(&Test) -> bool), ("-d", is_destination)] {
        let tests: Vec<&Test> = tests.iter().filter(|test| is_field(test) && test.is_one()).collect();
        if let Some((not, address)) = address(*family, &tests) {
            let _ = write!(text, "{not} {option} {address}");
        }
    }
    text
}

fn not(test: &Test) -> &'static str {
    if test.inside { "" } else { " !" }
}

fn is_source(test: &Test) -> bool {
    matches!(test.field, Field::Source(_))
}

fn is_destination(test: &Test) -> bool {
    matches!(test.field, Field::Destination(_))
}

/// An address with its mask from the tests of its words: what has to be, or else one thing that must not be.
fn address(family: Family, tests: &[&Test]) -> Option<(&'static str, String)> {
    let word = |test: &Test| match test.field {
        Field::Source(word) | Field::Destination(word) => usize::from(word),
        _ => 0,
    };
    let (mut bits, mut mask) = ([0_u32; 4], [0_u32; 4]);
    let wanted: Vec<&&Test> = tests.iter().filter(|test| test.inside).collect();
    let (not, used) = match wanted.as_slice() {
        [] if family == Family::Ipv4 => (" !", tests.first().copied().into_iter().collect()),
        [] => return None,
        wanted => ("", wanted.iter().map(|test| **test).collect::<Vec<&Test>>()),
    };
    for test in used {
        bits[word(test)] = test.low;
        mask[word(test)] = test.mask;
    }
    if mask == [0; 4] {
        return None;
    }
    let text = match family {
        Family::Ipv4 | Family::Arp => format!("{}/{}", Ipv4Addr::from(bits[0]), Ipv4Addr::from(mask[0])),
        Family::Ipv6 => {
            let whole = |words: [u32; 4]| {
                Ipv6Addr::from(words.iter().fold(0, |all: u128, word| all << 32 | u128::from(*word)))
            };
            format!("{}/{}", whole(bits), whole(mask))
        }
    };
    Some((not, text))
}

#[cfg(test)]
mod tests {
    use super::super::select::selections;
    use super::*;
    use crate::filter::{LibpcapError, compile};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(filter: &str, expected: Expect) {
        let all = selections(&compile(filter, &|_, _| Err(LibpcapError::Absent)).unwrap());
        let of = |family| all.iter().filter(move |selection| selection.family == family).collect::<Vec<_>>();
        let lines = [Family::Ipv4, Family::Ipv6].map(|family| {
            let lines = all_matches(&of(family));
            lines.iter().map(|matches| format!("{family}:{matches}\n")).collect::<String>()
        });
        expected.assert_eq(&lines.concat());
    }

    #[test]
    fn what_matches_can_say() {
        check(
            "",
            expect![[r#"
            ip:
            ip6:
        "#]],
        );
        check(
            "icmp or icmp6",
            expect![[r#"
            ip: -p 1
            ip6:
        "#]],
        );
        check(
            "tcp dst port 80 and host 10.0.0.1",
            expect![[r#"
            ip: -p 6 ! -s 10.0.0.1/255.255.255.255 -d 10.0.0.1/255.255.255.255
            ip: -p 6 -s 10.0.0.1/255.255.255.255
        "#]],
        );
        check(
            "ip and not (tcp or src host 10.0.0.1)",
            expect![[r#"
            ip: ! -p 6 ! -s 10.0.0.1/255.255.255.255
        "#]],
        );
        check(
            "src net 10.0.0.0/8 and udp portrange 53-54",
            expect![[r#"
            ip: -p 17 -s 10.0.0.0/255.0.0.0
        "#]],
        );
        check(
            "ip6 and dst net fd00:1::/32",
            expect![[r#"
            ip6: -d fd00:1::/ffff:ffff::
        "#]],
        );
        check(
            "port 443",
            expect![[r#"
            ip:
            ip6:
        "#]],
        );
        check(
            "ip6 proto 0",
            expect![[r#"
            ip6:
        "#]],
        );
        check(
            "ip6 and not tcp",
            expect![[r#"
            ip6:
        "#]],
        );
    }

    #[test]
    fn bytecode_of_a_filter() {
        let instruction = |code, k| Instruction { code, jt: 0, jf: 0, k };
        let of = |count: usize, k: u32| {
            let mut program = vec![instruction(48, k); count - 1];
            program.push(instruction(6, 262_144));
            let filter = compile("ip[0] = 1", &|link, _| {
                assert_eq!(link, LinkType::Raw);
                Ok(program.clone())
            });
            bytecode(&filter.unwrap())
        };
        assert_eq!(of(2, 9).unwrap(), r#" -m bpf --bytecode "2,48 0 0 9,6 0 0 262144""#);
        // Too many, and too many letters.
        assert_eq!((of(64, 9).is_some(), of(65, 9)), (true, None));
        assert_eq!(of(64, 1_000_000_000), None);
        assert_eq!(bytecode(&compile("", &|_, _| Err(LibpcapError::Absent)).unwrap()), None);
    }

    #[test]
    fn another_end() {
        let line = "-A OUTPUT -p 6 -m comment --comment \"nftracer:7:8\" -m time --datestop 2030-01-01T00:00:00 -j TRACE";
        let renewed = |line: &str| renewed(line, "2031-02-03T04:05:06");
        expect![[r#"
            -I OUTPUT 1 -p 6 -m comment --comment "nftracer:7:8" -m time --datestop 2031-02-03T04:05:06 -j TRACE
            -D OUTPUT -p 6 -m comment --comment "nftracer:7:8" -m time --datestop 2030-01-01T00:00:00 -j TRACE
        "#]].assert_eq(&renewed(line).unwrap());
        assert_eq!(renewed("-A OUTPUT -j TRACE"), None);
    }

    #[test]
    fn only_our_rules_are_ours() {
        let process = |pid, start| Some(Process { pid, start });
        for (line, expected) in [
            (
                r#"-A OUTPUT -p tcp -m comment --comment "nftracer:7:8" -m time --datestop 2030-01-01T00:00:00 -j TRACE"#,
                process(7, 8),
            ),
            ("-A PREROUTING -m comment --comment nftracer:7:8 -j TRACE", process(7, 8)),
            ("-A OUTPUT -m comment --comment nftracer:7:8 -j ACCEPT", None),
            ("-A OUTPUT -m comment --comment \"nftracer:7:8 x\" -j TRACE", None),
            ("-A OUTPUT -m comment --comment \"my nftracer:7:8\" -j TRACE", None),
            ("-A OUTPUT -j TRACE", None),
            ("-A OUTPUT -m comment --comment nftracer:7 -j TRACE", None),
            (":OUTPUT ACCEPT [0:0]", None),
        ] {
            assert_eq!(owner(line), expected, "{line}");
        }
    }
}
