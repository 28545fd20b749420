//! What `journalctl` prints for machines.

use super::Record;
use super::time::Time;
use serde::Deserialize;
use std::borrow::Cow;

/// The fields of an entry that are looked at, as `systemd.journal-fields(7)` describes them.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "MESSAGE", borrow)]
    message: Message<'a>,
    #[serde(rename = "__REALTIME_TIMESTAMP", borrow)]
    realtime: Option<Cow<'a, str>>,
    #[serde(rename = "_TRANSPORT", borrow)]
    transport: Option<Cow<'a, str>>,
    #[serde(rename = "SYSLOG_IDENTIFIER", borrow)]
    identifier: Option<Cow<'a, str>>,
}

/// Text, or bytes where it is not all printable.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

/// An entry of `journalctl -o json`.
pub(super) fn json(line: &str) -> Option<Record<'_>> {
    let entry: Entry<'_> = serde_json::from_str(line).ok()?;
    let speaker = entry.transport.or(entry.identifier);
    if speaker.is_some_and(|speaker| speaker != "kernel") {
        return None;
    }
    let text = match entry.message {
        Message::Text(text) => text,
        Message::Bytes(bytes) => crate::text::lossy(&bytes).into_owned().into(),
    };
    Some(Record { time: entry.realtime.and_then(|text| microseconds(&text)), sequence: None, text })
}

/// A line of `journalctl -o export`. `None` where it is not, `Some(None)` where it is but has no message.
pub(super) fn export<'a>(line: &'a str, entry_time: &mut Option<Time>) -> Option<Option<Record<'a>>> {
    if let Some(text) = line.strip_prefix("__REALTIME_TIMESTAMP=") {
        *entry_time = microseconds(text);
        return Some(None);
    }
    if let Some(text) = line.strip_prefix("MESSAGE=") {
        return Some(Some(Record::new(*entry_time, text)));
    }
    line.starts_with('_').then_some(None)
}

fn microseconds(text: &str) -> Option<Time> {
    text.parse::<u64>().ok()?.checked_mul(1000).map(Time::Epoch)
}
