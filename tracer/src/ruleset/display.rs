//! The loaded rules for people, each with the name that steps give it.

use super::{Chain, Entry, Extension, Table, Target};
use std::fmt::{self, Write as _};

/// Writes all chains of all tables, as `nftracer rules` shows them.
pub fn write_rules(out: &mut impl fmt::Write, tables: &[&Table]) -> fmt::Result {
    for (index, table) in tables.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{} {}", table.family, Escaped(&table.name))?;
        for chain in &table.chains {
            write_chain(out, table, chain)?;
        }
    }
    Ok(())
}

fn write_chain(out: &mut impl fmt::Write, table: &Table, chain: &Chain) -> fmt::Result {
    write!(out, "  {}", Escaped(&chain.name))?;
    if let Some(policy) = table.entries[chain.entries.clone()].last().filter(|_| chain.hook.is_some()) {
        write!(out, " (policy {})", TargetWords { table, target: &policy.target })?;
    }
    writeln!(out)?;
    let lines = table.entries[chain.entries.clone()].iter();
    let lines: Vec<_> = lines.map(|entry| (StepName { table, chain, entry }.to_string(), entry)).collect();
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    for (name, entry) in lines {
        writeln!(out, "    {name:width$}  {}", RuleWords { table, entry })?;
    }
    Ok(())
}

/// `table:chain:kind:number`, as the kernel's TRACE names a step.
pub struct StepName<'a> {
    /// The table.
    pub table: &'a Table,
    /// The entry's chain.
    pub chain: &'a Chain,
    /// The entry.
    pub entry: &'a Entry,
}

impl fmt::Display for StepName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, chain) = (Escaped(&self.table.name), Escaped(&self.chain.name));
        write!(f, "{table}:{chain}:{}:{}", self.entry.kind, self.entry.number)
    }
}

/// The rule as iptables-save prints it, or what is known of it.
struct RuleWords<'a> {
    table: &'a Table,
    entry: &'a Entry,
}

impl fmt::Display for RuleWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = TargetWords { table: self.table, target: &self.entry.target };
        match (&self.entry.text, self.entry.tail) {
            (Some(text), _) => Escaped(text).fmt(f),
            (None, true) if self.entry.target == Target::Return => f.write_str("end of chain"),
            (None, true) => write!(f, "policy {target}"),
            (None, false) => write!(f, "(text not known) {target}"),
        }
    }
}

/// A target as iptables writes it.
struct TargetWords<'a> {
    table: &'a Table,
    target: &'a Target,
}

impl fmt::Display for TargetWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = |entry: &usize| Escaped(self.table.chain_of(*entry).map_or("?", |chain| &chain.name));
        match self.target {
            Target::Verdict(verdict) => f.write_str(&verdict.to_string().to_uppercase()),
            Target::Return => f.write_str("RETURN"),
            Target::Jump { to } => write!(f, "jump {}", chain(to)),
            Target::Goto { to } => write!(f, "goto {}", chain(to)),
            Target::Continue => f.write_str("continue"),
            Target::Extension(Extension { name: Some(name), .. }) => Escaped(name).fmt(f),
            Target::Extension(_) => f.write_str("unknown target"),
            Target::Error => f.write_str("ERROR"),
        }
    }
}

/// Text from the kernel or from packets, fit for a terminal: control characters, and those that turn the direction of
/// writing, appear as `\n` or `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                write!(f, "{}", character.escape_unicode())
            }
            control if control.is_control() => write!(f, "{}", control.escape_default()),
            character => f.write_char(character),
        })
    }
}
