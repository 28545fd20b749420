//! libpcap's compiler of packet filters, as a static library.
//!
//! Debian's own static library wants dbus, RDMA verbs and libnl behind it, for capturing. Nothing here captures: built
//! from Debian's source without any way to capture, it needs the C library alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Suite};
use crate::places;
use crate::process::{command, find, run_quietly};

use super::say;

/// Where Debian may have a version that is known to work here.
const SUITES: &[&str] = &["trixie", "sid"];

/// What the build needs, by Debian package.
const TOOLS: &[(&str, &str)] = &[("gcc", "gcc"), ("make", "make"), ("flex", "flex"), ("bison", "bison")];

/// Leaves out every way to capture, and whatever else needs a library.
const CONFIGURATION: &[&str] = &[
    "--quiet",
    "--disable-shared",
    "--with-pcap=null",
    "--without-dag",
    "--without-dpdk",
    "--without-libnl",
    "--without-septel",
    "--without-snf",
    "--without-turbocap",
    "--disable-bluetooth",
    "--disable-dbus",
    "--disable-netmap",
    "--disable-rdma",
    "--disable-remote",
    "--disable-usb",
];

/// Names are looked up by nftracer's own functions: a statically linked C library cannot, and none may ask a name server.
const CFLAGS: &str = "CFLAGS=-O2 -fPIC -Dgetaddrinfo=nftracer_getaddrinfo -Dgethostbyname=nftracer_gethostbyname \
                      -Dgetnetbyname=nftracer_getnetbyname -Dgetprotobyname=nftracer_getprotobyname";

/// Variants of the look-ups whose signature differs between C libraries, and one that libpcap can do itself.
const WITHOUT: [&str; 3] = [
    "#define HAVE_LINUX_GETNETBYNAME_R 1",
    "#define HAVE_LINUX_GETPROTOBYNAME_R 1",
    "#define HAVE_ETHER_HOSTTON 1",
];

/// A processor that programs are built for.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    /// As Rust names it.
    pub(crate) architecture: &'static str,
    /// As `configure` and its compiler's name do.
    triple: &'static str,
}

/// The one that kernel programs are there for.
pub(crate) const X86_64: Machine = Machine { architecture: "x86_64", triple: "x86_64-linux-gnu" };

/// Makes sure that the library is there, and says where.
pub(crate) fn ensure(machine: Machine) -> Result<PathBuf> {
    let library = cached(machine)?;
    if library.exists() {
        return Ok(library);
    }
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(_, program)| find(program).is_none()).map(|(package, _)| *package).collect();
    if !missing.is_empty() {
        say(&format!("installing Debian packages: {}", missing.join(" ")));
        apt::install(&missing)?;
    }
    let source = source()?;
    say(&format!("building libpcap from {} into {}", source.display(), library.display()));
    build(machine, &source, &library)?;
    Ok(library)
}

/// Where the library is, once it is.
pub(crate) fn cached(machine: Machine) -> Result<PathBuf> {
    Ok(folder()?.join(machine.architecture).join("libpcap.a"))
}

fn folder() -> Result<PathBuf> {
    Ok(places::cache()?.join("libpcap"))
}

/// The unpacked source.
fn source() -> Result<PathBuf> {
    let folder = folder()?.join("source");
    if let Some(source) = with_configure(&folder) {
        return Ok(source);
    }
    let mut errors = Vec::new();
    for name in SUITES {
        say(&format!("fetching libpcap's source from Debian's {name} into the cache"));
        match Suite::open_sources(name).and_then(|suite| suite.unpack_source("libpcap", &folder)) {
            Ok(()) => break,
            Err(error) => errors.push(format!("{name}: {error:#}")),
        }
    }
    match with_configure(&folder) {
        Some(source) => Ok(source),
        None => bail!("no source of libpcap in Debian's archive: {}", errors.join("; ")),
    }
}

/// The release in a folder, which is named after its version.
fn with_configure(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.join("configure").exists())
}

fn build(machine: Machine, source: &Path, library: &Path) -> Result<()> {
    let folder = library.with_extension("build");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let compiler = if machine.architecture == std::env::consts::ARCH {
        "gcc".to_owned()
    } else {
        format!("{}-gcc", machine.triple)
    };
    run_quietly(
        command(source.join("configure"))
            .args(CONFIGURATION)
            .arg(format!("--host={}", machine.triple))
            .arg(format!("CC={compiler}"))
            .current_dir(&folder),
    )?;
    let config = folder.join("config.h");
    let text = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let kept: Vec<&str> = text.lines().filter(|line| !WITHOUT.contains(line)).collect();
    fs::write(&config, kept.join("\n") + "\n")?;
    run_quietly(command("make").args([CFLAGS, "libpcap.a"]).current_dir(&folder))?;
    fs::rename(folder.join("libpcap.a"), library)
        .with_context(|| format!("cannot create {}", library.display()))?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}
