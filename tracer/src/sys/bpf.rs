//! bpf(2), as far as aya does not do it: programs at the functions of a module, and at entry and return of functions in one.
//!
//! The attributes are prefixes of `union bpf_attr` in `include/uapi/linux/bpf.h`; the kernel takes the rest as zero.

use aya_obj::generated::bpf_prog_info;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BTF_LOAD: libc::c_int = 18;
const BTF_GET_FD_BY_ID: libc::c_int = 19;
const BTF_GET_NEXT_ID: libc::c_int = 23;
const LINK_CREATE: libc::c_int = 28;
const ENABLE_STATS: libc::c_int = 32;

const PROG_TYPE_KPROBE: u32 = 2;
const PROG_TYPE_TRACING: u32 = 26;
/// Bytes for the verifier's words.
const LOG_BYTES: u32 = 1 << 20;

/// Where at a function a program runs; the numbers are the kernel's attach types.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// `BPF_TRACE_FENTRY`
    Entry = 24,
    /// `BPF_TRACE_FEXIT`
    Exit = 25,
    /// `BPF_TRACE_KPROBE_SESSION`: at both.
    Session = 56,
}

/// A program for functions.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: &'a str,
    /// `struct bpf_insn`, eight bytes each.
    pub instructions: &'a [u8],
    /// BTF that describes the program.
    pub btf: BorrowedFd<'a>,
    /// `struct bpf_func_info` for the program and each function it calls.
    pub functions: &'a [u8],
    /// Bytes of one such record.
    pub function_bytes: u32,
    /// Where at the function.
    pub attach: Attach,
    /// The function's id in the BTF of its module, or of the kernel; 0 where it is named when the program is attached.
    pub target: u32,
    /// The module's BTF; `None` for a function of the kernel itself.
    pub module: Option<BorrowedFd<'a>>,
}

/// A refused program.
#[derive(Debug)]
pub struct Refused {
    /// What the kernel answered.
    pub source: io::Error,
    /// The verifier's last words.
    pub words: String,
}

/// Gives BTF to the kernel.
pub fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        btf: u64,
        log: u64,
        btf_bytes: u32,
        log_bytes: u32,
        log_level: u32,
        reserved: u32,
    }
    let btf_bytes = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut attributes =
        Attributes { btf: bytes.as_ptr() as u64, log: 0, btf_bytes, log_bytes: 0, log_level: 0, reserved: 0 };
    descriptor(BTF_LOAD, &mut attributes)
}

/// The BTF of a loaded module; `None` when the kernel has none of that name. Needs `CAP_SYS_ADMIN`.
pub fn module_btf(module: &str) -> io::Result<Option<OwnedFd>> {
    let mut id = 0;
    loop {
        // The first word is the id asked about, the second the next one.
        let mut next = [id, 0_u32];
        match call(BTF_GET_NEXT_ID, &mut next) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            result => result?,
        };
        id = next[1];
        let btf = match descriptor(BTF_GET_FD_BY_ID, &mut [id, 0_u32]) {
            // Its module has gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            result => result?,
        };
        if name_of_kernel_btf(&btf)?.as_deref() == Some(module.as_bytes()) {
            return Ok(Some(btf));
        }
    }
}

/// The name of BTF that describes the kernel or a module; `None` for that of programs.
fn name_of_kernel_btf(btf: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        btf: u64,
        btf_bytes: u32,
        id: u32,
        name: u64,
        name_bytes: u32,
        kernel: u32,
    }
    // A module's name has at most 55 bytes (`MODULE_NAME_LEN`).
    let mut name = [0_u8; 64];
    let mut info = Info { name: name.as_mut_ptr() as u64, name_bytes: name.len() as u32, ..Info::default() };
    ask(btf.as_fd(), &mut info)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((info.kernel != 0).then(|| name.to_vec()))
}

/// Loads a program. Asked again for the verifier's words when it is refused.
pub fn load_program(program: &Program<'_>) -> Result<OwnedFd, Refused> {
    let first = match load(program, &mut []) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0; LOG_BYTES as usize];
    match load(program, &mut log) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(&log[..end]);
            let lines: Vec<&str> = text.lines().collect();
            Err(Refused { source: first, words: lines[lines.len().saturating_sub(8)..].join("; ") })
        }
    }
}

fn load(program: &Program<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instructions_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_bytes: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
        btf_fd: i32,
        functions_record: u32,
        functions: u64,
        functions_count: u32,
        lines_record: u32,
        lines: u64,
        lines_count: u32,
        attach_btf_id: u32,
        attach_btf_fd: i32,
        core_count: u32,
    }
    let mut name = [0; 16];
    name.iter_mut().zip(program.name.bytes().take(15)).for_each(|(to, from)| *to = from);
    let mut attributes = Attributes {
        program_type: match program.attach {
            Attach::Entry | Attach::Exit => PROG_TYPE_TRACING,
            Attach::Session => PROG_TYPE_KPROBE,
        },
        instructions_count: u32::try_from(program.instructions.len() / 8).map_err(io::Error::other)?,
        instructions: program.instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_bytes: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name,
        interface: 0,
        expected_attach_type: program.attach as u32,
        btf_fd: program.btf.as_raw_fd(),
        functions_record: program.function_bytes,
        functions: program.functions.as_ptr() as u64,
        functions_count: program.functions.len() as u32 / program.function_bytes.max(1),
        lines_record: 0,
        lines: 0,
        lines_count: 0,
        attach_btf_id: program.target,
        attach_btf_fd: program.module.map_or(0, |module| module.as_raw_fd()),
        core_count: 0,
    };
    descriptor(PROG_LOAD, &mut attributes)
}

