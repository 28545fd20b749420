//! The kernel's own TRACE lines, as they come through the kernel's log.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Reads `/dev/kmsg` from the moment of its making on.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
}

impl Kmsg {
    /// Points a namespace's TRACE to the kernel's log, and reads that from now on.
    pub fn start(netns: &Netns) -> Result<Self> {
        fs::write("/proc/sys/net/netfilter/nf_log_all_netns", "1").context("nf_log_all_netns")?;
        // No rate limit, and nothing on the console.
        fs::write("/proc/sys/kernel/printk_ratelimit", "0")?;
        fs::write("/proc/sys/kernel/printk", "1")?;
        netns.sysctl("net/netfilter/nf_log/2", "nf_log_ipv4")?;
        netns.sysctl("net/netfilter/nf_log/10", "nf_log_ipv6")?;
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file })
    }

    /// The TRACE lines that came since the last call, without what the log puts before them, and how many records
    /// were overwritten before they could be read.
    pub fn take(&mut self) -> Result<(Vec<String>, u64)> {
        let (mut lines, mut lost) = (Vec::new(), 0);
        let mut buffer = [0; 8192];
        loop {
            match self.file.read(&mut buffer) {
                Ok(length) => lines.extend(line(&buffer[..length])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((lines, lost)),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => lost += 1,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("/dev/kmsg"),
            }
        }
    }
}

/// `level,number,time,flags;text`, then lines of attributes.
fn line(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (_, text) = text.split_once(';')?;
    let line = text.split('\n').next()?;
    line.starts_with("TRACE: ").then(|| line.to_owned())
}
