//! A packet under construction.

use super::cursor::{Cursor, Unreadable};
use crate::packet::ip::protocol;

/// The headers that a line told of so far, and what it says of the packet's length.
pub(super) struct Builder {
    pub(super) bytes: Vec<u8>,
    /// The packet is at least this long, or a line would say that it ends.
    need: u32,
    /// Where the packet ends, if the line says so.
    end: Option<u32>,
    /// Where the last IPv6 extension header of stated length begins, and its number.
    pub(super) last_extension: Option<(usize, u8)>,
    /// Whether the packet is longer than the length field of its header can say.
    pub(super) is_beyond_stated: bool,
}

/// Headers of most packets, with options.
const ROOM: usize = 128;

impl Builder {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(ROOM),
            need: 0,
            end: None,
            last_extension: None,
            is_beyond_stated: false,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where the next header begins.
    pub(super) fn offset(&self) -> usize {
        self.bytes.len()
    }

    /// The packet has `count` bytes after the headers so far, which need not be known.
    pub(super) fn needs_after(&mut self, count: u32) {
        self.needs(self.offset() as u32 + count);
    }

    /// The packet has at least this length.
    pub(super) fn needs(&mut self, len: u32) {
        self.need = self.need.max(len);
    }

    /// The packet ends `count` bytes after the headers so far.
    pub(super) fn ends_after(&mut self, count: u32) {
        self.end = Some((self.offset() as u32).wrapping_add(count));
    }

    /// Takes `INCOMPLETE [n bytes] ` if it is next: the packet ends `n` bytes after `offset`, which are not the
    /// `needed` ones.
    pub(super) fn incomplete(
        &mut self,
        cursor: &mut Cursor<'_>,
        offset: usize,
        needed: u32,
    ) -> Result<bool, Unreadable> {
        if !cursor.eat(b"INCOMPLETE [") {
            return Ok(false);
        }
        let left: u32 = cursor.number()?;
        if !cursor.word(b"bytes]") {
            return cursor.wrong("\"bytes]\"");
        }
        self.end = Some(match left.cast_signed() {
            0.. if left < needed && offset + left as usize >= self.offset() => offset as u32 + left,
            0.. => return cursor.wrong("fewer bytes than are needed before this"),
            below => self.reach(cursor, below.unsigned_abs())?,
        });
        Ok(true)
    }

    /// The kernel counted `beyond` bytes below zero: the last extension header states a length past the packet's end.
    /// Gives the end.
    fn reach(&mut self, cursor: &Cursor<'_>, beyond: u32) -> Result<u32, Unreadable> {
        let Some((at, number)) = self.last_extension.filter(|_| beyond < 0x1000) else {
            return cursor.wrong("a length that fits");
        };
        // The smallest length of a header of which enough can be read, and whose end is that far outside. AH counts
        // words of four bytes, and two less; the others words of eight, and one less.
        let (unit, readable, uncounted) = if number == protocol::AH { (4, 12, 2) } else { (8, 2, 1) };
        let words = (beyond + readable).div_ceil(unit);
        match (self.bytes.get_mut(at + 1), u8::try_from(words - uncounted)) {
            (Some(length), Ok(stated)) => *length = stated,
            _ => return cursor.wrong("a length that fits"),
        }
        Ok(at as u32 + words * unit - beyond)
    }

    /// Length and first bytes of the packet.
    pub(super) fn finish(mut self) -> (u32, Vec<u8>) {
        let len = self.end.unwrap_or_else(|| self.need.max(self.bytes.len() as u32));
        self.bytes.truncate(len as usize);
        (len, self.bytes)
    }
}
