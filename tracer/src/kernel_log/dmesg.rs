//! What `dmesg` prints.

use super::Record;
use super::syslog;
use super::time::{Clock, Time};

/// `<4>[   12.345678] text`, with any part before the text left out, or `kern  :warn  : [   12.345678] text`. `None`
/// where it is neither, `Some(None)` for a line that is not the kernel's.
pub(super) fn record<'a>(line: &'a str, clock: &mut Clock) -> Option<Option<Record<'a>>> {
    match line.strip_prefix('<') {
        Some(rest) => {
            let (number, rest) = rest.split_once('>')?;
            number.parse::<u16>().ok()?;
            let dressed = syslog::rfc5424(rest, clock)
                .or_else(|| stamped(rest, clock).map(Some))
                .or_else(|| syslog::record(rest, clock));
            Some(dressed.unwrap_or_else(|| Some(Record::new(None, rest))))
        }
        None => stamped(decoded_priority(line), clock).map(Some),
    }
}

fn stamped<'a>(text: &'a str, clock: &mut Clock) -> Option<Record<'a>> {
    let (time, text) = stamp(text, clock)?;
    // journalctl -o short-monotonic
    let tagged = text.split_once(" kernel: ").filter(|(host, _)| !host.contains(' '));
    Some(Record::new(time, tagged.map_or(text, |(_, text)| text)))
}

/// Skips `kern  :warn  : `.
fn decoded_priority(line: &str) -> &str {
    let skipped = || {
        let (facility, rest) = line.split_once(':')?;
        let (level, rest) = rest.split_once(": ")?;
        let is_word = |word: &str| word.trim_end().bytes().all(|byte| byte.is_ascii_lowercase());
        (is_word(facility) && is_word(level)).then_some(rest)
    };
    skipped().unwrap_or(line)
}

/// `[   12.345678] `, `[Mon Mar 16 02:46:36 2026] `, or another time in brackets, and what follows it.
///
/// A kernel with `CONFIG_PRINTK_CALLER` adds who spoke: `[  T123] `, `[    C1] `.
pub(super) fn stamp<'a>(text: &'a str, clock: &mut Clock) -> Option<(Option<Time>, &'a str)> {
    let (inside, rest) = text.strip_prefix('[')?.split_once(']')?;
    let is_time = |byte: u8| byte.is_ascii_alphanumeric() || b" .:+".contains(&byte);
    if inside.len() > 32 || !inside.bytes().all(is_time) || !inside.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let rest = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((caller, rest)) if matches!(caller.trim_start().as_bytes(), [b'T' | b'C', b'0'..=b'9', ..]) => {
            rest
        }
        _ => rest,
    };
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let time = Time::uptime(inside.trim_start()).or_else(|| clock.c_time(inside));
    Some((time, rest))
}
