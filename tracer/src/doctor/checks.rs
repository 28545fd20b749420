//! The checks, in the order in which what they ask for is needed.

use super::{Finding, Status};
use crate::sys::kernel::{
    Answer, CHAIN_FUNCTION, Host, LOAD_RULES, PER_CPU_OFFSET, SEQUENCE, TABLE_FUNCTIONS, TABLE_MODULES, Tried,
};
use crate::sys::privilege::Capability;

/// A question about the host.
pub(super) struct Check {
    name: &'static str,
    ask: fn(&Host) -> Outcome,
}

impl Check {
    pub(super) fn run(&self, host: &Host) -> Finding {
        let Outcome { status, what, reason, remedy } = (self.ask)(host);
        Finding { name: self.name, status, what, reason, remedy }
    }
}

/// Every check.
pub(super) const ALL: &[Check] = &[
    Check { name: "rules", ask: rules },
    Check { name: "programs", ask: programs },
    Check { name: "kernel", ask: kernel },
    Check { name: "privileges", ask: privileges },
    Check { name: "lockdown", ask: lockdown },
    Check { name: "perf", ask: perf },
    Check { name: "btf", ask: btf },
    Check { name: "module btf", ask: module_btf },
    Check { name: "symbols", ask: symbols },
    Check { name: "layout", ask: layout },
    Check { name: "kprobes", ask: kprobes },
    Check { name: "fentry", ask: fentry },
    Check { name: "ftrace", ask: ftrace },
    Check { name: "ring buffer", ask: ring_buffer },
    Check { name: "cpus", ask: cpus },
    Check { name: "tables", ask: tables },
    Check { name: "iptables", ask: iptables },
    Check { name: "loggers", ask: loggers },
    Check { name: "namespaces", ask: namespaces },
    Check { name: "leftovers", ask: leftovers },
];

struct Outcome {
    status: Status,
    what: String,
    reason: Option<String>,
    remedy: Option<String>,
}

fn ok(what: impl Into<String>) -> Outcome {
    Outcome { status: Status::Ok, what: what.into(), reason: None, remedy: None }
}

fn warn(what: impl Into<String>) -> Outcome {
    Outcome { status: Status::Warn, ..ok(what) }
}

fn fail(what: impl Into<String>) -> Outcome {
    Outcome { status: Status::Fail, ..ok(what) }
}

