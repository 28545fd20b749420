//! What `bpf(2)` knows of loaded programs and maps.

use std::collections::BTreeSet;
use std::io;

use anyhow::{Result, bail};

/// `BPF_PROG_GET_NEXT_ID`
pub const PROGRAMS: u32 = 11;
/// `BPF_MAP_GET_NEXT_ID`
pub const MAPS: u32 = 12;
/// `BPF_LINK_GET_NEXT_ID`
pub const LINKS: u32 = 31;

/// The ids of all objects of a kind.
pub fn ids(command: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    let mut last = 0;
    while let Some(id) = next_id(command, last)? {
        ids.insert(id);
        last = id;
    }
    Ok(ids)
}

fn next_id(command: u32, after: u32) -> Result<Option<u32>> {
    // The part of `union bpf_attr` that these commands use: start, next, flags.
    let mut attribute = [after, 0, 0];
    #[expect(unsafe_code, reason = "no wrapper of bpf(2) without a loader around it")]
    // SAFETY: the kernel reads and writes the twelve bytes of `attribute`, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute)) };
    if result == 0 {
        return Ok(Some(attribute[1]));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(None),
        _ => bail!("bpf({command}): {error}"),
    }
}
