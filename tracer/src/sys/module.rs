//! Kernel modules: whether one is there, bringing it, letting it go.

use super::program;
use rustix::io::Errno;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The kernel lets go of a module some time after its last user is gone.
const LETS_GO_WITHIN: Duration = Duration::from_millis(500);

/// Whether what a module brings is there: it is loaded, or built in. A kernel that can load none has it or lacks it for
/// good.
pub fn is_there(name: &str) -> bool {
    let built_in = || {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let list = fs::read_to_string(Path::new("/lib/modules").join(release).join("modules.builtin"));
        list.is_ok_and(|list| list.lines().any(|line| line.ends_with(&format!("/{name}.ko"))))
    };
    Path::new("/sys/module").join(name).exists() || !Path::new("/proc/modules").exists() || built_in()
}

/// Asks `modprobe` for a module; why it did not come.
pub fn load(name: &str) -> Result<(), String> {
    program::run(&modprobe()?, &["-q", name]).map(drop)
}

/// A module and those that it needs, in the order in which `modprobe` loads them, itself last. Nothing is loaded. An
/// error when it would not find it.
pub fn with_dependencies(name: &str) -> Result<Vec<String>, String> {
    let shown = program::run(&modprobe()?, &["-q", "--show-depends", name])?;
    Ok(shown_depends(&String::from_utf8_lossy(&shown)))
}

fn modprobe() -> Result<PathBuf, String> {
    program::find("modprobe").ok_or_else(|| "there is no modprobe on this host".to_owned())
}

/// From lines like `insmod /lib/modules/RELEASE/kernel/net/netfilter/nfnetlink.ko.xz`. The kernel has an underscore
/// where a file may have a dash.
fn shown_depends(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let path = line.strip_prefix("insmod ")?.split(' ').next()?;
        let (name, _) = Path::new(path).file_name()?.to_str()?.split_once(".ko")?;
        Some(name.replace('-', "_"))
    };
    text.lines().filter_map(name).collect()
}

/// Unloads a module, unless something uses it. What used it a moment ago may need another one to let it go.
pub fn unload(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let deadline = Instant::now() + LETS_GO_WITHIN;
    loop {
        match rustix::system::delete_module(&name, libc::O_NONBLOCK) {
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            unloaded => return Ok(unloaded?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_modprobe_shows_is_read() {
        let text = "insmod /lib/modules/6.1.0-9-amd64/kernel/net/netfilter/nfnetlink.ko.xz \n\
                    insmod /lib/modules/6.1.0-9-amd64/kernel/net/ipv4/netfilter/nf-log.ko debug=1\nbuiltin unix\n";
        assert_eq!(shown_depends(text), ["nfnetlink", "nf_log"]);
    }
}
