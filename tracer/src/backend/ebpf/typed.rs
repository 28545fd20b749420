//! Programs at the entry and the exit of a module's function, without kprobes: cheaper by two thirds.
//!
//! aya looks for functions in the kernel's own BTF only, and the table functions are in modules. So the object is taken
//! apart once more: its programs get the maps that aya has made, and are loaded here.

use super::kernel::{Kernel, TypedTarget};
use super::probes::Point;
use crate::sys::bpf::{self, Attach, Program, Refused};
use aya::maps::Map;
use aya_obj::generated::{BPF_ALU64, BPF_K, BPF_LDX, BPF_MOV, bpf_insn};
use aya_obj::{Function, Object};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use thiserror::Error;
use tracer_common::offsets::{ABSENT, Offsets, PLACEHOLDER};

/// Why programs cannot run at a function without kprobes.
#[derive(Debug, Error)]
pub enum Error {
    /// The object is not what it was built as.
    #[error("the embedded object cannot be taken apart: {0}")]
    Object(String),
    /// The kernel describes no such function.
    #[error("no BTF describes `{0}` with the arguments that the program expects")]
    NotDescribed(&'static str),
    /// The kernel's BTF objects cannot be had.
    #[error("cannot get the BTF of module {module}: {source}")]
    ModuleBtf {
        /// Which.
        module: String,
        /// Why.
        source: io::Error,
    },
    /// The object's BTF was refused.
    #[error("the kernel refuses the BTF of the programs: {0}")]
    Btf(io::Error),
    /// A program was refused.
    #[error("the kernel refuses program `{program}` at `{symbol}`: {}; {}", .refused.source, .refused.words)]
    Load {
        /// Which.
        program: &'static str,
        /// The kernel function.
        symbol: &'static str,
        /// Why.
        refused: Refused,
    },
    /// A program could not be attached.
    #[error("cannot attach `{program}` to `{symbol}`: {source}")]
    Attach {
        /// Which.
        program: &'static str,
        /// The kernel function.
        symbol: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A program at its function.
#[derive(Debug)]
pub struct Running {
    /// It runs until this is dropped.
    pub link: OwnedFd,
    /// The program.
    pub program: OwnedFd,
}

/// The programs of the object, on the maps that aya has made.
pub struct Programs {
    object: Object,
    btf: OwnedFd,
}

impl Programs {
    /// Takes the object apart. Before any map is taken out of `loaded`.
    pub fn of(object: &[u8], loaded: &aya::Ebpf, kernel: &Kernel) -> Result<Self, Error> {
        let broken = |error: &dyn std::error::Error| Error::Object(error.to_string());
        let mut object = Object::parse(object).map_err(|error| broken(&error))?;
        let features = aya::features();
        let without = || Error::Object("it carries no BTF that this kernel understands".to_owned());
        let bytes = object
            .fixup_and_sanitize_btf(features.btf().ok_or_else(without)?)
            .map_err(|error| broken(&error))?
            .ok_or_else(without)?
            .to_bytes();
        let btf = bpf::load_btf(&bytes).map_err(Error::Btf)?;
        let maps = std::mem::take(&mut object.maps);
        let fds: Vec<(&str, RawFd)> =
            loaded.maps().filter_map(|(name, map)| Some((name, descriptor(map)?))).collect();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let known = fds.iter().filter_map(|(name, fd)| Some((*name, *fd, maps.get(*name)?)));
        object.relocate_maps(known, &text).map_err(|error| broken(&error))?;
        object.relocate_calls(&text).map_err(|error| broken(&error))?;
        object.sanitize_functions(features);
        for instruction in object.functions.values_mut().flat_map(|function| &mut function.instructions) {
            place(instruction, &kernel.layout.offsets)?;
            kernel.kfuncs.place(instruction);
        }
        Ok(Self { object, btf })
    }

    /// Runs a program at a function.
    pub fn attach(
        &self,
        program: &'static str,
        symbol: &'static str,
        point: Point,
        target: &TypedTarget,
    ) -> Result<Running, Error> {
        let loaded = self.load(program, symbol, point, target)?;
        let link = bpf::attach_tracing(loaded.as_fd()).map_err(|source| Error::Attach {
            program,
            symbol,
            source,
        })?;
        Ok(Running { link, program: loaded })
    }

    /// Has the kernel look at a program for a function.
    pub fn load(
        &self,
        program: &'static str,
        symbol: &'static str,
        point: Point,
        target: &TypedTarget,
    ) -> Result<OwnedFd, Error> {
        let function = self.function(program)?;
        let module = match &target.module {
            Some(module) => {
                let failed = |source| Error::ModuleBtf { module: module.clone(), source };
                let gone = || failed(io::ErrorKind::NotFound.into());
                Some(bpf::module_btf(module).map_err(failed)?.ok_or_else(gone)?)
            }
            None => None,
        };
        let instructions: Vec<u8> = function.instructions.iter().flat_map(instruction_bytes).collect();
        bpf::load_program(&Program {
            name: program,
            instructions: &instructions,
            btf: self.btf.as_fd(),
            functions: &function.func_info.func_info_bytes(),
            function_bytes: function.func_info_rec_size as u32,
            attach: match point {
                Point::Entry => Attach::Entry,
                Point::Return => Attach::Exit,
            },
            target: target.id,
            module: module.as_ref().map(OwnedFd::as_fd),
        })
        .map_err(|refused| Error::Load { program, symbol, refused })
    }

    /// The instructions of a program, those of the functions that it calls behind them.
    pub(super) fn function(&self, program: &str) -> Result<&Function, Error> {
        let missing = || Error::Object(format!("it has no program {program}"));
        let parsed = self.object.programs.get(program).ok_or_else(missing)?;
        self.object.functions.get(&parsed.function_key()).ok_or_else(missing)
    }

    /// What describes the programs to the kernel.
    pub(super) fn btf(&self) -> BorrowedFd<'_> {
        self.btf.as_fd()
    }
}

/// Writes into an instruction that loads a field where that is on this kernel. A field that it does not have is zero.
fn place(instruction: &mut bpf_insn, offsets: &Offsets) -> Result<(), Error> {
    const CLASS: u8 = 7;
    let field = usize::try_from(instruction.off).ok().and_then(|off| off.checked_sub(PLACEHOLDER));
    let (true, Some(field)) = (instruction.code & CLASS == BPF_LDX as u8, field) else { return Ok(()) };
    let unknown = || Error::Object(format!("an instruction loads field {field}"));
    let offset = offsets.of(field).ok_or_else(unknown)?;
    if offset == ABSENT {
        instruction.code = (BPF_ALU64 | BPF_MOV | BPF_K) as u8;
        instruction.set_src_reg(0);
        instruction.off = 0;
    } else {
        instruction.off = i16::try_from(offset).map_err(|_| unknown())?;
    }
    Ok(())
}

pub(super) fn instruction_bytes(instruction: &bpf_insn) -> [u8; 8] {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let [off_low, off_high] = instruction.off.to_ne_bytes();
    let [a, b, c, d] = instruction.imm.to_ne_bytes();
    [instruction.code, registers, off_low, off_high, a, b, c, d]
}

/// The descriptor of a map of a kind that our programs have.
fn descriptor(map: &Map) -> Option<RawFd> {
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuHashMap(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// `r3 = *(u16 *)(r2 + off)`
    const LOAD: u8 = 0x69;

    fn instruction(code: u8, off: usize) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(3, 2);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: off.try_into().unwrap(), imm: 0 }
    }

    fn placed(code: u8, off: usize) -> [u8; 8] {
        let offsets = Offsets { skb_mac_header: 182, ..Offsets::UNRESOLVED };
        let mut instruction = instruction(code, off);
        place(&mut instruction, &offsets).unwrap();
        instruction_bytes(&instruction)
    }

    #[test]
    fn a_load_gets_the_offset_that_its_number_stands_for() {
        let field = |at: usize| PLACEHOLDER + at / 4;
        assert_eq!(
            placed(LOAD, field(offset_of!(Offsets, skb_mac_header))),
            [LOAD, 0x23, 182, 0, 0, 0, 0, 0]
        );
        // r3 = 0
        assert_eq!(placed(LOAD, field(offset_of!(Offsets, skb_nfct))), [0xb7, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(placed(LOAD, 182), [LOAD, 0x23, 182, 0, 0, 0, 0, 0]);
        // A store, and a jump: `goto +0x7f03`
        assert_eq!(placed(0x6b, PLACEHOLDER), [0x6b, 0x23, 0, 0x7f, 0, 0, 0, 0]);
        assert_eq!(placed(0x05, PLACEHOLDER + 3), [0x05, 0x23, 3, 0x7f, 0, 0, 0, 0]);
    }

    #[test]
    fn a_number_that_stands_for_nothing_is_an_error() {
        assert!(place(&mut instruction(LOAD, 0x7fff), &Offsets::UNRESOLVED).is_err());
    }
}
