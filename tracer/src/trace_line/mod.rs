//! The line that the kernel's syslog logger prints for a traced packet, written and read.
//!
//! Writing follows `net/netfilter/nf_log_syslog.c` statement by statement, as x_tables' TRACE calls it: TCP sequence
//! numbers, TCP and IP options, owner. [`parse`] is the inverse: from a line to a packet that gives the same line again.
//! The differences to the kernel's line:
//!
//! - What lies past the copied bytes is left out: the field, or the header with all that follows from it. `TRUNCATED`
//!   and `INCOMPLETE` appear where the packet itself ends, as in the kernel.
//! - `MAC=` is left out where fewer bytes than the device's header are known; on SIT tunnels the kernel prints bytes
//!   from before the link-layer header.
//! - Bytes other than printable ASCII in names of chains and devices become `\xNN`, as in `/dev/kmsg`.

#![forbid(unsafe_code)]

mod arp;
mod ipv4;
mod ipv6;
mod parse;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod transport;
mod writer;

pub use parse::{LogLine, TraceLine, Unreadable, log_line, packet, trace_line};
pub use writer::Writer;

use crate::netfilter::{Family, StepKind};
use crate::packet::data::{Data, Missing};
use crate::packet::{Link, PacketView, Vlan};
use memchr::memmem;
use std::fmt;
use std::ops::ControlFlow;
use text::Line;

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_SIT: u16 = 776;
const ETH_HLEN: usize = 14;

/// What TRACE calls an entry: `table:chain:kind:number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepName<'a> {
    /// The table's name.
    pub table: &'a str,
    /// The chain's name.
    pub chain: &'a str,
    /// The word for the entry's shape.
    pub kind: StepKind,
    /// The entry's place in the chain, from 1.
    pub number: u32,
}

impl fmt::Display for StepName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, chain, kind, number } = self;
        write!(f, "{table}:{chain}:{kind}:{number}")
    }
}

/// What kernels print differently for the same packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStyle {
    /// The AE bit of TCP (Accurate ECN) is a word among the flags. Otherwise, with kernels that do not know it, it is
    /// one of the four reserved bits, so 4 in `RES=`.
    pub ae_flag: bool,
    /// The header of Ethernet is written as `MACSRC= MACDST= MACPROTO=`: Linux 3.17 to 4.9 do that for TRACE, later ones
    /// for LOG rules that ask for it.
    pub mac_decoded: bool,
}

impl Default for LogStyle {
    /// That of a new kernel.
    fn default() -> Self {
        Self { ae_flag: true, mac_decoded: false }
    }
}

impl LogStyle {
    /// By whether the kernel's `struct tcphdr` has the field `ae`.
    pub fn of_tcp_header(has_ae: bool) -> Self {
        Self { ae_flag: has_ae, ..Self::default() }
    }
}

/// How a line begins.
const PREFIX: &[u8; 7] = b"TRACE: ";

/// Appends the line for a packet at an entry called `name`, without a newline; like the kernel's it usually ends in a
/// space.
pub fn write(out: &mut Vec<u8>, name: &str, packet: &PacketView<'_>, style: LogStyle) {
    whole_line(out, |line| {
        line.text(PREFIX);
        line.raw(name.as_bytes());
        line.text(b" ");
        after_name(line, packet, style);
    });
}

fn after_name(line: &mut Line, packet: &PacketView<'_>, style: LogStyle) {
    devices(line, packet, style);
    content(line, packet, style);
}

fn whole_line(out: &mut Vec<u8>, fill: impl FnOnce(&mut Line)) {
    out.extend_from_slice(Line::default().filled(fill));
}

/// From the IP header on.
fn content(line: &mut Line, packet: &PacketView<'_>, style: LogStyle) {
    if headers(line, packet, style).is_continue() {
        owner_and_mark(line, packet);
    }
}

/// Breaks where the kernel ends the line.
fn headers(line: &mut Line, packet: &PacketView<'_>, style: LogStyle) -> ControlFlow<()> {
    let data = Data::of(packet);
    match packet.family {
        Family::Ipv4 => ipv4::packet(line, data, 0, Level::Outer, style),
        Family::Ipv6 => ipv6::packet(line, data, 0, Level::Outer, style),
        Family::Arp => arp::packet(line, data),
    }
}

