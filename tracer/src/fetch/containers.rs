//! Containers and pods of processes: their cgroups, and the files of those who made them. No runtime is asked for
//! anything.

use crate::container::{self, Container, Group, Names, Runtime, files};
use crate::sys::kernel;
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The largest file that is read.
const FILE_BYTES: u64 = 16 << 20;
/// Where Docker keeps what it knows of containers.
const DOCKER: &str = "/var/lib/docker/containers";
/// Where containerd keeps what it hands to the OCI runtime, by its own namespaces.
const CONTAINERD: &str = "/run/containerd/io.containerd.runtime.v2.task";
/// Where CRI-O does, and podman.
const STORAGE_RUN: &str = "/run/containers/storage/overlay-containers";
/// Where podman keeps its containers' names: those of root, and below the home of any other user.
const STORAGE: &str = "/var/lib/containers/storage/overlay-containers/containers.json";
const STORAGE_OF_USER: &str = ".local/share/containers/storage/overlay-containers/containers.json";
const POD_LOGS: &str = "/var/log/pods";
const CONTAINER_LOGS: &str = "/var/log/containers";

/// The container or pod that all processes in a network namespace are of; `None` if there is a process that is in none,
/// or where not all processes can be seen.
pub fn of_netns(inode: u32) -> Option<Container> {
    if !kernel::sees_all_processes() {
        return None;
    }
    let mut user = None;
    let group = container::common(members(inode).map(|pid| {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        user = user.or_else(|| fs::metadata(&folder).ok().map(|folder| folder.uid()));
        container::of_proc(&fs::read_to_string(folder.join("cgroup")).ok()?)
    }))?;
    let names = names(&group, user);
    Some(Container { group, names })
}

/// The processes in a network namespace.
fn members(inode: u32) -> impl Iterator<Item = u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(move |pid| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| file.ino() == u64::from(inode))
    })
}

/// What a container or pod is called. `user` is who runs a process of it.
fn names(group: &Group, user: Option<u32>) -> Names {
    let mut names = Names::default();
    if let Some(id) = &group.id {
        names = names.or(of_container(group.runtime, id, user).unwrap_or_default());
    }
    if let Some(uid) = &group.pod {
        let of_pod = || entries(POD_LOGS).find_map(|folder| files::pod_log(&folder, uid));
        let of_container =
            |id: &String| entries(CONTAINER_LOGS).find_map(|link| files::container_log(&link, id));
        names = names.or(group.id.as_ref().and_then(of_container).unwrap_or_default());
        names = names.or(of_pod().unwrap_or_default());
    }
    names
}

fn of_container(runtime: Option<Runtime>, id: &str, user: Option<u32>) -> Option<Names> {
    let docker = || files::docker(&read(&Path::new(DOCKER).join(id).join("config.v2.json"))?, id);
    let containerd = || {
        let bundles = entries(CONTAINERD).map(|namespace| Path::new(CONTAINERD).join(namespace).join(id));
        bundles.into_iter().find_map(|bundle| files::oci(&read(&bundle.join("config.json"))?))
    };
    match runtime {
        Some(Runtime::Docker) => docker(),
        Some(Runtime::Containerd) => containerd(),
        Some(Runtime::CriO) => {
            files::oci(&read(&Path::new(STORAGE_RUN).join(id).join("userdata/config.json"))?)
        }
        Some(Runtime::Podman) => {
            let of_root = || files::storage(&read(Path::new(STORAGE))?, id);
            let of_user = || files::storage(&read(&home(user?)?.join(STORAGE_OF_USER))?, id);
            of_root().or_else(of_user)
        }
        None => docker().or_else(containerd),
    }
}

/// The home of a user of this host.
fn home(user: u32) -> Option<PathBuf> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let is_user = fields.next()?.parse() == Ok(user);
        fields.nth(2).filter(|_| is_user).map(PathBuf::from)
    })
}

/// The names in a folder.
fn entries(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// A file, which may be a user's: nothing is waited for, and no more is taken than has room.
fn read(path: &Path) -> Option<Vec<u8>> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file: File = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path).ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > FILE_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
