//! The guest's file system: tools of this machine, the kernel's modules, our programs.
//!
//! Three archives follow each other. The tools and the modules of a kernel change rarely and are kept
//! in the cache; the last one is made for every run. None is compressed: unpacking costs an emulated
//! machine more than reading.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::places;
use crate::process::{command, find, read, run_quietly};

use super::cpio::Archive;
use super::debian::Kernel;

const INIT: &str = include_str!("init.sh");

/// Programs that come as they are on this machine, with their libraries.
const TOOLS: &[&str] = &[
    "bash",
    "dash",
    "kmod",
    "ip",
    "ipset",
    "nft",
    "xtables-legacy-multi",
    "xtables-nft-multi",
    "setsid",
    "stty",
];

/// Names under which a tool is called.
const LINKS: &[(&str, &[&str])] = &[
    ("dash", &["sh"]),
    ("kmod", &["modprobe", "insmod", "rmmod", "lsmod", "modinfo", "depmod"]),
    (
        "xtables-legacy-multi",
        &[
            "iptables-legacy",
            "iptables-legacy-restore",
            "iptables-legacy-save",
            "ip6tables-legacy",
            "ip6tables-legacy-restore",
            "ip6tables-legacy-save",
        ],
    ),
    (
        "xtables-nft-multi",
        &[
            "iptables",
            "iptables-restore",
            "iptables-save",
            "ip6tables",
            "ip6tables-restore",
            "ip6tables-save",
            "iptables-nft",
            "iptables-nft-restore",
            "iptables-nft-save",
            "ip6tables-nft",
            "ip6tables-nft-restore",
            "ip6tables-nft-save",
            "arptables-nft",
            "arptables-nft-save",
            "ebtables-nft",
            "ebtables-nft-save",
            "xtables-monitor",
        ],
    ),
];

/// The modules that go in, by the start of their path below `kernel/`; what they need follows.
const MODULES: &[&str] = &[
    "net/netfilter/",
    "net/ipv4/",
    "net/ipv6/",
    "net/bridge/",
    "net/8021q/",
    "net/sched/",
    "net/packet/",
    "net/sctp/",
    "drivers/net/veth.",
    "drivers/net/dummy.",
    "drivers/net/tun.",
    "drivers/net/ifb.",
    "drivers/net/macvlan.",
    "drivers/net/vrf.",
    "drivers/net/vxlan",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_ring",
    "drivers/char/virtio_console.",
    "arch/x86/crypto/crc32",
    "crypto/crc32",
    // Asked for by name: what the match `string` searches with.
    "lib/ts_",
    "lib/crc",
];

/// Folders that have to exist before anything is mounted.
const FOLDERS: &[&str] = &["proc", "sys", "dev", "tmp", "run", "root", "out", "var", "etc"];

/// What differs from run to run.
pub(crate) struct Run<'a> {
    /// Programs and files: where on this machine, where in the guest.
    pub(crate) files: &'a [(PathBuf, PathBuf)],
    /// The command, as a shell script.
    pub(crate) script: &'a str,
    /// Environment of the command.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// Rows and columns, if a terminal is attached.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// Writes the initramfs for a run.
pub(crate) fn write(kernel: &Kernel, run: &Run<'_>, to: &Path) -> Result<()> {
    let mut bytes = fs::read(tools()?)?;
    bytes.extend(fs::read(modules(kernel)?)?);
    bytes.extend(changing(run)?);
    fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))
}

fn changing(run: &Run<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    let programs: Vec<&Path> = run.files.iter().map(|(host, _)| host.as_path()).collect();
    for library in libraries(&programs)? {
        archive.file(&library, &library)?;
    }
    for (host, guest) in run.files {
        if host.is_dir() {
            add_folder(&mut archive, host, guest)?;
        } else {
            archive.file(guest, host)?;
        }
    }
    let mut settings = String::new();
    for (name, value) in run.environment {
        settings += &format!("export {name}={}\n", quote(value));
    }
    if let Some((rows, columns)) = run.terminal {
        settings += &format!("GUEST_TERMINAL='rows {rows} cols {columns}'\n");
    }
    archive.content("etc/guest", 0o644, settings.as_bytes())?;
    archive.content("bin/guest-command", 0o755, format!("#!/bin/sh\n{}\n", run.script).as_bytes())?;
    archive.content("init", 0o755, INIT.as_bytes())?;
    archive.finish()
}

