//! Where packets, steps and totals go: people, scripts, files.

#![forbid(unsafe_code)]

mod buffer;
mod counts;
mod counts_json;
mod json;
mod line;
mod pretty;
mod summary;
mod summary_json;
mod why;
mod why_json;
#[cfg(test)]
pub(crate) mod tests;

pub use counts::{CountSink, CountTotals, Tables};
pub use counts_json::CountJson;
pub use json::Json;
pub use line::Line;
pub use pretty::Pretty;
pub(crate) use pretty::{outcome, packet_line};
pub use summary::Summarised;

use crate::container::Container;
use crate::hash::KernelMap;
use crate::latency::Spent;
use crate::packet::Sender;
use crate::path::ending::Freed;
use crate::path::group::Logged;
use crate::path::{Path, Step};
use crate::text::Escaped;
use crate::trace_line::LogStyle;
use crate::why::{Told, Why};
use std::fmt;
use std::io;

/// The forms in which packets are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A block for each packet, for people.
    #[default]
    Pretty,
    /// The lines of the kernel's syslog logger, one for each step.
    Trace,
    /// JSON Lines.
    Json,
}

/// The sink for a form. Only [`Output::Pretty`] is ever coloured.
pub fn choose<'w>(output: Output, colour: bool, writer: impl io::Write + 'w) -> Box<dyn Sink + 'w> {
    match output {
        Output::Pretty => Box::new(Pretty::new(writer, colour)),
        Output::Trace => Box::new(Line::new(writer)),
        Output::Json => Box::new(Json::new(writer)),
    }
}

/// What is said before the first step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The filter as typed; empty for none.
    pub filter: String,
    /// What packets are chosen by beside it, as typed; empty for nothing.
    pub choice: String,
    /// Name of the traced namespace, or `all`.
    pub netns: String,
    /// `ebpf`, `netlink` or `log`.
    pub backend: &'static str,
    /// What this run changes on the host; `none`.
    pub footprint: String,
    /// Kernel release.
    pub kernel: String,
    /// How that kernel writes log lines.
    pub log_style: LogStyle,
}

/// The line that says that tracing has begun.
impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filter = if self.filter.is_empty() { "all packets" } else { &self.filter };
        write!(f, "tracing {}", Escaped(filter))?;
        if !self.choice.is_empty() {
            write!(f, " with {}", Escaped(&self.choice))?;
        }
        f.write_str(" in ")?;
        match self.netns.as_str() {
            "all" => f.write_str("all namespaces")?,
            netns => write!(f, "namespace {}", Escaped(netns))?,
        }
        write!(f, " with {}, footprint: {}", self.backend, Escaped(&self.footprint))
    }
}

/// What is known of a network namespace besides its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// What it is known by.
    pub name: Option<String>,
    /// What all processes in it are of.
    pub container: Option<Container>,
}

/// `blue, container web (docker 0123456789ab)`; nothing where nothing is known.
impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.container) {
            (Some(name), Some(container)) => write!(f, "{name}, {container}"),
            (Some(name), None) => f.write_str(name),
            (None, Some(container)) => container.fmt(f),
            (None, None) => Ok(()),
        }
    }
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
    /// Packets that matched and were left out by chance; `None` where all were asked for.
    pub sampled_out: Option<u64>,
    /// Packets that matched and were more than asked for in a second; `None` where any number was asked for.
    pub limited_out: Option<u64>,
    /// Packets that were not shown because their verdict was asked for and is not known.
    pub undecided: u64,
}

/// The line that ends a run.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, steps, lost, missed, unordered, inexact, .. } = self;
        write!(
            f,
            "nftracer: {packets} packets, {steps} steps, {lost} lost, {missed} missed, {unordered} unordered, \
             {inexact} inexact"
        )?;
        for (count, option) in [(self.sampled_out, "--sample"), (self.limited_out, "--limit")] {
            if let Some(count) = count {
                write!(f, ", {count} left out by {option}")?;
            }
        }
        match self.undecided {
            0 => Ok(()),
            count => write!(f, ", {count} left out whose verdict is not known"),
        }
    }
}

/// What a sink is told. A sink names every kind, also those that it does not show, so that none is left out by oversight.
#[derive(Clone, Copy)]
pub enum Row<'a> {
    /// Before the first step.
    Start(&'a Start),
    /// This is known of the namespace of this inode number, from here on.
    Namespace(u32, &'a Namespace),
    /// Steps from here on are of a kernel that writes its lines in this style.
    LogStyle(LogStyle),
    /// A packet met an entry.
    Step(&'a Step<'a>),
    /// The LOG target wrote a line about a packet, by the rule of its last step.
    Logged(u64, &'a Logged),
    /// What a packet says to the rule of this name, `table:chain:rule:number`, that it passed. Comes before its path.
    Told(u64, &'a str, &'a Told),
    /// Who sends a packet that is made here. Comes before its path.
    Sender(u64, &'a Sender),
    /// What a pass through a table or a base chain took. Comes before the packet's path.
    Spent(u64, &'a Spent),
    /// A packet is done.
    Path(&'a Path),
    /// The kernel has thrown a packet away whose path was shown before, at this time since the epoch.
    Freed(u64, u64, &'a Freed),
    /// Why a packet was dropped.
    Why(&'a Why),
    /// None was dropped among so many.
    NoDrop(u64),
    /// After the last path.
    End(&'a Totals),
}

/// Where rows go. Steps of different packets may interleave; a packet's path comes after all its steps.
pub trait Sink {
    /// Takes a row.
    fn row(&mut self, row: Row<'_>) -> io::Result<()>;
    /// A packet met the entry of this name, and its view is that of the step before. Says whether that was enough: a
    /// sink that shows more than these needs the whole step.
    fn step_again(&mut self, _name: &str) -> io::Result<bool> {
        Ok(false)
    }
    /// Whether the steps of a path and its tables matter to [`Row::Path`].
    fn shows_paths(&self) -> bool {
        true
    }
    /// Whether nothing more is wanted.
    fn enough(&self) -> bool;
    /// Gives out what is buffered; called whenever no more input is waiting.
    fn flush(&mut self) -> io::Result<()>;
}

/// Gives everything to two sinks, the second first: what is shown has been recorded.
pub struct Both<'w>(pub Box<dyn Sink + 'w>, pub Box<dyn Sink + 'w>);

impl Sink for Both<'_> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        self.1.row(row)?;
        self.0.row(row)
    }

    fn enough(&self) -> bool {
        self.0.enough() || self.1.enough()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()?;
        self.0.flush()
    }
}

/// What is known of namespaces.
#[derive(Debug, Default)]
struct Namespaces(KernelMap<u32, Namespace>);

impl Namespaces {
    fn set(&mut self, inode: u32, known: &Namespace) {
        self.0.insert(inode, known.clone());
    }

    fn get(&self, inode: u32) -> Option<&Namespace> {
        self.0.get(&inode)
    }

    fn name(&self, inode: u32) -> Option<&str> {
        self.get(inode)?.name.as_deref()
    }
}

/// A link-layer address as people write it.
fn mac(address: &[u8; 6]) -> String {
    let [a, b, c, d, e, f] = address;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 64 * 1024;
