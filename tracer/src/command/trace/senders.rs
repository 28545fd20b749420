//! Who sends packets: told before their first table, given out with it.

use crate::hash::KernelMap;
use crate::packet;
use crate::sys::cgroup;
use crate::text;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracer_common::sender::Sender;

/// Packets whose first table has not come yet. There are never many: where one was lost, its sender stays behind.
const WAITING: usize = 4096;

/// Senders of packets that are on their way to user space.
#[derive(Debug, Default)]
pub(super) struct Senders {
    waiting: KernelMap<u64, Sender>,
    cgroups: Cgroups,
}

impl Senders {
    /// Takes what the programs say.
    pub(super) fn told(&mut self, sender: &Sender) {
        if self.waiting.len() >= WAITING {
            self.waiting.clear();
        }
        self.waiting.insert(sender.packet, *sender);
    }

    /// Who sends a packet that came to a table or base chain; once. It is known only of one whose socket is a program's:
    /// what the kernel sends by itself, it sends in whichever task is there.
    pub(super) fn of(&mut self, packet: u64, has_socket: bool) -> Option<packet::Sender> {
        let sender = self.waiting.remove(&packet).filter(|_| has_socket)?;
        let name = sender.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(packet::Sender {
            pid: sender.pid,
            name: text::lossy(name).into_owned(),
            uid: sender.uid,
            cgroup: self.cgroups.path(sender.cgroup),
        })
    }
}

/// Folders are looked through again at most this often.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// The cgroups of version 2 by the inode numbers of their folders, which are not used again.
#[derive(Debug, Default)]
struct Cgroups {
    paths: HashMap<u64, String>,
    read: Option<Instant>,
}

impl Cgroups {
    /// The folder, from the hierarchy's own on; `None` where there is none.
    fn path(&mut self, inode: u64) -> Option<String> {
        if !self.paths.contains_key(&inode) && self.read.is_none_or(|read| read.elapsed() >= READ_AGAIN) {
            self.look();
            self.read = Some(Instant::now());
        }
        self.paths.get(&inode).cloned()
    }

    fn look(&mut self) {
        let Ok(root) = cgroup::root() else { return };
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(about) = fs::metadata(&folder) else { continue };
            let path = folder.strip_prefix(&root).unwrap_or(&folder);
            self.paths.insert(about.ino(), Path::new("/").join(path).to_string_lossy().into_owned());
            folders.extend(children(&folder));
        }
    }
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}
