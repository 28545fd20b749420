//! What `iptables-nft-save` and its siblings print, taken apart into tables, chains and rules.

use crate::ruleset::text::{logical_line, rule, without_counters};
use std::collections::HashMap;

/// A table as it was printed.
#[derive(Debug, Default)]
pub(super) struct Section<'a> {
    pub(super) table: &'a str,
    /// Names and policies, in order. Built-in chains are there even when the kernel has none of them.
    pub(super) chains: Vec<(&'a str, &'a str)>,
    /// Rules by chain, in order.
    pub(super) rules: HashMap<&'a str, Vec<&'a str>>,
}

/// All tables. `Err` is a line that makes no sense where it stands.
pub(super) fn parse(save: &str) -> Result<Vec<Section<'_>>, &str> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut rest = save;
    while let Some((line, after)) = logical_line(rest) {
        rest = after;
        if let Some(table) = line.strip_prefix('*') {
            sections.push(Section { table, ..Section::default() });
        } else if !line.is_empty() && !line.starts_with('#') && line != "COMMIT" {
            let section = sections.last_mut().ok_or(line)?;
            if let Some((name, policy)) = line.strip_prefix(':').and_then(|line| line.split_once(' ')) {
                section.chains.push((name, policy.split(' ').next().unwrap_or_default()));
            } else {
                let (chain, _) = rule(line).ok_or(line)?;
                section.rules.entry(chain).or_default().push(without_counters(line));
            }
        }
    }
    Ok(sections)
}
