//! Kernel modules: whether one is there, bringing it, letting it go.

use super::program;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

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
    let modprobe = program::find("modprobe").ok_or("there is no modprobe on this host")?;
    program::run(&modprobe, &["-q", name]).map(drop)
}

/// Whether `modprobe` would find a module; nothing is loaded.
pub fn can_be_loaded(name: &str) -> bool {
    program::find("modprobe").is_some_and(|modprobe| program::run(&modprobe, &["-n", "-q", name]).is_ok())
}

/// Unloads a module, unless something uses it.
pub fn unload(name: &str) -> io::Result<()> {
    Ok(rustix::system::delete_module(&CString::new(name)?, libc::O_NONBLOCK)?)
}
