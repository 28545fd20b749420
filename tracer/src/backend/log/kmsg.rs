//! `/dev/kmsg`: one record for each read.

use super::Error;
use crate::kernel_log::{Clock, Record, Undresser};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

const PATH: &str = "/dev/kmsg";
/// `CONSOLE_EXT_LOG_MAX`: more than this no record has.
const RECORD_BYTES: usize = 8192;

/// The open device.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    undresser: Undresser,
    buffer: Vec<u8>,
    /// The number that the next record has to have.
    next: Option<u64>,
    lost: u64,
    /// The kernel said that records were overwritten, and none has come since that tells how many.
    overrun: bool,
}

impl Kmsg {
    /// Opens it after the last record.
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |source| Error::Open { path: PATH.into(), source };
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(PATH).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        // Its records have no times of a calendar.
        let undresser = Undresser::new(Clock::new(TimeZone::UTC, Timestamp::MAX));
        Ok(Self { file, undresser, buffer: vec![0; RECORD_BYTES], next: None, lost: 0, overrun: false })
    }

    pub(super) fn drain(
        &mut self,
        limit: usize,
        mut receive: impl FnMut(Record<'_>),
    ) -> Result<usize, Error> {
        for taken in 0..limit {
            let length = match self.file.read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    self.overrun = true;
                    continue;
                }
                Err(source) => return Err(Error::Read { path: Path::new(PATH).to_owned(), source }),
            };
            let record = self.buffer.get(..length).unwrap_or_default();
            let line = record.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let Some(record) = self.undresser.record(line) else { continue };
            if let Some(sequence) = record.sequence {
                self.lost += self.next.map_or(u64::from(self.overrun), |next| sequence.saturating_sub(next));
                self.next = Some(sequence + 1);
                self.overrun = false;
            }
            receive(record);
        }
        Ok(limit)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost + u64::from(self.overrun)
    }
}

impl AsFd for Kmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
