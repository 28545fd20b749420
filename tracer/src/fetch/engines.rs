//! Which engines hold rules in a network namespace.

use super::nft::{self, Nftables};
use super::{Error, read, table_names};
use crate::netfilter::{Family, TableFamily};
use crate::sys::netns;
use crate::xtables::TargetNames;
use std::fs::File;

/// The tables of a namespace, by who made them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Engines {
    /// Of `iptables-legacy` and `ip6tables-legacy`.
    pub legacy: Vec<Loaded>,
    /// Of iptables-nft, ebtables-nft and arptables-nft.
    pub iptables_nft: Vec<Loaded>,
    /// Of nft and everything else that speaks to nftables.
    pub nftables: Vec<Loaded>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: String,
    /// Rules in it, policies left out.
    pub rules: usize,
}

impl Engines {
    /// Whether legacy tables and nftables both hold rules, so that packets meet both.
    pub fn mixed(&self) -> bool {
        let any = |tables: &[Loaded]| tables.iter().any(|table| table.rules > 0);
        any(&self.legacy) && (any(&self.iptables_nft) || any(&self.nftables))
    }
}

/// Looks which engines hold rules in a namespace. No program is run, and nothing is loaded.
pub fn engines(namespace: &File) -> Result<Engines, EnginesError> {
    let mut engines =
        Engines { legacy: netns::inside(namespace, legacy).map_err(Error::from)??, ..Engines::default() };
    let Some(mut nftables) = Nftables::open(namespace)? else { return Ok(engines) };
    for table in nftables.structure()?.tables {
        let rules = table.chains.iter().map(|chain| chain.rules.len()).sum();
        let place = if table.is_of_iptables() { &mut engines.iptables_nft } else { &mut engines.nftables };
        place.push(Loaded { family: table.family, name: table.name.to_string(), rules });
    }
    Ok(engines)
}

/// Why [`engines`] does not know.
#[derive(Debug, thiserror::Error)]
pub enum EnginesError {
    /// The legacy tables could not be read.
    #[error(transparent)]
    Legacy(#[from] Error),
    /// The rules of nftables could not be read.
    #[error(transparent)]
    Nftables(#[from] nft::Error),
}

/// The legacy tables of the calling thread's namespace.
fn legacy() -> Result<Vec<Loaded>, Error> {
    let mut tables = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        for name in table_names(family)? {
            let Some(raw) = read(family, &name)? else { continue };
            let decoded = raw.decode(&TargetNames::default());
            let table = decoded.map_err(|source| Error::Decode { family, table: name.clone(), source })?;
            let rules = table.entries.iter().filter(|entry| entry.chain.is_some() && !entry.tail).count();
            tables.push(Loaded { family: family.into(), name, rules });
        }
    }
    Ok(tables)
}
