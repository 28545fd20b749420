//! `nftracer rules`

use crate::cli::rules::RulesConfig;
use crate::error::Failure;
use crate::fetch::{self, Fetched};
use crate::ruleset::Table;
use crate::ruleset::display::write_rules;
use crate::text;
use anyhow::{Context as _, anyhow};
use std::io::{self, Write as _};

/// Shows the loaded rules, each with the name that steps give it.
pub fn run(config: RulesConfig) -> Result<(), Failure> {
    let namespace = super::open_namespace(&config.netns)?;
    let mut fetched = fetch::fetch_tables(&namespace).map_err(Failure::running)?;
    if let Some(name) = &config.table {
        fetched.retain(|found| found.table.name == *name);
        if fetched.is_empty() {
            let failure = Failure::running(anyhow!("there is no legacy table {name:?} in this namespace"));
            return Err(failure.with_remedy("without --table, all that are there are shown"));
        }
    }
    for Fetched { table, text_reason, .. } in &fetched {
        if let Some(reason) = text_reason {
            eprintln!("nftracer: {} table {}: {}", table.family, table.name, text::escape(reason));
        }
    }
    let tables: Vec<&Table> = fetched.iter().map(|found| &found.table).collect();
    let mut rules = String::new();
    write_rules(&mut rules, &tables).context("cannot format the rules")?;
    io::stdout().write_all(rules.as_bytes()).context("cannot write to standard output")?;
    Ok(())
}
