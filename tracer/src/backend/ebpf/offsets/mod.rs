//! From BTF and kernel symbols to what the programs must know of this kernel.
//!
//! Pure: the caller reads `/sys/kernel/btf/*`, `/proc/kallsyms` and `uname`. Nothing is guessed. A field is where BTF
//! says, as wide as the programs read it, or there is a [`Reason`]. The release decides nothing, except that kernels
//! without module BTF need a row in [`KNOWN`], and even there vmlinux's BTF has to agree.
#![forbid(unsafe_code)]

use crate::btf::{self, Btf, Kind, Member, Prototype, TypeId};
use crate::kallsyms;
use std::collections::BTreeMap;
use std::fmt;
use tracer_common::config::ArgumentOrder;
use tracer_common::ending::EndingConfig;
use tracer_common::nft::NftConfig;
use tracer_common::offsets::{ABSENT, FIELDS, Field, Offsets};
use tracer_common::sender::SenderConfig;

pub(super) mod ending;
pub mod choice;
mod nft;
mod sender;
#[cfg(test)]
mod tests;

/// What the programs must know of this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Byte offsets of fields, [`ABSENT`] for those in `absent`.
    pub offsets: Offsets,
    /// Where the table functions take their arguments, from their prototypes.
    pub argument_order: ArgumentOrder,
    /// Width of `nf_hook_state.hook`: 4 before Linux 5.17 and its backports, 1 since.
    pub state_hook_bytes: u32,
    /// Where the counters are.
    pub counters: Counters,
    /// Fields that this kernel does not have and that a trace can do without: connection and owner of a packet.
    pub absent: Vec<Reason>,
    /// What is read of nftables, or why that cannot be.
    pub nft: Result<NftConfig, Unresolved>,
    /// What tells how packets end.
    pub ending: EndingConfig,
    /// What is read where packets are chosen by more than a filter.
    pub choice: choice::Choice,
    /// What tells who sends a packet.
    pub sender: SenderConfig,
}

/// Addresses of per-CPU data, from the kernel's symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Of the array `__per_cpu_offset`: what to add to a per-CPU address, one u64 for each possible CPU.
    pub per_cpu_offset: u64,
    /// Per-CPU address of the u32 `xt_recseq`, which is odd while a CPU is inside a table. Without it some interleaved
    /// traversals cannot be told apart.
    pub recseq: Option<u64>,
}

/// The running kernel's description of itself.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// `uname -r`. Only a key to [`KNOWN`].
    pub release: &'a str,
    /// `uname -v`, where distributions put their name. Only a key to [`KNOWN`].
    pub version: &'a str,
    /// `/sys/kernel/btf/vmlinux`.
    pub vmlinux: &'a Btf<'a>,
    /// `/sys/kernel/btf/MODULE` of `x_tables`, `ip_tables`, `ip6_tables`, `arp_tables`, `nf_conntrack`, `nf_tables`,
    /// those that are there.
    pub modules: &'a [Btf<'a>],
}

/// What `/proc/kallsyms` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// All addresses read as zero, see `kernel.kptr_restrict`.
    pub hidden: bool,
    /// Address of `__per_cpu_offset`.
    pub per_cpu_offset: Option<u64>,
    /// Per-CPU address of `xt_recseq`.
    pub recseq: Option<u64>,
    /// Per-CPU address of `__preempt_count`.
    pub preempt_count: Option<u64>,
    /// Per-CPU address of `pcpu_hot`, which has the preempt count where that is no variable of its own.
    pub pcpu_hot: Option<u64>,
    /// Kernel code can be preempted: `preempt_schedule` exists. Where preemption is chosen at boot it may still be off.
    pub preemption: bool,
    /// Return probes use rethook: `arch_rethook_trampoline` exists.
    pub rethook: bool,
    /// One program can be placed at many functions: `register_fprobe_ips` exists.
    pub fprobe: bool,
    /// `xt_replace_table` exists.
    pub replace_table: bool,
    /// `ipt_do_table` exists.
    pub ipt_do_table: bool,
    /// `ip6t_do_table` exists.
    pub ip6t_do_table: bool,
    /// `arpt_do_table` exists.
    pub arpt_do_table: bool,
    /// `xt_copy_counters` exists.
    pub copy_counters: bool,
    /// `nft_do_chain` exists: nf_tables is there.
    pub nft_do_chain: bool,
    /// `__nft_trace_packet` exists.
    pub nft_trace_packet: bool,
    /// `nf_tables_commit` exists.
    pub nf_tables_commit: bool,
    /// `nf_reinject` exists, as a function of its own.
    pub nf_reinject: bool,
    /// `nfqnl_reinject` exists, likewise: what calls the other.
    pub nfqnl_reinject: bool,
    /// `__nf_conntrack_confirm` exists: conntrack is there.
    pub conntrack_confirm: bool,
}

