//! What stands in a recording.

use crate::netfilter::{Engine, Family, Hook, StepKind, TableFamily};
use crate::path::Certainty;
use serde::{Deserialize, Serialize};

/// Words are written as their places in these lists, which may only grow.
pub(super) const HOOKS: &[Hook] = &[
    Hook::Prerouting,
    Hook::Input,
    Hook::Forward,
    Hook::Output,
    Hook::Postrouting,
    Hook::Ingress,
    Hook::Egress,
];
pub(super) const ENGINES: &[Engine] = &[Engine::Legacy, Engine::Nft];
pub(super) const TABLE_FAMILIES: &[TableFamily] = &[
    TableFamily::Ip,
    TableFamily::Ip6,
    TableFamily::Inet,
    TableFamily::Arp,
    TableFamily::Bridge,
    TableFamily::Netdev,
];
pub(super) const FAMILIES: &[Family] = &[Family::Ipv4, Family::Ipv6];
pub(super) const KINDS: &[StepKind] = &[StepKind::Rule, StepKind::Return, StepKind::Policy];
pub(super) const CERTAINTIES: &[Certainty] = &[Certainty::Complete, Certainty::Unordered, Certainty::Inexact];

/// The place of a word in its list.
pub(super) fn place<T: PartialEq>(list: &[T], word: &T) -> u8 {
    list.iter().position(|known| known == word).unwrap_or(list.len()) as u8
}

/// The word at a place of a list.
pub(super) fn word<T: Copy>(list: &[T], place: u8) -> Option<T> {
    list.get(usize::from(place)).copied()
}

/// One record. New kinds are added at the end; readers skip those they do not know.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Record<'a> {
    Start {
        filter: &'a str,
        netns: &'a str,
        backend: &'a str,
        footprint: &'a str,
        kernel: &'a str,
        ae_flag: bool,
    },
    /// The next text; texts are numbered as they come, from 0.
    Text(&'a str),
    /// The next rule.
    #[serde(borrow)]
    Rule(RuleRecord<'a>),
    /// The next namespace with devices.
    #[serde(borrow)]
    Place(PlaceRecord<'a>),
    /// A packet, which takes the place of the oldest.
    #[serde(borrow)]
    Content(ContentRecord<'a>),
    Step(StepRecord),
    #[serde(borrow)]
    Path(PathRecord<'a>),
    Totals {
        packets: u64,
        steps: u64,
        lost: u64,
        missed: u64,
        unordered: u64,
        inexact: u64,
    },
    /// All numbers begin anew.
    Anew,
    /// The note of the next path.
    Note(&'a str),
}

/// Kinds of records that this version knows.
pub(super) const RECORD_KINDS: u8 = 10;

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct RuleRecord<'a> {
    pub(super) engine: u8,
    pub(super) family: u8,
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
    pub(super) kind: u8,
    pub(super) number: Option<u32>,
    pub(super) handle: Option<u64>,
    pub(super) text: Option<&'a str>,
    pub(super) owner: Option<&'a str>,
    pub(super) name: &'a str,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct PlaceRecord<'a> {
    pub(super) netns: Option<u32>,
    pub(super) indev: Option<&'a [u8]>,
    pub(super) outdev: Option<&'a [u8]>,
    pub(super) dev_type: u16,
    pub(super) hard_header_len: u16,
    pub(super) header: Option<&'a [u8]>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ContentRecord<'a> {
    pub(super) family: u8,
    pub(super) len: u32,
    pub(super) mark: u32,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) bytes: &'a [u8],
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct StepRecord {
    /// Since the step before.
    pub(super) packet: i64,
    /// Since the step before.
    pub(super) time_ns: Option<i64>,
    pub(super) hook: Option<u8>,
    pub(super) rule: u32,
    pub(super) action: Option<ActionRecord>,
    pub(super) place: u32,
    /// Packets written since this one.
    pub(super) content: u32,
    pub(super) doubt: Option<u32>,
}

/// Verdicts are the kernel's numbers, chains are texts.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum ActionRecord {
    Verdict(u8),
    Continue,
    Jump(u32),
    Goto(u32),
    Return,
}

/// Names of steps and versions are texts.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct PathRecord<'a> {
    pub(super) packet: u64,
    pub(super) family: u8,
    pub(super) steps: Vec<u32>,
    pub(super) verdict: Option<u8>,
    pub(super) certainty: u8,
    #[serde(borrow)]
    pub(super) why: Vec<&'a str>,
    pub(super) outcome: Option<&'a str>,
    pub(super) generation: Vec<u32>,
    pub(super) netns: Option<u32>,
}
