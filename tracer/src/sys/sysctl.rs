//! Settings of a network namespace, below `/proc/sys/net`.

use super::netns;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Reads one, such as `net/netfilter/nf_log/2`, without the newline.
pub fn read(namespace: &File, name: &str) -> io::Result<String> {
    let path = path(name);
    let text = netns::inside(namespace, || fs::read_to_string(&path)).map_err(io::Error::other)??;
    Ok(text.trim_end().to_owned())
}

/// Writes one.
pub fn write(namespace: &File, name: &str, value: &str) -> io::Result<()> {
    let path = path(name);
    netns::inside(namespace, || OpenOptions::new().write(true).open(&path)?.write_all(value.as_bytes()))
        .map_err(io::Error::other)?
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
