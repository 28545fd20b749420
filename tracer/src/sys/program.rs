//! Other programs: finding them, running them to their end.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsStr;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where administrators' programs are even when `PATH` does not say so.
pub const SYSTEM: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// Where this host has a program of this name, in the folders of `PATH` or where administrators' programs are.
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(&env::var_os("PATH").unwrap_or_default(), &SYSTEM, name)
}

/// Where a program of this name is, in these folders.
pub fn find_in(path: &OsStr, system: &[&str], name: &str) -> Option<PathBuf> {
    let directories = env::split_paths(path).filter(|directory| directory.is_absolute());
    let directories = directories.chain(system.iter().map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// What a program prints, or why it could not. It inherits the calling thread's namespace.
pub fn run(program: &Path, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    finish(program, arguments, command, "")
}

/// The writing end of a pipe: whoever reads the other end knows when all programs that were given it have ended, even
/// when this process is killed meanwhile.
pub type Witness<'a> = Option<BorrowedFd<'a>>;

/// Has a program read `input`; why it could not.
pub fn feed(program: &Path, arguments: &[&str], input: &str, witness: Witness<'_>) -> Result<(), String> {
    let mut command = Command::new(program);
    let witness = witness.map(|end| end.try_clone_to_owned()).transpose();
    let witness = witness.map_err(|error| format!("cannot duplicate a descriptor: {error}"))?;
    command.args(arguments).stdin(Stdio::piped()).stdout(witness.map_or_else(Stdio::null, Stdio::from));
    finish(program, arguments, command, input).map(drop)
}

fn finish(program: &Path, arguments: &[&str], mut command: Command, input: &str) -> Result<Vec<u8>, String> {
    let words = format!("{} {}", program.display(), arguments.join(" "));
    let child = command.env("LC_ALL", "C").stderr(Stdio::piped()).spawn();
    let mut child = Running(child.map_err(|error| format!("cannot run {words}: {error}"))?);
    if let Some(mut stdin) = child.0.stdin.take() {
        // One that does not want all of it says so by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
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

    fn shell(text: &str) -> Running {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    #[test]
    fn much_output_and_no_end() {
        let (status, output, errors) =
            shell("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2").output(TIMEOUT).unwrap();
        assert!(status.success());
        assert_eq!((output.len(), errors.len()), (300_000, 300_000));
        let error = shell("exec sleep 60").output(Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = shell("exec >&- 2>&-; exec sleep 60").output(Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_failure_is_told() {
        let shell = Path::new("/bin/sh");
        let reason = run(shell, &["-c", "echo out; echo 'no such table' >&2; exit 3"]).unwrap_err();
        assert_eq!(reason, "/bin/sh -c echo out; echo 'no such table' >&2; exit 3 failed: no such table");
    }

    #[test]
    fn the_witness_sees_the_end() {
        let (mut reader, writer) = io::pipe().unwrap();
        let script = ["-c", "read line; test $line = yes"];
        feed(Path::new("/bin/sh"), &script, "yes\n", Some(writer.as_fd())).unwrap();
        drop(writer);
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert!(seen.is_empty());
    }
}
