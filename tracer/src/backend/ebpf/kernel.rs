//! What the running kernel says about itself: BTF, symbols, release.

use super::ending::Reasons;
use super::offsets::{self, Layout, Reason, Symbols, Unresolved};
use super::symbols::Functions;
use super::{PRIVILEGES, not_permitted};
use super::{kfunc, session};
use crate::btf::{self, Btf};
use crate::sys::kernel::LOAD_RULES;
use crate::trace_line::LogStyle;
use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};
use thiserror::Error;
use tracer_common::config::ArgumentOrder;

/// Where the kernel shows its BTF.
const BTF_FOLDER: &str = "/sys/kernel/btf";
/// Modules whose structures and functions are looked at.
const MODULES: [&str; 6] = ["x_tables", "ip_tables", "ip6_tables", "arp_tables", "nf_conntrack", "nf_tables"];

/// The functions that drop packets on behalf of others: of functions at hooks, and of user space.
const DROPPERS: [&str; tracer_common::ending::DROPPERS] = [HOOKS_DROP, "nf_reinject", "nfqnl_reinject"];
/// What drops a packet where a function at a hook says so.
pub const HOOKS_DROP: &str = "nf_hook_slow";

/// The functions that walk a table, or a base chain.
const TABLE_FUNCTIONS: [&str; 3] = ["ipt_do_table", "ip6t_do_table", "arpt_do_table"];
const CHAIN_FUNCTIONS: [&str; 2] = ["nft_do_chain", "__nft_trace_packet"];

/// Why the kernel cannot be traced.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Its BTF is broken.
    #[error("cannot understand {path}: {source}")]
    Btf {
        /// Which.
        path: String,
        /// Why.
        source: btf::Error,
    },
    /// It is not one of those that can be traced.
    #[error(transparent)]
    Layout(#[from] Unresolved),
    /// `xt_recseq` is not among the symbols.
    #[error("/proc/kallsyms has no xt_recseq: traversals that disturb each other could not be told apart")]
    NoSequence,
    /// With one possible CPU the counters lie in the rules themselves.
    #[error("this kernel runs on one possible CPU and keeps its counters where the probes do not look")]
    OneCpu,
    /// The switch that keeps probes from firing.
    #[error("kernel.ftrace_enabled is 0: probes could be placed and would never fire")]
    FtraceOff,
}

impl Error {
    /// Whether this host can do nothing about it while it is as it is.
    pub fn unusable(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound || not_permitted(source),
            Self::Btf { .. } | Self::Layout(_) | Self::NoSequence | Self::OneCpu | Self::FtraceOff => true,
        }
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::Read { path, source }
                if path.starts_with(BTF_FOLDER) && source.kind() == io::ErrorKind::NotFound =>
            {
                "use a kernel with CONFIG_DEBUG_INFO_BTF"
            }
            Self::Layout(Unresolved(reasons)) => reasons.iter().find_map(layout_remedy)?,
            Self::NoSequence => "use a kernel with CONFIG_KALLSYMS_ALL",
            Self::OneCpu => "give a virtual machine a second CPU, or room for one",
            Self::FtraceOff => "`sysctl kernel.ftrace_enabled=1`",
            Self::Read { source, .. } if not_permitted(source) => PRIVILEGES,
            Self::Read { .. } | Self::Btf { .. } => return None,
        };
        Some(remedy.to_owned())
    }
}

fn layout_remedy(reason: &Reason) -> Option<&'static str> {
    match reason {
        Reason::NotLoaded => Some(LOAD_RULES),
        Reason::HiddenAddresses => Some("run it as root, or `sysctl kernel.kptr_restrict=1`"),
        Reason::NoSymbol { .. } => Some("use a kernel with CONFIG_KALLSYMS_ALL"),
        _ => None,
    }
}

/// The running kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Where its fields are.
    pub layout: Layout,
    /// Which functions it has.
    pub symbols: Symbols,
    /// How it writes the lines of its log.
    pub log_style: LogStyle,
    /// All its functions; none where nobody asked for them.
    pub functions: Functions,
    /// Its reasons for dropping packets.
    pub reasons: Reasons,
    /// Functions that packets pass and that programs can be placed at without kprobes.
    pub typed: BTreeMap<&'static str, TypedTarget>,
    /// What programs of a kprobe.session need, or what of it this kernel lacks.
    pub session: Result<session::Ids, session::Absent>,
    /// What programs call.
    pub kfuncs: kfunc::Ids,
}

/// A function as BTF describes it, with the arguments that the programs for it expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedTarget {
    /// Its module; `None` when it is part of the kernel.
    pub module: Option<String>,
    /// Its id there.
    pub id: u32,
}

