//! Records of `/dev/kmsg`, and of a file made from it (`Documentation/ABI/testing/dev-kmsg` of the kernel).

use super::Record;
use super::time::Time;
use std::borrow::Cow;

/// `level,sequence,microseconds,flags;text`; more fields may come before the semicolon.
pub(super) fn record(line: &str) -> Option<Record<'_>> {
    let (head, text) = line.split_once(';')?;
    let mut fields = head.split(',');
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (_level, sequence, microseconds) = (number()?, number()?, number()?);
    fields.next()?;
    let time = microseconds.checked_mul(1000).map(Time::Uptime);
    Some(Record { time, sequence: Some(sequence), text: unescape(text) })
}

/// Turns `\xNN` back to what it stands for; all that is not printable was written so, the backslash included.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains("\\x") {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split("\\x");
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                bytes.extend_from_slice(b"\\x");
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    crate::text::lossy(&bytes).into_owned().into()
}