/// Lets a loaded program run, until the result is dropped.
pub fn attach_tracing(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        name: u64,
        program: i32,
        reserved: u32,
    }
    descriptor(RAW_TRACEPOINT_OPEN, &mut Attributes { name: 0, program: program.as_raw_fd(), reserved: 0 })
}

/// Lets a program for [`Attach::Session`] run at functions, until the result is dropped.
pub fn attach_session(program: BorrowedFd<'_>, symbols: &[&CStr]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: i32,
        target: u32,
        attach: u32,
        flags: u32,
        multi_flags: u32,
        count: u32,
        symbols: u64,
        addresses: u64,
        cookies: u64,
    }
    let symbols: Vec<u64> = symbols.iter().map(|symbol| symbol.as_ptr() as u64).collect();
    let mut attributes = Attributes {
        program: program.as_raw_fd(),
        target: 0,
        attach: Attach::Session as u32,
        flags: 0,
        multi_flags: 0,
        count: u32::try_from(symbols.len()).map_err(io::Error::other)?,
        symbols: symbols.as_ptr() as u64,
        addresses: 0,
        cookies: 0,
    };
    descriptor(LINK_CREATE, &mut attributes)
}

/// How often the kernel did not get as far as the program of such a link, at the entry of a function.
pub fn session_misses(link: BorrowedFd<'_>) -> io::Result<u64> {
    /// `struct bpf_link_info` of a link of the type `BPF_LINK_TYPE_KPROBE_MULTI`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        link_type: u32,
        id: u32,
        program: u32,
        reserved: u32,
        addresses: u64,
        count: u32,
        flags: u32,
        missed: u64,
    }
    let mut info = Info::default();
    ask(link, &mut info)?;
    Ok(info.missed)
}

/// Makes the kernel measure how long programs run, those of others as well, until this is dropped. Kernels can do that
/// since 5.8.
pub fn measure_programs() -> io::Result<OwnedFd> {
    /// `BPF_STATS_RUN_TIME`
    const RUN_TIME: u32 = 0;
    descriptor(ENABLE_STATS, &mut [RUN_TIME, 0])
}

/// How long a program has run in all while the kernel measured it.
pub fn run_time(program: BorrowedFd<'_>) -> io::Result<Duration> {
    Ok(Duration::from_nanos(info(program)?.run_time_ns))
}

/// How often the kernel left a program out because the same one, or for kprobes any other one, was at work on that CPU.
/// 0 on kernels that do not count it, from before 5.12.
pub fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(info(program)?.recursion_misses)
}

fn info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    #[expect(unsafe_code, reason = "the generated structure has no default")]
    // SAFETY: numbers only, for which all zeros are valid.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    ask(program, &mut info)?;
    Ok(info)
}

/// What the kernel knows of an object of this kind, in the structure that it has for it.
fn ask<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: i32,
        info_bytes: u32,
        info: u64,
    }
    let info_bytes = size_of::<T>() as u32;
    let mut attributes = Attributes { fd: object.as_raw_fd(), info_bytes, info: (&raw mut *info) as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

/// Where a program for raw tracepoints runs when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Here.
    Any,
    /// On this CPU, which has to be online.
    Cpu(u32),
}

/// Calls a program for raw tracepoints that is loaded, with these arguments. Kernels can do that since 5.10.
pub fn call_raw(program: BorrowedFd<'_>, arguments: [u64; 2], on: On) -> io::Result<()> {
    /// `BPF_F_TEST_RUN_ON_CPU`
    const ON_CPU: u32 = 1;
    #[repr(C)]
    struct Attributes {
        program: i32,
        result: u32,
        data_in_bytes: u32,
        data_out_bytes: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_in_bytes: u32,
        context_out_bytes: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd(),
        result: 0,
        data_in_bytes: 0,
        data_out_bytes: 0,
        data_in: 0,
        data_out: 0,
        repeat: 0,
        duration: 0,
        context_in_bytes: size_of_val(&arguments) as u32,
        context_out_bytes: 0,
        context_in: arguments.as_ptr() as u64,
        context_out: 0,
        flags: if on == On::Any { 0 } else { ON_CPU },
        cpu: match on {
            On::Any => 0,
            On::Cpu(cpu) => cpu,
        },
    };
    call(PROG_TEST_RUN, &mut attributes).map(drop)
}

fn descriptor<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    #[expect(unsafe_code, reason = "the system call gives a number")]
    // SAFETY: each command that is called this way returns a new file descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "neither the standard library nor rustix has bpf(2)")]
fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: every caller's attributes are the start of the command's own, and the addresses in them are valid for
    // the lengths beside them as long as the call lasts.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_btf_is_refused() {
        assert!(load_btf(b"no BTF").is_err());
    }
}
