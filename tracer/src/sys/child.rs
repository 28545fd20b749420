//! Child processes that do not outlive this one, and may run in another network namespace.

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// How long a process may take to end when it is asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// A running process. Dropping it ends it.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts a process, in a network namespace if one is given. It is asked to end when the calling thread ends.
    pub fn start(command: &mut Command, namespace: Option<&File>) -> io::Result<Self> {
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap_or_default());
        let namespace = namespace.map(File::try_clone).transpose()?;
        let prepare = move || {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            // Nobody tells of an end that was before this.
            if getppid() != own {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            namespace.as_ref().map_or(Ok(()), |namespace| enter(namespace.as_fd()))
        };
        #[expect(unsafe_code, reason = "what is to be set belongs to the child")]
        // SAFETY: three system calls, which allocate nothing and take no lock.
        let command = unsafe { command.pre_exec(prepare) };
        command.spawn().map(Self)
    }

    /// The process as the standard library knows it.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// How long its threads have run, if the kernel tells.
    pub fn run_time(&self) -> Option<Duration> {
        run_time(&format!("/proc/{}/task", self.0.id()))
    }

    /// Asks it to end, and waits for that. One that does not end in time is killed.
    pub fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.0.try_wait()? {
            return Ok(status);
        }
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        let deadline = Instant::now() + ENDS_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            thread::sleep(PAUSE);
        }
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, or nothing can be done about it.
        let _ = self.end();
    }
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// How long the calling thread has run, if the kernel tells.
pub fn own_run_time() -> Option<Duration> {
    read_run_time(&super::process::thread_file("schedstat").to_string_lossy())
}

fn run_time(tasks: &str) -> Option<Duration> {
    let folders = fs::read_dir(tasks).ok()?.flatten();
    folders.map(|task| read_run_time(&task.path().join("schedstat").to_string_lossy())).sum()
}

/// The first word of a `schedstat`: nanoseconds on a CPU.
fn read_run_time(path: &str) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn it_ends_when_it_is_asked() {
        let mut sleep = Running::start(Command::new("sleep").arg("60").stdout(Stdio::null()), None).unwrap();
        assert!(sleep.end().unwrap().code().is_none());
    }
}
