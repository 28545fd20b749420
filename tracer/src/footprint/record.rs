//! What each run has changed, in a file of its own, so that others know when it was killed.
//!
//! A line is written before the change is made: whoever finds the line undoes what may not have happened. All of it is
//! done under one lock, which the kernel takes back from a killed process.

use super::change::{Change, Sysctl};
use crate::sys::process::Process;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where the records are.
const FOLDER: &str = "/run/nftracer";
const LOCK: &str = "lock";
/// The first line of a record. What was changed before the machine was started anew is not there any more.
const BOOT: &str = "boot ";

/// The folder of all records.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    boot: String,
}

/// What one run has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) owner: Process,
    /// In the order they were made; empty when the machine was started anew since.
    pub(super) changes: Vec<Change>,
}

/// The folder, and nobody else in it.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    folder: &'a Folder,
    _file: File,
}

impl Folder {
    /// That of this host.
    pub(super) fn of_host() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { path: FOLDER.into(), boot: boot.trim().to_owned() }
    }

    /// Whether any run has a record.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Waits for the others to leave it.
    pub(super) fn lock(&self) -> io::Result<Locked<'_>> {
        let path = self.path.join(LOCK);
        loop {
            match DirBuilder::new().mode(0o700).create(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let file = match OpenOptions::new().create(true).append(true).mode(0o600).open(&path) {
                // Somebody has just removed the folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            flock(&file, FlockOperation::LockExclusive)?;
            // The last one to leave removes the file.
            if fs::metadata(&path).ok().map(|now| now.ino()) == Some(file.metadata()?.ino()) {
                return Ok(Locked { folder: self, _file: file });
            }
        }
    }
}

impl Locked<'_> {
    /// All records.
    pub(super) fn records(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder.path)? {
            let entry = entry?;
            let Some(owner) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let changes = parse(&fs::read_to_string(entry.path())?, &self.folder.boot);
            records.push(Record { owner, changes });
        }
        records.sort_by_key(|record| record.owner);
        Ok(records)
    }

    /// Adds a line to a run's record.
    pub(super) fn add(&self, owner: Process, change: &Change) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.file_of(owner))?;
        let mut text = format!("{change}\n");
        if file.metadata()?.len() == 0 {
            text.insert_str(0, &format!("{BOOT}{}\n", self.folder.boot));
        }
        file.write_all(text.as_bytes())
    }

    /// Removes a run's record.
    pub(super) fn remove(&self, owner: Process) -> io::Result<()> {
        match fs::remove_file(self.file_of(owner)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn file_of(&self, owner: Process) -> PathBuf {
        self.folder.path.join(owner.to_string())
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let others = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() != LOCK);
        let empty = fs::read_dir(&self.folder.path).is_ok_and(|mut entries| !entries.any(others));
        if empty {
            // Nobody minds when it stays.
            let _ = fs::remove_file(self.folder.path.join(LOCK));
            let _ = fs::remove_dir(Path::new(&self.folder.path));
        }
    }
}

/// The changes of a record. A last line without an end is of a change that was not made.
fn parse(text: &str, boot: &str) -> Vec<Change> {
    let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    match lines.next().and_then(|line| line.strip_prefix(BOOT)) {
        Some(then) if then == boot => lines.filter_map(Change::parse).collect(),
        _ => Vec::new(),
    }
}

/// What to do so that a setting has a value, when others may have changed it, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// Nothing: it is so, and not because of a run of ours.
    IsSo,
    /// Another living run needs another value.
    TakenBy(Process),
    /// Change it; this is what it has to be afterwards.
    Change {
        /// What it was before any run changed it.
        before: String,
    },
}

impl Setting {
    /// Decides by the records of other runs.
    pub(super) fn decide(
        (netns, name): (u32, &str),
        (now, wanted): (&str, &str),
        others: &[Record],
        is_alive: impl Fn(Process) -> bool,
    ) -> Self {
        let mut before = None;
        for (owner, theirs) in others.iter().flat_map(sysctls) {
            if (theirs.netns, theirs.name.as_str()) != (netns, name) {
                continue;
            }
            if theirs.ours != wanted && is_alive(owner) {
                return Self::TakenBy(owner);
            }
            before = Some(theirs.before.clone());
        }
        match before {
            None if now == wanted => Self::IsSo,
            None => Self::Change { before: now.to_owned() },
            Some(before) => Self::Change { before },
        }
    }
}