impl Kernel {
    /// Asks the running kernel.
    pub fn ask() -> Result<Self, Error> {
        Self::ask_for(false)
    }

    /// Asks the running kernel, for all its functions too if need be: there are a hundred thousand.
    pub fn ask_for(functions: bool) -> Result<Self, Error> {
        if possible_cpus()? < 2 {
            return Err(Error::OneCpu);
        }
        // Kernels without ftrace have no switch.
        if fs::read("/proc/sys/kernel/ftrace_enabled").is_ok_and(|text| text.trim_ascii() == b"0") {
            return Err(Error::FtraceOff);
        }
        let kallsyms = read("/proc/kallsyms")?;
        let symbols = Symbols::parse(&kallsyms);
        let functions = if functions { Functions::parse(&kallsyms) } else { Functions::default() };
        drop(kallsyms);
        let vmlinux_path = format!("{BTF_FOLDER}/vmlinux");
        let vmlinux_bytes = read(&vmlinux_path)?;
        let vmlinux =
            Btf::parse(&vmlinux_bytes).map_err(|source| Error::Btf { path: vmlinux_path, source })?;
        let module_bytes: Vec<(String, Vec<u8>)> = MODULES
            .iter()
            .map(|module| format!("{BTF_FOLDER}/{module}"))
            .filter(|path| Path::new(path).exists())
            .map(|path| read(&path).map(|bytes| (path, bytes)))
            .collect::<Result<_, _>>()?;
        let modules: Vec<Btf<'_>> = module_bytes
            .iter()
            .map(|(path, bytes)| {
                Btf::parse_split(bytes, &vmlinux).map_err(|source| Error::Btf { path: path.clone(), source })
            })
            .collect::<Result<_, _>>()?;
        let uname = rustix::system::uname();
        let kernel = offsets::Kernel {
            release: &uname.release().to_string_lossy(),
            version: &uname.version().to_string_lossy(),
            vmlinux: &vmlinux,
            modules: &modules,
        };
        let mut layout = offsets::resolve(&kernel, &symbols)?;
        for (range, name) in layout.ending.droppers.iter_mut().zip(DROPPERS) {
            *range = functions.range(name).unwrap_or_default();
        }
        let names = module_bytes.iter().map(|(path, _)| path.rsplit('/').next().map(str::to_owned));
        let tables = layout.argument_order == ArgumentOrder::TableSkbState;
        let typed = typed(&vmlinux, names.zip(&modules), tables);
        let reasons = Reasons::of(&vmlinux);
        let kfuncs = kfunc::Ids::of(&vmlinux);
        let session = session::Ids::of(&vmlinux, &symbols, &kfuncs);
        let log_style = log_style_of(&vmlinux);
        Ok(Self { layout, symbols, functions, reasons, log_style, typed, session, kfuncs })
    }
}

/// The functions in BTF; the table functions only if `tables`. The prototypes have been looked at when the argument
/// order and what tells of verdicts were found; that of `nft_do_chain` never changed.
fn typed<'a>(
    vmlinux: &'a Btf<'a>,
    modules: impl Iterator<Item = (Option<String>, &'a Btf<'a>)>,
    tables: bool,
) -> BTreeMap<&'static str, TypedTarget> {
    let mut found = BTreeMap::new();
    for (module, btf) in std::iter::once((None, vmlinux)).chain(modules) {
        for name in TABLE_FUNCTIONS.into_iter().filter(|_| tables).chain(CHAIN_FUNCTIONS) {
            if let Some(id) = btf.named(btf::Kind::Func, name).next() {
                found.entry(name).or_insert(TypedTarget { module: module.clone(), id: id.0 });
            }
        }
    }
    found
}

/// How the running kernel writes the lines of its log; `None` when it does not describe its types.
pub fn log_style() -> Option<LogStyle> {
    let bytes = read(&format!("{BTF_FOLDER}/vmlinux")).ok()?;
    Btf::parse(&bytes).ok().map(|vmlinux| log_style_of(&vmlinux))
}

fn log_style_of(vmlinux: &Btf<'_>) -> LogStyle {
    let tcp_header = vmlinux.find(btf::Kind::Struct, "tcphdr");
    LogStyle::of_tcp_header(tcp_header.is_ok_and(|header| vmlinux.member(header, "ae").is_ok()))
}

/// Possible CPUs, not those that are online: the kernel decides by them where counters lie.
pub(super) fn possible_cpus() -> Result<usize, Error> {
    let path = "/sys/devices/system/cpu/possible";
    let text = read(path)?;
    // `0-3`, `0`, `0,2-5`
    let last = String::from_utf8_lossy(&text)
        .trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|number| number.parse().ok());
    Ok(last.map_or(1, |last: usize| last + 1))
}

fn read(path: &str) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}
