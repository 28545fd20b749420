//! The running kernel: what it has, what it allows, what is loaded.

use crate::kallsyms;
use crate::sys::netns;
use crate::sys::privilege::Privileges;
use crate::sys::tracefs::{Event, Tracefs};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The modules that hold the code of the legacy tables, and of nftables.
pub const TABLE_MODULES: [&str; 4] = ["x_tables", "ip_tables", "ip6_tables", "nf_tables"];
/// The functions that walk a legacy table.
pub const TABLE_FUNCTIONS: [&str; 2] = ["ipt_do_table", "ip6t_do_table"];
/// The function that walks a base chain of nftables. It or one of [`TABLE_FUNCTIONS`] has to be there.
pub const CHAIN_FUNCTION: &str = "nft_do_chain";
/// The process namespace of this process.
const PIDS: &str = "/proc/self/ns/pid";
/// The host's, `PROC_PID_INIT_INO` in `include/linux/proc_ns.h`.
const HOST_PIDS: &str = "pid:[4026531836]";
/// What brings legacy tables.
pub const LOAD_TABLES: &str = "`modprobe -a ip_tables ip6_tables`, or load rules with iptables-legacy";
/// What brings one or the other.
pub const LOAD_RULES: &str = "load rules, with nft, iptables-nft or iptables-legacy";
/// A variable that the probes read, with any kind of rules.
pub const PER_CPU_OFFSET: &str = "__per_cpu_offset";
/// A variable that the probes read where there are legacy tables. It comes with their module.
pub const SEQUENCE: &str = "xt_recseq";

/// Whether `/proc` shows the processes of the whole host.
pub fn sees_all_processes() -> bool {
    fs::read_link(PIDS).is_ok_and(|link| link == Path::new(HOST_PIDS))
}

/// Whether the kernel takes programs of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tried {
    /// Nobody asked.
    #[default]
    NotTried,
    /// The kernel took them.
    Works,
    /// It did not, for this reason.
    Refused(String),
}

/// Facts about this host, gathered once. What cannot be read is `None` or absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Whether the kernel programs are part of this program.
    pub programs: bool,
    /// Why the layout of the kernel's structures is not known; empty when it is, or when nobody asked.
    pub layout: Vec<String>,
    /// Whether the kernel takes fentry and fexit programs at its table functions.
    pub fentry: Tried,
    /// Whether it takes one program at their entry and return, where it does not take those.
    pub session: Tried,
    /// `uname -r`
    pub release: String,
    /// The architecture of this program, and so of the kernel: programs are not built for 32 bits.
    pub arch: String,
    /// What this process may do.
    pub privileges: Privileges,
    /// `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// `kernel.perf_event_paranoid`
    pub perf_event_paranoid: Option<i32>,
    /// `kernel.ftrace_enabled`
    pub ftrace_enabled: Option<bool>,
    /// Whether the kernel describes its types.
    pub vmlinux_btf: bool,
    /// Those of [`TABLE_MODULES`] that describe their types.
    pub module_btf: BTreeSet<String>,
    /// Loaded modules.
    pub modules: BTreeSet<String>,
    /// The kernel's symbols, as far as they matter here.
    pub symbols: Symbols,
    /// Whether probes can be attached through perf.
    pub kprobe_pmu: bool,
    /// Whether probes can be attached through tracefs.
    pub kprobe_events: bool,
    /// What killed runs left in tracefs.
    pub leftovers: Vec<String>,
    /// Whether the kernel has BPF ring buffers.
    pub ring_buffer: Answer,
    /// CPUs that this kernel could ever have.
    pub possible_cpus: Option<u32>,
    /// Legacy tables in use in this network namespace, IPv4.
    pub ip_tables: Vec<String>,
    /// Legacy tables in use in this network namespace, IPv6.
    pub ip6_tables: Vec<String>,
    /// Legacy tables with rules in this network namespace; nobody looked when it is empty.
    pub legacy_rules: Vec<String>,
    /// Tables of nftables with rules in this network namespace; likewise.
    pub nft_rules: Vec<String>,
    /// What `nf_log.2` and `nf_log.10` of this network namespace say.
    pub loggers: Vec<String>,
    /// Whether there are other network namespaces that have a name or a process.
    pub other_namespaces: bool,
    /// Whether processes have other numbers here than on the host.
    pub in_container: bool,
    /// What `iptables-save --version` says.
    pub iptables_save: Option<String>,
    /// What `iptables-legacy-save --version` says.
    pub iptables_legacy_save: Option<String>,
}

