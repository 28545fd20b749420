//! The tools of CentOS 7 in place of this guest's: iptables 1.4.21, which has only the legacy tables and says so to
//! nobody, and refuses what it does not know.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::kernel::Kernel;

const FOLDER: &str = "/usr/sbin";
const HIDDEN: &str = "/usr/hidden";
const SCRIPT: &str = include_str!("iptables-1.4.21.sh");
/// What 1.4.21 installs.
const NAMES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

/// While this lives, only they can be found.
pub(crate) struct OldTools;

impl OldTools {
    pub(crate) fn install() -> Result<Self> {
        fs::create_dir_all(HIDDEN)?;
        for name in hidden()? {
            fs::rename(Path::new(FOLDER).join(&name), Path::new(HIDDEN).join(&name))?;
        }
        for name in NAMES {
            let path = Path::new(FOLDER).join(name);
            fs::write(&path, SCRIPT)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        // modprobe looks for the modules of the kernel that it asks for its name.
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let modules = Path::new("/lib/modules");
        let pretended = modules.join(Kernel::CENTOS_7.release.context("it has a name")?);
        if !pretended.exists() {
            symlink(modules.join(release), pretended)?;
        }
        Ok(Self)
    }
}

impl Drop for OldTools {
    fn drop(&mut self) {
        for name in NAMES {
            let _ = fs::remove_file(Path::new(FOLDER).join(name));
        }
        for entry in fs::read_dir(HIDDEN).into_iter().flatten().flatten() {
            let _ = fs::rename(entry.path(), Path::new(FOLDER).join(entry.file_name()));
        }
    }
}

/// Everything of iptables under any name, but the program behind the names for legacy tables.
fn hidden() -> Result<Vec<PathBuf>> {
    let names = fs::read_dir(FOLDER)?.flatten().map(|entry| PathBuf::from(entry.file_name()));
    let of_iptables = |name: &PathBuf| {
        name.to_str().is_some_and(|name| name.starts_with("iptables") || name.starts_with("ip6tables"))
    };
    Ok(names.filter(of_iptables).collect())
}