/// Reads the start of a line that begins with `TRACE: `, or such a prefix alone; gives what follows it.
///
/// A chain's name may hold anything, so the name's end is found from the right: nothing after the last ` IN=` can
/// hold another.
pub fn parse_prefix(line: &str) -> Option<(StepName<'_>, &str)> {
    let line = line.strip_prefix("TRACE: ")?;
    let (name, rest) = match memmem::find_iter(line.as_bytes(), b" IN=").last() {
        Some(at) => line.split_at(at),
        None => (line.trim_end_matches(' '), ""),
    };
    let (table, name) = name.split_once(':')?;
    let (name, number) = name.rsplit_once(':')?;
    let (chain, kind) = name.rsplit_once(':')?;
    let kind = [StepKind::Rule, StepKind::Return, StepKind::Policy]
        .into_iter()
        .find(|known| known.name() == kind)?;
    let number = number.parse().ok().filter(|_| matches!(number.as_bytes(), [b'1'..=b'9', ..]))?;
    Some((StepName { table, chain, kind, number }, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// Whether headers are the packet's own or those of a packet quoted in an ICMP error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Outer,
    Quoted,
}

/// `nf_log_dump_packet_common`, then `dump_mac_header` where there is an input device.
fn devices(line: &mut Line, packet: &PacketView<'_>, style: LogStyle) {
    line.text(b"IN=");
    line.raw(packet.indev.unwrap_or_default());
    line.text(b" OUT=");
    line.raw(packet.outdev.unwrap_or_default());
    line.text(b" ");
    if let Some(port) = packet.link.physin {
        line.text(b"PHYSIN=");
        line.raw(port);
        line.text(b" ");
    }
    if let Some(port) = packet.link.physout {
        line.text(b"PHYSOUT=");
        line.raw(port);
        line.text(b" ");
    }
    line.escape();
    if packet.indev.is_some() {
        mac(line, &packet.link, style);
    }
}

fn mac(line: &mut Line, link: &Link<'_>, style: LogStyle) {
    if style.mac_decoded && link.dev_type == ARPHRD_ETHER {
        decoded_mac(line, link);
        return;
    }
    let Some(header) = link.header.filter(|_| link.hard_header_len != 0) else {
        line.text(b"MAC= ");
        return;
    };
    if link.dev_type == ARPHRD_SIT {
        tunnel(line, link, header);
    } else if let Some(bytes) = header.get(..usize::from(link.hard_header_len)) {
        line.text(b"MAC=");
        line.colon_hex(bytes);
        line.text(b" ");
    }
}

fn decoded_mac(line: &mut Line, link: &Link<'_>) {
    let header: Option<&[u8; 14]> = link.header.and_then(<[u8]>::first_chunk);
    let Some(&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, p0, p1]) = header else { return };
    line.text(b"MACSRC=");
    line.colon_hex(&[s0, s1, s2, s3, s4, s5]);
    line.text(b" MACDST=");
    line.colon_hex(&[d0, d1, d2, d3, d4, d5]);
    line.text(b" ");
    if let Some(Vlan { protocol, tci }) = link.vlan {
        line.text(b"VPROTO=");
        line.hex16(protocol);
        line.text(b" VID=");
        line.decimal(tci.into());
        line.text(b" ");
    }
    line.text(b"MACPROTO=");
    line.hex16(u16::from_be_bytes([p0, p1]));
    line.text(b" ");
}

/// On a SIT tunnel the link-layer header is the IPv4 header around the packet; `MAC=` begins an Ethernet header earlier.
fn tunnel(line: &mut Line, link: &Link<'_>, header: &[u8]) {
    let Some(&[_, _, _, _, _, _, _, _, _, _, _, _, s0, s1, s2, s3, d0, d1, d2, d3]) = header.first_chunk()
    else {
        return;
    };
    let len = usize::from(link.hard_header_len);
    if link.before.len() == ETH_HLEN {
        let bytes = [link.before, header].concat();
        if let Some(bytes) = bytes.get(..len) {
            line.text(b"MAC=");
            line.colon_hex(bytes);
            line.text(b" ");
        }
    }
    line.text(b"TUNNEL=");
    line.ipv4([s0, s1, s2, s3]);
    line.text(b"->");
    line.ipv4([d0, d1, d2, d3]);
    line.text(b" ");
}

/// The header at `offset` cannot be read. Says so and breaks if the kernel cannot either; leaves it out otherwise.
fn incomplete(line: &mut Line, data: Data<'_>, offset: u32, missing: Missing) -> ControlFlow<()> {
    match missing {
        Missing::NotCopied => ControlFlow::Continue(()),
        Missing::Ended => {
            line.text(b"INCOMPLETE [");
            line.decimal(data.left(offset));
            line.text(b" bytes] ");
            ControlFlow::Break(())
        }
    }
}

fn owner_and_mark(line: &mut Line, packet: &PacketView<'_>) {
    if let Some(owner) = packet.owner {
        line.text(b"UID=");
        line.decimal(owner.uid);
        line.text(b" GID=");
        line.decimal(owner.gid);
        line.text(b" ");
    }
    if packet.mark != 0 {
        line.text(b"MARK=0x");
        line.short_hex(packet.mark);
        line.text(b" ");
    }
}