/// What the kernel answered when something was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Yes,
    /// The kernel does not know it.
    No,
    /// This process may not try.
    #[default]
    Refused,
}

/// `/proc/kallsyms`, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// Whether addresses are shown.
    pub addresses: bool,
    /// Which of these functions and variables exist, and in which module; `None` is the kernel itself.
    pub found: BTreeMap<String, Option<String>>,
}

impl Host {
    /// Looks at the running kernel. For the caller to fill: [`Host::programs`], [`Host::layout`], [`Host::fentry`],
    /// [`Host::session`].
    pub fn gather() -> Self {
        let tracefs = Tracefs::find();
        Self {
            programs: false,
            layout: Vec::new(),
            fentry: Tried::NotTried,
            session: Tried::NotTried,
            // The system call, for it needs no /proc.
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            privileges: Privileges::gather(),
            lockdown: read("/sys/kernel/security/lockdown").and_then(|text| chosen(&text)),
            perf_event_paranoid: sysctl("perf_event_paranoid"),
            ftrace_enabled: sysctl::<u8>("ftrace_enabled").map(|value| value != 0),
            vmlinux_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            module_btf: TABLE_MODULES.into_iter().filter(|name| has_btf(name)).map(str::to_owned).collect(),
            modules: read("/proc/modules").map(|text| first_words(&text).collect()).unwrap_or_default(),
            symbols: Symbols::gather(),
            kprobe_pmu: Path::new("/sys/bus/event_source/devices/kprobe/type").exists(),
            kprobe_events: tracefs.is_some(),
            leftovers: tracefs.map(|tracefs| leftovers(&tracefs)).unwrap_or_default(),
            ring_buffer: try_ring_buffer(),
            possible_cpus: read("/sys/devices/system/cpu/possible").and_then(|text| count_cpus(&text)),
            ip_tables: table_names("/proc/net/ip_tables_names"),
            ip6_tables: table_names("/proc/net/ip6_tables_names"),
            legacy_rules: Vec::new(),
            nft_rules: Vec::new(),
            loggers: ["2", "10"].into_iter().filter_map(logger).collect(),
            other_namespaces: netns::list().len() > 1,
            in_container: fs::read_link(PIDS).is_ok_and(|link| link != Path::new(HOST_PIDS)),
            iptables_save: version_of("iptables-save"),
            iptables_legacy_save: version_of("iptables-legacy-save"),
        }
    }

    /// Whether the code of legacy tables is in the kernel, as a module or built in.
    pub fn has_legacy_code(&self) -> bool {
        TABLE_FUNCTIONS.into_iter().any(|name| self.symbols.found.contains_key(name))
    }

    /// Whether that of nftables is.
    pub fn has_chain_code(&self) -> bool {
        self.symbols.found.contains_key(CHAIN_FUNCTION)
    }
}

/// Whether nftables is in the kernel, as a loaded module or built in. Asking loads nothing.
pub fn has_nftables() -> bool {
    // A kernel without modules has none to load.
    is_loaded(&["nf_tables"], &[CHAIN_FUNCTION]).unwrap_or(true)
}

/// Whether legacy tables are, likewise.
pub fn has_legacy_tables() -> bool {
    is_loaded(&["ip_tables", "ip6_tables"], &TABLE_FUNCTIONS).unwrap_or(true)
}

/// Whether bridges may show their packets to the hooks of IP, which know them by other devices.
pub fn has_bridge_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge").exists()
}

/// Whether one of these modules is loaded, or one of these functions built in; `None` where there are no modules.
fn is_loaded(modules: &[&str], functions: &[&str]) -> Option<bool> {
    let loaded = read("/proc/modules")?;
    let found = first_words(&loaded).any(|name| modules.contains(&name.as_str()));
    let is_built_in = |name| matches!(built_in().found.get(name), Some(None));
    Some(found || functions.iter().any(|name| is_built_in(*name)))
}

/// What is in the kernel itself stays there, and it takes long to read all symbols: asked once.
fn built_in() -> &'static Symbols {
    static SYMBOLS: OnceLock<Symbols> = OnceLock::new();
    SYMBOLS.get_or_init(Symbols::gather)
}