fn add_folder(archive: &mut Archive, host: &Path, guest: &Path) -> Result<()> {
    archive.folder(guest)?;
    for entry in fs::read_dir(host)? {
        let entry = entry?;
        let inside = guest.join(entry.file_name());
        if entry.path().is_dir() {
            add_folder(archive, &entry.path(), &inside)?;
        } else {
            archive.file(inside, &entry.path())?;
        }
    }
    Ok(())
}

/// A word as a shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The archive with this machine's tools.
fn tools() -> Result<PathBuf> {
    let mut programs = BTreeMap::new();
    for name in TOOLS.iter().chain(&["busybox"]) {
        let file = find(name).with_context(|| format!("{name} is missing; run `cargo xtask setup`"))?;
        programs.insert(*name, file.canonicalize()?);
    }
    let extensions = extensions()?;
    let key = key(programs.values().chain(&extensions))?;
    kept(&format!("tools-{key:016x}"), || {
        let mut archive = Archive::new();
        for folder in FOLDERS {
            archive.folder(folder)?;
        }
        // The kernel opens it before the first process mounts anything.
        archive.device("dev/console", (5, 1))?;
        let files: Vec<&Path> = programs.values().chain(&extensions).map(PathBuf::as_path).collect();
        for library in libraries(&files)? {
            archive.file(&library, &library)?;
        }
        let mut taken = HashSet::new();
        for (name, file) in programs.iter().filter(|(name, _)| **name != "busybox") {
            archive.file(Path::new("usr/sbin").join(name), file)?;
            taken.insert(*name);
        }
        for (tool, links) in LINKS {
            for link in *links {
                archive.link(Path::new("usr/sbin").join(link), tool)?;
                taken.insert(*link);
            }
        }
        for file in &extensions {
            archive.file(file, file)?;
        }
        for (path, to) in [
            ("bin/sh", "/usr/sbin/dash"),
            ("bin/bash", "/usr/sbin/bash"),
            ("sbin/modprobe", "/usr/sbin/kmod"),
        ] {
            archive.link(path, to)?;
        }
        let busybox = &programs["busybox"];
        archive.file("bin/busybox", busybox)?;
        for applet in read(command(busybox).arg("--list"))?.lines().filter(|name| !taken.contains(name)) {
            if applet != "busybox" {
                archive.link(Path::new("bin").join(applet), "busybox")?;
            }
        }
        for table in ["protocols", "services"] {
            let file = Path::new("/etc").join(table);
            if file.exists() {
                archive.file(&file, &file)?;
            }
        }
        archive.content(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/sh\n",
        )?;
        archive.content("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
        archive.content("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
        archive.content("root/.bashrc", 0o644, b"PS1='guest:\\w# '\n")?;
        archive.finish()
    })
}

/// The plug-ins of iptables.
fn extensions() -> Result<Vec<PathBuf>> {
    let folders = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables"];
    let Some(folder) = folders.into_iter().find(|folder| Path::new(folder).is_dir()) else {
        bail!("iptables has no plug-ins on this machine; run `cargo xtask setup`");
    };
    let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "so"));
    files.sort();
    Ok(files)
}

/// The shared libraries that programs need, with the loader, under the paths they are looked for.
fn libraries(programs: &[&Path]) -> Result<BTreeSet<PathBuf>> {
    let elf: Vec<_> = programs.iter().filter(|file| is_elf(file)).collect();
    let mut found = BTreeSet::new();
    for chunk in elf.chunks(50) {
        // It complains, and fails, about programs that need none.
        let output = command("ldd").args(chunk).output().context("cannot start ldd")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if line.contains("not found") {
                bail!("a library is missing: {}", line.trim());
            }
            let path = line.split_whitespace().find(|word| word.starts_with('/') && !word.ends_with(':'));
            found.extend(path.map(PathBuf::from));
        }
    }
    Ok(found)
}

