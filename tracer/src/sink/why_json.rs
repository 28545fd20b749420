//! What became of a packet, as a row.

use super::Namespaces;
use super::json::{DeviceFields, EndingFields, HeaderFields};
use crate::packet::Sender;
use crate::why::{Passed, Told, Why};
use serde::Serialize;

/// `{"type":"why",…}`
#[derive(Serialize)]
#[serde(tag = "type", rename = "why")]
pub(super) struct WhyRow<'a> {
    packet: u64,
    fate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<AtRow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<SenderFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<EndingFields<'a>>,
    close: Vec<CloseRow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    look: Option<&'a str>,
    path: Vec<&'a str>,
    certainty: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns_name: Option<&'a str>,
}

/// The step that ended the packet, or the last one.
#[derive(Serialize)]
struct AtRow<'a> {
    step: &'a str,
    /// Whether this is what ended it.
    certain: bool,
    family: &'static str,
    engine: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<&'static str>,
    table: &'a str,
    chain: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(flatten)]
    devices: DeviceFields<'a>,
    #[serde(flatten)]
    headers: HeaderFields,
}

/// Who sent the packet; named as in the rows of `trace --who`.
#[derive(Serialize)]
struct SenderFields<'a> {
    pid: u32,
    process: &'a str,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
}

#[derive(Serialize)]
struct CloseRow<'a> {
    step: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    behind: bool,
    failed: Vec<FailedRow<'a>>,
    unknown: Vec<&'a str>,
}

#[derive(Serialize)]
struct FailedRow<'a> {
    condition: &'a str,
    value: &'a str,
}

impl<'a> WhyRow<'a> {
    pub(super) fn of(why: &'a Why, namespaces: &'a Namespaces) -> Self {
        let Why { path, fate, at, .. } = why;
        Self {
            packet: path.packet,
            fate: fate.name(),
            at: at.as_ref().map(|at| {
                let view = at.packet.view();
                AtRow {
                    step: &at.name,
                    certain: why.is_certain,
                    family: at.family.name(),
                    engine: at.engine.name(),
                    hook: at.hook.map(|hook| hook.name()),
                    table: &at.table,
                    chain: &at.chain,
                    kind: at.kind.name(),
                    rule: at.number,
                    handle: at.handle,
                    text: at.text.as_deref(),
                    owner: at.owner.as_deref(),
                    devices: DeviceFields::of(&view),
                    headers: HeaderFields::of(&view),
                }
            }),
            outcome: path.outcome.as_deref(),
            sender: why.sender.as_ref().map(|Sender { pid, name, uid, cgroup }| SenderFields {
                pid: *pid,
                process: name,
                uid: *uid,
                cgroup: cgroup.as_deref(),
            }),
            ending: path.ending.as_ref().map(|ending| EndingFields::of(ending, path)),
            close: why.close.iter().map(CloseRow::of).collect(),
            look: why.look.as_deref(),
            path: path.steps.iter().map(|step| &**step).collect(),
            certainty: path.certainty.to_string(),
            why: (!path.why.is_empty()).then(|| path.why.join("; ")),
            netns: path.netns,
            netns_name: path.netns.and_then(|inode| namespaces.name(inode)),
        }
    }
}

impl<'a> CloseRow<'a> {
    fn of(close: &'a Passed) -> Self {
        Self {
            step: &close.name,
            text: &close.text,
            owner: close.owner.as_deref(),
            behind: close.behind,
            failed: failed(close),
            unknown: close.unknown().collect(),
        }
    }
}

fn failed(passed: &Passed) -> Vec<FailedRow<'_>> {
    passed.failed().map(|(condition, value)| FailedRow { condition, value }).collect()
}

/// `{"type":"passed",…}`: a rule that a packet passed.
#[derive(Serialize)]
#[serde(tag = "type", rename = "passed")]
pub(super) struct ToldRow<'a> {
    packet: u64,
    step: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    failed: Vec<FailedRow<'a>>,
    unknown: Vec<&'a str>,
    /// Why nothing can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    doubt: Option<&'a str>,
}

impl<'a> ToldRow<'a> {
    pub(super) fn of(packet: u64, step: &'a str, told: &'a Told) -> Self {
        let nothing = Self {
            packet,
            step,
            text: None,
            owner: None,
            failed: Vec::new(),
            unknown: Vec::new(),
            doubt: None,
        };
        match told {
            Told::Passed(passed) => Self {
                text: Some(&passed.text),
                owner: passed.owner.as_deref(),
                failed: failed(passed),
                unknown: passed.unknown().collect(),
                ..nothing
            },
            Told::Unknown(why) => Self { doubt: Some(why), ..nothing },
        }
    }
}

/// What is said when no packet was dropped.
#[derive(Serialize)]
#[serde(tag = "type", rename = "why")]
pub(super) struct NothingRow {
    pub(super) fate: &'static str,
    pub(super) packets: u64,
}
