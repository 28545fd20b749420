//! Perf events: the way from a tracefs event to a program.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// `_IOW('$', 8, __u32)`
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// The start of `struct perf_event_attr`, as long as it was in its first version; the kernel takes the rest as zero.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    /// No samples, no flags: the event counts, and nothing is written anywhere.
    rest: [u64; 6],
}

/// Runs a program whenever the tracefs event of this number happens, on any CPU, until the result is dropped.
#[expect(unsafe_code, reason = "neither the standard library nor rustix has perf_event_open(2)")]
pub fn run_at_event(id: u64, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let size = size_of::<Attributes>() as u32;
    let mut attributes = Attributes { kind: PERF_TYPE_TRACEPOINT, size, config: id, rest: [0; 6] };
    let (every_task, first_cpu, no_group) = (-1, 0, -1);
    // SAFETY: the kernel reads `size` bytes of `attributes`, and writes to its `size` when that is none it knows.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw mut attributes,
            every_task,
            first_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = libc::c_int::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: perf_event_open returns a new file descriptor that nothing else owns.
    let event = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the argument is a number, not memory.
    match unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF as _, program.as_raw_fd()) } {
        0 => Ok(event),
        _ => Err(io::Error::last_os_error()),
    }
}
