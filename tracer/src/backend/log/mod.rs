//! The kernel's own TRACE as text in the kernel's log: from `/dev/kmsg`, or from a file that a log daemon writes.
#![forbid(unsafe_code)]

mod file;
mod kmsg;

use crate::kernel_log::Record;
use crate::netfilter::Family;
use crate::sys::sysctl;
use file::Followed;
use kmsg::Kmsg;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The modules that bring the loggers of a family; kernels have one or the other.
pub fn modules(family: Family) -> [&'static str; 2] {
    match family {
        Family::Ipv4 => ["nf_log_syslog", "nf_log_ipv4"],
        Family::Ipv6 => ["nf_log_syslog", "nf_log_ipv6"],
        Family::Arp => ["nf_log_syslog", "nf_log_arp"],
    }
}

/// What `nf_log.2` or `nf_log.10` has to be, with every kernel's modules.
pub fn logger(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "nf_log_ipv4",
        Family::Ipv6 => "nf_log_ipv6",
        Family::Arp => "nf_log_arp",
    }
}

/// Without this, only the initial network namespace writes to the kernel's log. Only there it can be set.
pub const ALL_NETNS: &str = "net/netfilter/nf_log_all_netns";

/// Whether a namespace is the initial one.
pub fn is_initial(namespace: &File) -> bool {
    sysctl::read(namespace, ALL_NETNS).is_ok()
}

/// Why the kernel's log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The log.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be read any more.
    #[error("cannot read {}", path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// What can be done about it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root, or with CAP_SYSLOG")
            }
            Self::Open { .. } => Some("give the file that the kernel's log is written to with --log-file"),
            Self::Read { .. } => None,
        }
    }
}

/// The kernel's log from now on.
#[derive(Debug)]
pub enum Log {
    /// `/dev/kmsg`
    Kmsg(Kmsg),
    /// A file that a log daemon writes.
    File(Followed),
}

impl Log {
    /// Begins at the end of the kernel's own log, or of a file.
    pub fn open(file: Option<&Path>) -> Result<Self, Error> {
        match file {
            None => Kmsg::open().map(Self::Kmsg),
            Some(path) => Followed::open(path).map(Self::File),
        }
    }

    /// Gives new records to `receive`, at most about `limit`. Says how many there were.
    pub fn drain(&mut self, limit: usize, receive: impl FnMut(Record<'_>)) -> Result<usize, Error> {
        match self {
            Self::Kmsg(kmsg) => kmsg.drain(limit, receive),
            Self::File(file) => file.drain(limit, receive),
        }
    }

    /// Records that were overwritten before they were read. What a log daemon left out of a file is not known.
    pub fn lost(&self) -> u64 {
        match self {
            Self::Kmsg(kmsg) => kmsg.lost(),
            Self::File(_) => 0,
        }
    }

    /// What tells that there is more; a file does not.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Kmsg(kmsg) => Some(kmsg.as_fd()),
            Self::File(_) => None,
        }
    }
}