/// Something that this kernel does not tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No BTF has a structure.
    #[error("no BTF describes struct {structure}")]
    NoStructure {
        /// The structure, without `struct`.
        structure: &'static str,
    },
    /// A field could not be placed.
    #[error("struct {structure}, field {path}: {cause}")]
    Field {
        /// The structure, without `struct`.
        structure: &'static str,
        /// The field in it.
        path: &'static str,
        /// What is wrong.
        cause: Cause,
    },
    /// A table function takes other arguments than any known kernel's.
    #[error("{function} has an unknown prototype: {prototype}")]
    Prototype {
        /// The function.
        function: &'static str,
        /// What BTF says.
        prototype: String,
    },
    /// The table functions of one kernel differ.
    #[error("{function} takes its arguments in another order than its siblings")]
    Disagree {
        /// The one that differs from those before.
        function: &'static str,
    },
    /// No module with rules is there, so there is nothing to look at either.
    #[error("neither legacy tables nor nftables are in the kernel")]
    NotLoaded,
    /// Module BTF is missing, and so is a row for this kernel.
    #[error("no BTF has a prototype of ipt_do_table, and {release} ({version}) is not known without it")]
    UnknownKernel {
        /// `uname -r`
        release: String,
        /// `uname -v`
        version: String,
    },
    /// The same for nftables.
    #[error(
        "no BTF has a prototype of __nft_trace_packet, and {release} ({version}) is not known without it"
    )]
    UnknownNftables {
        /// `uname -r`
        release: String,
        /// `uname -v`
        version: String,
    },
    /// There is a row for this kernel, but it is another kernel after all.
    #[error("{release} is not the known kernel of that name: struct {structure}, field {path} is different")]
    Disproved {
        /// `uname -r`
        release: String,
        /// The structure, without `struct`.
        structure: &'static str,
        /// The field in it.
        path: &'static str,
    },
    /// No addresses can be seen.
    #[error("/proc/kallsyms shows no addresses; CAP_SYSLOG is needed and kernel.kptr_restrict below 2")]
    HiddenAddresses,
    /// A symbol is missing.
    #[error("/proc/kallsyms has no {symbol}: {loss}")]
    NoSymbol {
        /// The symbol.
        symbol: &'static str,
        /// What cannot be had without it.
        loss: &'static str,
    },
    /// A symbol is somewhere else than when the layout was resolved: its module was loaded anew.
    #[error("{symbol} has moved")]
    Moved {
        /// The symbol.
        symbol: &'static str,
    },
}

impl Reason {
    fn no_structure(field: &Field) -> Self {
        Self::NoStructure { structure: field.structure }
    }
}

/// Why a field could not be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// BTF says no.
    #[error(transparent)]
    Btf(#[from] btf::Error),
    /// It is not made of whole bytes.
    #[error("it is a bit field")]
    BitField,
    /// It is not as wide as the programs read it.
    #[error("it has {bytes} bytes, not {}", join(.expected))]
    Width {
        /// What it is.
        bytes: u32,
        /// What it may be.
        expected: &'static [u32],
    },
    /// The structure is described several times, and not the same way.
    #[error("it is in several places: different structures have that name")]
    Ambiguous,
}

fn join(widths: &[u32]) -> String {
    widths.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ")
}

/// Everything that keeps a kernel from being traced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Unresolved(pub Vec<Reason>);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this kernel's structures are not known")?;
        self.0.iter().try_for_each(|reason| write!(f, "; {reason}"))
    }
}