/// Whether a setting is to be what it was: it is still what this run made it, and no other living run needs it.
pub(super) fn is_ours(
    setting: &Sysctl,
    now: &str,
    others: &[Record],
    is_alive: impl Fn(Process) -> bool,
) -> bool {
    let same = |theirs: &Sysctl| theirs.netns == setting.netns && theirs.name == setting.name;
    let needed = others.iter().flat_map(sysctls).any(|(owner, theirs)| same(theirs) && is_alive(owner));
    now == setting.ours && !needed
}

fn sysctls(record: &Record) -> impl Iterator<Item = (Process, &Sysctl)> {
    record.changes.iter().filter_map(|change| match change {
        Change::Sysctl(sysctl) => Some((record.owner, sysctl)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVING: Process = Process { pid: 1, start: 1 };
    const DEAD: Process = Process { pid: 2, start: 1 };
    const NAME: &str = "net/netfilter/nf_log/2";

    fn sysctl(before: &str, ours: &str) -> Sysctl {
        Sysctl { netns: 7, name: NAME.to_owned(), before: before.to_owned(), ours: ours.to_owned() }
    }

    fn record(owner: Process, before: &str, ours: &str) -> Record {
        Record { owner, changes: vec![Change::Sysctl(sysctl(before, ours))] }
    }

    fn is_alive(process: Process) -> bool {
        process == LIVING
    }

    #[track_caller]
    fn check(now: &str, others: &[Record], expected: Setting) {
        assert_eq!(Setting::decide((7, NAME), (now, "netlink"), others, is_alive), expected);
    }

    #[test]
    fn the_first_value_is_handed_on() {
        let change = |before: &str| Setting::Change { before: before.to_owned() };
        check("syslog", &[], change("syslog"));
        check("netlink", &[], Setting::IsSo);
        check("netlink", &[record(LIVING, "NONE", "netlink")], change("NONE"));
        check("netlink", &[record(DEAD, "NONE", "netlink")], change("NONE"));
        check("syslog", &[record(DEAD, "NONE", "syslog")], change("NONE"));
        check("syslog", &[record(LIVING, "NONE", "syslog")], Setting::TakenBy(LIVING));
        let elsewhere = Record {
            owner: LIVING,
            changes: vec![Change::Sysctl(Sysctl { netns: 8, ..sysctl("NONE", "syslog") })],
        };
        check("syslog", &[elsewhere], change("syslog"));
    }

    #[test]
    fn the_last_one_puts_it_back() {
        let ours = sysctl("NONE", "netlink");
        let is_ours = |now: &str, others: &[Record]| is_ours(&ours, now, others, is_alive);
        assert!(is_ours("netlink", &[]));
        assert!(!is_ours("syslog", &[]));
        assert!(!is_ours("netlink", &[record(LIVING, "NONE", "netlink")]));
        assert!(is_ours("netlink", &[record(DEAD, "NONE", "netlink")]));
    }

    #[test]
    fn records_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder { path: directory.path().join("records"), boot: "b".to_owned() };
        let change = Change::Module { name: "m".to_owned() };
        let locked = folder.lock().unwrap();
        locked.add(LIVING, &change).unwrap();
        locked.add(LIVING, &change).unwrap();
        let found = Record { owner: LIVING, changes: vec![change.clone(); 2] };
        assert_eq!(locked.records().unwrap(), [found]);
        drop(locked);
        assert!(folder.exists());
        let later = Folder { boot: "c".to_owned(), ..folder.clone() };
        let locked = later.lock().unwrap();
        assert_eq!(locked.records().unwrap(), [Record { owner: LIVING, changes: Vec::new() }]);
        locked.remove(LIVING).unwrap();
        drop(locked);
        assert!(!folder.exists());
    }

    #[test]
    fn a_line_that_was_not_finished_is_of_no_change() {
        assert_eq!(parse("boot b\nmodule m\nmodule n", "b"), [Change::Module { name: "m".to_owned() }]);
        assert_eq!(parse("boot b", "b"), []);
        assert_eq!(parse("", ""), []);
    }
}
