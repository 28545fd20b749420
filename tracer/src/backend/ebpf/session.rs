//! One program at the entry and the return of the table functions: kprobe.session, in Linux since 6.10.
//!
//! What the object has in place of the kernel's own functions and types is in [`tracer_common::kfunc`].

use super::kernel::Kernel;
use super::kfunc;
use super::offsets::Symbols;
use super::probes::{Probe, Session};
use super::typed::{self, Running};
use crate::btf::{Btf, Kind};
use crate::sys::bpf::{self, Attach, Refused};
use crate::sys::kernel::LOAD_RULES;
use aya_obj::generated::bpf_insn;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use thiserror::Error;
use tracer_common::kfunc::{HOOK_STATE, IS_RETURN, SKB};

/// What a kernel without kprobe.session lacks.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Absent {
    /// Programs at many functions at once.
    #[error("the kernel has no `register_fprobe_ips`")]
    Fprobe,
    /// Something that programs call, or look at.
    #[error("the kernel's BTF describes no `{0}`")]
    NotDescribed(&'static str),
}

/// BTF ids, in the kernel's own BTF, of what the programs call and look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    is_return: u32,
    skb: u32,
    hook_state: u32,
}

impl Ids {
    /// Looks for them.
    pub fn of(vmlinux: &Btf<'_>, symbols: &Symbols, kfuncs: &kfunc::Ids) -> Result<Self, Absent> {
        if !symbols.fprobe {
            return Err(Absent::Fprobe);
        }
        if kfuncs.cast.is_none() {
            return Err(Absent::NotDescribed("bpf_rdonly_cast"));
        }
        let id = |kind, name| Ok(vmlinux.find(kind, name).map_err(|_| Absent::NotDescribed(name))?.0);
        Ok(Self {
            is_return: id(Kind::Func, "bpf_session_is_return")?,
            skb: id(Kind::Struct, "sk_buff")?,
            hook_state: id(Kind::Struct, "nf_hook_state")?,
        })
    }
}

/// Why a kprobe.session cannot run.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel is older, or was built without it.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// It is for the table functions alone.
    #[error("no legacy table is loaded, and it is for these alone")]
    NoTables,
    /// The object was refused as a whole.
    #[error(transparent)]
    Object(#[from] typed::Error),
    /// A program was refused.
    #[error("the kernel refuses program `{program}`: {}; {}", .refused.source, .refused.words)]
    Load {
        /// Which.
        program: &'static str,
        /// Why.
        refused: Refused,
    },
    /// A program could not be attached.
    #[error("cannot attach `{program}` to {symbols}: {source}")]
    Attach {
        /// Which.
        program: &'static str,
        /// The kernel functions.
        symbols: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// What can be done about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Absent(_) => "use Linux 6.10 or later with CONFIG_FPROBE, or `--attach auto`",
            Self::NoTables => LOAD_RULES,
            Self::Object(_) | Self::Load { .. } | Self::Attach { .. } => "`--attach auto`",
        }
    }
}

/// A program, and those of its functions that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    name: &'static str,
    symbols: Vec<&'static CStr>,
}

impl Wanted {
    /// Those that do for some of these probes.
    pub fn instead_of(probes: &[&Probe], sessions: &[Session]) -> Vec<Self> {
        let wanted = sessions.iter().map(|session| {
            let is_there = |symbol: &CStr| probes.iter().any(|probe| symbol.to_str() == Ok(probe.symbol));
            let symbols = session.symbols.iter().copied().filter(|symbol| is_there(symbol)).collect();
            Self { name: session.name, symbols }
        });
        wanted.filter(|wanted| !wanted.symbols.is_empty()).collect()
    }

    /// Whether it does for a probe.
    pub fn stands_for(&self, probe: &Probe) -> bool {
        self.symbols.iter().any(|symbol| symbol.to_str() == Ok(probe.symbol))
    }
}

/// Runs the programs at their functions.
pub fn place(
    object: &[u8],
    loaded: &aya::Ebpf,
    kernel: &Kernel,
    sessions: &[Wanted],
) -> Result<Vec<Running>, Error> {
    load(object, loaded, kernel, sessions)?
        .into_iter()
        .zip(sessions)
        .map(|(program, Wanted { name, symbols })| {
            let link = bpf::attach_session(program.as_fd(), symbols).map_err(|source| Error::Attach {
                program: name,
                symbols: listed(symbols),
                source,
            })?;
            Ok(Running { link, program })
        })
        .collect()
}

