//! From the set of rules that matched to the way the packet took.
//!
//! Pure: no I/O, no clock. [`walk`] orders the entries of one traversal, [`attribute`] says what the packet looked
//! like at each of them, [`track`] joins the traversals of a packet to a [`Path`]. [`group`] does that for steps that come
//! one by one, without a word on which packet they are of.

pub mod attribute;
pub mod connection;
pub mod ending;
mod established;
pub mod group;
pub mod last_rule;
pub mod stands;
mod targets;
#[cfg(test)]
mod tests;
pub mod track;
pub mod walk;
pub mod walks;

use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::{Packet, PacketView, Tracked};
use crate::ruleset::Rule;
use connection::Connection;
use ending::{Ending, Waited};
use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;

/// How far a path can be relied on. Ordered: the worst of a path's traversals counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certainty {
    /// Every check that proves it passed.
    Complete,
    /// The rules are certain, their order is not.
    Unordered,
    /// Something is in doubt.
    Inexact,
}

impl fmt::Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Unordered => "unordered",
            Self::Inexact => "inexact",
        })
    }
}

/// What an entry made of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// A final verdict.
    Verdict(Verdict),
    /// Went on with the next entry.
    Continue,
    /// Went to a chain, to come back.
    Jump(&'a str),
    /// Went to a chain, not to come back.
    Goto(&'a str),
    /// Went back to the calling chain.
    Return,
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Continue => f.write_str("continue"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
        }
    }
}

/// One rule, return or policy that a packet met.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// The packet's number in this trace, from 1.
    pub packet: u64,
    /// Nanoseconds since the epoch, when the packet entered the table; `None` where nothing tells.
    pub time_ns: Option<u64>,
    /// Where in the stack; `None` where nothing tells.
    pub hook: Option<Hook>,
    /// What was met.
    pub rule: Rule<'a>,
    /// What TRACE calls it: `table:chain:kind:number`.
    pub name: &'a str,
    /// What it did; `None` where nothing tells.
    pub action: Option<Action<'a>>,
    /// The packet as it was when the entry matched.
    pub view: PacketView<'a>,
    /// What is in doubt about `view`, for example which of two rules changed the mark.
    pub view_doubt: Option<&'a str>,
    /// What conntrack said of the packet when it entered the table; `None` where it said nothing, or nothing tells.
    pub tracked: Option<Tracked>,
    /// Inode number of the network namespace; `None` where nothing tells.
    pub netns: Option<u32>,
}

/// What a packet is part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Belongs {
    /// Its connection's number in this trace, from 1: the same in all namespaces that it goes through.
    pub connection: Option<u64>,
    /// The packet that it was in another namespace before.
    pub continues: Option<u64>,
    /// What conntrack knows of its connection.
    pub known: Option<Connection>,
}

/// A packet that met nothing that is known, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Nanoseconds since the epoch.
    pub time_ns: u64,
    /// The packet.
    pub packet: Packet,
}

/// All that one packet met in one network namespace; its steps have been given out one by one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The packet's number in this trace, from 1.
    pub packet: u64,
    /// Address family.
    pub family: Family,
    /// `table:chain:kind:number` in the order they were met.
    pub steps: Vec<Rc<str>>,
    /// The packet, where no step shows it and it is known.
    pub sighting: Option<Box<Sighting>>,
    /// What the last table decided; `None` when no traversal could be read.
    pub verdict: Option<Verdict>,
    /// How far this can be relied on.
    pub certainty: Certainty,
    /// Why it is not complete, in words; empty when it is.
    pub why: Vec<String>,
    /// What ended the packet, where no step says it.
    pub outcome: Option<String>,
    /// What else is worth knowing: that no nat table was consulted, and why; that a flowtable takes the packets after it.
    pub note: Option<Cow<'static, str>>,
    /// How it ended; `None` where nothing tells.
    pub ending: Option<Ending>,
    /// The queues for user space that it waited in, as far as that is known.
    pub waited: Vec<Waited>,
    /// Versions of the ruleset that the packet met, as `table@generation`.
    pub generation: Vec<Rc<str>>,
    /// What it is part of, where that is followed.
    pub belongs: Belongs,
    /// Inode number of the network namespace; `None` where nothing tells.
    pub netns: Option<u32>,
}

impl Path {
    /// Of a packet that has met nothing yet.
    pub fn new(packet: u64, family: Family, netns: Option<u32>) -> Self {
        Self {
            packet,
            family,
            steps: Vec::new(),
            sighting: None,
            verdict: None,
            certainty: Certainty::Complete,
            why: Vec::new(),
            outcome: None,
            note: None,
            ending: None,
            waited: Vec::new(),
            generation: Vec::new(),
            belongs: Belongs::default(),
            netns,
        }
    }
}
