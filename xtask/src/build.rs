//! Builds the kernel programs, then user space, which embeds them.
//!
//! The kernel programs need a nightly gate (`build-std`, a target without a library of its own) that
//! the rest of the workspace must not see, hence the environment is set here for one cargo run only.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::places;
use crate::process::{self, cargo};
use crate::setup;

/// What to build, and how.
#[derive(clap::Args, Clone, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// Optimises user space (the kernel programs always are)
    #[arg(long)]
    pub(crate) release: bool,
    /// Features for both the kernel programs and the tracer, such as debug-log
    #[arg(long, value_delimiter = ',')]
    pub(crate) features: Vec<String>,
    /// An additional argument for bpf-linker
    #[arg(long = "linker-arg", allow_hyphen_values = true)]
    pub(crate) linker_args: Vec<String>,
    /// Builds the kernel programs only
    #[arg(long)]
    pub(crate) object_only: bool,
}

/// What user space was built into.
pub(crate) struct Built {
    folder: PathBuf,
}

impl Built {
    /// A program of this build.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Builds the tracer to give out; quick when nothing changed.
pub(crate) fn static_tracer() -> Result<PathBuf> {
    let options = Options { release: true, ..Options::default() };
    object(&options)?;
    libpcap()?;
    process::run(user_space_command(&options, RELEASE).args(STATIC))?;
    Ok(already(&options).program("nftracer"))
}

/// Builds everything; quick when nothing changed.
pub(crate) fn run(options: &Options) -> Result<Built> {
    object(options)?;
    // Plain cargo runs take it from there, too.
    libpcap()?;
    if !options.object_only {
        user_space(options)?;
    }
    Ok(already(options))
}

/// What an earlier run may have built.
pub(crate) fn already(options: &Options) -> Built {
    Built { folder: places::target().join(if options.release { "release" } else { "debug" }) }
}

/// The kernel programs: `target/bpf/nftracer.bpf.o`.
fn object(options: &Options) -> Result<()> {
    let folder = places::target().join("bpf-build");
    let mut flags = vec![
        r#"--cfg=bpf_target_arch="x86_64""#.to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    flags.extend(remapped_paths()?);
    flags.extend(options.linker_args.iter().map(|argument| format!("-Clink-arg={argument}")));

    let mut command = cargo();
    command
        .current_dir(places::root())
        .args(["build", "--package", "tracer-ebpf", "--release", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&folder)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("PATH", with_linker()?)
        // The linker opens this compiler's LLVM.
        .env("LD_LIBRARY_PATH", setup::rust_src::sysroot()?.join("lib"));
    if !options.features.is_empty() {
        command.args(["--features", &options.features.join(",")]);
    }
    setup::rust_src::tell(&mut command)?;
    process::run(&mut command)
        .context("cannot build the kernel programs (has `cargo xtask setup` been run?)")?;
    let programs = folder.join("bpfel-unknown-none/release/tracer-ebpf");
    let stripped = folder.join("nftracer.bpf.o");
    strip(&programs, &stripped)?;
    copy_if_changed(&stripped, &places::bpf_object())
}

/// Leaves out what is for debuggers alone: four fifths of the file. The kernel has types and lines from its BTF.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let sysroot = setup::rust_src::sysroot()?;
    let mut objcopy = process::command(sysroot.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-objcopy"));
    objcopy.arg("--strip-debug").args([from, to]).env("LD_LIBRARY_PATH", sysroot.join("lib"));
    process::run(&mut objcopy)
}

/// Two machines build the same object: no path of theirs is in it.
fn remapped_paths() -> Result<Vec<String>> {
    let mut paths = vec![(places::root().to_owned(), "nftracer")];
    paths.push((setup::rust_src::sysroot()?, "rust"));
    paths.extend(
        setup::rust_src::outside_sysroot()?.map(|library| (library, "rust/lib/rustlib/src/rust/library")),
    );
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    paths.extend(home.map(|home| (home, "cargo")));
    Ok(paths.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect())
}

fn with_linker() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let linker = setup::bpf_linker_folder()?.join("bin");
    Ok(env::join_paths(std::iter::once(linker).chain(env::split_paths(&path)))?)
}

/// Leaves the time of an unchanged object alone, so that nothing that embeds it is built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

/// Puts the library where plain builds find it, too.
fn libpcap() -> Result<()> {
    let machine = setup::libpcap::X86_64;
    let library = setup::libpcap::cached(machine)?;
    copy_if_changed(&library, &places::libpcap().join(machine.architecture).join("libpcap.a"))
        .context("there is no libpcap to link (has `cargo xtask setup` been run?)")
}

fn user_space(options: &Options) -> Result<()> {
    if !options.release {
        let both = ["build", "--package", "nftracer", "--package", "nftracer-tests"];
        return process::run(&mut user_space_command(options, &both));
    }
    process::run(&mut user_space_command(options, &["build", "--release", "--package", "nftracer-tests"]))?;
    process::run(user_space_command(options, RELEASE).args(STATIC))
}

/// Cargo's words for the optimised tracer alone, for [`STATIC`] to follow.
pub(crate) const RELEASE: &[&str] = &["rustc", "--release", "--package", "nftracer", "--bin", "nftracer"];

/// Links the program so that it needs no library: what is tested optimised is what `dist` gives out. Whether to is known
/// when the program itself is compiled, so that everything else stays as it was.
pub(crate) const STATIC: &[&str] = &["--", "-Ctarget-feature=+crt-static"];

fn user_space_command(options: &Options, words: &[&str]) -> Command {
    let mut command = cargo();
    command
        .current_dir(places::root())
        .args(words)
        .env("NFTRACER_BPF_OBJECT", places::bpf_object())
        .env("NFTRACER_LIBPCAP", places::libpcap());
    for feature in &options.features {
        command.arg("--features").arg(format!("nftracer/{feature}"));
    }
    command
}
