//! The files in which container runtimes and the kubelet keep what containers and pods are called.

use super::Names;
use serde::Deserialize;
use std::collections::HashMap;

/// From Docker's `containers/ID/config.v2.json`.
pub fn docker(json: &[u8], id: &str) -> Option<Names> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        #[serde(rename = "ID")]
        id: String,
        name: String,
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        labels: Option<HashMap<String, String>>,
    }
    let Config { id: own, name, config } = serde_json::from_slice(json).ok()?;
    let mut labels = config.and_then(|config| config.labels).unwrap_or_default();
    // The kubelet's names for what it had Docker make.
    let of_kubelet = Names {
        container: labels.remove("io.kubernetes.container.name"),
        pod: labels.remove("io.kubernetes.pod.name"),
        namespace: labels.remove("io.kubernetes.pod.namespace"),
    };
    let container = Some(name.trim_start_matches('/').to_owned()).filter(|name| !name.is_empty());
    (own == id).then(|| of_kubelet.or(Names { container, ..Names::default() }))
}

/// From the `config.json` that containerd and CRI-O hand to the OCI runtime, by its annotations.
pub fn oci(json: &[u8]) -> Option<Names> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let Config { annotations } = serde_json::from_slice(json).ok()?;
    let get = |names: &[&str]| names.iter().find_map(|name| annotations.get(*name)).cloned();
    let names = Names {
        container: get(&["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"]),
        pod: get(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
        namespace: get(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
    };
    (names != Names::default()).then_some(names)
}

/// From the `containers.json` of the storage that podman and CRI-O share.
pub fn storage(json: &[u8], id: &str) -> Option<Names> {
    #[derive(Deserialize)]
    struct Entry {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let entries: Vec<Entry> = serde_json::from_slice(json).ok()?;
    let entry = entries.into_iter().find(|entry| entry.id == id)?;
    Some(Names { container: Some(entry.names.into_iter().next()?), ..Names::default() })
}

/// From the name of a pod's folder in the kubelet's `/var/log/pods`: `NAMESPACE_NAME_UID`.
pub fn pod_log(folder: &str, uid: &str) -> Option<Names> {
    let (rest, own) = folder.rsplit_once('_')?;
    let (namespace, name) = rest.split_once('_')?;
    let names = Names { pod: Some(name.to_owned()), namespace: Some(namespace.to_owned()), container: None };
    (own == uid).then_some(names)
}

/// From the name of a link in the kubelet's `/var/log/containers`: `POD_NAMESPACE_CONTAINER-ID.log`.
pub fn container_log(link: &str, id: &str) -> Option<Names> {
    let rest = link.strip_suffix(".log")?.strip_suffix(id)?.strip_suffix('-')?;
    let (pod, rest) = rest.split_once('_')?;
    let (namespace, container) = rest.split_once('_')?;
    let owned = |text: &str| Some(text.to_owned());
    Some(Names { container: owned(container), pod: owned(pod), namespace: owned(namespace) })
}
