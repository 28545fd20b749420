//! pwru, another tracer, as Debian packages it: something to compare with.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::Suite;
use crate::places;

/// The first release that has it.
const SUITE: &str = "trixie";
/// With the libraries of that release: the guest's are those of this machine.
const PACKAGES: &[&str] = &["pwru", "libpcap0.8t64", "libdbus-1-3", "libsystemd0", "libcap2", "libc6"];

/// Where it is unpacked; fetched if it is not there.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = places::cache()?.join("pwru");
    if folder.exists() {
        return Ok(folder);
    }
    let suite = Suite::open(SUITE)?;
    if suite.versions("pwru")?.is_empty() {
        bail!("Debian {SUITE} has no package pwru");
    }
    eprintln!("setup: fetching pwru and its libraries into {}", folder.display());
    let packages: Vec<String> = PACKAGES.iter().map(|package| (*package).to_owned()).collect();
    suite.unpack(&packages, &folder)?;
    for unused in ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "etc"] {
        let _ = fs::remove_dir_all(folder.join(unused));
    }
    Ok(folder)
}
