//! The lines of the kernel's syslog logger: one for each step, nothing else. What a terminal would act on is escaped
//! by [`trace_line`].

use super::{BUFFER_BYTES, Sink, Start, Totals, name};
use crate::path::{Path, Step};
use crate::trace_line::{self, LogStyle};
use std::io::{self, BufWriter, Write};

/// Writes TRACE lines.
#[derive(Debug)]
pub struct Line<W: Write> {
    out: BufWriter<W>,
    line: Vec<u8>,
    style: LogStyle,
}

impl<W: Write> Line<W> {
    /// Writes to `writer`, as a new kernel does until [`Sink::begin`] names the one that runs.
    pub fn new(writer: W) -> Self {
        let out = BufWriter::with_capacity(BUFFER_BYTES, writer);
        Self { out, line: Vec::new(), style: LogStyle::default() }
    }
}

impl<W: Write> Sink for Line<W> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.style = style_of(&start.kernel).unwrap_or_default();
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        self.line.clear();
        trace_line::write(&mut self.line, name(step)?, &step.view, self.style);
        self.line.push(b'\n');
        self.out.write_all(&self.line)
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

/// From a release such as `6.1.0-18-amd64`.
fn style_of(release: &str) -> Option<LogStyle> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(LogStyle::of_kernel(numbers.next()?.ok()?, numbers.next()?.ok()?))
}
