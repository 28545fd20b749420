//! Lines that a log daemon wrote, and those of journalctl that look the same.

use super::time::{Clock, Time};
use super::{Record, dmesg};

/// `TIME host kernel: text`. `None` where there is no such time, `Some(None)` for a line that is not the kernel's.
pub(super) fn record<'a>(line: &'a str, clock: &mut Clock) -> Option<Option<Record<'a>>> {
    let (time, rest) = match line.as_bytes().first()? {
        b'0'..=b'9' => iso_or_unix(line, clock)?,
        b'A'..=b'Z' => named(line, clock)?,
        _ => return None,
    };
    Some(after_time(time, rest, clock))
}

/// `1 2026-03-16T02:46:36.123456+01:00 host kernel - - - text`, after the priority (RFC 5424).
pub(super) fn rfc5424<'a>(rest: &'a str, clock: &mut Clock) -> Option<Option<Record<'a>>> {
    let mut fields = rest.strip_prefix("1 ")?.splitn(7, ' ');
    let time = clock.iso(fields.next()?);
    let _host = fields.next()?;
    let is_kernel = fields.next()? == "kernel";
    let text = fields.nth(3)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Some(is_kernel.then(|| without_stamp(time, text, clock)))
}

fn iso_or_unix<'a>(line: &'a str, clock: &mut Clock) -> Option<(Option<Time>, &'a str)> {
    let (first, rest) = line.split_once(' ')?;
    if let Some(time) = clock.iso(first) {
        return Some((Some(time), rest));
    }
    // journalctl -o short-unix
    let (seconds, fraction) = first.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(seconds) && is_number(fraction)).then(|| (Time::epoch(first), rest))
}

/// `Mar 16 02:46:36 `, `Mon 2026-03-16 02:46:36 UTC `, `Mon Mar 16 02:46:36 2026 `.
fn named<'a>(line: &'a str, clock: &mut Clock) -> Option<(Option<Time>, &'a str)> {
    if let Some((time, rest)) = clock.traditional(line) {
        return Some((Some(time), rest));
    }
    let (_weekday, rest) = line.split_once(' ').filter(|(day, _)| day.len() == 3)?;
    if let Some((time, rest)) = clock.full(rest) {
        return Some((Some(time), rest));
    }
    let stamp = line.get(..24)?;
    Some((Some(clock.c_time(stamp)?), line.get(25..)?))
}

/// `host kernel: text`, or the text alone, as `dmesg --time-format iso` has it.
fn after_time<'a>(time: Option<Time>, rest: &'a str, clock: &mut Clock) -> Option<Record<'a>> {
    const TAG: &str = "kernel:";
    if rest.starts_with("TRACE: ") || rest.starts_with("IN=") {
        return Some(Record::new(time, rest));
    }
    let (_host, tagged) = rest.split_once(' ')?;
    let text = match tagged.strip_prefix(TAG) {
        Some(text) => text,
        // Some daemons write facility and level before the tag.
        None => {
            let at = tagged.find(" kernel:").filter(|&at| at < 64)?;
            &tagged[at + 1 + TAG.len()..]
        }
    };
    Some(without_stamp(time, text.strip_prefix(' ').unwrap_or(text), clock))
}

/// The kernel's own time may stand before the text.
fn without_stamp<'a>(time: Option<Time>, text: &'a str, clock: &mut Clock) -> Record<'a> {
    match dmesg::stamp(text, clock) {
        Some((own, text)) => Record::new(time.or(own), text),
        None => Record::new(time, text),
    }
}
