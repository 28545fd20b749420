//! A kernel that seems older than it is, to one thread and to the processes that this thread starts.
//!
//! A seccomp filter hands the system calls in question to a supervisor, which answers them in the kernel's place.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc;
use std::{fs, mem, thread};

use rustix::event::{PollFd, PollFlags, poll};

/// `AUDIT_ARCH_X86_64` of `include/uapi/linux/audit.h`
const ARCHITECTURE: u32 = 0xc000_003e;
/// Where `struct seccomp_data` has its first two fields.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

/// What the kernel pretends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    /// The highest number of a system call that it knows. Numbers are given out in order.
    pub(crate) last_call: u32,
    /// What uname(2) says, `None` for the truth.
    pub(crate) release: Option<&'static str>,
    /// Files whose paths begin so are not there.
    pub(crate) hidden: Option<&'static str>,
}

/// System calls that name a file by a path, and which argument that is.
const PATH_CALLS: [(i64, usize); 8] = [
    (libc::SYS_open, 0),
    (libc::SYS_openat, 1),
    (libc::SYS_stat, 0),
    (libc::SYS_lstat, 0),
    (libc::SYS_newfstatat, 1),
    (libc::SYS_access, 0),
    (libc::SYS_readlink, 0),
    (libc::SYS_readlinkat, 1),
];
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: the kernel is to do what was asked for.
const CONTINUE: u32 = 1;

impl Kernel {
    /// No system call that came after Linux 3.10: `finit_module`, of 3.8, is the last one of x86_64 that it has; the
    /// next one, `sched_setattr`, came with 3.14. And no `/proc/thread-self`, which came with 3.17.
    pub(crate) const OF_3_10: Self =
        Self { last_call: libc::SYS_finit_module as u32, release: None, hidden: Some("/proc/thread-self") };
    /// That, and the name of the kernel of CentOS 7.
    pub(crate) const CENTOS_7: Self = Self { release: Some("3.10.0-1160.el7.x86_64"), ..Self::OF_3_10 };
}

/// A thread under the filter.
struct Watched {
    listener: OwnedFd,
    thread: libc::pid_t,
}

impl Kernel {
    /// Does `work` on such a kernel. Says also which calls that the kernel does not know the started processes made.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<(T, BTreeSet<i32>)> {
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let worker = scope.spawn(move || {
                let installed = self.install();
                let usable = installed.is_ok();
                // The receiver waits for it.
                let _ = sender.send(installed);
                usable.then(work)
            });
            let watched = receiver.recv().map_err(io::Error::other)??;
            let unknown = self.supervise(&watched)?;
            match worker.join() {
                Ok(Some(done)) => Ok((done, unknown)),
                Ok(None) => Err(io::Error::other("the filter was not installed")),
                Err(cause) => std::panic::resume_unwind(cause),
            }
        })
    }

    /// Puts the calling thread under the filter, for good.
    #[expect(unsafe_code, reason = "neither the standard library nor rustix has seccomp(2)")]
    fn install(&self) -> io::Result<Watched> {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let paths = PATH_CALLS.iter().filter(|_| self.hidden.is_some()).map(|(number, _)| *number);
        let watched: Vec<i64> = self.release.map(|_| libc::SYS_uname).into_iter().chain(paths).collect();
        let instruction = |code: u32, jt: usize, jf: usize, k| libc::sock_filter {
            code: code as u16,
            jt: jt as u8,
            jf: jf as u8,
            k,
        };
        let mut program = vec![
            instruction(LOAD, 0, 0, ARCHITECTURE_AT),
            instruction(EQUAL, 0, watched.len() + 2, ARCHITECTURE),
            instruction(LOAD, 0, 0, NUMBER_AT),
        ];
        for (left, number) in (0..watched.len()).rev().zip(&watched) {
            program.push(instruction(EQUAL, left + 2, 0, *number as u32));
        }
        program.extend([
            instruction(GREATER, 1, 0, self.last_call),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        ]);
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        rustix::thread::set_no_new_privs(true)?;
        // SAFETY: the kernel copies the program, which lives until the call returns.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nothing else owns.
        let listener = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Watched { listener, thread: rustix::thread::gettid().as_raw_nonzero().get() })
    }

    /// Answers until the thread and all that it started have ended.
    fn supervise(&self, watched: &Watched) -> io::Result<BTreeSet<i32>> {
        let mut unknown = BTreeSet::new();
        loop {
            let mut waiting = [PollFd::new(&watched.listener, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            if !waiting[0].revents().contains(PollFlags::IN) {
                return Ok(unknown);
            }
            // A caller that was killed meanwhile has taken its call back.
            let Ok(call) = receive(&watched.listener) else { continue };
            let number = i64::from(call.data.nr);
            let argument = PATH_CALLS.iter().find(|(path_call, _)| *path_call == number);
            let (error, flags) = if number == libc::SYS_uname {
                let written = self.write_uname(&call);
                (written.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)), 0)
            } else if let Some((_, argument)) = argument {
                if self.hides(&call, call.data.args[*argument]) { (libc::ENOENT, 0) } else { (0, CONTINUE) }
            } else {
                if call.pid.cast_signed() != watched.thread {
                    unknown.insert(call.data.nr);
                }
                (libc::ENOSYS, 0)
            };
            let _ = answer(&watched.listener, &call, error, flags);
        }
    }

    /// Whether a path in the memory of who asked is of a file that is not there.
    fn hides(&self, call: &libc::seccomp_notif, address: u64) -> bool {
        let Some(hidden) = self.hidden else { return false };
        let mut path = vec![0; hidden.len()];
        let read = fs::File::open(format!("/proc/{}/mem", call.pid))
            .and_then(|memory| memory.read_exact_at(&mut path, address));
        // A shorter path may end where the memory does.
        read.is_ok() && path == hidden.as_bytes()
    }

    /// Writes the system's names into the memory of who asked, with the pretended release.
    #[expect(unsafe_code, reason = "rustix does not say how the kernel lays the names out")]
    fn write_uname(&self, call: &libc::seccomp_notif) -> io::Result<()> {
        // SAFETY: an array of characters is valid with all of them zero.
        let mut names: libc::utsname = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one `utsname`.
        if unsafe { libc::uname(&raw mut names) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some(release) = self.release {
            names.release.fill(0);
            for (to, from) in names.release.iter_mut().zip(release.bytes()) {
                *to = from.cast_signed();
            }
        }
        // SAFETY: the structure consists of bytes, and lives as long as the slice.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const names).cast::<u8>(), size_of_val(&names)) };
        let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", call.pid))?;
        memory.write_all_at(bytes, call.data.args[0])
    }
}

#[expect(unsafe_code, reason = "no wrapper of seccomp's listener without a loader around it")]
fn receive(listener: &OwnedFd) -> io::Result<libc::seccomp_notif> {
    // SAFETY: the structure consists of numbers, and the kernel wants them to be zero.
    let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one `seccomp_notif`.
    match unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } {
        0 => Ok(call),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a call return: with an error, or with 0; or, by the flags, be done.
#[expect(unsafe_code, reason = "no wrapper of seccomp's listener without a loader around it")]
fn answer(listener: &OwnedFd, call: &libc::seccomp_notif, error: i32, flags: u32) -> io::Result<()> {
    let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: -error, flags };
    // SAFETY: the kernel reads one `seccomp_notif_resp`.
    match unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
