//! One thing that a run changes, as a line of its record.

use crate::netfilter::Family;
use std::fmt;

/// Something that a run changes on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// A setting below `/proc/sys`.
    Sysctl(Sysctl),
    /// A table of nftables, which the kernel does not remove by itself on older kernels.
    Table {
        /// Inode number of the network namespace.
        netns: u32,
        /// Its name; its family is `inet`.
        name: String,
    },
    /// TRACE rules in the raw table, with the run's tag.
    Rules {
        /// Inode number of the network namespace.
        netns: u32,
        /// Which raw table.
        family: Family,
    },
    /// A loaded module.
    Module {
        /// Its name.
        name: String,
    },
}

/// A setting below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sysctl {
    /// Inode number of the network namespace.
    pub(crate) netns: u32,
    /// Such as `net/netfilter/nf_log/2`.
    pub(crate) name: String,
    /// What it was before any run changed it.
    pub(crate) before: String,
    /// What this run needs it to be.
    pub(crate) ours: String,
}

/// Words separated by spaces; none of them has one in it.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(Sysctl { netns, name, before, ours }) => {
                write!(f, "sysctl {netns} {name} {before} {ours}")
            }
            Self::Table { netns, name } => write!(f, "table {netns} {name}"),
            Self::Rules { netns, family } => write!(f, "rules {netns} {family}"),
            Self::Module { name } => write!(f, "module {name}"),
        }
    }
}

impl Change {
    /// Reads a line; `None` for one that was not written here.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let netns = |word: &str| word.parse().ok();
        Some(match words[..] {
            ["sysctl", inode, name, before, ours] => {
                let [name, before, ours] = [name, before, ours].map(str::to_owned);
                Self::Sysctl(Sysctl { netns: netns(inode)?, name, before, ours })
            }
            ["table", inode, name] => Self::Table { netns: netns(inode)?, name: name.to_owned() },
            ["rules", inode, family] => {
                let family = [Family::Ipv4, Family::Ipv6].into_iter().find(|known| known.name() == family)?;
                Self::Rules { netns: netns(inode)?, family }
            }
            ["module", name] => Self::Module { name: name.to_owned() },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let name = "net/netfilter/nf_log/2".to_owned();
        for change in [
            Change::Sysctl(Sysctl { netns: 7, name, before: "NONE".to_owned(), ours: "x".to_owned() }),
            Change::Table { netns: 7, name: "nftracer_1_2".to_owned() },
            Change::Rules { netns: 7, family: Family::Ipv6 },
            Change::Module { name: "nfnetlink_log".to_owned() },
        ] {
            assert_eq!(Change::parse(&change.to_string()), Some(change));
        }
        for line in ["", "sysctl 7 a b", "table x y", "rules 7 inet", "module", "boot 1"] {
            assert_eq!(Change::parse(line), None, "{line}");
        }
    }
}
