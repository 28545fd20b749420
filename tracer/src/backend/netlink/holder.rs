//! Who has a group of nfnetlink_log.

use crate::sys::netns;
use crate::sys::process::thread_file;
use std::fmt;
use std::fs::{self, File};
use std::path::Path;

/// The socket that has a group, and its process where that can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The socket's netlink address.
    port: u32,
    process: Option<(u32, String)>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the netlink socket with port id {}", self.port)?;
        match &self.process {
            Some((pid, name)) => write!(f, " of process {pid} ({name})"),
            None => Ok(()),
        }
    }
}

impl Holder {
    /// Who has the group in a namespace; `None` when nobody has, or when it cannot be read.
    pub(super) fn of(namespace: &File, group: u16) -> Option<Self> {
        let read = || {
            let read = |name| fs::read_to_string(thread_file(name));
            Some((read("net/netfilter/nfnetlink_log").ok()?, read("net/netlink").unwrap_or_default()))
        };
        let (groups, sockets) = netns::inside(namespace, read).ok()??;
        let port = port(&groups, group)?;
        let process = inode(&sockets, port).and_then(process);
        Some(Self { port, process })
    }
}

/// From `/proc/net/netfilter/nfnetlink_log`: group, port id, and what does not matter here.
fn port(groups: &str, group: u16) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()?.parse() == Ok(group)).then(|| words.next()?.parse().ok())?
    })
}

/// From `/proc/net/netlink`: address, protocol, port id, …, inode number, of NETLINK_NETFILTER.
fn inode(sockets: &str, port: u32) -> Option<u64> {
    sockets.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let same = words.next()? == "12" && words.next()?.parse() == Ok(port);
        same.then(|| words.last()?.parse().ok())?
    })
}

/// The process that has a socket open.
fn process(inode: u64) -> Option<(u32, String)> {
    let link = format!("socket:[{inode}]");
    let has = |folder: &Path| {
        let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target.as_os_str() == link.as_str())
    };
    let folders = fs::read_dir("/proc").ok()?.flatten();
    let pids =
        folders.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let (pid, folder) = pids.into_iter().find(|(_, folder)| has(folder))?;
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    Some((pid, name.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let groups = "    0   4321     0 2   256    100  1\n    5     77     0 2 65535    100  1\n";
        assert_eq!((port(groups, 0), port(groups, 5), port(groups, 1)), (Some(4321), Some(77), None));
        let sockets = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                       0000000000000000 0   4321       00000000 0        0        0     2        0        11\n\
                       0000000000000000 12  4321       00000000 0        0        0     2        0        2557\n";
        assert_eq!((inode(sockets, 4321), inode(sockets, 1)), (Some(2557), None));
    }
}
