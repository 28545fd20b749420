//! Which process is meant, and whether it still runs.

use crate::text;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file of the calling thread's own in `/proc`, such as `net/ip_tables_names`. Before Linux 3.17 there was no name for
/// its folder, and only the one that goes by its number had a `net`.
pub fn thread_file(name: &str) -> PathBuf {
    let folder = Path::new("/proc/thread-self");
    if folder.exists() { folder.join(name) } else { thread_file_by_number(name) }
}

fn thread_file_by_number(name: &str) -> PathBuf {
    Path::new("/proc").join(rustix::thread::gettid().to_string()).join(name)
}

/// The name of a process.
pub fn name(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(text::lossy(comm.trim_ascii_end()).into_owned())
}

/// A process, as its number alone does not name it for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Its number, in the process namespace that it runs in.
    pub pid: u32,
    /// When it started, in clock ticks after boot.
    pub start: u64,
}

/// `PID:START`
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid, self.start)
    }
}

/// Not of the form `PID:START`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not PID:START")]
pub struct NotAProcess;

impl FromStr for Process {
    type Err = NotAProcess;

    fn from_str(text: &str) -> Result<Self, NotAProcess> {
        let (pid, start) = text.split_once(':').ok_or(NotAProcess)?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then_some(());
        number(pid).and(number(start)).ok_or(NotAProcess)?;
        pid.parse().ok().zip(start.parse().ok()).map(|(pid, start)| Self { pid, start }).ok_or(NotAProcess)
    }
}

impl Process {
    /// This one.
    pub fn own() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let (start, _) = parse(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid: std::process::id(), start })
    }

    /// Whether it runs. One in a container has two numbers: the one it knows, and the one that is seen from here.
    pub fn is_alive(self) -> bool {
        let started_then = |folder: &Path| {
            let stat = fs::read_to_string(folder.join("stat")).ok();
            stat.and_then(|stat| parse(&stat)).is_some_and(|(start, runs)| runs && start == self.start)
        };
        if started_then(&Path::new("/proc").join(self.pid.to_string())) {
            return true;
        }
        let folders = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        folders.filter(|folder| folder.join("stat").exists() && started_then(folder)).any(|folder| {
            let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
            innermost(&status) == Some(self.pid)
        })
    }
}

/// From `/proc/PID/stat`: when the process started, and whether it runs. Its name, in parentheses, can hold anything.
fn parse(stat: &str) -> Option<(u64, bool)> {
    let mut words = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let runs = !matches!(words.next()?, "Z" | "X" | "x");
    Some((words.nth(18)?.parse().ok()?, runs))
}

/// From `/proc/PID/status`: the number that the process knows itself by.
fn innermost(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn this_process_is_alive() {
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        assert!(!Process { start: own.start + 1, ..own }.is_alive());
        assert_eq!(own.to_string().parse(), Ok(own));
    }

    #[test]
    fn a_thread_has_a_folder_by_its_number() {
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(thread_file_by_number("ns/net")), inode(thread_file("ns/net")));
        assert!(fs::read_to_string(thread_file_by_number("net/netlink")).unwrap().starts_with("sk"));
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        let stat = "7 (a) Z b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 1392205 3133440 406";
        assert_eq!(parse(stat), Some((1_392_205, true)));
        assert_eq!(parse("7 (a) Z 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 5 3133440"), Some((5, false)));
        assert_eq!(parse("7 (a"), None);
        assert_eq!(innermost("Name:\tx\nNSpid:\t4711\t7\nVmPeak:\t1\n"), Some(7));
    }

    #[test]
    fn other_text_is_no_process() {
        for text in ["", "1", "1:", ":1", "1:2:3", "+1:2", "1:-2", "99999999999:1"] {
            assert_eq!(text.parse::<Process>(), Err(NotAProcess), "{text}");
        }
    }
}