/// Has the kernel look at the programs. None of them is placed.
pub fn load(
    object: &[u8],
    loaded: &aya::Ebpf,
    kernel: &Kernel,
    sessions: &[Wanted],
) -> Result<Vec<OwnedFd>, Error> {
    let ids = kernel.session?;
    if sessions.is_empty() {
        return Err(Error::NoTables);
    }
    let programs = typed::Programs::of(object, loaded, kernel)?;
    let load = |&Wanted { name, .. }: &Wanted| {
        let function = programs.function(name)?;
        let instructions = function.instructions.iter().map(|instruction| with_id(*instruction, &ids));
        let instructions: Vec<u8> = instructions.flat_map(|it| typed::instruction_bytes(&it)).collect();
        bpf::load_program(&bpf::Program {
            name,
            instructions: &instructions,
            btf: programs.btf(),
            functions: &function.func_info.func_info_bytes(),
            function_bytes: function.func_info_rec_size as u32,
            attach: Attach::Session,
            target: 0,
            module: None,
        })
        .map_err(|refused| Error::Load { program: name, refused })
    };
    sessions.iter().map(load).collect()
}

/// An instruction, with the BTF id in it if it calls a function or names a type that only these programs have.
fn with_id(instruction: bpf_insn, ids: &Ids) -> bpf_insn {
    let mut patched = instruction;
    match (kfunc::called(&instruction), kfunc::moved(&instruction)) {
        (Some(IS_RETURN), _) => kfunc::set_call(&mut patched, ids.is_return),
        (_, Some(SKB)) => patched.imm = ids.skb.cast_signed(),
        (_, Some(HOOK_STATE)) => patched.imm = ids.hook_state.cast_signed(),
        _ => {}
    }
    patched
}

/// In words.
fn listed(symbols: &[&CStr]) -> String {
    let names: Vec<String> = symbols.iter().map(|symbol| format!("`{}`", symbol.to_string_lossy())).collect();
    names.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::super::probes::{PROBES, SESSIONS};
    use super::*;

    const IDS: Ids = Ids { is_return: 70_001, skb: 1, hook_state: 2 };
    const CALL: u8 = 0x85;
    const MOVE: u8 = 0xb7;
    const ADD: u8 = 0x07;

    fn instruction(code: u8, source: u8, number: i32) -> bpf_insn {
        #[expect(unsafe_code, reason = "the generated structure has no default")]
        // SAFETY: numbers only, for which all zeros are valid.
        let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
        instruction.code = code;
        instruction.set_src_reg(source);
        instruction.imm = number;
        instruction
    }

    #[test]
    fn ids_are_put_in_place() {
        let check = |(code, source, number), (to_source, to_number)| {
            let patched = with_id(instruction(code, source, number), &IDS);
            let expected = instruction(code, to_source, to_number);
            assert_eq!(typed::instruction_bytes(&patched), typed::instruction_bytes(&expected));
        };
        check((CALL, 0, IS_RETURN), (2, 70_001));
        check((MOVE, 0, SKB), (0, 1));
        check((MOVE, 0, HOOK_STATE), (0, 2));
        // A helper, a function of the program that lies that far away, and another number.
        check((CALL, 0, 113), (0, 113));
        check((CALL, 1, IS_RETURN), (1, IS_RETURN));
        check((ADD, 0, SKB), (0, SKB));
    }

    #[test]
    fn a_program_is_placed_where_its_functions_are() {
        let found = |symbols: &[&str]| {
            let present: Vec<&Probe> =
                PROBES.iter().filter(|probe| symbols.contains(&probe.symbol)).collect();
            Wanted::instead_of(&present, SESSIONS)
        };
        assert_eq!(
            found(&["ip6t_do_table", "arpt_do_table", "nft_do_chain"]),
            [
                Wanted { name: "arp_session", symbols: vec![c"arpt_do_table"] },
                Wanted { name: "ip_session", symbols: vec![c"ip6t_do_table"] }
            ]
        );
        assert_eq!(found(&["nft_do_chain"]), []);
        let all = found(&["ipt_do_table", "ip6t_do_table", "arpt_do_table"]);
        let replaced = |probe: &&Probe| all.iter().any(|wanted| wanted.stands_for(probe));
        assert!(PROBES.iter().filter(replaced).all(|probe| probe.symbol.ends_with("_do_table")));
        assert_eq!(PROBES.iter().filter(replaced).count(), 6);
    }

    #[test]
    fn functions_are_named() {
        assert_eq!(listed(&[c"ipt_do_table", c"ip6t_do_table"]), "`ipt_do_table` and `ip6t_do_table`");
    }
}
