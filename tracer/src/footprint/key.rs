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
/// guard, see [`Place`].
#[derive(Debug)]
pub struct Key {
    name: String,
    place: Place,
    _table: Table,
}

/// Where the table is, and what keeps it there.
#[derive(Debug)]
enum Place {
    /// In the namespace: others cannot remove it, because the kernel knows whose it is.
    Owned,
    /// Where nobody else is: no `flush ruleset` takes it away. The kernel knows no owners of tables.
    Apart { _namespace: File },
    /// In the namespace, for want of the privileges to make another. The guard removes it.
    Guarded { _footprint: Box<Footprint> },
}

impl Key {
    /// Makes it in a namespace, or in one of its own. Its effect is on all of them.
    pub fn turn(namespace: &File) -> Result<Self, Error> {
        let name = table::name(Process::own().map_err(Error::Process)?);
        if let Some(table) = Table::inert(namespace, &name, true).map_err(Error::Table)? {
            return Ok(Self { name, place: Place::Owned, _table: table });
        }
        let (table, place) = match netns::scratch() {
            Ok(apart) => (Table::inert(&apart, &name, false), Place::Apart { _namespace: apart }),
            Err(_) => {
                let footprint = Footprint::new(&[namespace])?;
                footprint
                    .write_down(&Change::Table { netns: netns::inode(namespace)?, name: name.clone() })?;
                (Table::inert(namespace, &name, false), Place::Guarded { _footprint: Box::new(footprint) })
            }
        };
        let table = table.map_err(Error::Table)?.ok_or(Error::Unmade)?;
        Ok(Self { name, place, _table: table })
    }

    /// What of it is visible on the host.
    pub fn describe(&self) -> String {
        let place = match self.place {
            Place::Owned => " (owned)",
            Place::Apart { .. } => ", in a namespace of its own",
            Place::Guarded { .. } => "",
        };
        format!("table inet {} of nftables without a hook{place}", self.name)
    }
}
