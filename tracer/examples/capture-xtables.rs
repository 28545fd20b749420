//! Writes the legacy tables of this network namespace to files, for `tests/data/xtables`.
//!
//! `capture-xtables DIRECTORY`: for each table, `FAMILY-TABLE.info` with the numbers that belong to it, one in a line,
//! and `FAMILY-TABLE.blob` with its entries.

use anyhow::Context as _;
use nftracer::netfilter::Family;
use nftracer::sys::sockopt::read_table;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> anyhow::Result<()> {
    let directory = PathBuf::from(env::args_os().nth(1).context("usage: capture-xtables DIRECTORY")?);
    for (family, names) in [(Family::Ipv4, "ip_tables_names"), (Family::Ipv6, "ip6_tables_names")] {
        let names = fs::read_to_string(format!("/proc/thread-self/net/{names}"))?;
        for name in names.lines() {
            let raw = read_table(family, name)?;
            let info = format!(
                "valid_hooks {:#x}\nhook_entry {:?}\nunderflow {:?}\nnumber {}\n",
                raw.valid_hooks, raw.hook_entry, raw.underflow, raw.number
            );
            let path = directory.join(format!("{family}-{name}"));
            fs::write(path.with_extension("info"), info)?;
            fs::write(path.with_extension("blob"), raw.bytes)?;
        }
    }
    Ok(())
}
