//! Embeds the kernel programs, where they have been built.
//!
//! `cargo xtask build` builds them and names the file in `NFTRACER_BPF_OBJECT`; a plain `cargo build` takes the file an
//! earlier run left in `target/bpf`. Without either the program is built all the same, says so in `doctor`, and cannot
//! trace with eBPF. So it is for any other architecture: the programs look for a function's arguments where x86_64 has
//! them.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=NFTRACER_BPF_OBJECT");
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    let object = env::var_os("NFTRACER_BPF_OBJECT").map_or_else(left_by_earlier_run, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let for_x86_64 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64");
    if for_x86_64 && object.is_file() {
        println!("cargo::rustc-cfg=bpf_object");
        println!("cargo::rustc-env=NFTRACER_BPF_OBJECT={}", object.display());
    }
}

fn left_by_earlier_run() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let workspace = Path::new(&manifest).parent().expect("tracer lies in the workspace");
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    target.join("bpf/nftracer.bpf.o")
}
