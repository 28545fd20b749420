//! Debian's archive, asked without touching the system's own package sources.
//!
//! The mirror is the one this machine's apt uses. Every suite gets a state folder of its own in the
//! cache, with one source list; apt itself verifies the signatures and the checksums.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::places;
use crate::process::{as_root, command, read, run_quietly};

/// Names a mirror for machines whose apt knows no Debian archive.
const MIRROR_VARIABLE: &str = "NFTRACER_DEBIAN_MIRROR";

/// How old package lists may become before they are fetched again.
const LISTS_ARE_FRESH_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A suite of the archive, such as `bookworm` or `trixie-backports`.
pub(crate) struct Suite {
    folder: PathBuf,
}

impl Suite {
    /// Opens a suite, and fetches its package lists if they are missing or old. A release comes with
    /// its security updates.
    pub(crate) fn open(name: &str) -> Result<Self> {
        Self::open_kind(name, "deb", "")
    }

    /// The same for the sources that its packages are built from.
    pub(crate) fn open_sources(name: &str) -> Result<Self> {
        Self::open_kind(name, "deb-src", "-sources")
    }

    fn open_kind(name: &str, kind: &str, ending: &str) -> Result<Self> {
        let folder = places::cache()?.join("apt").join(format!("{name}{ending}"));
        let suite = Self { folder };
        let stamp = suite.folder.join("updated");
        let fresh = stamp
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < LISTS_ARE_FRESH_FOR));
        if !fresh {
            suite.configure(name, kind)?;
            run_quietly(suite.apt("apt-get").arg("update"))
                .with_context(|| format!("cannot fetch the package lists of {name}"))?;
            fs::write(&stamp, "")?;
        }
        Ok(suite)
    }

    fn configure(&self, name: &str, kind: &str) -> Result<()> {
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        fs::write(self.folder.join("status"), "")?;
        let mirrors = Mirrors::configured()?;
        let mut sources = format!("{kind} {}{} {name} main\n", mirrors.trust, mirrors.archive);
        if let Some(security) = mirrors.security.as_ref().filter(|_| !name.contains('-') && name != "sid") {
            sources += &format!("{kind} {}{security} {name}-security main\n", mirrors.trust);
        }
        fs::write(self.folder.join("sources.list"), sources)?;
        let folder = self.folder.display();
        let mut config = inherited_settings()?;
        config += &format!(
            "Dir::State \"{folder}/state\";\nDir::State::status \"{folder}/status\";\n\
             Dir::Cache \"{folder}/cache\";\nDir::Etc::sourcelist \"{folder}/sources.list\";\n"
        );
        for ignored in ["sourceparts", "main", "parts", "preferences", "preferencesparts"] {
            config += &format!("Dir::Etc::{ignored} \"/dev/null\";\n");
        }
        config += "APT::Architecture \"amd64\";\nAPT::Architectures { \"amd64\"; };\n\
                   Acquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n";
        fs::write(self.config(), config)?;
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.folder.join("apt.conf")
    }

    fn apt(&self, program: &str) -> std::process::Command {
        let mut command = command(program);
        command.env("APT_CONFIG", self.config());
        command
    }

    /// The names of all packages that start like this.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = read(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = read(self.apt("apt-cache").args(["madison", package]))?;
        Ok(table.lines().filter_map(|line| line.split('|').nth(1)).map(|v| v.trim().to_owned()).collect())
    }

    /// Downloads packages, verifies them and unpacks them, without installing, into a new folder.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let download = self.emptied("download")?;
        run_quietly(self.apt("apt-get").arg("download").args(packages).current_dir(&download))?;
        unpack_each(&download, into, |file, to| {
            let mut unpack = command("dpkg-deb");
            unpack.arg("-x").arg(file).arg(to);
            Some(unpack)
        })
    }

    /// Downloads the newest source of a package, verifies it, and unpacks what its authors released into a new folder.
    pub(crate) fn unpack_source(&self, package: &str, into: &Path) -> Result<()> {
        let download = self.emptied("download")?;
        run_quietly(self.apt("apt-get").args(["source", "--download-only", package]).current_dir(&download))?;
        unpack_each(&download, into, |file, to| {
            let is_release = file.file_name()?.to_str()?.contains(".orig.tar.") && file.extension()? != "asc";
            let mut unpack = command("tar");
            unpack.args(["--no-same-owner", "-xf"]).arg(file).arg("-C").arg(to);
            is_release.then_some(unpack)
        })
    }

    fn emptied(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

/// Runs the command for each downloaded file that there is one for, then puts the whole in place.
fn unpack_each(
    download: &Path,
    into: &Path,
    unpack: impl Fn(&Path, &Path) -> Option<std::process::Command>,
) -> Result<()> {
    let unfinished = into.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished)?;
    for file in fs::read_dir(download)? {
        if let Some(mut command) = unpack(&file?.path(), &unfinished) {
            run_quietly(&mut command)?;
        }
    }
    fs::remove_dir_all(download)?;
    let _ = fs::remove_dir_all(into);
    fs::rename(&unfinished, into)?;
    Ok(())
}

