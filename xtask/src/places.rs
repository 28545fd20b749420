//! Where things lie: the repository, its build output, and what is kept between builds.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// Cargo's output folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// The kernel programs, as the tracer embeds them.
pub(crate) fn bpf_object() -> PathBuf {
    target().join("bpf/nftracer.bpf.o")
}

/// libpcap, as the tracer links it: in a folder for each architecture.
pub(crate) fn libpcap() -> PathBuf {
    target().join("libpcap")
}

/// What is expensive to fetch and outlives `cargo clean`: tools, library sources, kernels.
/// `$NFTRACER_CACHE` puts it elsewhere.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("NFTRACER_CACHE") {
        return Ok(root().join(folder));
    }
    if let Some(folder) = env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(folder).join("nftracer"));
    }
    let home = env::var_os("HOME").context("neither NFTRACER_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/nftracer"))
}
