//! The lines of the kernel's syslog logger: one for each step, nothing else.

use super::{BUFFER_BYTES, Place, Sink, Totals, place};
use crate::packet::PacketView;
use crate::path::{Path, Step};
use crate::text;
use std::io::{self, BufWriter, Write};

/// Writes TRACE lines.
#[derive(Debug)]
pub struct Line<W: Write> {
    out: BufWriter<W>,
    line: Vec<u8>,
}

impl<W: Write> Line<W> {
    /// Writes to `writer`.
    pub fn new(writer: W) -> Self {
        Self { out: BufWriter::with_capacity(BUFFER_BYTES, writer), line: Vec::new() }
    }
}

impl<W: Write> Sink for Line<W> {
    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        self.line.clear();
        format(&mut self.line, place(step)?, &step.view);
        write_safely(&mut self.out, &self.line)?;
        self.out.write_all(b"\n")
    }

    fn path(&mut self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _totals: &Totals) -> io::Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Byte for byte, unless a name in the line would make a terminal do something.
fn write_safely(out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    if line.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return out.write_all(line);
    }
    out.write_all(text::escape(&text::lossy(line)).as_bytes())
}

/// The line without its newline.
fn format(line: &mut Vec<u8>, place: Place<'_>, view: &PacketView<'_>) {
    line.extend_from_slice(format!("TRACE: {place} IN=").as_bytes());
    line.extend_from_slice(view.indev.unwrap_or_default());
    line.extend_from_slice(b" OUT=");
    line.extend_from_slice(view.outdev.unwrap_or_default());
    line.push(b' ');
}
