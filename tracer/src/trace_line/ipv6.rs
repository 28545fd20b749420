//! `dump_ipv6_packet`.

use super::text::Line;
use super::{Level, LogStyle, incomplete, transport};
use crate::packet::data::{Data, Missing};
use crate::packet::ip::{Ipv6, extension_len, is_extension, protocol};
use std::ops::ControlFlow;

const ICMP_HEADER_LEN: u32 = 8;

/// ICMPv6 types, in the kernel's spelling.
pub(super) mod icmpv6 {
    pub(in super::super) const DEST_UNREACH: u8 = 1;
    pub(in super::super) const PKT_TOOBIG: u8 = 2;
    pub(in super::super) const TIME_EXCEED: u8 = 3;
    pub(in super::super) const PARAMPROB: u8 = 4;
    pub(in super::super) const ECHO_REQUEST: u8 = 128;
    pub(in super::super) const ECHO_REPLY: u8 = 129;
}

/// Breaks where the kernel ends the line, without owner and mark.
pub(super) fn packet(
    line: &mut Line,
    data: Data<'_>,
    start: u32,
    level: Level,
    style: LogStyle,
) -> ControlFlow<()> {
    let ip = match data.header(start) {
        Ok(header) => Ipv6(header),
        Err(Missing::Ended) => {
            line.text(b"TRUNCATED");
            return ControlFlow::Break(());
        }
        Err(Missing::NotCopied) => return ControlFlow::Continue(()),
    };
    let total_len = match level {
        Level::Outer => ip.packet_len(data),
        Level::Quoted => ip.total_len(),
    };
    fixed_fields(line, ip, total_len);

    let mut later_fragment = false;
    let mut offset = start.saturating_add(Ipv6::LEN);
    let mut number = ip.next_header();
    while is_extension(number) {
        match extension(line, data, number, offset, &mut later_fragment) {
            Ok((next, len)) => {
                number = next;
                offset = offset.saturating_add(len);
            }
            Err(NoNext::LineEnds) => return ControlFlow::Break(()),
            Err(NoNext::NotCopied) => return ControlFlow::Continue(()),
        }
    }

    match number {
        protocol::TCP => transport::tcp(line, data, later_fragment, offset, style),
        protocol::UDP | protocol::UDPLITE => transport::udp(line, data, number, later_fragment, offset),
        protocol::ICMPV6 => icmpv6(line, data, later_fragment, offset, level, style),
        _ => {
            line.text(b"PROTO=");
            line.octet(number);
            line.text(b" ");
            ControlFlow::Continue(())
        }
    }
}

fn fixed_fields(line: &mut Line, ip: Ipv6<'_>, total_len: u32) {
    line.text(b"SRC=");
    line.ipv6(ip.src());
    line.text(b" DST=");
    line.ipv6(ip.dst());
    line.text(b" LEN=");
    line.decimal(total_len);
    line.text(b" TC=");
    line.decimal(ip.traffic_class());
    line.text(b" HOPLIMIT=");
    line.octet(ip.hop_limit());
    line.text(b" FLOWLBL=");
    line.decimal(ip.flow_label());
    line.text(b" ");
}

/// Why nothing follows an extension header.
enum NoNext {
    /// The kernel ends the line here.
    LineEnds,
    /// The kernel goes on, but what it read was not copied.
    NotCopied,
}

/// One extension header; gives the number of the next header and the distance to it.
///
/// A header that the kernel could read and we cannot is left out altogether, its `OPT (` included.
fn extension(
    line: &mut Line,
    data: Data<'_>,
    number: u8,
    offset: u32,
    later_fragment: &mut bool,
) -> Result<(u8, u32), NoNext> {
    let &[next, length] = match data.header(offset) {
        Ok(header) => header,
        Err(Missing::NotCopied) => return Err(NoNext::NotCopied),
        Err(Missing::Ended) => {
            line.text(b"TRUNCATED");
            return Err(NoNext::LineEnds);
        }
    };
    match number {
        protocol::FRAGMENT => fragment(line, data, offset, later_fragment)?,
        protocol::AH => {
            let index = data.header(offset).map(|&[_, _, _, _, a, b, c, d, _, _, _, _]| [a, b, c, d]);
            security(line, data, offset, *later_fragment, b"OPT ( AH ", index)?;
            line.text(b" ");
        }
        protocol::ESP => {
            let index = data.header(offset).map(|&[a, b, c, d, _, _, _, _]| [a, b, c, d]);
            security(line, data, offset, *later_fragment, b"OPT ( ESP ", index)?;
            line.text(b" )");
            return Err(NoNext::LineEnds);
        }
        _ => {
            line.text(b"OPT ( ");
            if *later_fragment {
                line.text(b")");
                return Err(NoNext::LineEnds);
            }
        }
    }
    line.text(b") ");
    Ok((next, extension_len(number, length)))
}

