//! The lines of the kernel's syslog logger: one for each step, nothing else. What a terminal would act on is escaped
//! by [`trace_line`].

use super::buffer::Buffer;
use super::{Row, Sink, Start};
use crate::text::escape;
use crate::trace_line::Writer;
use std::io::{self, Write};

/// Writes TRACE lines.
#[derive(Debug)]
pub struct Line<W: Write> {
    out: Buffer<W>,
    lines: Writer,
}

impl<W: Write> Line<W> {
    /// Writes to `writer`, as a new kernel does until [`Row::Start`] names the one that runs.
    pub fn new(writer: W) -> Self {
        Self { out: Buffer::new(writer), lines: Writer::default() }
    }
}

impl<W: Write> Sink for Line<W> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Step(step) => {
                self.lines.write(self.out.row(), step.name, &step.view);
                self.out.end_row()
            }
            Row::Logged(_, logged) => {
                self.out.row().extend_from_slice(escape(&logged.line).as_bytes());
                self.out.end_row()
            }
            Row::Start(&Start { log_style, .. }) | Row::LogStyle(log_style) => {
                self.lines = Writer::new(log_style);
                Ok(())
            }
            Row::End(_) => self.flush(),
            Row::Namespace(..)
            | Row::Told(..)
            | Row::Sender(..)
            | Row::Spent(..)
            | Row::Path(_)
            | Row::Freed(..)
            | Row::Why(_)
            | Row::NoDrop(_) => Ok(()),
        }
    }

    fn step_again(&mut self, name: &str) -> io::Result<bool> {
        let written = self.lines.write_again(self.out.row(), name);
        if written {
            self.out.end_row()?;
        }
        Ok(written)
    }

    fn shows_paths(&self) -> bool {
        false
    }

    fn enough(&self) -> bool {
        false
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
