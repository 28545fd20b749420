//! Kernel log text in the dresses that it comes in: what the kernel said, and when.
//!
//! | dress | example |
//! | --- | --- |
//! | `/dev/kmsg` | `4,1234,5678901,-;TEXT`, with `\x5c` escapes |
//! | dmesg | `[   12.345678] TEXT`, also `-T`, `-x`, `--raw`, `--time-format iso` |
//! | syslog | `Mar 16 02:46:36 host kernel: TEXT`, also with `[   12.345678]` before the text |
//! | syslog, RFC 3339 or 5424 | `2026-03-16T02:46:36.123456+01:00 host kernel: TEXT` |
//! | journalctl | the forms `short` to `short-unix`, `with-unit`, `json`, `export`, `cat` |
//! | none | `TEXT` |
//!
//! Each line is told by its own looks, so a file may mix them. A line of another program, or one without a message, is
//! no record.

#![forbid(unsafe_code)]

mod dmesg;
mod journal;
mod kmsg;
mod syslog;
#[cfg(test)]
mod tests;
mod time;

use crate::text;
use std::borrow::Cow;

pub use time::{Clock, Time};

/// What the kernel said in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, as far as the dress says it.
    pub time: Option<Time>,
    /// The kernel's number of the record, which has no gaps in a whole log; `/dev/kmsg` has it.
    pub sequence: Option<u64>,
    /// What the kernel said.
    pub text: Cow<'a, str>,
}

impl<'a> Record<'a> {
    fn new(time: Option<Time>, text: &'a str) -> Self {
        Self { time, sequence: None, text: text.into() }
    }
}

/// Undresses lines.
#[derive(Debug)]
pub struct Undresser {
    clock: Clock,
    /// Of the entry of `journalctl -o export` that the lines are from.
    entry_time: Option<Time>,
}

impl Undresser {
    /// A clock says what local times and times without a year mean.
    pub fn new(clock: Clock) -> Self {
        Self { clock, entry_time: None }
    }

    /// What the kernel said in a line, which comes without its line feed; `None` if nothing.
    pub fn record<'a>(&mut self, line: &'a [u8]) -> Option<Record<'a>> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match text::lossy(line) {
            Cow::Borrowed(line) => self.undress(line),
            Cow::Owned(line) => self.undress(&line).map(|record| Record {
                text: Cow::Owned(record.text.into_owned()),
                time: record.time,
                sequence: record.sequence,
            }),
        }
    }

    fn undress<'a>(&mut self, line: &'a str) -> Option<Record<'a>> {
        match line.as_bytes().first()? {
            b'{' => return journal::json(line),
            b'0'..=b'9' => {
                if let Some(record) = kmsg::record(line) {
                    return Some(record);
                }
            }
            b'<' | b'[' | b'k' => {
                if let Some(found) = dmesg::record(line, &mut self.clock) {
                    return found;
                }
            }
            b'_' | b'M' => {
                if let Some(found) = journal::export(line, &mut self.entry_time) {
                    return found;
                }
            }
            // Continues a record of /dev/kmsg with its device.
            b' ' => return None,
            _ => {}
        }
        syslog::record(line, &mut self.clock).unwrap_or_else(|| Some(bare(line)))
    }
}

/// A line of no known dress. What comes before the name of a step is somebody's own dress.
fn bare(line: &str) -> Record<'_> {
    const TRACE: &str = " TRACE: ";
    let start = if line.starts_with(&TRACE[1..]) { None } else { line.find(TRACE) };
    Record::new(None, start.map_or(line, |start| &line[start + 1..]))
}
