//! A process that clears up after us, even when we are killed.
//!
//! It holds the reading end of a pipe whose writing end only we have. When we end, however, it reads the end of the
//! pipe, removes the tracefs events that bear our process number, and ends as well.

use super::tracefs::{Event, Tracefs};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may need to let go of what a killed process had attached.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// A running guard. Dropping it tells it that we are done, and waits for it.
#[derive(Debug)]
pub struct Guard {
    process: Child,
}

impl Guard {
    /// Starts one, as `nftracer guard OUR-PID`, and waits until nothing but our end can end it.
    pub fn start() -> io::Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .arg0("nftracer")
            .args(["guard", &std::process::id().to_string()])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let ready = process.stdout.take().map(|mut stdout| stdout.read_exact(&mut [0]));
        let guard = Self { process };
        match ready {
            Some(Ok(())) => Ok(guard),
            _ => Err(io::Error::other("it ended at once")),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // `wait` closes the pipe first.
        let _ = self.process.wait();
    }
}

/// What the guard does.
pub fn stand(pid: u32) -> io::Result<()> {
    close_inherited();
    outlive_signals();
    // A name for `ps`, else it is the last word of `/proc/self/exe`.
    let _ = rustix::thread::set_name(c"nftracer-guard");
    io::stdout().write_all(b"!")?;
    io::stdout().flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    match Tracefs::find() {
        Some(tracefs) => remove_all(&tracefs, pid),
        None => Ok(()),
    }
}

/// Tries until all are gone: the pipe of a killed process can end before its programs are detached.
fn remove_all(tracefs: &Tracefs, pid: u32) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let events: Vec<Event> = tracefs.events()?.into_iter().filter(|event| event.pid == pid).collect();
        let removed = events.iter().map(|event| tracefs.remove(event)).fold(Ok(()), Result::and);
        match removed {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Leaves the terminal, whose keys and end are for our maker, and ignores what a service manager sends to all alike.
#[expect(unsafe_code, reason = "neither the standard library nor rustix can ignore a signal")]
fn outlive_signals() {
    // Fails only for the leader of a process group, and then the terminal's keys do not come here anyway.
    let _ = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: to ignore a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes what our maker had open for others, so that they are not kept waiting for its end.
#[expect(unsafe_code, reason = "neither the standard library nor rustix has close_range(2)")]
fn close_inherited() {
    let (first, last, flags): (libc::c_uint, libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX, 0);
    // SAFETY: this process has opened nothing yet besides its standard streams.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    // Kernels before 5.9 have no such call. What lists the descriptors is in the list, and closed before.
    let names = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let inherited: Vec<libc::c_int> =
        names.filter_map(|name| name.to_str()?.parse().ok()).filter(|&fd| fd > 2).collect();
    for fd in inherited {
        // SAFETY: as above; one that is closed already is refused.
        unsafe { libc::close(fd) };
    }
}
