//! The rules of nftables for people, each with the name that steps give it.

use super::{Base, Chain, DORMANT, Flowtable, Rule, Set, Table};
use crate::netfilter::StepKind;
use crate::ruleset::display::Escaped;
use std::fmt;

/// Writes all chains of all tables, as `nftracer rules` shows them.
pub fn write_rules(out: &mut impl fmt::Write, tables: &[&Table]) -> fmt::Result {
    for (index, table) in tables.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        let tool = if table.is_of_iptables() { "iptables-nft" } else { "nftables" };
        write!(out, "{} {} ({tool}", table.family.name(), Escaped(&table.name))?;
        if let Some(owner) = table.owner {
            write!(out, ", owned by netlink port {owner}")?;
        }
        writeln!(out, "{})", if table.flags & DORMANT == 0 { "" } else { ", dormant" })?;
        for Flowtable { name, priority, devices, .. } in &table.flowtables {
            let devices = devices.join(" ");
            writeln!(
                out,
                "  flowtable {} (ingress priority {priority} devices {})",
                Escaped(name),
                Escaped(&devices)
            )?;
        }
        for Set { name, map, .. } in table.sets.iter().filter(|set| !set.anonymous) {
            writeln!(out, "  {} {}", if *map { "map" } else { "set" }, Escaped(name))?;
        }
        for chain in &table.chains {
            write_chain(out, table, chain)?;
        }
    }
    Ok(())
}

fn write_chain(out: &mut impl fmt::Write, table: &Table, chain: &Chain) -> fmt::Result {
    write!(out, "  {}", Escaped(&chain.name))?;
    if let Some(base) = &chain.base {
        write!(out, " ({})", BaseWords(base))?;
    }
    writeln!(out)?;
    let (table_name, chain_name) = (Escaped(&table.name), Escaped(&chain.name));
    let name = |kind: StepKind, number: u32| format!("{table_name}:{chain_name}:{kind}:{number}");
    let mut lines: Vec<(String, String)> = Vec::new();
    for (rule, number) in chain.rules.iter().zip(1..) {
        let handle = format!(" # handle {}", rule.handle);
        // The tool that made the other rules knows no handles.
        let handle = if rule.text == rule.nft { handle } else { String::new() };
        lines.push((name(StepKind::Rule, number), format!("{}{handle}", RuleWords(rule))));
    }
    lines.push(match &chain.base {
        Some(base) => (name(StepKind::Policy, chain.end()), format!("policy {}", base.policy)),
        None => (name(StepKind::Return, chain.end()), "end of chain".to_owned()),
    });
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    lines.iter().try_for_each(|(name, words)| writeln!(out, "    {name:width$}  {words}"))
}

/// Where a base chain is.
struct BaseWords<'a>(&'a Base);

impl fmt::Display for BaseWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { hook, priority, kind, policy, devices } = self.0;
        let hook = hook.map_or("unknown hook", |hook| hook.name());
        write!(f, "{} {hook} priority {priority}", Escaped(kind))?;
        if !devices.is_empty() {
            write!(f, " devices {}", Escaped(&devices.join(" ")))?;
        }
        write!(f, " policy {policy}")
    }
}

/// A rule as its owner's tool prints it, or what is known of it.
struct RuleWords<'a>(&'a Rule);

impl fmt::Display for RuleWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { text, expressions, verdict, .. } = self.0;
        match (text, verdict) {
            (Some(text), _) => Escaped(text).fmt(f),
            (None, Some(verdict)) => write!(f, "(text not known) {}", Escaped(&verdict.action().to_string())),
            (None, None) => write!(f, "(text not known) {}", Escaped(&expressions.join(" "))),
        }
    }
}
