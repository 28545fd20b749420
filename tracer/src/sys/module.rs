//! Kernel modules: whether one is there, bringing it, letting it go.

use super::program;
use std::ffi::CString;
use std::io;
use std::path::Path;

/// Whether a module is loaded, or built in and known by name.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

/// Asks `modprobe` for a module; why it did not come. The module is not loaded by this process but by the kernel on
/// behalf of `modprobe`, which has ended when this returns.
pub fn load(name: &str) -> Result<(), String> {
    let modprobe = program::find("modprobe").ok_or("there is no modprobe on this host")?;
    program::run(&modprobe, &["-q", name]).map(drop)
}

/// Unloads a module, unless something uses it.
pub fn unload(name: &str) -> io::Result<()> {
    Ok(rustix::system::delete_module(&CString::new(name)?, libc::O_NONBLOCK)?)
}
