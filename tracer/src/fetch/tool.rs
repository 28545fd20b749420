//! Running the programs that print rules.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Where administrators' programs are even when `PATH` does not say so.
pub(super) const SYSTEM: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// The program of a name, in the directories of `path` or in `system`.
pub(super) fn find(path: &OsStr, system: &[&str], name: &str) -> Option<PathBuf> {
    let directories = env::split_paths(path).filter(|directory| directory.is_absolute());
    let directories = directories.chain(system.iter().map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// What a program prints, or why it could not.
pub(super) fn run(program: &Path, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let words = format!("{} {}", program.display(), arguments.join(" "));
    let mut child = Running(command.spawn().map_err(|error| format!("cannot run {words}: {error}"))?);
    match child.output(TIMEOUT) {
        Ok((status, output, _)) if status.success() => Ok(output),
        Ok((status, _, errors)) => {
            let errors = String::from_utf8_lossy(&errors);
            Err(format!("{words} failed: {}", errors.lines().next().unwrap_or(&status.to_string())))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(format!("{words} took longer than {} seconds and was ended", TIMEOUT.as_secs()))
        }
        Err(error) => Err(format!("cannot read from {words}: {error}")),
    }
}

/// A child process that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for its end; what it printed, and its complaints.
    fn output(&mut self, timeout: Duration) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let deadline = Instant::now() + timeout;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let (mut stdout, mut stderr) = (self.0.stdout.take(), self.0.stderr.take());
        while stdout.is_some() || stderr.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            let pipes = stdout.iter().map(AsFd::as_fd).chain(stderr.iter().map(AsFd::as_fd));
            let mut pipes: Vec<PollFd<'_>> =
                pipes.map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)).collect();
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut pipes, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                ready => ready?,
            };
            let mut ready = pipes.iter().map(|pipe| !pipe.revents().is_empty());
            let read_stdout = stdout.is_some() && ready.next() == Some(true);
            let read_stderr = stderr.is_some() && ready.next() == Some(true);
            drop(ready);
            if read_stdout {
                read_some(&mut stdout, &mut output)?;
            }
            if read_stderr {
                read_some(&mut stderr, &mut errors)?;
            }
        }
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok((status, output, errors));
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Reads what is there; takes the pipe away at its end.
fn read_some(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 65536];
    let count = match pipe {
        Some(open) => match open.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            count => count?,
        },
        None => 0,
    };
    if count == 0 {
        *pipe = None;
    }
    into.extend_from_slice(&buffer[..count]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_output_and_no_end() {
        let spawn = |text: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", text]).stdout(Stdio::piped()).stderr(Stdio::piped());
            Running(command.spawn().unwrap())
        };
        let (status, output, errors) =
            spawn("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2").output(TIMEOUT).unwrap();
        assert!(status.success());
        assert_eq!((output.len(), errors.len()), (300_000, 300_000));
        let error = spawn("exec sleep 60").output(Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = spawn("exec >&- 2>&-; exec sleep 60").output(Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
