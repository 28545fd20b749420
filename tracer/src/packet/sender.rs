//! Who sends a packet that is made on this host.

use crate::text::Escaped;
use std::fmt;

/// A process, as it was when the packet came to its first table or base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its number, as the host counts.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its user.
    pub uid: u32,
    /// The folder of its cgroup of version 2, where that is known for certain.
    pub cgroup: Option<String>,
}

/// `curl, pid 4711, uid 1000, cgroup /user.slice`
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}, uid {}", Escaped(&self.name), self.pid, self.uid)?;
        match &self.cgroup {
            Some(cgroup) => write!(f, ", cgroup {}", Escaped(cgroup)),
            None => Ok(()),
        }
    }
}