fn fragment(line: &mut Line, data: Data<'_>, offset: u32, later_fragment: &mut bool) -> Result<(), NoNext> {
    let &[_, _, high, low, a, b, c, d] = match data.header(offset) {
        Ok(header) => header,
        Err(Missing::NotCopied) => return Err(NoNext::NotCopied),
        Err(Missing::Ended) => {
            line.text(b"OPT ( FRAG:TRUNCATED ");
            return Err(NoNext::LineEnds);
        }
    };
    let frag_off = u16::from_be_bytes([high, low]);
    line.text(b"OPT ( FRAG:");
    line.decimal(u32::from(frag_off & 0xfff8));
    line.text(b" ");
    if frag_off & 1 != 0 {
        line.text(b"INCOMPLETE ");
    }
    line.text(b"ID:");
    line.hex32(u32::from_be_bytes([a, b, c, d]));
    line.text(b" ");
    *later_fragment |= frag_off & 0xfff8 != 0;
    Ok(())
}

/// AH or ESP up to its security parameter index.
fn security<const N: usize>(
    line: &mut Line,
    data: Data<'_>,
    offset: u32,
    later_fragment: bool,
    start: &[u8; N],
    index: Result<[u8; 4], Missing>,
) -> Result<(), NoNext> {
    if later_fragment {
        line.text(start);
        line.text(b")");
        return Err(NoNext::LineEnds);
    }
    match index {
        Ok(index) => {
            line.text(start);
            line.text(b"SPI=0x");
            line.short_hex(u32::from_be_bytes(index));
            Ok(())
        }
        Err(Missing::NotCopied) => Err(NoNext::NotCopied),
        Err(Missing::Ended) => {
            line.text(start);
            _ = incomplete(line, data, offset, Missing::Ended);
            line.text(b")");
            Err(NoNext::LineEnds)
        }
    }
}

fn icmpv6(
    line: &mut Line,
    data: Data<'_>,
    later_fragment: bool,
    offset: u32,
    level: Level,
    style: LogStyle,
) -> ControlFlow<()> {
    line.text(b"PROTO=ICMPv6 ");
    if later_fragment {
        return ControlFlow::Continue(());
    }
    let &[kind, code, _, _, a, b, c, d] = match data.header(offset) {
        Ok(header) => header,
        Err(missing) => return incomplete(line, data, offset, missing),
    };
    line.text(b"TYPE=");
    line.octet(kind);
    line.text(b" CODE=");
    line.octet(code);
    line.text(b" ");
    match kind {
        icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY => {
            line.text(b"ID=");
            line.decimal(u16::from_be_bytes([a, b]).into());
            line.text(b" SEQ=");
            line.decimal(u16::from_be_bytes([c, d]).into());
            line.text(b" ");
        }
        icmpv6::PARAMPROB | icmpv6::DEST_UNREACH | icmpv6::PKT_TOOBIG | icmpv6::TIME_EXCEED => {
            if kind == icmpv6::PARAMPROB {
                line.text(b"POINTER=");
                line.hex32(u32::from_be_bytes([a, b, c, d]));
                line.text(b" ");
            }
            if level == Level::Outer {
                quoted(line, data, offset.saturating_add(ICMP_HEADER_LEN), style);
            }
            if kind == icmpv6::PKT_TOOBIG {
                line.text(b"MTU=");
                line.decimal(u32::from_be_bytes([a, b, c, d]));
                line.text(b" ");
            }
        }
        _ => {}
    }
    ControlFlow::Continue(())
}

/// The packet that an ICMP error is about.
fn quoted(line: &mut Line, data: Data<'_>, start: u32, style: LogStyle) {
    if data.header::<40>(start) == Err(Missing::NotCopied) {
        return;
    }
    line.text(b"[");
    _ = packet(line, data, start, Level::Quoted, style);
    line.text(b"] ");
}