impl Outcome {
    fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// Who knows of one kind of rules and not of the other looks in the wrong place.
fn rules(host: &Host) -> Outcome {
    let (legacy, nft) = (host.legacy_rules.join(", "), host.nft_rules.join(", "));
    match (legacy.is_empty(), nft.is_empty()) {
        (true, true) => ok("none in this network namespace"),
        (false, true) => ok(format!("legacy: {legacy}")),
        (true, false) => ok(format!("nftables: {nft}")),
        (false, false) => ok(format!("legacy: {legacy}; nftables: {nft}; packets meet both")),
    }
}

fn loggers(host: &Host) -> Outcome {
    match host.loggers.as_slice() {
        [] => warn("no nf_log sysctl").because("the kernel's own TRACE cannot be directed"),
        loggers => ok(loggers.join(", ")),
    }
}

fn namespaces(host: &Host) -> Outcome {
    let others = match host.other_namespaces {
        false => "no other",
        true => "there are others; `--netns` names one, `--all-netns` means all",
    };
    if !host.in_container {
        return ok(others);
    }
    warn(format!("in a container, {others}"))
        .because("rules of the host and of other containers are in namespaces that may not be seen from here")
        .remedy("run it on the host, with --netns and a process of the container")
}

fn programs(host: &Host) -> Outcome {
    if host.programs {
        return ok("the kernel programs are built in");
    }
    if host.arch != "x86_64" {
        return fail(format!("the eBPF backend does not support {} yet, only x86_64", host.arch));
    }
    fail("this nftracer was built without its kernel programs").remedy("build it with `cargo xtask build`")
}

fn kernel(host: &Host) -> Outcome {
    ok(format!("{}, {}", host.release, host.arch))
}

fn privileges(host: &Host) -> Outcome {
    use Capability::{Bpf, NetAdmin, Perfmon, SysAdmin};
    let missing = |wanted: &[Capability]| -> Vec<String> {
        wanted.iter().filter(|&&one| !host.privileges.has(one)).map(ToString::to_string).collect()
    };
    let needed = missing(&[Bpf, Perfmon, NetAdmin]);
    if !needed.is_empty() {
        return fail(format!("{} missing", needed.join(", "))).remedy("run it as root");
    }
    if !host.privileges.whole_host {
        return fail("root of a user namespace only")
            .because("the kernel lets nobody attach probes from a container's own user namespace")
            .remedy("run it on the host");
    }
    if !host.privileges.has(SysAdmin) {
        return warn(format!("{SysAdmin} missing"))
            .because("other network namespaces cannot be entered")
            .remedy("run it as root");
    }
    ok("all there")
}

fn lockdown(host: &Host) -> Outcome {
    match host.lockdown.as_deref() {
        Some("confidentiality") => fail("the kernel is locked down: confidentiality")
            .because("programs may not read kernel memory")
            .remedy("boot with lockdown=integrity or without lockdown"),
        Some(state) => ok(state),
        None => ok("none"),
    }
}

/// Debian's 3 refuses probes even to `CAP_PERFMON`, as long as `CAP_SYS_ADMIN` is missing.
fn perf(host: &Host) -> Outcome {
    match host.perf_event_paranoid {
        Some(level @ 3..) if !host.privileges.has(Capability::SysAdmin) => {
            fail(format!("kernel.perf_event_paranoid is {level}"))
                .because("without CAP_SYS_ADMIN no probe can be attached")
                .remedy("run it as root, or `sysctl kernel.perf_event_paranoid=2`")
        }
        Some(level) => ok(format!("kernel.perf_event_paranoid is {level}")),
        None => fail("this kernel has no perf events")
            .because("probes are attached through perf")
            .remedy("use a kernel with CONFIG_PERF_EVENTS"),
    }
}

fn btf(host: &Host) -> Outcome {
    if host.vmlinux_btf {
        return ok("/sys/kernel/btf/vmlinux");
    }
    fail("no /sys/kernel/btf/vmlinux")
        .because("the layout of the kernel's structures is not known without it")
        .remedy("use a kernel with CONFIG_DEBUG_INFO_BTF")
}

/// The code of a loaded module is described by its own BTF; that of a built-in one by the kernel's.
fn module_btf(host: &Host) -> Outcome {
    let loaded = TABLE_MODULES.into_iter().filter(|&name| host.modules.contains(name));
    let (with, without): (Vec<&str>, Vec<&str>) = loaded.partition(|&name| host.module_btf.contains(name));
    match (with.as_slice(), without.as_slice()) {
        ([], []) => ok("no module of tables is loaded"),
        (with, []) => ok(with.join(", ")),
        (_, without) => warn(format!("none for {}", without.join(", ")))
            .because("only kernels whose layout is built in can be traced"),
    }
}

fn symbols(host: &Host) -> Outcome {
    if !host.symbols.addresses {
        return fail("/proc/kallsyms shows no addresses")
            .remedy("run it as root, or `sysctl kernel.kptr_restrict=1`");
    }
    let read = [(SEQUENCE, host.has_legacy_code()), (PER_CPU_OFFSET, has_code(host))];
    let missing = read.into_iter().filter(|(name, read)| *read && !host.symbols.found.contains_key(*name));
    let missing: Vec<&str> = missing.map(|(name, _)| name).collect();
    if missing.is_empty() {
        return ok("/proc/kallsyms shows addresses");
    }
    fail(format!("{} not in /proc/kallsyms", missing.join(", ")))
        .remedy("use a kernel with CONFIG_KALLSYMS_ALL")
}

fn layout(host: &Host) -> Outcome {
    if host.layout.is_empty() {
        return ok("nothing unknown");
    }
    fail(host.layout.join("; ")).because("reading the kernel's structures by guess would give wrong paths")
}

fn kprobes(host: &Host) -> Outcome {
    match (host.kprobe_pmu, host.kprobe_events) {
        (true, _) => ok("through perf"),
        (false, true) => ok("through tracefs"),
        (false, false) => fail("this kernel has no kprobes")
            .because("neither the perf PMU `kprobe` nor tracefs/kprobe_events is there")
            .remedy("use a kernel with CONFIG_KPROBE_EVENTS; if it has it, `mount -t tracefs tracefs /sys/kernel/tracing`"),
    }
}

/// A kprobe.session or kprobes do instead, so that this never stands in the way.
fn fentry(host: &Host) -> Outcome {
    match (&host.fentry, &host.session) {
        (Tried::NotTried, _) => ok("not tried"),
        (Tried::Works, _) => ok("the table functions are probed by fentry and fexit"),
        (Tried::Refused(reason), Tried::Works) => warn("the table functions are probed by kprobe.session")
            .because(format!("a packet costs more than with fentry, and {reason}")),
        (Tried::Refused(reason), session) => {
            let session = match session {
                Tried::Refused(reason) => format!("; {reason}"),
                Tried::NotTried | Tried::Works => String::new(),
            };
            warn("the table functions are probed by kprobes")
                .because(format!("a packet costs about twice as much as with fentry, and {reason}{session}"))
        }
    }
}

fn ftrace(host: &Host) -> Outcome {
    match host.ftrace_enabled {
        Some(false) => fail("kernel.ftrace_enabled is 0")
            .because("probes attach and never fire")
            .remedy("`sysctl kernel.ftrace_enabled=1`"),
        Some(true) => ok("kernel.ftrace_enabled is 1"),
        None => ok("no switch"),
    }
}

fn ring_buffer(host: &Host) -> Outcome {
    match host.ring_buffer {
        Answer::Yes => ok("the kernel made one"),
        Answer::No => fail("the kernel has none").remedy("use a kernel from 5.8 on"),
        Answer::Refused => fail("not allowed to make one").remedy("run it as root"),
    }
}

/// Where only one CPU is possible, the kernel keeps rule counters inside the rules (`xt_percpu_counter_alloc`).
fn cpus(host: &Host) -> Outcome {
    match host.possible_cpus {
        Some(1) => fail("one CPU, and never more").because(
            "the kernel keeps the counters of rules elsewhere than on machines with several CPUs, and this version does not \
             look there",
        )
        .remedy("give a virtual machine a second CPU, or room for one"),
        Some(count) => ok(format!("{count} possible")),
        None => warn("the number of CPUs is not known"),
    }
}

/// Whether there is anything that could have rules.
fn has_code(host: &Host) -> bool {
    host.has_legacy_code() || host.has_chain_code()
}

fn tables(host: &Host) -> Outcome {
    if !has_code(host) {
        let [ip, ip6] = TABLE_FUNCTIONS;
        return fail(format!("none of {ip}, {ip6} and {CHAIN_FUNCTION} is in the kernel"))
            .because("no packet meets a legacy table or a chain of nftables")
            .remedy(LOAD_RULES);
    }
    let named = [("ip", &host.ip_tables), ("ip6", &host.ip6_tables)];
    let shown: Vec<String> = named
        .into_iter()
        .filter(|(_, tables)| !tables.is_empty())
        .map(|(family, tables)| format!("{family}: {}", tables.join(" ")))
        .collect();
    match (shown.is_empty(), host.nft_rules.is_empty()) {
        (false, _) => ok(shown.join(", ")),
        (true, false) => ok("those of nftables; no legacy table in this network namespace"),
        (true, true) => warn("no legacy table, and no rule of nftables, in this network namespace")
            .because("packets meet no rule here"),
    }
}

/// Until 1.8 there was only the legacy variant, which does not say so.
fn iptables(host: &Host) -> Outcome {
    let nft = |version: &str| version.contains("nf_tables");
    match (host.iptables_legacy_save.as_deref(), host.iptables_save.as_deref()) {
        (_, Some(version)) if !host.has_legacy_code() => ok(version),
        (_, Some(version)) if !nft(version) => ok(version),
        (Some(version), Some(_)) => ok(format!(
            "{version}; `iptables` writes rules of nftables, `iptables-legacy` those of legacy tables"
        )),
        (Some(version), None) => ok(version),
        (None, Some(version)) => warn(version)
            .because("it cannot show legacy rules, so steps come without the text of the rule")
            .remedy("install iptables-legacy-save"),
        (None, None) => warn("no iptables-save")
            .because("steps come without the text of the rule")
            .remedy("install the package iptables"),
    }
}

fn leftovers(host: &Host) -> Outcome {
    if host.leftovers.is_empty() {
        return ok("none");
    }
    warn(host.leftovers.join(", "))
        .because("a run that was killed, and its guard, left this")
        .remedy("`nftracer doctor --clean`")
}
