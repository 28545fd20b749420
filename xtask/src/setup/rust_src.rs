//! The sources of Rust's core library, of exactly the compiler in use.
//!
//! There is no prebuilt core for the BPF target, so the kernel programs' build compiles it. rustup has
//! the sources as a component; where it cannot download, Debian has them as a package, which is
//! unpacked into the cache and used from there, since installing it would not match rustup's compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Suite;
use crate::places;
use crate::process::{command, find, read, run_quietly};

use super::{rustc_version, say};

/// A folder or tarball with the sources, for machines without a network.
const VARIABLE: &str = "NFTRACER_RUST_SRC";

/// Where Debian may have the version: the suites that follow new compilers.
const SUITES: &[&str] = &["trixie-backports", "sid"];

/// Makes sure that the sources are there.
pub(super) fn ensure() -> Result<()> {
    let version = rustc_version()?;
    if in_sysroot()? || is_library(&cached(&version)?) {
        return Ok(());
    }
    if let Some(given) = env::var_os(VARIABLE) {
        return from_given(Path::new(&given), &version);
    }
    let Err(error) = from_rustup() else { return Ok(()) };
    eprintln!("setup: rustup could not bring them: {}", error.to_string().lines().last().unwrap_or_default());
    from_debian(&version)
}

/// The sources, if cargo would not find them by itself.
pub(crate) fn outside_sysroot() -> Result<Option<PathBuf>> {
    if in_sysroot()? {
        return Ok(None);
    }
    Ok(Some(cached(&rustc_version()?)?).filter(|folder| is_library(folder)))
}

/// Tells a cargo that is to build from the sources where they are.
pub(crate) fn tell(cargo: &mut Command) -> Result<()> {
    if let Some(library) = outside_sysroot()? {
        // Cargo has this variable for its own tests; the toolchain is pinned, so it cannot vanish.
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    }
    Ok(())
}

/// The folder of the compiler and its libraries.
pub(crate) fn sysroot() -> Result<PathBuf> {
    let text = read(command("rustc").args(["--print", "sysroot"]).current_dir(places::root()))?;
    Ok(PathBuf::from(text.trim_end()))
}

fn in_sysroot() -> Result<bool> {
    Ok(is_library(&sysroot()?.join("lib/rustlib/src/rust/library")))
}

fn is_library(folder: &Path) -> bool {
    folder.join("core/src/lib.rs").exists()
}

fn cached(version: &str) -> Result<PathBuf> {
    Ok(places::cache()?.join("rust-src").join(version).join("library"))
}

fn from_rustup() -> Result<()> {
    if find("rustup").is_none() {
        bail!("there is no rustup");
    }
    say("adding the rustup component rust-src");
    run_quietly(command("rustup").args(["component", "add", "rust-src"]).current_dir(places::root()))?;
    if !in_sysroot()? {
        bail!("the component is there, the sources are not");
    }
    Ok(())
}

fn from_debian(version: &str) -> Result<()> {
    for name in SUITES {
        let suite = match Suite::open(name) {
            Ok(suite) => suite,
            Err(error) => {
                eprintln!("setup: {error:#}");
                continue;
            }
        };
        let matches = |candidate: &String| {
            candidate.strip_prefix(version).is_some_and(|rest| rest.starts_with(['+', '-', '~']))
        };
        let Some(found) = suite.versions("rust-src")?.into_iter().find(matches) else { continue };
        say(&format!("unpacking Debian's rust-src {found} from {name} into the cache"));
        let unpacked = places::cache()?.join("rust-src").join(format!("{version}-debian"));
        suite.unpack(&[format!("rust-src={found}")], &unpacked)?;
        return keep(&unpacked, version);
    }
    bail!(
        "no sources of the core library for rustc {version}: neither in the toolchain, nor from rustup, nor in \
         Debian's {}; name a folder or tarball with {VARIABLE}",
        SUITES.join(" or ")
    )
}

fn from_given(given: &Path, version: &str) -> Result<()> {
    if given.is_dir() {
        return keep(given, version);
    }
    say(&format!("unpacking {} into the cache", given.display()));
    let unpacked = places::cache()?.join("rust-src").join(format!("{version}-given"));
    fs::create_dir_all(&unpacked)?;
    run_quietly(command("tar").arg("-xf").arg(given).arg("-C").arg(&unpacked))?;
    keep(&unpacked, version)
}

/// Links the library in an unpacked tree to the place where builds look.
fn keep(tree: &Path, version: &str) -> Result<()> {
    let tree = tree.canonicalize().with_context(|| format!("cannot find {}", tree.display()))?;
    let Some(library) = find_library(&tree, 5) else {
        bail!("{} holds no library/core", tree.display());
    };
    let link = cached(version)?;
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder)?;
    }
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&library, &link).with_context(|| format!("cannot create {}", link.display()))
}

fn find_library(folder: &Path, depth: usize) -> Option<PathBuf> {
    if is_library(folder) {
        return Some(folder.to_owned());
    }
    let entries = fs::read_dir(folder).ok().filter(|_| depth > 0)?;
    entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .find_map(|entry| find_library(&entry.path(), depth - 1))
}
