//! What became of a packet, in words.

use super::pretty::Styles;
use crate::netfilter::{Engine, Hook, StepKind, TableFamily};
use crate::path::Certainty;
use crate::path::ending::Ending;
use crate::text::Escaped;
use crate::why::{Fate, Met, Passed, Told, Why};
use std::fmt;
use std::io::{self, Write};

/// Writes it. The packet's own line has been written.
pub(super) fn write_why(out: &mut impl Write, styles: &Styles, why: &Why) -> io::Result<()> {
    if let Some(sender) = &why.sender {
        writeln!(out, "  {}sent by {sender}{:#}", styles.note, styles.note)?;
    }
    let drop = styles.drop;
    match (why.fate, &why.at) {
        (Fate::Elsewhere | Fate::LastSeen, at) if why.path.ending.as_ref().is_some_and(is_told) => {
            write!(out, "{drop}no rule dropped it{drop:#}")?;
            at.iter().try_for_each(|at| write!(out, "; it was last seen at {}", Escaped(&at.name)))?;
            let ending = why.path.ending.as_ref().map_or(String::new(), Ending::to_string);
            let ending = ending.rsplit_once(", then ").map_or(ending.as_str(), |(_, ending)| ending);
            writeln!(out, "\n  {}", Escaped(ending))?;
        }
        (Fate::Elsewhere | Fate::LastSeen, Some(at)) => {
            writeln!(out, "{drop}no rule dropped it{drop:#}; it was last seen at {}", Escaped(&at.name))?;
            if let Some(hint) = hint(at.hook) {
                writeln!(out, "  {hint}")?;
            }
        }
        (fate, Some(at)) if why.is_certain => {
            writeln!(out, "{drop}{}{drop:#} by {}", fate.name(), Place(at))?;
            at.text.iter().try_for_each(|text| writeln!(out, "  {}", Escaped(text)))?;
        }
        (fate, at) => {
            write!(out, "{drop}{}{drop:#}", fate.name())?;
            match (&why.path.outcome, at) {
                (Some(outcome), _) => writeln!(out, ": {}", Escaped(outcome))?,
                (None, Some(at)) => {
                    writeln!(out, ", by which rule is not known; it was last seen at {}", Escaped(&at.name))?;
                }
                (None, None) => writeln!(out, ", by which rule is not known")?,
            }
        }
    }
    if let Some(owner) = why.at.as_ref().and_then(|at| at.owner.as_deref()).filter(|_| why.is_certain) {
        writeln!(out, "  made by {}", Escaped(owner))?;
    }
    if !why.way.is_empty() {
        writeln!(out, "  it came there by {}", Escaped(&why.way.join(", ")))?;
    }
    if why.path.certainty != Certainty::Complete {
        let doubt = styles.doubt;
        let said = why.path.why.join("; ");
        writeln!(out, "  {doubt}{}: {}{doubt:#}", why.path.certainty, Escaped(&said))?;
    }
    let (behind, passed): (Vec<&Passed>, Vec<&Passed>) = why.close.iter().partition(|close| close.behind);
    for (title, rules) in [("it nearly met", passed), ("behind it stands what it would have met", behind)] {
        if !rules.is_empty() {
            writeln!(out, "{title}")?;
            rules.into_iter().try_for_each(|close| write_close(out, styles, close))?;
        }
    }
    why.look.iter().try_for_each(|look| writeln!(out, "look with\n  {}", Escaped(look)))
}

/// Whether an ending says more than that a packet was not seen any more.
fn is_told(ending: &Ending) -> bool {
    matches!(ending, Ending::ByFunction { .. } | Ending::ByUser { .. } | Ending::Freed(_))
}

fn write_close(out: &mut impl Write, styles: &Styles, close: &Passed) -> io::Result<()> {
    write!(out, "  {}  {}", Escaped(&close.name), Escaped(&close.text))?;
    if let Some(owner) = &close.owner {
        write!(out, "  {}[{}]{:#}", styles.note, Escaped(owner), styles.note)?;
    }
    writeln!(out)?;
    write_checks(out, close)
}

fn write_checks(out: &mut impl Write, passed: &Passed) -> io::Result<()> {
    for (text, value) in passed.failed() {
        writeln!(out, "    {}: the packet has {}", Escaped(text), Escaped(value))?;
    }
    passed.unknown().try_for_each(|text| writeln!(out, "    {}: not known", Escaped(text)))
}

/// Writes what a packet says to a rule that it passed.
pub(super) fn write_told(out: &mut impl Write, name: &str, told: &Told) -> io::Result<()> {
    match told {
        Told::Passed(passed) => {
            writeln!(out, "  passed {}  {}", Escaped(name), Escaped(&passed.text))?;
            if passed.failed().next().is_none() && passed.unknown().next().is_none() {
                writeln!(out, "    why is not known")?;
            }
            write_checks(out, passed)
        }
        Told::Unknown(why) => writeln!(out, "  whether it passed {} is not known: {why}", Escaped(name)),
    }
}

/// What drops packets behind a hook, apart from rules.
fn hint(hook: Option<Hook>) -> Option<&'static str> {
    match hook {
        Some(Hook::Prerouting) => Some(
            "behind prerouting comes routing: it drops what has no route, what the reverse path filter refuses, what \
             may not be forwarded, and what has lived too long",
        ),
        Some(Hook::Forward | Hook::Output) => {
            Some("behind it may come IPsec, or a queue; whether one of them dropped it is not known")
        }
        _ => None,
    }
}

/// Where a packet ended, in words.
struct Place<'a>(&'a Met);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(at) = self;
        match (at.is_rule(), at.kind, at.number) {
            (true, _, Some(number)) => write!(f, "rule {number}")?,
            (true, _, None) => f.write_str("a rule")?,
            (false, StepKind::Return, _) => f.write_str("the end")?,
            (false, ..) => f.write_str("the policy")?,
        }
        write!(f, " of chain {}, table ", Escaped(&at.chain))?;
        match (at.engine, at.family) {
            (Engine::Legacy, TableFamily::Ip6) => write!(f, "{} of ip6tables-legacy", Escaped(&at.table))?,
            (Engine::Legacy, _) => write!(f, "{} of iptables-legacy", Escaped(&at.table))?,
            (Engine::Nft, family) => write!(f, "{} {} of nftables", family.name(), Escaped(&at.table))?,
        }
        at.hook.map_or(Ok(()), |hook| write!(f, ", at {hook}"))
    }
}

/// What is said when no packet was dropped.
pub(super) fn write_nothing(out: &mut impl Write, packets: u64) -> io::Result<()> {
    writeln!(out, "no packet was dropped or rejected: {packets} were seen")
}
