//! Brings what is missing: library sources for the kernel programs, their linker, libpcap for the
//! filters, and the Debian packages that the virtual machines are made of.
//!
//! Says what it is going to do before it does it, and does nothing when nothing is missing. Kernels
//! are fetched by the `vm` task when it first needs one.

pub(crate) mod libpcap;
pub(crate) mod rust_src;

use std::path::PathBuf;

use anyhow::Result;

use crate::places;
use crate::process::{cargo, find};
use crate::{apt, process};

/// What to bring.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only what building needs, nothing for virtual machines
    #[arg(long)]
    pub(crate) build_only: bool,
}

/// Links with the LLVM of exactly this toolchain; later releases want a newer one installed.
const BPF_LINKER_VERSION: &str = "0.10.4";

/// What shows whether a Debian package is there, by package: a program, or a file with its path.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("iptables", "xtables-legacy-multi"),
    ("nftables", "nft"),
    ("tshark", "tshark"),
    ("iproute2", "ip"),
    ("ipset", "ipset"),
    ("busybox-static", "busybox"),
    ("kmod", "depmod"),
    ("xz-utils", "xz"),
    ("binutils", "strip"),
];

/// The same for building and trying aarch64 programs.
const AARCH64_PACKAGES: &[(&str, &str)] = &[
    ("gcc-aarch64-linux-gnu", "aarch64-linux-gnu-gcc"),
    ("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.a"),
    ("qemu-user-static", "qemu-aarch64-static"),
];

/// The `setup` task.
pub(crate) fn run(options: &Options) -> Result<()> {
    rust_src::ensure()?;
    ensure_bpf_linker()?;
    libpcap::ensure(libpcap::X86_64)?;
    if !options.build_only {
        ensure_packages(PACKAGES)?;
    }
    Ok(())
}

/// What `dist` needs besides: another architecture's C library and linker, and something that runs its programs.
pub(crate) fn for_aarch64() -> Result<()> {
    ensure_packages(AARCH64_PACKAGES)
}

/// The folder bpf-linker is installed below.
pub(crate) fn bpf_linker_folder() -> Result<PathBuf> {
    Ok(places::cache()?.join(format!("tools/bpf-linker-{BPF_LINKER_VERSION}")))
}

fn ensure_bpf_linker() -> Result<()> {
    let folder = bpf_linker_folder()?;
    if folder.join("bin/bpf-linker").exists() {
        return Ok(());
    }
    say(&format!(
        "building bpf-linker {BPF_LINKER_VERSION} into {} (takes about two minutes)",
        folder.display()
    ));
    process::run(
        cargo()
            .args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER_VERSION, "--root"])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", places::target().join("bpf-linker")),
    )
}

fn ensure_packages(packages: &[(&'static str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, program)| find(program).is_none()).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing Debian packages: {}", missing.join(" ")));
    apt::install(&missing)
}

/// Announces something that changes this machine.
fn say(what: &str) {
    eprintln!("setup: {what}");
}

/// What rustc says about itself, such as `1.95.0`.
fn rustc_version() -> Result<String> {
    let text = process::read(process::command("rustc").arg("--version").current_dir(places::root()))?;
    Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
}
