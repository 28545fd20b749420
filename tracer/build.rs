//! Embeds the kernel programs, where they have been built.
//!
//! `cargo xtask build` builds them and names the file in `NFTRACER_BPF_OBJECT`; a plain `cargo build` takes the file an
//! earlier run left in `target/bpf`. Without either the program is built all the same, says so in `doctor`, and cannot
//! trace with eBPF. So it is for any other architecture: the programs look for a function's arguments where x86_64 has
//! them.
//!
//! libpcap is linked in the same way: from the folder that `NFTRACER_LIBPCAP` names, or `target/libpcap`, which hold one
//! for each architecture. Without it only simple filters are understood.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    let object = named("NFTRACER_BPF_OBJECT", "bpf/nftracer.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let for_x86_64 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64");
    if for_x86_64 && object.is_file() {
        println!("cargo::rustc-cfg=bpf_object");
        println!("cargo::rustc-env=NFTRACER_BPF_OBJECT={}", object.display());
    }
    link_libpcap();
}

fn link_libpcap() {
    println!("cargo::rustc-check-cfg=cfg(libpcap)");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let folder = named("NFTRACER_LIBPCAP", "libpcap").join(architecture);
    println!("cargo::rerun-if-changed={}", folder.join("libpcap.a").display());
    // Built against the headers of the GNU C library.
    let is_gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|library| library == "gnu");
    if is_gnu && folder.join("libpcap.a").is_file() {
        println!("cargo::rustc-cfg=libpcap");
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=static=pcap");
    }
}

/// Named by a variable, or left by an earlier run.
fn named(variable: &str, place: &str) -> PathBuf {
    println!("cargo::rerun-if-env-changed={variable}");
    env::var_os(variable).map_or_else(|| target().join(place), PathBuf::from)
}

/// Cargo's output folder.
fn target() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let workspace = Path::new(&manifest).parent().expect("tracer lies in the workspace");
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
}
