//! Other tracers, as Debian packages them: something to compare with.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::Suite;
use crate::places;

/// The first release that has all of them.
const SUITE: &str = "trixie";

/// A tracer.
pub(crate) struct Peer {
    /// The package. Rows of this tracer begin with its name, and in the guest it lies in a folder of this name.
    pub(crate) name: &'static str,
    /// With the libraries of that release: the guest's are those of this machine.
    packages: &'static [&'static str],
}

/// All. It takes longer to attach them, instruction by instruction, than to measure everything else.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "pwru",
        packages: &["pwru", "libpcap0.8t64", "libdbus-1-3", "libsystemd0", "libcap2", "libc6"],
    },
    Peer {
        name: "bpftrace",
        packages: &[
            "bpftrace",
            "libbpf1",
            "libbpfcc",
            "libbsd0",
            "libc6",
            "libclang-cpp19",
            "libclang1-19",
            "libedit2",
            "libelf1t64",
            "libffi8",
            "libgcc-s1",
            "libllvm19",
            "liblzma5",
            "libmd0",
            "libsframe1",
            "libstdc++6",
            "libtinfo6",
            "libxml2",
            "libz3-4",
            "libzstd1",
            "zlib1g",
        ],
    },
];

impl Peer {
    /// Where it is unpacked; fetched if it is not there.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let folder = places::cache()?.join(self.name);
        if folder.exists() {
            return Ok(folder);
        }
        let suite = Suite::open(SUITE)?;
        if suite.versions(self.name)?.is_empty() {
            bail!("Debian {SUITE} has no package {}", self.name);
        }
        eprintln!("setup: fetching {} and its libraries into {}", self.name, folder.display());
        let packages: Vec<String> = self.packages.iter().map(|package| (*package).to_owned()).collect();
        suite.unpack(&packages, &folder)?;
        for unused in ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/gcc", "etc"] {
            let _ = fs::remove_dir_all(folder.join(unused));
        }
        Ok(folder)
    }
}