/// Finds out what the programs must know, or says all that is missing.
pub fn resolve(kernel: &Kernel<'_>, symbols: &Symbols) -> Result<Layout, Unresolved> {
    let mut missing = Vec::new();
    let mut absent = Vec::new();
    let nft = nft::resolve(kernel);
    let loaded = symbols.has_legacy() || symbols.arpt_do_table;
    let only_nftables = !loaded && symbols.nft_do_chain && nft.is_ok();
    match &nft {
        Err(Unresolved(reasons)) if !loaded && symbols.nft_do_chain => missing.clone_from(reasons),
        _ if loaded || only_nftables => {}
        _ => missing.push(Reason::NotLoaded),
    }

    let definitions = kernel.definitions(FIELDS);
    let mut offsets = [ABSENT; FIELDS.len()];
    let mut state_hook_bytes = 0;
    for (field, offset) in FIELDS.iter().zip(&mut offsets) {
        match definitions
            .get(field.structure)
            .map_or(Err(Reason::no_structure(field)), |all| place(all, field, widths(field)))
        {
            Ok(place) => {
                *offset = place.offset;
                if field.name == "state_hook" {
                    state_hook_bytes = place.bytes;
                }
            }
            // Has been said, for the field before or for the whole module.
            Err(reason) if missing.contains(&reason) || absent.contains(&reason) => {}
            Err(Reason::NoStructure { .. }) if !loaded && LEGACY.contains(&field.structure) => {}
            Err(reason) if optional(field) => absent.push(reason),
            Err(reason) => missing.push(reason),
        }
    }

    let order = match argument_order(kernel) {
        Ok(None) if loaded => known_order(kernel).map_err(|reason| missing.push(reason)).ok(),
        // Nothing asks for it.
        Ok(None) if only_nftables => Some(ArgumentOrder::TableSkbState),
        Ok(order) => order,
        Err(reason) => {
            missing.push(reason);
            None
        }
    };
    let counters = Counters::find(symbols).map_err(|reason| missing.push(reason)).ok();
    match (order, counters) {
        (Some(argument_order), Some(counters)) if missing.is_empty() => {
            let offsets = zerocopy::transmute!(offsets);
            let (ending, choice) = (ending::resolve(kernel), choice::resolve(kernel));
            let sender = sender::resolve(kernel, symbols);
            Ok(Layout {
                offsets,
                argument_order,
                state_hook_bytes,
                counters,
                absent,
                nft,
                ending,
                choice,
                sender,
            })
        }
        _ => Err(Unresolved(missing)),
    }
}

impl Layout {
    /// What these symbols take away from a trace that is possible all the same; also tells, after modules came or
    /// went, whether the layout still holds.
    pub fn check(&self, symbols: &Symbols) -> Vec<Reason> {
        let mut reasons = Vec::new();
        match (self.counters.recseq, symbols.recseq) {
            (_, None) => {
                let loss = "a traversal that another one interrupts on its CPU is not always noticed";
                reasons.push(Reason::NoSymbol { symbol: RECSEQ, loss });
            }
            (before, now) if before != now => reasons.push(Reason::Moved { symbol: RECSEQ }),
            _ => {}
        }
        if symbols.per_cpu_offset != Some(self.counters.per_cpu_offset) {
            reasons.push(Reason::Moved { symbol: PER_CPU_OFFSET });
        }
        if !symbols.replace_table {
            let loss = "two replacements of a table during one traversal are not noticed";
            reasons.push(Reason::NoSymbol { symbol: "xt_replace_table", loss });
        }
        reasons
    }
}

const PER_CPU_OFFSET: &str = "__per_cpu_offset";
const RECSEQ: &str = "xt_recseq";

impl Counters {
    fn find(symbols: &Symbols) -> Result<Self, Reason> {
        if symbols.hidden {
            return Err(Reason::HiddenAddresses);
        }
        let loss = "the rules' counters cannot be read; the kernel needs KALLSYMS_ALL";
        let per_cpu_offset =
            symbols.per_cpu_offset.ok_or(Reason::NoSymbol { symbol: PER_CPU_OFFSET, loss })?;
        Ok(Self { per_cpu_offset, recseq: symbols.recseq })
    }
}

/// Structures of `x_tables`. Where it is a module only its own BTF describes them, except on 5.10.
const LEGACY: [&str; 2] = ["xt_table", "xt_table_info"];

/// What a packet's connection and owner are told from, and the rules' generation: kernels can be built without the
/// first and the last, and the owner is an extra.
fn optional(field: &Field) -> bool {
    matches!(field.name, "skb_nfct" | "net_gencursor")
        || matches!(field.structure, "nf_conn" | "sock" | "socket" | "file" | "cred")
}

