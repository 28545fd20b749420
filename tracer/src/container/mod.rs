//! Which container and pod a process is of, by the path of its cgroup; and their names, from the files of those who made
//! them.
//!
//! Pure: who reads `/proc` and the files is elsewhere. What has none of the shapes that are known is nothing: a path is
//! never guessed at.
#![forbid(unsafe_code)]

pub mod files;
#[cfg(test)]
mod tests;

use std::fmt;

/// Who made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd, for Kubernetes or nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// podman.
    Podman,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Docker, Self::Containerd, Self::CriO, Self::Podman];

    /// Its name, as its makers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
        }
    }
}

/// A container or pod, as the path of a cgroup names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Who made the container; `None` where the path does not tell.
    pub runtime: Option<Runtime>,
    /// The container's id: 64 hexadecimal digits.
    pub id: Option<String>,
    /// The pod's uid, as Kubernetes writes it.
    pub pod: Option<String>,
}

/// What containers and pods are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The container's name.
    pub container: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The namespace of Kubernetes that the pod is in.
    pub namespace: Option<String>,
}

impl Names {
    /// Takes from others what is not known here.
    pub fn or(self, other: Self) -> Self {
        let Self { container, pod, namespace } = self;
        Self {
            container: container.or(other.container),
            pod: pod.or(other.pod),
            namespace: namespace.or(other.namespace),
        }
    }
}

/// A container or pod with what it is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Which.
    pub group: Group,
    /// What it is called.
    pub names: Names,
}

/// `pod shop/cart-0, container web (containerd 0123456789ab)`; what is not known is left out.
impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group: Group { runtime, id, pod }, names } = self;
        if let Some(uid) = pod {
            match (&names.namespace, &names.pod) {
                (Some(namespace), Some(name)) => write!(f, "pod {namespace}/{name}")?,
                (None, Some(name)) => write!(f, "pod {name}")?,
                (_, None) => write!(f, "pod {uid}")?,
            }
            f.write_str(if id.is_some() { ", " } else { "" })?;
        }
        let Some(id) = id else { return Ok(()) };
        let short = id.get(..12).unwrap_or(id);
        let made = runtime.map_or(String::new(), |runtime| runtime.name().to_owned() + " ");
        match &names.container {
            Some(name) => write!(f, "container {name} ({made}{short})"),
            None => write!(f, "container {made}{short}"),
        }
    }
}

/// The container or pod of a cgroup, the innermost where they are nested; `None` for a cgroup of neither.
pub fn of_path(path: &str) -> Option<Group> {
    let mut found = Group::default();
    let mut parents: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        // As the systemd driver names what it is given, where runc does not use that driver: `SLICE:PREFIX:ID`.
        let triple = part.split_once(':').and_then(|(slice, rest)| Some((slice, rest.split_once(':')?)));
        if let Some((slice, (prefix, id))) = triple {
            if let Some((runtime, id)) = runtime_of(prefix).zip(checked_id(id)) {
                let pod = pod_of_slice(slice).or(found.pod);
                found = Group { runtime: Some(runtime), id: Some(id), pod };
            }
        } else if is_monitor(part) {
            // It is beside the container, not in it.
            return None;
        } else if let Some(pod) = pod_of_slice(part).or_else(|| pod_of_folder(part, &parents)) {
            found = Group { pod: Some(pod), ..Group::default() };
        } else if let Some((runtime, id)) = container(part, &parents, found.pod.is_some()) {
            // A pod within a container's own cgroup is of a cluster in that container.
            let pod = found.pod.filter(|_| found.id.is_none());
            found = Group { runtime, id: Some(id), pod };
        }
        parents.push(part);
    }
    (found != Group::default()).then_some(found)
}

/// The container or pod of a process, from its `/proc/PID/cgroup`: that of the unified hierarchy, or the one that all
/// others agree on that name any.
pub fn of_proc(text: &str) -> Option<Group> {
    let mut lines = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    if let Some(group) =
        lines.clone().find(|(controllers, _)| controllers.is_empty()).and_then(|(_, path)| of_path(path))
    {
        return Some(group);
    }
    let first = lines.find_map(|(_, path)| of_path(path))?;
    lines.filter_map(|(_, path)| of_path(path)).all(|other| other == first).then_some(first)
}

/// What all processes of something are in: the container, or else at least the pod; nothing if one of them is in none,
/// or in another.
pub fn common(groups: impl IntoIterator<Item = Option<Group>>) -> Option<Group> {
    let mut common: Option<Group> = None;
    for group in groups {
        let group = group?;
        common = match common {
            None => Some(group),
            Some(same) if same == group => Some(same),
            Some(other) if other.pod.is_some() && other.pod == group.pod => {
                Some(Group { pod: group.pod, ..Group::default() })
            }
            Some(_) => return None,
        };
    }
    common
}

/// A program that watches over a container.
fn is_monitor(part: &str) -> bool {
    ["crio-conmon-", "libpod-conmon-"].iter().any(|prefix| part.starts_with(prefix))
}

fn runtime_of(prefix: &str) -> Option<Runtime> {
    match prefix {
        "docker" => Some(Runtime::Docker),
        "cri-containerd" | "nerdctl" => Some(Runtime::Containerd),
        "crio" => Some(Runtime::CriO),
        "libpod" | "libpod-payload" => Some(Runtime::Podman),
        _ => None,
    }
}

/// A container by the last part of its path: `docker-ID.scope` of the systemd driver, `crio-ID` and `libpod-ID` of the
/// other, or the id alone.
fn container(part: &str, parents: &[&str], in_pod: bool) -> Option<(Option<Runtime>, String)> {
    if let Some(id) = checked_id(part) {
        return match parents.last() {
            Some(&"docker") => Some((Some(Runtime::Docker), id)),
            // Docker and containerd alike.
            Some(parent) if in_pod && parent.starts_with("pod") => Some((None, id)),
            _ => None,
        };
    }
    let is_scope = part.ends_with(".scope");
    let (prefix, id) = part.strip_suffix(".scope").unwrap_or(part).rsplit_once('-')?;
    let (runtime, id) = runtime_of(prefix).zip(checked_id(id))?;
    let without_scope = matches!(runtime, Runtime::CriO | Runtime::Podman);
    (is_scope || without_scope).then_some((Some(runtime), id))
}

fn checked_id(id: &str) -> Option<String> {
    (id.len() == 64 && is_hex(id)).then(|| id.to_owned())
}

/// `kubepods-burstable-podUID.slice`, with underscores in the uid; kind puts `kubelet-` before it.
fn pod_of_slice(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice")?;
    let (classes, uid) = name.rsplit_once("-pod")?;
    let is_of_kubelet = classes.split('-').any(|class| class == "kubepods");
    checked_uid(&uid.replace('_', "-")).filter(|_| is_of_kubelet)
}

/// `podUID` below `kubepods`.
fn pod_of_folder(part: &str, parents: &[&str]) -> Option<String> {
    let uid = part.strip_prefix("pod")?;
    checked_uid(uid).filter(|_| parents.contains(&"kubepods"))
}

/// A UUID, or the hash that stands for a pod that the kubelet has from a file.
fn checked_uid(uid: &str) -> Option<String> {
    let parts: Vec<&str> = uid.split('-').collect();
    let is_uuid =
        parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|part| is_hex(part));
    (is_uuid || (uid.len() == 32 && is_hex(uid))).then(|| uid.to_owned())
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
