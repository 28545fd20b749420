//! Child processes, with errors that say what was run.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// What `cargo run` adds to the environment and must not leak into other tools or nested builds.
const FROM_CARGO_RUN: &[&str] = &[
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION",
    "LD_LIBRARY_PATH",
];

/// A command with a clean environment.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in FROM_CARGO_RUN {
        command.env_remove(name);
    }
    command
}

/// The cargo this task was started with.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Runs a command and lets it use the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command, shows its output only when it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command and returns what it printed.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no UTF-8", shown(command)))
}

fn output(command: &mut Command) -> Result<Output> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{} failed: {}\n{}", shown(command), output.status, String::from_utf8_lossy(&said).trim_end());
    }
    Ok(output)
}

/// Whether a program of this name is found on the search path or in the administrator's folders.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A command in front of which `sudo` stands unless the administrator runs this.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    if is_root()? {
        return Ok(command(program));
    }
    let mut sudo = command("sudo");
    sudo.arg(program);
    Ok(sudo)
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(Path::new("/proc/self").metadata().context("cannot look at /proc/self")?.uid() == 0)
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}
