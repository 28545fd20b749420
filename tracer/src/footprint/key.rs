//! The table that makes the kernel tell of nftables' verdicts.
//!
//! The kernel calls `__nft_trace_packet` as long as any rule of its namespaces says `meta nftrace set`. Ours says it in
//! a chain without a hook, to which nothing leads: no packet gets there, and none is marked.

use super::change::Change;
use super::table::{self, Table};
use super::{Error, Footprint};
use crate::sys::netns;
use crate::sys::process::Process;
use std::fs::File;

/// The table. It goes when this is dropped, and when the process ends in whatever way: the kernel sees to that, or the
/// guard where the kernel knows no owners of tables.
#[derive(Debug)]
pub struct Key {
    name: String,
    _table: Table,
    guarded: Option<Footprint>,
}

impl Key {
    /// Makes it in a namespace. Its effect is on all of them.
    pub fn turn(namespace: &File) -> Result<Self, Error> {
        let name = table::name(Process::own().map_err(Error::Process)?);
        if let Some(table) = Table::inert(namespace, &name, true).map_err(Error::Table)? {
            return Ok(Self { name, _table: table, guarded: None });
        }
        let footprint = Footprint::new(&[namespace])?;
        footprint.write_down(&Change::Table { netns: netns::inode(namespace)?, name: name.clone() })?;
        let table = Table::inert(namespace, &name, false).map_err(Error::Table)?.ok_or(Error::Unmade)?;
        Ok(Self { name, _table: table, guarded: Some(footprint) })
    }

    /// What of it is visible on the host.
    pub fn describe(&self) -> String {
        let owned = if self.guarded.is_none() { " (owned)" } else { "" };
        format!("table inet {} of nftables without a hook{owned}", self.name)
    }
}