/// The archive and the security archive this machine uses.
struct Mirrors {
    archive: String,
    security: Option<String>,
    /// What a source line has to say about the keys.
    trust: String,
}

impl Mirrors {
    fn configured() -> Result<Self> {
        let keyring = ["gpg", "pgp"]
            .map(|ending| format!("/usr/share/keyrings/debian-archive-keyring.{ending}"))
            .into_iter()
            .find(|file| Path::new(file).exists());
        let trust = keyring.map(|file| format!("[signed-by={file}] ")).unwrap_or_default();
        if let Ok(archive) = env::var(MIRROR_VARIABLE) {
            return Ok(Self { archive, security: None, trust });
        }
        let fields = "$(SITE)|$(ORIGIN)|$(LABEL)|$(RELEASE)";
        let targets =
            read(command("apt-get").args(["indextargets", "--format", fields, "Created-By: Packages"]))?;
        let release = codename()?;
        let (mut archive, mut security) = (None, None);
        for target in targets.lines() {
            let [site, origin, label, suite] = target.splitn(4, '|').collect::<Vec<_>>()[..] else {
                continue;
            };
            // The origin is only known once apt has fetched its lists; the name of the suite always is.
            if origin == "Debian" && label == "Debian-Security" || suite == format!("{release}-security") {
                security.get_or_insert_with(|| site.to_owned());
            } else if origin == "Debian" && label == "Debian" || suite == release {
                archive.get_or_insert_with(|| site.to_owned());
            }
        }
        let Some(archive) = archive else {
            bail!("apt on this machine knows no Debian archive; name one with {MIRROR_VARIABLE}");
        };
        Ok(Self { archive, security, trust })
    }
}

/// Proxies and the like, which the private configuration has to keep.
fn inherited_settings() -> Result<String> {
    let all = read(command("apt-config").args(["dump", "Acquire"]))?;
    let kept =
        |line: &&str| !line.starts_with("Acquire::IndexTargets") && !line.starts_with("Acquire::Languages");
    Ok(all.lines().filter(kept).fold(String::new(), |text, line| text + line + "\n"))
}

/// The name of this machine's release.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(line.unwrap_or_default().trim_matches('"').to_owned())
}

/// Installs packages on this machine. Never removes one: where a package from the backports already
/// installed stands in the way, the missing ones come from the backports, too.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    run_quietly(as_root("apt-get")?.arg("update")).context("cannot fetch the package lists")?;
    let install = |options: &[String]| -> Result<()> {
        let mut command = as_root("apt-get")?;
        command.args(["install", "--yes", "--no-install-recommends", "--no-remove", "--quiet"]);
        command.args(options).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
        run_quietly(&mut command)
    };
    let Err(error) = install(&[]) else { return Ok(()) };
    let backports = format!("{}-backports", codename()?);
    let why = format!("{error:#}");
    let why = why.lines().last().unwrap_or_default();
    eprintln!("setup: apt refused ({why}); installing again, this time with {backports}");
    let suite = Suite::open(&backports)?;
    let sources = suite.folder.join("sources.list");
    // The system's own lists stay as they are: these live in a folder of their own.
    let lists = suite.folder.join("system");
    fs::create_dir_all(lists.join("lists/partial"))?;
    let merged = suite.folder.join("sources.d");
    fs::create_dir_all(&merged)?;
    fs::copy(&sources, merged.join("backports.list"))?;
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten() {
        let file = entry?.path();
        fs::copy(&file, merged.join(file.file_name().unwrap_or_default()))?;
    }
    let options = [
        format!("-oDir::Etc::sourceparts={}", merged.display()),
        format!("-oDir::State::lists={}", lists.join("lists").display()),
        "-oAPT::Sandbox::User=root".to_owned(),
        format!("--target-release={backports}"),
    ];
    run_quietly(as_root("apt-get")?.args(&options[..3]).arg("update"))?;
    install(&options)
}
