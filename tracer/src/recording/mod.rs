//! Recordings: steps and paths in a file, to be shown again; and packets with their paths, for Wireshark ([`Pcapng`]).
//!
//! A file is a [`MAGIC`], a version, and records, each behind its length. It is only ever appended to, so that one whose
//! writer was killed at any byte can be read up to the last whole record. What many steps have in common (rules,
//! devices, the packet itself) is written once and referred to by number; the numbers begin anew when there are many,
//! so that a reader needs bounded memory. The records' bytes are postcard's.

#![forbid(unsafe_code)]

mod pcapng;
mod read;
mod record;
#[cfg(test)]
mod tests;
mod write;

pub use pcapng::Pcapng;
pub use read::{Error, Event, Reader};
pub use write::Recorder;

/// How a recording begins.
pub const MAGIC: [u8; 8] = *b"nftracer";
/// The version that this program writes. A reader refuses later ones.
const VERSION: u16 = 1;

/// Packets as they were at their last steps, to which a step can refer.
const CONTENTS: usize = 64;
/// Texts, rules and devices that are numbered before the numbers begin anew.
const NUMBERED: usize = 1 << 16;
/// The longest record; a longer length is damage.
const RECORD_MAX: usize = 1 << 20;