/// How many bytes a field may have; none for any number. Pointers and kernel `long`s are the rest.
fn widths(field: &Field) -> &'static [u32] {
    match field.name {
        "state_hook" => &[1, 4],
        "state_pf" | "sock_state" | "table_af" | "net_gencursor" => &[1],
        "skb_protocol" | "skb_network_header" | "skb_mac_header" | "dev_type" | "dev_hard_header_len" => &[2],
        "skb_len" | "skb_data_len" | "skb_mark" | "net_inum" | "dev_ifindex" | "cred_fsuid"
        | "cred_fsgid" => &[4],
        "info_size" | "info_number" => &[4],
        "dev_name" => &[16],
        "info_hook_entry" | "info_underflow" => &[20],
        "table_name" => &[32],
        // An array without a length.
        "info_entries" => &[0],
        _ => &[8],
    }
}

/// Definitions of a structure, all from one BTF.
type Definitions<'a> = Vec<(&'a Btf<'a>, TypeId)>;

impl<'a> Kernel<'a> {
    fn sources(&self) -> impl Iterator<Item = &'a Btf<'a>> + use<'a> {
        std::iter::once(self.vmlinux).chain(self.modules)
    }

    /// All structures of these fields that are described, those of vmlinux before those of modules.
    fn definitions(&self, fields: &'static [Field]) -> BTreeMap<&'static str, Definitions<'a>> {
        let structures = fields.chunk_by(|field, next| field.structure == next.structure);
        let named = structures.filter_map(|fields| {
            let structure = fields.first()?.structure;
            let of = |btf: &'a Btf<'a>| -> Definitions<'a> {
                btf.named(Kind::Struct, structure).map(|id| (btf, id)).collect()
            };
            let definitions = self.sources().map(of).find(|definitions| !definitions.is_empty())?;
            Some((structure, definitions))
        });
        named.collect()
    }
}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: u32,
    bytes: u32,
}

/// The one place of a field in all definitions of its structure that have it.
fn place(definitions: &Definitions<'_>, field: &Field, widths: &'static [u32]) -> Result<Place, Reason> {
    let member = member(definitions, field)?;
    let cause = |cause| Reason::Field { structure: field.structure, path: field.path, cause };
    in_bytes(&member, widths).map_err(cause)
}

/// A field as all definitions of its structure that have it describe it.
fn member(definitions: &Definitions<'_>, field: &Field) -> Result<Member, Reason> {
    let cause = |cause| Reason::Field { structure: field.structure, path: field.path, cause };
    let mut members = Vec::new();
    let mut error = None;
    for (btf, id) in definitions {
        match btf.member(*id, field.path) {
            Ok(member) => members.push(member),
            Err(first) => error = error.or(Some(first)),
        }
    }
    let same = |pair: &[Member]| {
        pair[0].offset_bits == pair[1].offset_bits && pair[0].size_bits == pair[1].size_bits
    };
    match (members.first(), error) {
        (Some(member), _) if members.windows(2).all(same) => Ok(*member),
        (Some(_), _) => Err(cause(Cause::Ambiguous)),
        (None, Some(error)) => Err(cause(error.into())),
        (None, None) => Err(Reason::no_structure(field)),
    }
}

fn in_bytes(member: &Member, expected: &'static [u32]) -> Result<Place, Cause> {
    let (Some(offset), Some(bytes)) = (member.offset_bytes(), member.size_bytes()) else {
        return Err(Cause::BitField);
    };
    match expected.contains(&bytes) || expected.is_empty() {
        true => Ok(Place { offset, bytes }),
        false => Err(Cause::Width { bytes, expected }),
    }
}

/// The order that the prototypes of all table functions agree on; none if no BTF describes them.
fn argument_order(kernel: &Kernel<'_>) -> Result<Option<ArgumentOrder>, Reason> {
    let mut agreed = None;
    for function in ["ipt_do_table", "ip6t_do_table", "arpt_do_table"] {
        let prototypes = kernel.sources().flat_map(|btf| {
            let ids = btf.named(Kind::Func, function);
            ids.filter_map(|id| btf.prototype(id).ok()).collect::<Vec<_>>()
        });
        for prototype in prototypes {
            let order = order_of(&prototype)
                .ok_or_else(|| Reason::Prototype { function, prototype: prototype.to_string() })?;
            if *agreed.get_or_insert(order) != order {
                return Err(Reason::Disagree { function });
            }
        }
    }
    Ok(agreed)
}

fn order_of(prototype: &Prototype<'_>) -> Option<ArgumentOrder> {
    let types: Vec<&str> = prototype.params.iter().map(|param| param.type_name.as_str()).collect();
    match types[..] {
        ["void *" | "struct xt_table *", "struct sk_buff *", "const struct nf_hook_state *"] => {
            Some(ArgumentOrder::TableSkbState)
        }
        ["struct sk_buff *", "const struct nf_hook_state *", "struct xt_table *"] => {
            Some(ArgumentOrder::SkbStateTable)
        }
        _ => None,
    }
}

