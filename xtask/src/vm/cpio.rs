//! Writes the archive format the kernel unpacks its first file system from ("newc").
//!
//! Archives can be appended to each other; entries of later ones replace those of earlier ones.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in memory.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), entries: 0, folders: BTreeSet::new() }
    }

    /// A folder and those above it.
    pub(crate) fn folder(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut folder = PathBuf::new();
        for part in path.as_ref().components() {
            match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => folder.push(name),
                _ => bail!("{} is no plain path", path.as_ref().display()),
            }
            if self.folders.insert(folder.clone()) {
                self.entry(&folder, DIRECTORY, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// A file of this machine.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let executable = from.metadata()?.permissions().mode() & 0o111 != 0;
        self.content(path, if executable { 0o755 } else { 0o644 }, &content)
    }

    /// A file with this content.
    pub(crate) fn content(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<()> {
        let path = self.placed(path.as_ref())?;
        self.entry(&path, FILE | mode, (0, 0), content)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: impl AsRef<Path>, to: &str) -> Result<()> {
        let path = self.placed(path.as_ref())?;
        self.entry(&path, LINK, (0, 0), to.as_bytes())
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: impl AsRef<Path>, numbers: (u32, u32)) -> Result<()> {
        let path = self.placed(path.as_ref())?;
        self.entry(&path, CHARACTER_DEVICE, numbers, &[])
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[])?;
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(self.bytes)
    }

    fn placed(&mut self, path: &Path) -> Result<PathBuf> {
        let path = path.strip_prefix("/").unwrap_or(path);
        self.folder(path.parent().unwrap_or(Path::new("")))?;
        Ok(path.to_owned())
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let name = path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        self.entries += 1;
        let links = 1;
        let fields = [
            self.entries,
            mode,
            0, // user
            0, // group
            links,
            0, // time: the same content gives the same archive
            size,
            0,
            0, // the device the file lies on
            device.0,
            device.1,
            u32::try_from(name.len() + 1)?,
            0, // check sum, unused in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_once_and_first() {
        let mut archive = Archive::new();
        archive.content("/etc/a", 0o644, b"abcde").unwrap();
        archive.link("/etc/b", "a").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at: Vec<_> = ["etc\0", "etc/a\0", "abcde", "etc/b\0", "TRAILER!!!\0"]
            .iter()
            .map(|part| text.match_indices(part).map(|(at, _)| at).collect::<Vec<_>>())
            .collect();
        assert!(at.iter().all(|found| found.len() == 1), "{at:?}");
        assert!(at.is_sorted());
    }
}
