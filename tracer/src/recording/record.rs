//! What stands in a recording.

use crate::netfilter::{Engine, Family, Hook, StepKind, TableFamily, Verdict};
use crate::path::ending::{Device, Ending, Freed, HookFunction, Waited};
use crate::path::{Certainty, Path};
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
    Hook::BridgePrerouting,
    Hook::BridgeInput,
    Hook::BridgeForward,
    Hook::BridgeOutput,
    Hook::BridgePostrouting,
    Hook::ArpInput,
    Hook::ArpOutput,
    Hook::ArpForward,
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
pub(super) const FAMILIES: &[Family] = &[Family::Ipv4, Family::Ipv6, Family::Arp];
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
    /// How the packet of the next path ended.
    #[serde(borrow)]
    Ending(EndingRecord<'a>),
    /// What is known of a namespace from here on.
    #[serde(borrow)]
    Namespace(NamespaceRecord<'a>),
    /// The packet of the next path, which has no steps: its place and content as in a [`StepRecord`].
    Sighting {
        time_ns: u64,
        place: u32,
        content: u32,
    },
}

/// Kinds of records that this version knows.
pub(super) const RECORD_KINDS: u8 = 13;

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct NamespaceRecord<'a> {
    pub(super) inode: u32,
    pub(super) name: Option<&'a str>,
    #[serde(borrow)]
    pub(super) container: Option<ContainerRecord<'a>>,
}

/// Runtimes are written as their places in [`Runtime::ALL`](crate::container::Runtime::ALL).
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ContainerRecord<'a> {
    pub(super) runtime: Option<u8>,
    pub(super) id: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) pod_uid: Option<&'a str>,
    pub(super) pod: Option<&'a str>,
    pub(super) namespace: Option<&'a str>,
}

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

/// The kinds of endings, by their places here: which of the fields below belong to each is said beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndingKind {
    /// None.
    Nothing,
    /// None.
    Dropped,
    /// `hooks`, `functions`, `freed`
    ByFunction,
    /// `freed`
    Freed,
    /// `hooks`, one.
    Accepted,
    /// `device`
    Forwarded,
    /// `device`
    Sent,
    /// `queue`
    Queued,
    /// `queue`
    ByUser,
    /// None.
    Stolen,
    /// None.
    Unknown,
}

pub(super) const ENDINGS: &[EndingKind] = &[
    EndingKind::Nothing,
    EndingKind::Dropped,
    EndingKind::ByFunction,
    EndingKind::Freed,
    EndingKind::Accepted,
    EndingKind::Forwarded,
    EndingKind::Sent,
    EndingKind::Queued,
    EndingKind::ByUser,
    EndingKind::Stolen,
    EndingKind::Unknown,
];

#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct EndingRecord<'a> {
    pub(super) kind: u8,
    pub(super) hooks: Vec<u8>,
    #[serde(borrow)]
    pub(super) functions: Vec<(&'a str, i32)>,
    pub(super) freed: Option<FreedRecord<'a>>,
    pub(super) device: Option<[u8; 16]>,
    pub(super) queue: Option<u16>,
    /// The queue, the time in it, and the verdict, for each.
    pub(super) waited: Vec<(Option<u16>, u64, u8)>,
}

/// Symbol, reason, namespace.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct FreedRecord<'a> {
    pub(super) symbol: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) netns: Option<u32>,
}

impl<'a> EndingRecord<'a> {
    /// `None` when there is nothing to be written.
    pub(super) fn of(path: &'a Path) -> Option<Self> {
        let queues = path.waited.iter().map(|waited| {
            let Waited { queue, waited_ns, verdict } = waited;
            (*queue, *waited_ns, verdict.number())
        });
        let mut record = Self { waited: queues.collect(), ..Self::default() };
        record.freed = path.ending.as_ref().and_then(Ending::freed).map(|freed| FreedRecord {
            symbol: &freed.symbol,
            reason: freed.reason.as_deref(),
            netns: freed.netns,
        });
        let kind = match &path.ending {
            None if record.waited.is_empty() => return None,
            None => EndingKind::Nothing,
            Some(Ending::Dropped) => EndingKind::Dropped,
            Some(Ending::ByFunction { hooks, functions, .. }) => {
                record.hooks = hooks.iter().map(|hook| place(HOOKS, hook)).collect();
                record.functions =
                    functions.iter().map(|function| (function.name.as_str(), function.priority)).collect();
                EndingKind::ByFunction
            }
            Some(Ending::Freed(_)) => EndingKind::Freed,
            Some(Ending::Accepted(hook)) => {
                record.hooks = vec![place(HOOKS, hook)];
                EndingKind::Accepted
            }
            Some(Ending::Forwarded(Device(device))) => {
                record.device = Some(*device);
                EndingKind::Forwarded
            }
            Some(Ending::Sent(Device(device))) => {
                record.device = Some(*device);
                EndingKind::Sent
            }
            Some(Ending::Queued { queue }) => {
                record.queue = *queue;
                EndingKind::Queued
            }
            Some(Ending::ByUser { queue }) => {
                record.queue = *queue;
                EndingKind::ByUser
            }
            Some(Ending::Stolen) => EndingKind::Stolen,
            Some(Ending::Unknown) => EndingKind::Unknown,
        };
        record.kind = place(ENDINGS, &kind);
        Some(record)
    }

    /// The ending, and the queues; `None` for what no recording of ours has.
    pub(super) fn take(self) -> Option<(Option<Ending>, Vec<Waited>)> {
        let Self { hooks, functions, freed, device, queue, .. } = self;
        let waited = self.waited.into_iter().map(|(queue, waited_ns, verdict)| {
            let verdict = Verdict::from_return(verdict.into());
            Waited { queue, waited_ns, verdict }
        });
        let freed = || {
            freed.map(|freed| Freed {
                symbol: freed.symbol.to_owned(),
                reason: freed.reason.map(str::to_owned),
                netns: freed.netns,
            })
        };
        let hooks: Vec<Hook> = hooks.into_iter().map(|hook| word(HOOKS, hook)).collect::<Option<_>>()?;
        let ending = match word(ENDINGS, self.kind)? {
            EndingKind::Nothing => None,
            EndingKind::Dropped => Some(Ending::Dropped),
            EndingKind::ByFunction => {
                let functions = functions
                    .into_iter()
                    .map(|(name, priority)| HookFunction { name: name.to_owned(), priority })
                    .collect();
                Some(Ending::ByFunction { hooks, functions, freed: freed()? })
            }
            EndingKind::Freed => Some(Ending::Freed(freed()?)),
            EndingKind::Accepted => Some(Ending::Accepted(*hooks.first()?)),
            EndingKind::Forwarded => Some(Ending::Forwarded(Device(device?))),
            EndingKind::Sent => Some(Ending::Sent(Device(device?))),
            EndingKind::Queued => Some(Ending::Queued { queue }),
            EndingKind::ByUser => Some(Ending::ByUser { queue }),
            EndingKind::Stolen => Some(Ending::Stolen),
            EndingKind::Unknown => Some(Ending::Unknown),
        };
        Some((ending, waited.collect()))
    }
}
