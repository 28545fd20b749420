//! The lines of the kernel's syslog logger: one for each step, nothing else. What a terminal would act on is escaped
//! by [`trace_line`].

use super::buffer::Buffer;
use super::{Sink, Start, Totals};
use crate::path::group::Logged;
use crate::path::{Path, Step};
use crate::text::escape;
use crate::trace_line::{LogStyle, Writer};
use std::io::{self, Write};

/// Writes TRACE lines.
#[derive(Debug)]
pub struct Line<W: Write> {
    out: Buffer<W>,
    lines: Writer,
}

impl<W: Write> Line<W> {
    /// Writes to `writer`, as a new kernel does until [`Sink::begin`] names the one that runs.
    pub fn new(writer: W) -> Self {
        Self { out: Buffer::new(writer), lines: Writer::default() }
    }
}

impl<W: Write> Sink for Line<W> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.lines = Writer::new(start.log_style);
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        self.lines.write(self.out.row(), step.name, &step.view);
        self.out.end_row()
    }

    fn step_again(&mut self, name: &str) -> io::Result<bool> {
        let written = self.lines.write_again(self.out.row(), name);
        if written {
            self.out.end_row()?;
        }
        Ok(written)
    }

    fn logged(&mut self, _packet: u64, logged: &Logged) -> io::Result<()> {
        self.out.row().extend_from_slice(escape(&logged.line).as_bytes());
        self.out.end_row()
    }

    fn log_style(&mut self, style: LogStyle) {
        self.lines = Writer::new(style);
    }

    fn path(&mut self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn shows_paths(&self) -> bool {
        false
    }

    fn finish(&mut self, _totals: &Totals) -> io::Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
