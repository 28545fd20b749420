//! Control groups, version 2.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// A cgroup as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The inode number of its directory.
    pub id: u64,
    /// How deep it lies; the root has 0.
    pub level: u32,
}

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file system of them is mounted, or not from its root.
    #[error("no cgroup2 file system is mounted here from its root")]
    NotMounted,
    /// Not one of them.
    #[error("{} is no cgroup below {}: {source}", path.display(), root.display())]
    NoCgroup {
        /// What was asked for.
        path: PathBuf,
        /// Where they are.
        root: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The root directory has this inode number.
const ROOT: u64 = 1;

/// Where the file system of all cgroups is mounted.
pub fn root() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|_| Error::NotMounted)?;
    let is_root = |mount: &PathBuf| fs::metadata(mount).is_ok_and(|file| file.ino() == ROOT);
    mounts.lines().filter_map(mounted).find(is_root).ok_or(Error::NotMounted)
}

/// Finds a cgroup by its path, with or without that of the file system.
pub fn find(path: &Path) -> Result<Cgroup, Error> {
    find_in(&root()?, path)
}

fn find_in(root: &Path, path: &Path) -> Result<Cgroup, Error> {
    let no_cgroup = |source| Error::NoCgroup { path: path.to_owned(), root: root.to_owned(), source };
    let below = path.strip_prefix(root).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    let mut level = 0;
    for component in below.components() {
        match component {
            Component::Normal(_) => level += 1,
            Component::CurDir => {}
            _ => return Err(no_cgroup(io::ErrorKind::InvalidInput.into())),
        }
    }
    let found = fs::metadata(root.join(below)).map_err(no_cgroup)?;
    if !found.is_dir() {
        return Err(no_cgroup(io::ErrorKind::NotADirectory.into()));
    }
    Ok(Cgroup { id: found.ino(), level })
}

/// Where a line of mountinfo mounts a cgroup2 file system.
fn mounted(line: &str) -> Option<PathBuf> {
    let (place, kind) = line.split_once(" - ")?;
    (kind.split(' ').next()? == "cgroup2").then(|| place.split(' ').nth(4).map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let line = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mounted(line), Some("/sys/fs/cgroup".into()));
        assert_eq!(mounted("22 28 0:21 / /proc rw shared:14 - proc proc rw"), None);
        assert_eq!(mounted(""), None);
    }

    #[test]
    fn levels_are_counted_from_the_root() {
        let root = std::env::temp_dir();
        let inner = root.join(format!("nftracer-cgroup-{}", std::process::id())).join("b");
        fs::create_dir_all(&inner).unwrap();
        let level = |path: &Path| find_in(&root, path).map(|found| found.level).ok();
        assert_eq!(level(&root), Some(0));
        assert_eq!(level(&inner), Some(2));
        assert_eq!(level(inner.strip_prefix(&root).unwrap()), Some(2));
        assert_eq!(level(Path::new("/")), Some(0));
        assert_eq!(level(Path::new("/../etc")), None);
        assert_eq!(level(Path::new("no/such")), None);
        fs::remove_dir_all(inner.parent().unwrap()).unwrap();
    }
}