impl Symbols {
    fn gather() -> Self {
        fs::read("/proc/kallsyms").map(|bytes| Self::parse(&bytes)).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut symbols = Self::default();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        for symbol in kallsyms::symbols(bytes) {
            symbols.addresses = symbols.addresses || symbol.address().is_some();
            let is = |name: &&str| name.as_bytes() == symbol.name;
            if TABLE_FUNCTIONS.iter().any(is) || [CHAIN_FUNCTION, PER_CPU_OFFSET, SEQUENCE].iter().any(is) {
                symbols.found.insert(text(symbol.name), symbol.module.map(text));
            }
        }
        symbols
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn sysctl<T: std::str::FromStr>(name: &str) -> Option<T> {
    read(&format!("/proc/sys/kernel/{name}"))?.trim().parse().ok()
}

/// What TRACE of a family goes to in this network namespace, such as `nf_log.2: NONE`.
fn logger(family: &str) -> Option<String> {
    let value = read(&format!("/proc/sys/net/netfilter/nf_log/{family}"))?;
    Some(format!("nf_log.{family}: {}", value.trim_end()))
}

fn has_btf(module: &str) -> bool {
    Path::new("/sys/kernel/btf").join(module).exists()
}

/// CPUs that are in use.
pub fn online_cpus() -> Option<u32> {
    read("/sys/devices/system/cpu/online").and_then(|text| count_cpus(&text))
}

fn first_words(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned)
}

fn table_names(path: &str) -> Vec<String> {
    read(path).map(|text| first_words(&text).collect()).unwrap_or_default()
}

fn leftovers(tracefs: &Tracefs) -> Vec<String> {
    tracefs.leftovers().unwrap_or_default().iter().map(Event::to_string).collect()
}

/// The word in brackets: `none [integrity] confidentiality`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// `0-3,8-9` is six.
fn count_cpus(text: &str) -> Option<u32> {
    text.trim().split(',').try_fold(0_u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// The first line of `PROGRAM --version`, if it is one: old versions do not know the option and print rules.
fn version_of(program: &str) -> Option<String> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(":/usr/sbin:/sbin"));
    let mut command = Command::new(program);
    command.arg("--version").env("PATH", path).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned();
    line.starts_with("iptables").then_some(line)
}

/// Makes a ring buffer map and throws it away.
fn try_ring_buffer() -> Answer {
    match make_ring_buffer() {
        Ok(()) => Answer::Yes,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Answer::Refused,
        Err(_) => Answer::No,
    }
}

#[expect(unsafe_code, reason = "neither the standard library nor rustix has bpf(2)")]
fn make_ring_buffer() -> io::Result<()> {
    use std::os::fd::{FromRawFd as _, OwnedFd};
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_RINGBUF: u32 = 27;
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = u32::try_from(page).unwrap_or(4096);
    // The start of `union bpf_attr`: map_type, key_size, value_size, max_entries; the kernel takes the rest as zero.
    let attr: [u32; 12] = [BPF_MAP_TYPE_RINGBUF, 0, 0, page, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the kernel reads `size_of_val(&attr)` bytes of `attr` and writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attr, size_of_val(&attr)) };
    let fd = libc::c_int::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: BPF_MAP_CREATE returns a new file descriptor that nothing else owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,8-9\n"), Some(6));
        for wrong in ["", "a", "3-1", "0-4294967295"] {
            assert_eq!(count_cpus(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_chosen_word_is_found() {
        assert_eq!(chosen("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(chosen("none\n"), None);
    }

    #[test]
    fn symbols_are_read() {
        let text = "ffffffff81000000 T _text\nffffffffc0500000 t ipt_do_table\t[ip_tables]\n\
                    0000000000017d20 A __per_cpu_offset\n";
        let symbols = Symbols::parse(text.as_bytes());
        assert!(symbols.addresses);
        assert_eq!(symbols.found.get("ipt_do_table"), Some(&Some("ip_tables".to_owned())));
        assert_eq!(symbols.found.get("__per_cpu_offset"), Some(&None));
        let hidden = Symbols::parse(b"0000000000000000 T _text\n");
        assert_eq!(hidden, Symbols::default());
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let host = Host::gather();
        assert!(!host.release.is_empty() && host.possible_cpus.is_some(), "{host:?}");
    }
}
