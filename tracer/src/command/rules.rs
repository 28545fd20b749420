//! `nftracer rules`

use crate::cli::rules::RulesConfig;
use crate::error::Failure;
use crate::fetch::nft::{self, Nftables};
use crate::fetch::{self, Fetched};
use crate::nftables;
use crate::ruleset::Table;
use crate::ruleset::display::write_rules;
use crate::text;
use anyhow::{Context as _, anyhow};
use std::fs::File;
use std::io::{self, Write as _};

/// Shows the loaded rules, each with the name that steps give it: those of legacy tables, then those of nftables.
pub fn run(config: RulesConfig) -> Result<(), Failure> {
    let namespace = super::open_namespace(&config.netns)?;
    let wanted = |name: &str| config.table.as_deref().is_none_or(|table| table == name);
    let mut rules = legacy(&namespace, wanted)?;
    let nft = nft(&namespace, wanted)?;
    if !rules.is_empty() && !nft.is_empty() {
        rules.push('\n');
    }
    rules.push_str(&nft);
    if let (Some(name), true) = (&config.table, rules.is_empty()) {
        let failure = Failure::running(anyhow!("there is no table {name:?} in this namespace"));
        return Err(failure.with_remedy("without --table, all that are there are shown"));
    }
    io::stdout().write_all(rules.as_bytes()).context("cannot write to standard output")?;
    Ok(())
}

fn legacy(namespace: &File, wanted: impl Fn(&str) -> bool) -> Result<String, Failure> {
    let mut fetched = fetch::fetch_tables(namespace).map_err(Failure::running)?;
    fetched.retain(|found| wanted(&found.table.name));
    for Fetched { table, text_reason, .. } in &fetched {
        if let Some(reason) = text_reason {
            eprintln!("nftracer: {} table {}: {}", table.family, table.name, text::escape(reason));
        }
    }
    let tables: Vec<&Table> = fetched.iter().map(|found| &found.table).collect();
    let mut rules = String::new();
    write_rules(&mut rules, &tables).context("cannot format the rules")?;
    Ok(rules)
}

fn nft(namespace: &File, wanted: impl Fn(&str) -> bool) -> Result<String, Failure> {
    let Some(mut nftables) = Nftables::open(namespace).map_err(Failure::running)? else {
        return Ok(String::new());
    };
    let nft::Fetched { ruleset, text_reasons } = nftables.fetch().map_err(Failure::running)?;
    for reason in &text_reasons {
        eprintln!("nftracer: {}", text::escape(reason));
    }
    let tables: Vec<&nftables::Table> = ruleset.tables.iter().filter(|table| wanted(&table.name)).collect();
    let mut rules = String::new();
    nftables::display::write_rules(&mut rules, &tables).context("cannot format the rules")?;
    Ok(rules)
}
