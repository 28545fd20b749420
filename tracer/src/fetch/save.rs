//! `iptables-save`: what prints the text of legacy rules.

use crate::netfilter::Family;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where administrators' programs are even when `PATH` does not say so.
const SYSTEM: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// An `iptables-save` that reads legacy tables.
pub(super) struct Program {
    path: PathBuf,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Program {
    /// The one of this host; or why there is none, and what to do.
    pub(super) fn find(family: Family) -> Result<Self, String> {
        Self::find_in(&env::var_os("PATH").unwrap_or_default(), &SYSTEM, family)
    }

    pub(super) fn find_in(path: &OsStr, system: &[&str], family: Family) -> Result<Self, String> {
        let find = |name: &str| {
            let directories = env::split_paths(path).filter(|directory| directory.is_absolute());
            let directories = directories.chain(system.iter().map(PathBuf::from));
            directories.map(|directory| directory.join(name)).find(|path| path.is_file())
        };
        let (legacy, plain) = match family {
            Family::Ipv4 => ("iptables-legacy-save", "iptables-save"),
            Family::Ipv6 => ("ip6tables-legacy-save", "ip6tables-save"),
        };
        if let Some(path) = find(legacy) {
            return Ok(Self { path });
        }
        let path = find(plain).ok_or_else(|| {
            format!("neither {legacy} nor {plain} is installed; install iptables to see the text of rules")
        })?;
        let version = run(&path, &["--version"])?;
        if reads_legacy(&version) {
            Ok(Self { path })
        } else {
            Err(format!(
                "{} cannot see legacy tables, it is made for nf_tables; install {legacy} to see the text of rules",
                path.display()
            ))
        }
    }

    /// What it prints about a table of the calling thread's namespace, which the program inherits.
    pub(super) fn save(&self, table: &str) -> Result<Vec<u8>, String> {
        run(&self.path, &["-t", table])
    }
}

/// Whether what `iptables-save --version` prints is that of a program for legacy tables. Since 1.8 it names the
/// variant. Before, there was only this one; it does not know the option, and prints its rules.
fn reads_legacy(version: &[u8]) -> bool {
    let first = version.split(|byte| *byte == b'\n').next().unwrap_or_default();
    !String::from_utf8_lossy(first).contains("nf_tables")
}

/// What a program prints, or why it could not.
fn run(program: &Path, arguments: &[&str]) -> Result<Vec<u8>, String> {
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

    /// Writes an executable. Another process does it: a test that starts a program just now would inherit the open
    /// file from this one, and a file that is open for writing cannot be executed.
    fn script(directory: &Path, name: &str, text: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#, "sh"]);
        assert!(command.arg(directory.join(name)).arg(text).status().unwrap().success());
    }

    #[test]
    fn the_right_program_is_chosen() {
        let directory = tempfile::tempdir().unwrap();
        let find = || Program::find_in(directory.path().as_os_str(), &[], Family::Ipv4);
        let shown = |text: String| text.replace(&*directory.path().to_string_lossy(), "/sbin");

        let reason = find().err().unwrap();
        assert_eq!(
            reason,
            "neither iptables-legacy-save nor iptables-save is installed; install iptables to see the text of rules"
        );
        script(directory.path(), "iptables-save", "echo 'iptables-save v1.8.9 (nf_tables)'");
        assert_eq!(
            shown(find().err().unwrap()),
            "/sbin/iptables-save cannot see legacy tables, it is made for nf_tables; install iptables-legacy-save to \
             see the text of rules"
        );
        for version in ["iptables-save v1.8.9 (legacy)", "# Generated by iptables-save v1.4.21 on Mon"] {
            script(directory.path(), "iptables-save", &format!("echo '{version}'"));
            assert_eq!(shown(find().unwrap().to_string()), "/sbin/iptables-save");
        }
        script(directory.path(), "iptables-legacy-save", "exit 1");
        assert_eq!(shown(find().unwrap().to_string()), "/sbin/iptables-legacy-save");
    }

    #[test]
    fn a_failure_is_told() {
        let directory = tempfile::tempdir().unwrap();
        script(directory.path(), "iptables-legacy-save", "echo out; echo 'no such table' >&2; exit 3");
        let path = directory.path().join("iptables-legacy-save");
        let reason = Program { path: path.clone() }.save("filter").unwrap_err();
        assert_eq!(reason, format!("{} -t filter failed: no such table", path.display()));
    }

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
