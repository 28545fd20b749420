//! The live ruleset of a network namespace, and which version of it a packet met.
//!
//! Reading changes nothing: a table that does not exist is not asked for, because the kernel would create it.

pub mod containers;
mod engines;
pub mod nft;
#[cfg(test)]
mod tests;

pub use engines::{Engines, EnginesError, Loaded, engines};

use crate::netfilter::Family;
use crate::ruleset::{Table, text};
use crate::sys::iptables::{Program, Tool};
use crate::sys::process::thread_file;
use crate::sys::{netns, program, sockopt};
use crate::xtables::{self, RawTable, TargetNames};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

/// The order in which tables meet at a hook.
const ORDER: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];
/// The lists of tables, IPv4 and IPv6, as [`thread_file`] wants them.
const NAMES: [&str; 2] = ["net/ip_tables_names", "net/ip6_tables_names"];
/// A table that changes while `iptables-save` runs is read this often before its text is given up.
const ATTEMPTS: u32 = 3;

/// A table as it was loaded when it was read.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its structure, with the text of its rules if that could be had.
    pub table: Table,
    /// The bytes it was decoded from.
    pub raw: RawTable,
    /// Why the rules have no text, and what to do; `None` when they have.
    pub text_reason: Option<String>,
}

/// Why the ruleset could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The list of tables could not be read.
    #[error("cannot read {}; run as root, for example by sudo", path.display())]
    Names {
        /// The list.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A table could not be read.
    #[error(transparent)]
    Read(#[from] sockopt::Error),
    /// A table was read and not understood.
    #[error("cannot understand the {family} table {table:?}")]
    Decode {
        /// Its family.
        family: Family,
        /// Its name.
        table: String,
        /// Why.
        source: xtables::Error,
    },
}

/// Whether a namespace can have legacy tables: the kernel has their code.
pub fn has_legacy(namespace: &File) -> Result<bool, Error> {
    Ok(netns::inside(namespace, || NAMES.iter().any(|name| thread_file(name).exists()))?)
}

/// All legacy tables of a namespace, IPv4 first, in the order in which they meet at a hook.
pub fn fetch_tables(namespace: &File) -> Result<Vec<Fetched>, Error> {
    netns::inside(namespace, || {
        let mut fetched = Vec::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            let names = table_names(family)?;
            if names.is_empty() {
                continue;
            }
            let program = saver(family);
            for name in names {
                fetched.extend(fetch_here(family, &name, &program)?);
            }
        }
        Ok(fetched)
    })?
}

/// Legacy tables of a namespace with at least one rule that somebody wrote, such as `ip filter`.
pub fn tables_with_rules(namespace: &File) -> Result<Vec<String>, Error> {
    let fetched = fetch_tables(namespace)?;
    let written = |table: &Table| table.entries.iter().any(|entry| entry.chain.is_some() && !entry.tail);
    let tables = fetched.iter().map(|found| &found.table).filter(|table| written(table));
    Ok(tables.map(|table| format!("{} {}", table.family, table.name)).collect())
}

/// Entries in each legacy table of a namespace, hidden ones included.
pub fn table_sizes(namespace: &File) -> Result<Vec<u32>, Error> {
    netns::inside(namespace, || {
        let mut sizes = Vec::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            for name in table_names(family)? {
                sizes.extend(read(family, &name)?.map(|raw| raw.number));
            }
        }
        Ok(sizes)
    })?
}

/// Whether the legacy tables of a namespace still have the rules that they had when they were read, and no table has
/// come.
pub fn are_same(namespace: &File, fetched: &[Fetched]) -> Result<bool, Error> {
    netns::inside(namespace, || {
        let mut known = fetched.iter();
        for family in [Family::Ipv4, Family::Ipv6] {
            for name in table_names(family)? {
                let Some(now) = read(family, &name)? else { return Ok(false) };
                if !known.next().is_some_and(|then| then.raw.same_rules(&now)) {
                    return Ok(false);
                }
            }
        }
        Ok(known.next().is_none())
    })?
}

/// All legacy tables of a namespace as bytes, in the same order.
pub fn read_tables(namespace: &File) -> Result<Vec<RawTable>, Error> {
    netns::inside(namespace, || {
        let mut tables = Vec::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            for name in table_names(family)? {
                tables.extend(read(family, &name)?);
            }
        }
        Ok(tables)
    })?
}

/// One legacy table of a namespace; `None` when it does not exist there.
pub fn fetch_table(namespace: &File, family: Family, name: &str) -> Result<Option<Fetched>, Error> {
    netns::inside(namespace, || {
        if !table_names(family)?.iter().any(|existing| existing == name) {
            return Ok(None);
        }
        fetch_here(family, name, &saver(family))
    })?
}

/// The program that prints the text of rules; or why there is none, and what to do.
fn saver(family: Family) -> Result<Program, String> {
    Program::find(family, Tool::Save).map_err(|missing| format!("{missing} to see the text of rules"))
}

/// The legacy tables that exist in the calling thread's namespace.
fn table_names(family: Family) -> Result<Vec<String>, Error> {
    let path = thread_file(match family {
        Family::Ipv4 => NAMES[0],
        Family::Ipv6 => NAMES[1],
        Family::Arp => "net/arp_tables_names",
    });
    let names = match fs::read_to_string(&path) {
        // The kernel has no legacy tables, or has not loaded them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(|source| Error::Names { path, source })?,
    };
    let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
    names.sort_by_key(|name| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()));
    Ok(names)
}

/// Reads a table of the calling thread's namespace; `None` when it has just ceased to exist.
fn fetch_here(
    family: Family,
    name: &str,
    program: &Result<Program, String>,
) -> Result<Option<Fetched>, Error> {
    let decode = |raw: &RawTable| {
        let undecodable = |source| Error::Decode { family, table: name.to_owned(), source };
        raw.decode(&TargetNames::default()).map_err(undecodable)
    };
    let Some(mut raw) = read(family, name)? else { return Ok(None) };
    let program = match program {
        Ok(program) => program,
        Err(reason) => {
            return Ok(Some(Fetched { table: decode(&raw)?, raw, text_reason: Some(reason.clone()) }));
        }
    };
    for _ in 0..ATTEMPTS {
        let saved = program::run(program.path(), &["-t", name]);
        let Some(after) = read(family, name)? else { return Ok(None) };
        if saved.is_ok() && !after.same_rules(&raw) {
            raw = after;
            continue;
        }
        let mut table = decode(&raw)?;
        let attached =
            saved.and_then(|saved| text::attach(&mut table, &saved).map_err(|error| error.to_string()));
        return Ok(Some(Fetched { table, raw, text_reason: attached.err() }));
    }
    let reason = format!("the table changed {ATTEMPTS} times while {program} was running; try again");
    Ok(Some(Fetched { table: decode(&raw)?, raw, text_reason: Some(reason) }))
}

fn read(family: Family, name: &str) -> Result<Option<RawTable>, Error> {
    match sockopt::read_table(family, name) {
        Err(sockopt::Error::NoTable { .. }) => Ok(None),
        raw => Ok(Some(raw?)),
    }
}
