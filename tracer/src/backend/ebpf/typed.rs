//! Programs at the entry and the exit of a module's function, without kprobes: cheaper by two thirds.
//!
//! aya looks for functions in the kernel's own BTF only, and the table functions are in modules. So the object is taken
//! apart once more: its programs get the maps that aya has made, and are loaded here.

use super::kernel::TypedTarget;
use super::probes::Point;
use crate::sys::bpf::{self, Attach, Refused, Tracing};
use aya::maps::Map;
use aya_obj::Object;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use thiserror::Error;

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
    pub fn of(object: &[u8], loaded: &aya::Ebpf) -> Result<Self, Error> {
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
        let missing = || Error::Object(format!("it has no program {program}"));
        let parsed = self.object.programs.get(program).ok_or_else(missing)?;
        let function = self.object.functions.get(&parsed.function_key()).ok_or_else(missing)?;
        let module = match &target.module {
            Some(module) => {
                let failed = |source| Error::ModuleBtf { module: module.clone(), source };
                let gone = || failed(io::ErrorKind::NotFound.into());
                Some(bpf::module_btf(module).map_err(failed)?.ok_or_else(gone)?)
            }
            None => None,
        };
        let instructions: Vec<u8> = function.instructions.iter().flat_map(instruction_bytes).collect();
        bpf::load_tracing(&Tracing {
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
}

fn instruction_bytes(instruction: &aya_obj::generated::bpf_insn) -> [u8; 8] {
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
    | Map::LruHashMap(data)
    | Map::PerCpuHashMap(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd().as_raw_fd())
}
