//! A process that clears up after us, even when we are killed.
//!
//! It holds the reading end of a pipe whose writing end only we have, and the programs that we start to change
//! something. When all of these have ended, however, it reads the end of the pipe, undoes what we have not undone, and
//! ends as well.

use super::process::Process;
use super::program::Witness;
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// A running guard. Dropping it tells it that we are done, and waits for it.
#[derive(Debug)]
pub struct Guard {
    process: Child,
}

impl Guard {
    /// Starts one, as `nftracer guard PROCESS DESCRIPTOR…`, and waits until nothing but our end can end it. It keeps
    /// these namespaces open.
    pub fn start(ours: Process, namespaces: &[&File]) -> io::Result<Self> {
        // For the moment of its start, they are open for all that are started.
        let kept = namespaces.iter().map(|file| file.as_fd().try_clone_to_owned());
        let kept = kept.collect::<io::Result<Vec<OwnedFd>>>()?;
        for descriptor in &kept {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let mut process = Command::new("/proc/self/exe")
            .arg0("nftracer")
            .args(["guard", &ours.to_string()])
            .args(kept.iter().map(|descriptor| descriptor.as_raw_fd().to_string()))
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

    /// The end of the pipe that keeps it waiting.
    pub fn witness(&self) -> Witness<'_> {
        self.process.stdin.as_ref().map(|stdin| stdin.as_fd())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // `wait` closes the pipe first.
        let _ = self.process.wait();
    }
}

/// What the guard does until its maker ends. `namespaces` are the numbers of the open ones.
pub fn stand(namespaces: &[u32]) -> io::Result<Vec<File>> {
    let kept = inherited(namespaces)?;
    outlive_signals();
    // A name for `ps`, else it is the last word of `/proc/self/exe`.
    let _ = rustix::thread::set_name(c"nftracer-guard");
    io::stdout().write_all(b"!")?;
    io::stdout().flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(kept)
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

/// Takes the namespaces, and closes what else our maker had open for others, so that they are not kept waiting for its
/// end.
fn inherited(namespaces: &[u32]) -> io::Result<Vec<File>> {
    // Opened anew, because a number on a command line proves nothing.
    let open = |number: &u32| File::open(format!("/proc/self/fd/{number}"));
    let kept = namespaces.iter().map(open).collect::<io::Result<Vec<File>>>()?;
    let ours: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<RawFd>().ok();
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?.flatten().filter_map(number).collect();
    open.into_iter().filter(|number| *number > 2 && !ours.contains(number)).for_each(close);
    Ok(kept)
}

#[expect(unsafe_code, reason = "what our maker had open belongs to nothing here")]
fn close(number: RawFd) {
    // SAFETY: this process has opened nothing yet besides its standard streams and the namespaces that it keeps.
    unsafe { libc::close(number) };
}
