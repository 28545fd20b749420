//! A log file that grows, is moved away and begun anew, or is cut: as `tail -F` follows it.

use super::Error;
use crate::kernel_log::{Clock, Record, Undresser};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;
/// A line longer than this is not the kernel's.
const LINE_BYTES: usize = 64 * 1024;

/// A file that is followed.
#[derive(Debug)]
pub struct Followed {
    path: PathBuf,
    /// `None` while there is no file of that name.
    file: Option<File>,
    undresser: Undresser,
    chunk: Vec<u8>,
    /// Read and not given out: at its end a line that is not finished.
    rest: Vec<u8>,
}

impl Followed {
    /// Opens it at its end.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let undresser = undresser_now();
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            undresser,
            chunk: vec![0; CHUNK],
            rest: Vec::new(),
        })
    }

    pub(super) fn drain(
        &mut self,
        limit: usize,
        mut receive: impl FnMut(Record<'_>),
    ) -> Result<usize, Error> {
        self.undresser = undresser_now();
        let mut taken = 0;
        while taken < limit {
            let read = self.read().map_err(|source| Error::Read { path: self.path.clone(), source })?;
            if read == 0 && !self.next_file() {
                break;
            }
            let Self { rest, undresser, .. } = self;
            let mut start = 0;
            while let Some(length) = rest[start..].iter().position(|byte| *byte == b'\n') {
                if let Some(record) = undresser.record(&rest[start..start + length]) {
                    receive(record);
                }
                taken += 1;
                start += length + 1;
            }
            rest.drain(..start);
            if rest.len() > LINE_BYTES {
                rest.clear();
            }
        }
        Ok(taken)
    }

    /// Reads what is new. Gives zero at the end.
    fn read(&mut self) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Ok(0) };
        let length = match file.read(&mut self.chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            length => length?,
        };
        self.rest.extend_from_slice(self.chunk.get(..length).unwrap_or_default());
        Ok(length)
    }

    /// At the end of the file: begins the one that has its name now, or the same from its beginning when it was cut.
    /// Says whether there is one.
    fn next_file(&mut self) -> bool {
        let Ok(now) = fs::metadata(&self.path) else { return false };
        let Some(file) = &mut self.file else { return self.begin() };
        let same = file.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (now.dev(), now.ino()));
        if !same {
            return self.begin();
        }
        let position = file.stream_position().unwrap_or(0);
        if now.size() < position {
            self.rest.clear();
            return file.seek(SeekFrom::Start(0)).is_ok() && now.size() > 0;
        }
        false
    }

    fn begin(&mut self) -> bool {
        self.rest.clear();
        self.file = File::open(&self.path).ok();
        self.file.is_some()
    }
}

/// Times without a year are of the year that ends now.
fn undresser_now() -> Undresser {
    Undresser::new(Clock::new(TimeZone::system(), Timestamp::now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn lines(followed: &mut Followed) -> Vec<String> {
        let mut lines = Vec::new();
        followed.drain(100, |record| lines.push(record.text.into_owned())).unwrap();
        lines
    }

    #[test]
    fn a_file_is_followed_through_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kern.log");
        fs::write(&path, "old\n").unwrap();
        let mut followed = Followed::open(&path).unwrap();
        assert_eq!(lines(&mut followed), [""; 0]);
        let append = |path: &Path, text: &str| {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(&path, "one\ntw");
        assert_eq!(lines(&mut followed), ["one"]);
        append(&path, "o\n");
        assert_eq!(lines(&mut followed), ["two"]);
        let moved = folder.path().join("kern.log.1");
        fs::rename(&path, &moved).unwrap();
        assert_eq!(lines(&mut followed), [""; 0]);
        append(&moved, "three\n");
        assert_eq!(lines(&mut followed), ["three"]);
        append(&path, "four\n");
        assert_eq!(lines(&mut followed), ["four"]);
        fs::write(&path, "5\n").unwrap();
        assert_eq!(lines(&mut followed), ["5"]);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = Followed::open(Path::new("/no/such")).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.remedy().is_some()), ("cannot open /no/such", true));
    }
}
