//! Makes the programs to give out: for each architecture one static file.
//!
//! The one for x86_64 is the optimised build that the guest tests run, without its debugging information. The one for
//! aarch64 is built across: Debian has the linker and the C library, and Rust's own library is compiled from the sources
//! that the kernel programs are built with, for not every machine's rustup can download another architecture's.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::process::{cargo, command, read, run_quietly};
use crate::{build, places, process, setup};

/// What to make.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only for this architecture; can be given more than once
    #[arg(long = "target", value_enum, value_name = "ARCHITECTURE")]
    targets: Vec<Target>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

/// As in the name of its file.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// Rust's and Debian's names for it.
const AARCH64_RUST: &str = "aarch64-unknown-linux-gnu";
const AARCH64_TOOLS: &str = "aarch64-linux-gnu";

/// The `dist` task.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(&setup::Options { build_only: true })?;
    let targets =
        if options.targets.is_empty() { Target::value_variants() } else { options.targets.as_slice() };
    let folder = places::target().join("dist");
    fs::create_dir_all(&folder)?;
    for target in targets {
        let (built, strip) = match target {
            Target::X86_64 => (build::static_tracer()?, "strip".to_owned()),
            Target::Aarch64 => (aarch64()?, format!("{AARCH64_TOOLS}-strip")),
        };
        let program = folder.join(format!("nftracer-{target}"));
        run_quietly(command(strip).arg("-o").arg(&program).arg(&built))?;
        needs_no_library(&program)?;
        works(*target, &program)?;
        println!("{}: {} bytes, static", program.display(), program.metadata()?.len());
    }
    Ok(())
}

fn aarch64() -> Result<PathBuf> {
    setup::for_aarch64()?;
    let mut command = cargo();
    command
        .current_dir(places::root())
        .args(build::RELEASE)
        .args(["--target", AARCH64_RUST, "-Z", "build-std=std,panic_unwind"])
        // For `-Z`, and because the library itself uses what is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", format!("{AARCH64_TOOLS}-gcc"));
    setup::rust_src::tell(&mut command)?;
    process::run(command.args(build::STATIC))?;
    Ok(places::target().join(AARCH64_RUST).join("release/nftracer"))
}

/// Neither the loader nor a shared library.
fn needs_no_library(program: &Path) -> Result<()> {
    let mut readelf = command("readelf");
    let headers = read(readelf.args(["--wide", "--program-headers", "--dynamic"]).arg(program))?;
    let needs = |line: &&str| line.contains("INTERP") || line.contains("(NEEDED)");
    match headers.lines().find(needs) {
        Some(line) => bail!("{} is not static: {}", program.display(), line.trim()),
        None => Ok(()),
    }
}

/// Starts it; what is not for this machine is emulated.
fn works(target: Target, program: &Path) -> Result<()> {
    let start = |word: &str| -> Command {
        let mut words = match target {
            Target::X86_64 => command(program),
            Target::Aarch64 => {
                let mut emulator = command("qemu-aarch64-static");
                emulator.arg(program);
                emulator
            }
        };
        words.arg(word);
        words
    };
    let version = read(&mut start("--version"))?;
    if version.trim_end() != concat!("nftracer ", env!("CARGO_PKG_VERSION")) {
        bail!("{} calls itself {version:?}", program.display());
    }
    let doctor = start("doctor").output().context("cannot start it")?;
    // 3: nothing on this machine can trace.
    if !matches!(doctor.status.code(), Some(0 | 3)) {
        bail!("{} doctor: {}", program.display(), doctor.status);
    }
    Ok(())
}
