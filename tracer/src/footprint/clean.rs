//! What runs left that were killed together with their guards, or whose host was.

use super::record::{Folder, Record};
use super::undo::{Namespaces, remove_rules, remove_table, undo_locked};
use super::{Error, rule, table};
use crate::netfilter::Family;
use crate::sys::process::Process;
use crate::sys::{module, netns};
use std::fs::File;

/// Rules and tables in a namespace whose runs are gone.
struct Found {
    netns: u32,
    namespace: File,
    rules: Vec<(Family, Process)>,
    tables: Vec<Process>,
}

/// What is left of runs that have ended, in words.
pub fn leftovers() -> Result<Vec<String>, Error> {
    let mut said: Vec<String> = Vec::new();
    for Record { owner, changes } in dead_records()? {
        said.extend(changes.iter().map(|change| format!("{change} of process {owner}")));
    }
    for Found { netns, rules, tables, .. } in found() {
        let netns = netns::in_words(netns);
        let rule =
            |(family, owner)| format!("TRACE rules of process {owner} in {family} raw of namespace {netns}");
        said.extend(rules.into_iter().map(rule));
        said.extend(
            tables.into_iter().map(|owner| format!("table {} in namespace {netns}", table::name(owner))),
        );
    }
    Ok(said)
}

/// Removes all of it. Says what that was.
pub fn clean() -> Result<Vec<String>, Error> {
    let mut said = Vec::new();
    let folder = Folder::of_host();
    if folder.exists() {
        let locked = folder.lock().map_err(Error::Record)?;
        for Record { owner, .. } in locked.records().map_err(Error::Record)? {
            if !owner.is_alive() {
                said.extend(undo_locked(&locked, owner, Namespaces(&[]), None)?);
                said.push(format!("removed the record of process {owner}"));
            }
        }
    }
    // Rules outlive a restart of the machine when they are saved and restored, their record does not.
    for Found { netns, namespace, rules, tables } in found() {
        for (family, owner) in rules {
            said.extend(remove_rules(&namespace, (netns, family), owner, None)?);
        }
        for owner in tables {
            said.extend(remove_table(&namespace, netns, &table::name(owner))?);
        }
    }
    Ok(said)
}

fn dead_records() -> Result<Vec<Record>, Error> {
    let folder = Folder::of_host();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut records = folder.lock().and_then(|locked| locked.records()).map_err(Error::Record)?;
    records.retain(|record| !record.owner.is_alive());
    Ok(records)
}

/// Looks into every namespace. What cannot be read has nothing that could be removed.
fn found() -> Vec<Found> {
    let look = |known: &netns::Namespace| {
        let namespace = known.open().ok()?;
        let netns = netns::inode(&namespace).ok()?;
        let rules = netns::inside(&namespace, || {
            let owners = |family| {
                rule::owners(family).unwrap_or_default().into_iter().map(move |owner| (family, owner))
            };
            owners(Family::Ipv4).chain(owners(Family::Ipv6)).filter(|(_, owner)| !owner.is_alive()).collect()
        });
        // To ask for tables would load the module.
        let tables = if module::is_there("nf_tables") { table::owners(&namespace) } else { Vec::new() };
        let tables = tables.into_iter().filter(|owner| !owner.is_alive()).collect();
        Some(Found { netns, namespace, rules: rules.ok()?, tables })
    };
    netns::list().iter().filter_map(look).collect()
}
