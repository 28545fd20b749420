//! How a packet ended, as far as that is known, in words.
#![forbid(unsafe_code)]

use crate::netfilter::{Hook, Verdict};
use crate::text::lossy;
use std::fmt;

/// A function at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFunction {
    /// Its name in the kernel.
    pub name: String,
    /// Where among the others.
    pub priority: i32,
}

/// The name of a device, with zeros behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub [u8; 16]);

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        f.write_str(&lossy(&self.0[..end]))
    }
}

/// Where and why the kernel freed a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// The function that freed it, with the distance from its beginning: `ip_rcv_finish_core+0x1b2`.
    pub symbol: String,
    /// The kernel's name of the reason; `None` where it has none.
    pub reason: Option<String>,
    /// The namespace where that was, if it is another one.
    pub netns: Option<u32>,
}

impl Freed {
    /// The same, told of a packet that was seen in this namespace.
    pub fn seen_from(self, netns: Option<u32>) -> Self {
        Self { netns: self.netns.filter(|other| Some(*other) != netns), ..self }
    }
}

/// How a packet ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its last step dropped it.
    Dropped,
    /// A function at a hook dropped it that is no table's: one of these, as far as that is known.
    ByFunction {
        /// The hooks that come into question.
        hooks: Vec<Hook>,
        /// The functions that do; empty where they are not known.
        functions: Vec<HookFunction>,
        /// As the kernel says it.
        freed: Freed,
    },
    /// The kernel freed it elsewhere.
    Freed(Freed),
    /// All tables let it go on; it was last seen at this hook.
    Accepted(Hook),
    /// It came from elsewhere and was let go out by this device.
    Forwarded(Device),
    /// It was made here and was let go out by this device.
    Sent(Device),
    /// It waits for a verdict from user space.
    Queued {
        /// Number of the queue; `None` where it is not known.
        queue: Option<u16>,
    },
    /// User space dropped it, when it waited in this queue.
    ByUser {
        /// Number of the queue; `None` where it is not known.
        queue: Option<u16>,
    },
    /// Its last step took it out of the hands of the others.
    Stolen,
    /// It was let go on, had to be seen again, and was not.
    Unknown,
}

impl Ending {
    /// The word that the JSON output uses.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dropped | Self::ByFunction { .. } | Self::ByUser { .. } => "dropped",
            Self::Freed(_) => "freed",
            Self::Accepted(_) => "accepted",
            Self::Forwarded(_) => "forwarded",
            Self::Sent(_) => "sent",
            Self::Queued { .. } => "queued",
            Self::Stolen => "stolen",
            Self::Unknown => "unknown",
        }
    }

    /// What dropped it, where that was no table.
    pub fn dropper(&self) -> Option<Dropper<'_>> {
        matches!(self, Self::ByFunction { .. } | Self::ByUser { .. }).then_some(Dropper(self))
    }

    /// Where and why the kernel freed it.
    pub fn freed(&self) -> Option<&Freed> {
        match self {
            Self::ByFunction { freed, .. } | Self::Freed(freed) => Some(freed),
            _ => None,
        }
    }
}

/// What follows the verdict. The step that dropped a packet is its path's last.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dropped | Self::Stolen | Self::Unknown => Ok(()),
            Self::ByFunction { .. } => write!(f, ", then dropped by {}", Dropper(self)),
            Self::Freed(freed) => write!(f, ", then {freed}"),
            Self::Accepted(hook) => write!(f, " at {hook}"),
            Self::Forwarded(device) => write!(f, ", forwarded out {device}"),
            Self::Sent(device) => write!(f, ", sent out {device}"),
            Self::Queued { queue } => number(f, *queue),
            Self::ByUser { queue } => {
                number(f, *queue)?;
                write!(f, ", then dropped by {}", Dropper(self))
            }
        }
    }
}

/// What dropped a packet that no table dropped.
pub struct Dropper<'a>(&'a Ending);

impl fmt::Display for Dropper<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ending::ByFunction { hooks, functions, .. } = self.0 else { return f.write_str("user space") };
        match functions.as_slice() {
            [] => f.write_str("a function that is not known")?,
            [only] => write!(f, "{only}")?,
            several => {
                f.write_str("one of ")?;
                write_list(f, several)?;
            }
        }
        if let Some((first, rest)) = hooks.split_first() {
            write!(f, ", at {first}")?;
            rest.iter().try_for_each(|hook| write!(f, " or {hook}"))?;
        }
        Ok(())
    }
}

/// The number of a queue behind its verdict.
fn number(f: &mut fmt::Formatter<'_>, queue: Option<u16>) -> fmt::Result {
    queue.map_or(Ok(()), |queue| write!(f, " {queue}"))
}

impl fmt::Display for Freed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "freed in {}", self.symbol)?;
        self.reason.iter().try_for_each(|reason| write!(f, ", reason {reason}"))?;
        self.netns.map_or(Ok(()), |netns| write!(f, ", in netns {netns}"))
    }
}

/// `ipv4_conntrack_in (priority -200)`
impl fmt::Display for HookFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (priority {})", self.name, self.priority)
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, functions: &[HookFunction]) -> fmt::Result {
    for (index, function) in functions.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{function}")?;
    }
    Ok(())
}

/// A packet waited in a queue for user space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Number of the queue; `None` where it is not known.
    pub queue: Option<u16>,
    /// From the table or base chain that sent it there to the verdict.
    pub waited_ns: u64,
    /// What user space decided.
    pub verdict: Verdict,
}

/// `queue 5: accept after 1.2 ms`
impl fmt::Display for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.queue {
            Some(queue) => write!(f, "queue {queue}")?,
            None => f.write_str("a queue")?,
        }
        write!(f, ": {} after {:.1} ms", self.verdict, self.waited_ns as f64 / 1e6)
    }
}
