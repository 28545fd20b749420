//! Where packets, steps and totals go: people, scripts, files.

use crate::path::{Path, Step};
use std::io;

/// What is said before the first step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The filter as typed; empty for none.
    pub filter: String,
    /// Name of the traced namespace, or `all`.
    pub netns: String,
    /// `ebpf`, `netlink` or `log`.
    pub backend: &'static str,
    /// What this run changes on the host; `none`.
    pub footprint: String,
    /// Kernel release.
    pub kernel: String,
}

/// What is said at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets whose path was given out.
    pub packets: u64,
    /// Steps given out.
    pub steps: u64,
    /// Records that were lost.
    pub lost: u64,
    /// Traversals that no probe saw.
    pub missed: u64,
    /// Paths stamped unordered.
    pub unordered: u64,
    /// Paths stamped inexact.
    pub inexact: u64,
}

/// Where steps, paths and totals go. Steps of different packets may interleave; a packet's path comes after all its
/// steps.
pub trait Sink {
    /// Before the first step.
    fn begin(&mut self, _start: &Start) -> io::Result<()> {
        Ok(())
    }
    /// A packet met an entry.
    fn step(&mut self, step: &Step<'_>) -> io::Result<()>;
    /// A packet is done.
    fn path(&mut self, path: &Path) -> io::Result<()>;
    /// After the last path.
    fn finish(&mut self, _totals: &Totals) -> io::Result<()> {
        Ok(())
    }
    /// Gives out what is buffered; called whenever no more input is waiting.
    fn flush(&mut self) -> io::Result<()>;
}
