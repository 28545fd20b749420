//! Network namespaces: finding them, naming them, working inside them.

use super::process;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{panic, thread};

/// Where namespaces are given names: by `ip netns`, by older releases of it, and by Docker.
const NAMED: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];
/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`: the file system that namespace files belong to.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name.
    #[error("no namespace named '{name}'; `ip netns list` shows them")]
    NoName {
        /// What was asked for.
        name: String,
    },
    /// No such process.
    #[error("no process {pid}, and no namespace of that name either")]
    NoProcess {
        /// What was asked for.
        pid: u32,
    },
    /// A file, but not of a network namespace.
    #[error("{} is not a network namespace; give a name of `ip netns list`, a process id, or a path like /run/netns/NAME", path.display())]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be opened.
    #[error("cannot open the network namespace {}{}", path.display(), remedy(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Going into the namespace failed.
    #[error("cannot enter the network namespace {inode}; it needs CAP_SYS_ADMIN, for example by sudo")]
    Enter {
        /// Its inode number.
        inode: u32,
        /// The system's reason.
        source: io::Error,
    },
    /// No thread could be had.
    #[error("cannot start a thread to enter or make a network namespace with")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; another user's process needs CAP_SYS_PTRACE, for example by sudo"
        }
        _ => "",
    }
}

/// A network namespace that exists on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its inode number, which identifies it while it exists.
    pub inode: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The oldest process in it, if there is one.
    pub pid: Option<u32>,
    /// A file to open it by.
    pub path: PathBuf,
}

impl Namespace {
    /// Opens it.
    pub fn open(&self) -> Result<File, Error> {
        open_path(&self.path)
    }
}

/// What a namespace is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A file that was given this name by `ip netns` or Docker.
    File {
        /// Its name.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// A process in it, where no file has it.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        comm: String,
    },
}

impl Name {
    /// The name of a namespace that was listed.
    pub fn of(namespace: &Namespace) -> Option<Self> {
        match (&namespace.name, namespace.pid) {
            (Some(name), _) => Some(Self::File { name: name.clone(), path: namespace.path.clone() }),
            (None, Some(pid)) => Self::of_process(pid, namespace.inode),
            (None, None) => None,
        }
    }

    fn of_process(pid: u32, inode: u32) -> Option<Self> {
        let comm = process::name(pid)?;
        // By now it may be another process.
        (inode_of_process(pid) == Some(inode)).then_some(Self::Process { pid, comm })
    }

    /// Looks for the name of a namespace.
    pub fn find(inode: u32) -> Option<Self> {
        Self::of(list().iter().find(|found| found.inode == inode)?)
    }

    /// Whether the namespace still has this name: when it is gone, another one may have its number.
    pub fn holds(&self, inode: u32) -> bool {
        match self {
            Self::File { path, .. } => {
                open_path(path).ok().and_then(|file| self::inode(&file).ok()) == Some(inode)
            }
            Self::Process { pid, .. } => Self::of_process(*pid, inode).as_ref() == Some(self),
        }
    }
}

/// `blue`, `pid 4711 (nginx)`
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, .. } => f.write_str(name),
            Self::Process { pid, comm } => write!(f, "pid {pid} ({comm})"),
        }
    }
}

/// The number of a namespace and, where it has one, its name: `4026532195 (blue)`.
pub fn in_words(inode: u32) -> String {
    Name::find(inode).map_or_else(|| inode.to_string(), |name| format!("{inode} ({name})"))
}

fn inode_of_process(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().and_then(|file| u32::try_from(file.ino()).ok())
}

/// The calling thread's namespace.
pub fn current() -> Result<File, Error> {
    open_path(&process::thread_file("ns/net"))
}

/// Opens a namespace by name, process id or path, in this order: a path has a slash in it, and digits are a process
/// unless a namespace is called so.
pub fn open(namespace: &str) -> Result<File, Error> {
    if namespace.contains('/') {
        return open_path(Path::new(namespace));
    }
    let plain = !["", ".", ".."].contains(&namespace);
    for directory in NAMED.iter().filter(|_| plain) {
        let path = Path::new(directory).join(namespace);
        if path.exists() {
            return open_path(&path);
        }
    }
    match namespace.parse::<u32>() {
        Ok(pid) => match open_path(&PathBuf::from(format!("/proc/{pid}/ns/net"))) {
            Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoProcess { pid })
            }
            opened => opened,
        },
        Err(_) => Err(Error::NoName { name: namespace.to_owned() }),
    }
}

fn open_path(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let file_system = rustix::fs::fstatfs(&file).map_err(|error| failed(error.into()))?;
    if u64::try_from(file_system.f_type) == Ok(NSFS_MAGIC) {
        Ok(file)
    } else {
        Err(Error::NotNetns { path: path.to_owned() })
    }
}

/// A new namespace, which goes when nothing has it open any more.
pub fn scratch() -> Result<File, Error> {
    let make = || -> Result<File, Error> {
        let failed = |error: rustix::io::Errno| Error::Thread { source: error.into() };
        #[expect(unsafe_code, reason = "rustix has no safe way, because of flags that are not used here")]
        // SAFETY: only the network namespace is unshared, which no memory and no descriptor depends on.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        unshared.map_err(failed)?;
        current()
    };
    let thread = thread::Builder::new().name("netns-scratch".to_owned()).spawn(make);
    let thread = thread.map_err(|source| Error::Thread { source })?;
    thread.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
}

/// The inode number of an open namespace, `net->ns.inum` in the kernel.
pub fn inode(namespace: &File) -> Result<u32, Error> {
    let failed = |source| Error::Open { path: PathBuf::from("(open)"), source };
    let number = namespace.metadata().map_err(failed)?.ino();
    u32::try_from(number).map_err(|_| failed(io::ErrorKind::InvalidData.into()))
}

/// All namespaces that have a name or a process, by inode number. Those that this process may not look at are left
/// out.
pub fn list() -> Vec<Namespace> {
    let mut found = BTreeMap::new();
    for directory in NAMED {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // A name that nothing is mounted on is a left-over.
            let path = entry.path();
            let Some(inode) = open_path(&path).ok().and_then(|file| inode(&file).ok()) else { continue };
            let name = Some(entry.file_name().to_string_lossy().into_owned());
            found.entry(inode).or_insert(Namespace { inode, name, pid: None, path });
        }
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let Some(inode) = inode_of_process(pid) else { continue };
        let namespace = found.entry(inode).or_insert(Namespace { inode, name: None, pid: None, path });
        namespace.pid.get_or_insert(pid);
    }
    found.into_values().collect()
}

/// Runs `work` in a network namespace: on a thread of its own, so that the calling thread never leaves where it is.
/// Sockets that `work` opens and processes that it starts belong to the namespace.
pub fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let inode = inode(namespace)?;
    // Entering needs a capability that is not needed to stay.
    let away = self::inode(&current()?)? != inode;
    let enter_and_work = || {
        if away {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| Error::Enter { inode, source: error.into() })?;
        }
        Ok(work())
    };
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().name(format!("netns-{inode}")).spawn_scoped(scope, enter_and_work);
        let thread = thread.map_err(|source| Error::Thread { source })?;
        thread.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_listed_and_can_be_opened_by_pid() {
        let current = inode(&current().unwrap()).unwrap();
        let by_pid = open(&std::process::id().to_string()).unwrap();
        assert_eq!(inode(&by_pid).unwrap(), current);
        assert!(list().iter().any(|namespace| namespace.inode == current));
    }

    #[test]
    fn names_hold_for_their_namespace() {
        let current = inode(&current().unwrap()).unwrap();
        let name = Name::find(current).unwrap();
        assert!(name.holds(current) && !name.holds(current ^ 1), "{name}");
        let this = Name::of_process(std::process::id(), current).unwrap();
        assert!(this.to_string().starts_with(&format!("pid {} (", std::process::id())), "{this}");
        assert_eq!(Name::find(1), None);
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let message = |name| open(name).unwrap_err().to_string();
        assert_eq!(message("no-such"), "no namespace named 'no-such'; `ip netns list` shows them");
        assert_eq!(message("4294967295"), "no process 4294967295, and no namespace of that name either");
        assert!(
            message("/proc/self/ns/../status")
                .starts_with("/proc/self/ns/../status is not a network namespace")
        );
        assert_eq!(message("/no/such"), "cannot open the network namespace /no/such");
    }

    #[test]
    fn work_inside_leaves_the_caller_where_it_is() {
        let here = current().unwrap();
        let before = inode(&here).unwrap();
        assert_eq!(inside(&here, || inode(&current().unwrap()).unwrap()).unwrap(), before);
        assert_eq!(inode(&current().unwrap()).unwrap(), before);
    }
}
