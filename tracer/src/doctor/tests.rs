//! Hosts as they are met, and what is said about them.

use super::{Obstacle, Status, Usability, diagnose};
use crate::sys::kernel::{Answer, Host, Symbols, Tried};
use crate::sys::privilege::{Capability, Privileges};
use expect_test::{Expect, expect, expect_file};

fn strings<C: FromIterator<String>>(words: &[&str]) -> C {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Debian 12, everything as it should be.
fn good() -> Host {
    Host {
        programs: true,
        layout: Vec::new(),
        fentry: Tried::Works,
        session: Tried::NotTried,
        release: "6.1.0-18-amd64".to_owned(),
        arch: "x86_64".to_owned(),
        privileges: Privileges { effective: Capability::ALL.to_vec(), whole_host: true },
        lockdown: Some("none".to_owned()),
        perf_event_paranoid: Some(3),
        ftrace_enabled: Some(true),
        vmlinux_btf: true,
        module_btf: strings(&["x_tables", "ip_tables"]),
        modules: strings(&["x_tables", "ip_tables", "iptable_filter"]),
        symbols: Symbols {
            addresses: true,
            found: ["ipt_do_table", "xt_recseq", "__per_cpu_offset"]
                .map(|name| (name.to_owned(), None))
                .into(),
        },
        kprobe_pmu: true,
        kprobe_events: true,
        leftovers: Vec::new(),
        ring_buffer: Answer::Yes,
        possible_cpus: Some(4),
        ip_tables: strings(&["filter", "raw"]),
        ip6_tables: Vec::new(),
        legacy_rules: strings(&["ip filter"]),
        nft_rules: Vec::new(),
        loggers: strings(&["nf_log.2: nf_log_ipv4", "nf_log.10: NONE"]),
        other_namespaces: false,
        in_container: false,
        iptables_save: Some("iptables-save v1.8.9 (legacy)".to_owned()),
        iptables_legacy_save: Some("iptables-save v1.8.9 (legacy)".to_owned()),
    }
}

/// One way that works, one that does not, and one that is worse.
fn ways() -> Vec<Usability> {
    let netlink = Usability {
        backend: "netlink",
        mark: Some("nft"),
        obstacle: None,
        degraded: None,
        footprint: Some("table inet nftracer_PID_START (owned)".to_owned()),
    };
    let obstacle = Obstacle { reason: "no iptables".to_owned(), remedy: Some("install it".to_owned()) };
    let rule = Usability { mark: Some("rule"), obstacle: Some(obstacle), footprint: None, ..netlink.clone() };
    let log = Usability { backend: "log", degraded: Some("slow".to_owned()), ..netlink.clone() };
    vec![netlink, rule, log]
}

/// Shows what is not well.
#[track_caller]
fn check(host: Host, expected: Expect) {
    let diagnosis = diagnose(&host, Vec::new());
    let mut text = String::new();
    for finding in diagnosis.findings.iter().filter(|finding| finding.status != Status::Ok) {
        text += &format!("{}: {}: {}\n", finding.status, finding.name, finding.what);
        text += &finding.reason.iter().map(|reason| format!("  {reason}\n")).collect::<String>();
        text += &finding.remedy.iter().map(|remedy| format!("  remedy: {remedy}\n")).collect::<String>();
    }
    text += &diagnosis.backends[0].to_string();
    expected.assert_eq(&text);
}

#[test]
fn a_good_host() {
    let diagnosis = diagnose(&good(), ways());
    expect_file!["snapshots/good.txt"].assert_eq(&diagnosis.to_string());
    expect_file!["snapshots/good.json"].assert_eq(&diagnosis.to_json());
    assert_eq!((diagnosis.best(), diagnosis.obstacle("ebpf")), (Some("ebpf"), None));
}

#[test]
fn a_host_of_which_nothing_is_known() {
    let diagnosis = diagnose(&Host { arch: "x86_64".to_owned(), ..Host::default() }, Vec::new());
    expect_file!["snapshots/empty.txt"].assert_eq(&diagnosis.to_string());
    assert_eq!(diagnosis.best(), None);
}

#[test]
fn without_privileges() {
    let privileges = Privileges { effective: vec![Capability::NetAdmin], whole_host: true };
    let symbols = Symbols { addresses: false, ..good().symbols };
    check(
        Host { privileges, ring_buffer: Answer::Refused, symbols, ..good() },
        expect![[r#"
        fail: privileges: CAP_BPF, CAP_PERFMON missing
          remedy: run it as root
        fail: perf: kernel.perf_event_paranoid is 3
          without CAP_SYS_ADMIN no probe can be attached
          remedy: run it as root, or `sysctl kernel.perf_event_paranoid=2`
        fail: symbols: /proc/kallsyms shows no addresses
          remedy: run it as root, or `sysctl kernel.kptr_restrict=1`
        fail: ring buffer: not allowed to make one
          remedy: run it as root
        backend ebpf: not usable: privileges: CAP_BPF, CAP_PERFMON missing; perf: kernel.perf_event_paranoid is 3; symbols: /proc/kallsyms shows no addresses; ring buffer: not allowed to make one"#]],
    );
}

#[test]
fn with_fewer_privileges() {
    let effective = vec![Capability::Bpf, Capability::Perfmon, Capability::NetAdmin, Capability::Syslog];
    check(
        Host { privileges: Privileges { effective, whole_host: true }, ..good() },
        expect![[r#"
        warn: privileges: CAP_SYS_ADMIN missing
          other network namespaces cannot be entered
          remedy: run it as root
        fail: perf: kernel.perf_event_paranoid is 3
          without CAP_SYS_ADMIN no probe can be attached
          remedy: run it as root, or `sysctl kernel.perf_event_paranoid=2`
        backend ebpf: not usable: perf: kernel.perf_event_paranoid is 3"#]],
    );
}

#[test]
fn in_a_container() {
    check(
        Host { privileges: Privileges { whole_host: false, ..good().privileges }, ..good() },
        expect![[r#"
        fail: privileges: root of a user namespace only
          the kernel lets nobody attach probes from a container's own user namespace
          remedy: run it on the host
        backend ebpf: not usable: privileges: root of a user namespace only"#]],
    );
}

#[test]
fn without_fentry() {
    let fentry = Tried::Refused("no BTF describes `ipt_do_table`".to_owned());
    check(
        Host { fentry: fentry.clone(), session: Tried::Works, ..good() },
        expect![[r#"
        warn: fentry: the table functions are probed by kprobe.session
          a packet costs more than with fentry, and no BTF describes `ipt_do_table`
        backend ebpf: usable"#]],
    );
    let session = Tried::Refused("kprobe.session does not work here".to_owned());
    check(
        Host { fentry, session, ..good() },
        expect![[r#"
        warn: fentry: the table functions are probed by kprobes
          a packet costs about twice as much as with fentry, and no BTF describes `ipt_do_table`; kprobe.session does not work here
        backend ebpf: usable"#]],
    );
}

#[test]
fn without_kprobes() {
    check(
        Host { kprobe_pmu: false, kprobe_events: false, ..good() },
        expect![[r#"
        fail: kprobes: this kernel has no kprobes
          neither the perf PMU `kprobe` nor tracefs/kprobe_events is there
          remedy: use a kernel with CONFIG_KPROBE_EVENTS; if it has it, `mount -t tracefs tracefs /sys/kernel/tracing`
        backend ebpf: not usable: kprobes: this kernel has no kprobes"#]],
    );
    assert!(diagnose(&Host { kprobe_pmu: false, ..good() }, Vec::new()).best().is_some());
}

#[test]
fn restricted() {
    let lockdown = Some("confidentiality".to_owned());
    check(
        Host { lockdown, ftrace_enabled: Some(false), possible_cpus: Some(1), ..good() },
        expect![[r#"
        fail: lockdown: the kernel is locked down: confidentiality
          programs may not read kernel memory
          remedy: boot with lockdown=integrity or without lockdown
        fail: ftrace: kernel.ftrace_enabled is 0
          probes attach and never fire
          remedy: `sysctl kernel.ftrace_enabled=1`
        fail: cpus: one CPU, and never more
          the kernel keeps the counters of rules elsewhere than on machines with several CPUs, and this version does not look there
          remedy: give a virtual machine a second CPU, or room for one
        backend ebpf: not usable: lockdown: the kernel is locked down: confidentiality; ftrace: kernel.ftrace_enabled is 0; cpus: one CPU, and never more"#]],
    );
}

#[test]
fn debian_11_has_no_module_btf() {
    check(
        Host { module_btf: strings(&[]), ..good() },
        expect![[r#"
        warn: module btf: none for x_tables, ip_tables
          only kernels whose layout is built in can be traced
        backend ebpf: usable"#]],
    );
    let layout = strings(&["struct xt_table is not described"]);
    check(
        Host { layout, module_btf: strings(&[]), ..good() },
        expect![[r#"
        warn: module btf: none for x_tables, ip_tables
          only kernels whose layout is built in can be traced
        fail: layout: struct xt_table is not described
          reading the kernel's structures by guess would give wrong paths
        backend ebpf: not usable: layout: struct xt_table is not described"#]],
    );
}

#[test]
fn nothing_but_nftables() {
    let iptables_save = Some("iptables-save v1.8.9 (nf_tables)".to_owned());
    let only = |found: &[&str]| {
        let found = found.iter().map(|&name| (name.to_owned(), None)).collect();
        Host {
            symbols: Symbols { addresses: true, found },
            modules: strings(&["nf_tables"]),
            module_btf: strings(&["nf_tables"]),
            ip_tables: Vec::new(),
            legacy_rules: Vec::new(),
            nft_rules: strings(&["inet firewalld"]),
            iptables_save: iptables_save.clone(),
            iptables_legacy_save: None,
            ..good()
        }
    };
    check(only(&["nft_do_chain", "__per_cpu_offset"]), expect!["backend ebpf: usable"]);
    check(
        only(&["nft_do_chain"]),
        expect![[r#"
        fail: symbols: __per_cpu_offset not in /proc/kallsyms
          remedy: use a kernel with CONFIG_KALLSYMS_ALL
        backend ebpf: not usable: symbols: __per_cpu_offset not in /proc/kallsyms"#]],
    );
    check(
        Host { modules: strings(&[]), module_btf: strings(&[]), nft_rules: Vec::new(), ..only(&[]) },
        expect![[r#"
            fail: tables: none of ipt_do_table, ip6t_do_table and nft_do_chain is in the kernel
              no packet meets a legacy table or a chain of nftables
              remedy: load rules, with nft, iptables-nft or iptables-legacy
            backend ebpf: not usable: tables: none of ipt_do_table, ip6t_do_table and nft_do_chain is in the kernel"#]],
    );
    check(
        Host { iptables_save, ip_tables: Vec::new(), ..good() },
        expect![[r#"
            warn: tables: no legacy table, and no rule of nftables, in this network namespace
              packets meet no rule here
            backend ebpf: usable"#]],
    );
}

#[test]
fn after_a_killed_run() {
    check(
        Host {
            leftovers: strings(&["nftracer_7/leave_ipt_do_table", "nftracer_7/leave_ip6t_do_table"]),
            ..good()
        },
        expect![[r#"
            warn: leftovers: nftracer_7/leave_ipt_do_table, nftracer_7/leave_ip6t_do_table
              a run that was killed, and its guard, left this
              remedy: `nftracer doctor --clean`
            backend ebpf: usable"#]],
    );
}

#[test]
fn two_kinds_of_rules() {
    check(
        Host {
            nft_rules: strings(&["inet firewalld"]),
            in_container: true,
            other_namespaces: true,
            ..good()
        },
        expect![[r#"
            warn: namespaces: in a container, there are others; `--netns` names one, `--all-netns` means all
              rules of the host and of other containers are in namespaces that may not be seen from here
              remedy: run it on the host, with --netns and a process of the container
            backend ebpf: usable"#]],
    );
}

#[test]
fn another_architecture() {
    check(
        Host { arch: "aarch64".to_owned(), programs: false, ..good() },
        expect![[r#"
            fail: programs: the eBPF backend does not support aarch64 yet, only x86_64
            backend ebpf: not usable: programs: the eBPF backend does not support aarch64 yet, only x86_64"#]],
    );
}
