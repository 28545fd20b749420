//! Records of `/dev/kmsg`, and of a file made from it (`Documentation/ABI/testing/dev-kmsg` of the kernel).

use super::Record;
use super::time::Time;
use std::borrow::Cow;

/// `level,sequence,microseconds,flags;text`; more fields may come before the semicolon.
pub(super) fn record(line: &str) -> Option<Record<'_>> {
    let end = memchr::memchr(b';', line.as_bytes())?;
    let (mut head, text) = (&line.as_bytes()[..end], &line[end + 1..]);
    let (_level, sequence, microseconds) = (number(&mut head)?, number(&mut head)?, number(&mut head)?);
    let time = microseconds.checked_mul(1000).map(Time::Uptime);
    Some(Record { time, sequence: Some(sequence), text: unescape(text) })
}

/// A number and the comma behind it.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    loop {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        match byte {
            b'0'..=b'9' => value = value.checked_mul(10)?.checked_add((byte - b'0').into())?,
            b',' => return Some(value),
            _ => return None,
        }
    }
}

/// Turns `\xNN` back to what it stands for; all that is not printable was written so, the backslash included.
fn unescape(text: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\\', text.as_bytes()).is_none() {
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
