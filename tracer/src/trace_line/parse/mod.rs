//! Reading lines: the inverse of writing them.
//!
//! A packet is put together from the fields of a line such that writing it gives the line again. What the line does not
//! say (checksums, most of IPv6 extension headers, payload) is zero there, and is never shown.

mod build;
mod cursor;
mod ipv4;
mod ipv6;
mod link;
#[cfg(test)]
mod tests;
mod transport;

pub use cursor::Unreadable;

use super::{Level, LogStyle, PREFIX, StepName, parse_prefix};
use crate::netfilter::Family;
use crate::packet::{Owner, Packet};
use build::Builder;
use cursor::Cursor;
use std::ops::ControlFlow;

/// A line of TRACE, read.
#[derive(Clone, Debug)]
pub struct TraceLine<'a> {
    /// What was met.
    pub step: StepName<'a>,
    /// The name as it is in the line.
    pub name: &'a str,
    /// What follows the name: `IN= OUT=lo SRC=…`. The same text gives the same packet.
    pub content: &'a str,
}

/// Finds name and content of a line that begins with `TRACE: `; `None` for any other.
pub fn trace_line(line: &str) -> Option<TraceLine<'_>> {
    let (step, content) = parse_prefix(line)?;
    let name = line[PREFIX.len()..line.len() - content.len()].trim_end_matches(' ');
    Some(TraceLine { step, name, content })
}

/// A line of the LOG target, read.
#[derive(Clone, Debug)]
pub struct LogLine<'a> {
    /// What the user chose to begin the line with; often ends in a blank, may be empty.
    pub prefix: &'a str,
    /// What follows it: `IN= OUT=lo SRC=…`.
    pub content: &'a str,
}

/// Finds prefix and content of a line that the LOG target may have made; `None` for one that has not even devices.
///
/// The prefix may hold anything and need not end in a blank: the last ` OUT=` is the line's own, and the `IN=` before it.
pub fn log_line(line: &str) -> Option<LogLine<'_>> {
    let out = line.rfind(" OUT=")?;
    let at = line[..out].rfind("IN=")?;
    let device = &line[at + "IN=".len()..out];
    (!device.contains(' ')).then(|| LogLine { prefix: &line[..at], content: &line[at..] })
}

/// Reads what follows a name or prefix. Learns from it how the kernel writes lines, where this one shows.
pub fn packet(text: &str, style: &mut LogStyle) -> Result<Packet, Unreadable> {
    let mut cursor = Cursor::new(text);
    let devices = link::devices(&mut cursor, style)?;
    let mut packet = Builder::new();
    let (family, flow) = ip(&mut packet, &mut cursor, devices.family, style)?;
    let mut owner = None;
    let mut mark = 0;
    if flow.is_continue() {
        if cursor.eat(b"UID=") {
            let uid = cursor.number()?;
            cursor.expect("GID=")?;
            owner = Some(Owner { uid, gid: cursor.number()? });
        }
        if cursor.eat(b"MARK=0x") {
            mark = cursor.short_hex()?;
        }
    }
    cursor.end()?;
    let (len, bytes) = packet.finish();
    let link::Devices { indev, outdev, link, .. } = devices;
    Ok(Packet { family, indev, outdev, link, len, bytes, mark, owner })
}

/// A packet from its IP header on, and its family. Breaks where the kernel ends the line, without owner and mark.
fn ip(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    link_family: Option<Family>,
    style: &mut LogStyle,
) -> Result<(Family, ControlFlow<()>), Unreadable> {
    if let Some(family) = link_family
        && cursor.eat(b"TRUNCATED")
    {
        packet.ends_after(0);
        return Ok((family, ControlFlow::Break(())));
    }
    cursor.expect("SRC=")?;
    Ok(match cursor.value().contains(&b':') {
        true => (Family::Ipv6, ipv6::packet(packet, cursor, Level::Outer, style)?),
        false => (Family::Ipv4, ipv4::packet(packet, cursor, Level::Outer, style)?),
    })
}
