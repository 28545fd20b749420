//! All that a run of the tracer could leave behind on a host.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;

use crate::bpf;
use crate::lab::Family;
use crate::netns::Netns;
use crate::ruleset::{saved, without_counters};

/// A picture of the host: parts by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(BTreeMap<String, String>);

/// Sysctls that a tracer could be tempted to write.
const SYSCTLS: &[&str] = &[
    "net/netfilter/nf_log/2",
    "net/netfilter/nf_log/10",
    "net/netfilter/nf_log_all_netns",
    "kernel/kptr_restrict",
    "kernel/perf_event_paranoid",
    "kernel/bpf_stats_enabled",
    "kernel/unprivileged_bpf_disabled",
    "kernel/printk",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/rmem_max",
    "net/core/rmem_default",
];

const TRACEFS: &[&str] = &[
    "kprobe_events",
    "uprobe_events",
    "dynamic_events",
    "set_ftrace_filter",
    "current_tracer",
    "tracing_on",
    "set_event",
    "enabled_functions",
];

impl State {
    /// Takes the picture.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut parts = BTreeMap::new();
        for family in Family::ALL {
            parts.insert(family.tool().to_owned(), without_counters(&saved(netns, family)?));
        }
        for name in SYSCTLS {
            let value =
                netns.enter(|| Ok(fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default()))?;
            parts.insert((*name).to_owned(), value);
        }
        for name in TRACEFS {
            let value = fs::read_to_string(format!("/sys/kernel/tracing/{name}")).unwrap_or_default();
            parts.insert(format!("tracefs {name}"), value);
        }
        parts.insert("kprobes".to_owned(), read("/sys/kernel/debug/kprobes/list"));
        parts.insert("modules".to_owned(), modules());
        parts.insert("nft".to_owned(), nftables(netns));
        for (name, kind) in [("programs", bpf::PROGRAMS), ("maps", bpf::MAPS), ("links", bpf::LINKS)] {
            parts.insert(format!("bpf {name}"), format!("{:?}", bpf::ids(kind)?));
        }
        for folder in ["/sys/fs/bpf", "/run", "/tmp", "/run/netns"] {
            parts.insert(format!("files in {folder}"), names(folder));
        }
        parts.insert("processes".to_owned(), processes());
        Ok(Self(parts))
    }

    /// What differs of rules and sysctls: what must not even change while the tracer runs.
    pub fn differences_in_configuration(&self, later: &Self) -> Vec<String> {
        let is_configuration =
            |name: &String| name.contains("tables") || name == "nft" || SYSCTLS.contains(&name.as_str());
        let part = |state: &Self| {
            Self(
                state
                    .0
                    .iter()
                    .filter(|(name, _)| is_configuration(name))
                    .map(|(a, b)| (a.clone(), b.clone()))
                    .collect(),
            )
        };
        part(self).differences(&part(later))
    }

    /// What differs, in words; empty if nothing.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let differs = |(name, before): (&String, &String)| {
            let after = later.0.get(name).map_or("", String::as_str);
            (before != after).then(|| format!("{name}:\n{}", line_difference(before, after)))
        };
        self.0.iter().filter_map(differs).collect()
    }
}

fn line_difference(before: &str, after: &str) -> String {
    let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
    let come = after.lines().filter(|line| !before.lines().any(|other| other == *line));
    gone.map(|line| format!("    - {line}\n")).chain(come.map(|line| format!("    + {line}\n"))).collect()
}

/// To ask would load the module.
fn nftables(netns: &Netns) -> String {
    let list = || netns.command("nft", &["list", "ruleset"], "").unwrap_or_default();
    if fs::exists("/sys/module/nf_tables").unwrap_or(false) { list() } else { String::new() }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Modules and how often each is used. The count of a module that packets use may change by itself.
fn modules() -> String {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (name, count) = (words.next()?, words.nth(1)?);
        // References of packets, timers and connections come and go.
        let counted = name.starts_with("ip_tables") || name.starts_with("ip6_tables") || name == "x_tables";
        Some(if counted { format!("{name} {count}\n") } else { format!("{name}\n") })
    };
    let mut lines: Vec<String> = read("/proc/modules").lines().filter_map(line).collect();
    lines.sort();
    lines.concat()
}

fn names(folder: &str) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| format!("{}\n", entry.file_name().to_string_lossy())).collect();
    names.sort();
    names.concat()
}

/// Processes of the tracer that still run, guards among them.
fn processes() -> String {
    let mut found = tracers();
    found.sort();
    found.concat()
}

/// Whether none runs, and no guard works.
pub fn is_quiet() -> bool {
    tracers().is_empty()
}

fn tracers() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    named.filter(|name| name.starts_with("nftracer")).collect()
}