/// A kernel whose modules have no BTF, so that nothing describes the table functions.
struct Known {
    /// How its release starts.
    release: &'static str,
    /// What its version contains.
    vendor: &'static str,
    argument_order: ArgumentOrder,
    /// What vmlinux's BTF says of this kernel and not of others.
    facts: &'static [Fact],
}

/// A field that has to be there.
struct Fact {
    structure: &'static str,
    path: &'static str,
    /// Offset in bytes, where it matters.
    offset: Option<u32>,
    bytes: u32,
}

/// Kernels known without module BTF.
const KNOWN: &[Known] = &[
    // Debian 11, the 64-bit flavours. Its vmlinux does describe `xt_table` and `xt_table_info`; the order is that of its
    // sources and of the code in ip_tables.ko 5.10.262-1.
    Known {
        release: "5.10.",
        vendor: "Debian",
        argument_order: ArgumentOrder::SkbStateTable,
        facts: &[
            Fact { structure: "nf_hook_state", path: "hook", offset: Some(0), bytes: 4 },
            Fact { structure: "nf_hook_state", path: "net", offset: Some(32), bytes: 8 },
            // As long as a namespace points to its tables, wrappers hand them to the table functions, last.
            Fact { structure: "netns_ipv4", path: "iptable_filter", offset: None, bytes: 8 },
        ],
    },
];

fn known_order(kernel: &Kernel<'_>) -> Result<ArgumentOrder, Reason> {
    let (release, version) = (kernel.release.to_owned(), kernel.version.to_owned());
    let known = KNOWN
        .iter()
        .find(|known| release.starts_with(known.release) && version.contains(known.vendor))
        .ok_or(Reason::UnknownKernel { release, version })?;
    match known.facts.iter().find(|fact| !fact.holds(kernel.vmlinux)) {
        None => Ok(known.argument_order),
        Some(Fact { structure, path, .. }) => {
            Err(Reason::Disproved { release: kernel.release.to_owned(), structure, path })
        }
    }
}

impl Fact {
    fn holds(&self, vmlinux: &Btf<'_>) -> bool {
        let member = vmlinux.find(Kind::Struct, self.structure).and_then(|id| vmlinux.member(id, self.path));
        member.is_ok_and(|member| {
            member.size_bytes() == Some(self.bytes)
                && member.offset_bytes().is_some_and(|offset| self.offset.is_none_or(|fact| fact == offset))
        })
    }
}

impl Symbols {
    /// Whether there are legacy tables of IPv4 or IPv6.
    pub fn has_legacy(&self) -> bool {
        self.ipt_do_table || self.ip6t_do_table
    }

    /// Reads `/proc/kallsyms`.
    pub fn parse(kallsyms: &[u8]) -> Self {
        let mut symbols = Self { hidden: true, ..Self::default() };
        for symbol in kallsyms::symbols(kallsyms) {
            symbols.hidden = symbols.hidden && symbol.address().is_none();
            match symbol.name {
                b"__per_cpu_offset" => symbols.per_cpu_offset = symbol.address(),
                b"xt_recseq" => symbols.recseq = symbol.address(),
                b"__preempt_count" => symbols.preempt_count = symbol.address(),
                b"pcpu_hot" => symbols.pcpu_hot = symbol.address(),
                b"preempt_schedule" => symbols.preemption = true,
                b"arch_rethook_trampoline" => symbols.rethook = true,
                b"register_fprobe_ips" => symbols.fprobe = true,
                b"xt_replace_table" => symbols.replace_table = true,
                b"ipt_do_table" => symbols.ipt_do_table = true,
                b"ip6t_do_table" => symbols.ip6t_do_table = true,
                b"arpt_do_table" => symbols.arpt_do_table = true,
                b"xt_copy_counters" => symbols.copy_counters = true,
                b"nft_do_chain" => symbols.nft_do_chain = true,
                b"__nft_trace_packet" => symbols.nft_trace_packet = true,
                b"nf_tables_commit" => symbols.nf_tables_commit = true,
                b"nf_reinject" => symbols.nf_reinject = true,
                b"nfqnl_reinject" => symbols.nfqnl_reinject = true,
                b"__nf_conntrack_confirm" => symbols.conntrack_confirm = true,
                _ => {}
            }
        }
        symbols
    }
}
