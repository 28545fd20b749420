//! Gathers rows, to write many at once.

use std::io::{self, Write};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 64 * 1024;

/// Rows on their way to `W`. Rows are made in place: a `BufWriter` would copy each once more.
#[derive(Debug)]
pub(super) struct Buffer<W: Write> {
    bytes: Vec<u8>,
    writer: W,
}

impl<W: Write> Buffer<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { bytes: Vec::with_capacity(BUFFER_BYTES + 4096), writer }
    }

    /// Where the next row goes.
    pub(super) fn row(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Ends a row.
    pub(super) fn end_row(&mut self) -> io::Result<()> {
        self.bytes.push(b'\n');
        if self.bytes.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.writer.flush()
    }

    /// What cannot be written is not tried again: part of it may have been.
    fn write_out(&mut self) -> io::Result<()> {
        let result = self.writer.write_all(&self.bytes);
        self.bytes.clear();
        result
    }
}

impl<W: Write> Drop for Buffer<W> {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.flush();
    }
}