fn is_elf(file: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    fs::File::open(file).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The archive with the modules of a kernel.
fn modules(kernel: &Kernel) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    MODULES.hash(&mut hasher);
    kept(&format!("modules-{}-{:016x}", kernel.release, hasher.finish()), || {
        eprintln!("kernels: packing the modules of {}", kernel.release);
        // Of this run alone: others may be packing as well.
        let tree = places::cache()?.join(format!("initramfs/unpacking-{}", std::process::id()));
        let _ = fs::remove_dir_all(&tree);
        let place = Path::new("lib/modules").join(&kernel.release);
        let folder = tree.join(&place);
        fs::create_dir_all(&folder)?;
        for table in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            if kernel.modules.join(table).exists() {
                fs::copy(kernel.modules.join(table), folder.join(table))?;
            }
        }
        for module in needed_modules(kernel)? {
            let to = folder.join(&module);
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::copy(kernel.modules.join(&module), &to)?;
            if to.extension().is_some_and(|ending| ending == "xz") {
                run_quietly(command("xz").arg("--decompress").arg(&to))?;
            }
        }
        let depmod = find("depmod").context("depmod is missing; run `cargo xtask setup`")?;
        run_quietly(command(depmod).arg("--basedir").arg(&tree).arg(&kernel.release))?;
        let mut archive = Archive::new();
        add_folder(&mut archive, &tree.join("lib"), Path::new("lib"))?;
        fs::remove_dir_all(&tree)?;
        archive.finish()
    })
}

/// The modules to take and those they depend on, relative to the kernel's module folder.
fn needed_modules(kernel: &Kernel) -> Result<BTreeSet<String>> {
    let dependencies = dependencies(kernel)?;
    let mut needed = BTreeSet::new();
    let mut open: Vec<&String> = dependencies
        .keys()
        .filter(|path| {
            path.strip_prefix("kernel/")
                .is_some_and(|path| MODULES.iter().any(|start| path.starts_with(start)))
        })
        .collect();
    while let Some(module) = open.pop() {
        if needed.insert(module.clone()) {
            open.extend(dependencies.get(module).into_iter().flatten());
        }
    }
    Ok(needed)
}

/// What each module needs. The packages come without the table; it is made where they lie.
fn dependencies(kernel: &Kernel) -> Result<BTreeMap<String, Vec<String>>> {
    let table = kernel.modules.join("modules.dep");
    if !table.exists() {
        // depmod wants lib/modules below its folder; some packages have usr/lib/modules.
        let base = kernel.modules.ancestors().nth(3).context("modules lie in lib/modules")?;
        let depmod = find("depmod").context("depmod is missing; run `cargo xtask setup`")?;
        run_quietly(command(depmod).arg("--basedir").arg(base).arg(&kernel.release))?;
    }
    let text = fs::read_to_string(&table).with_context(|| format!("cannot read {}", table.display()))?;
    let row = |line: &str| {
        let (module, needs) = line.split_once(':')?;
        Some((module.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
    };
    Ok(text.lines().filter_map(row).collect())
}

/// A hash over which files these are, and which version of them.
fn key<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    // Changes whenever this module does.
    include_str!("initramfs.rs").hash(&mut hasher);
    for file in files {
        let data = file.metadata().with_context(|| format!("cannot look at {}", file.display()))?;
        (file, data.len(), data.modified()?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// An archive in the cache, made if it is not there.
fn kept(name: &str, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<PathBuf> {
    let folder = places::cache()?.join("initramfs");
    let file = folder.join(format!("{name}.cpio"));
    if !file.exists() {
        fs::create_dir_all(&folder)?;
        let unfinished = file.with_extension(format!("unfinished-{}", std::process::id()));
        fs::write(&unfinished, make()?)?;
        fs::rename(&unfinished, &file)?;
    }
    Ok(file)
}
