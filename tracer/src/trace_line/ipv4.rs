//! `dump_ipv4_packet`.

use super::text::{Line, upper_hex8};
use super::{Level, LogStyle, incomplete, transport};
use crate::packet::data::{Data, Missing};
use crate::packet::ip::{Ipv4, protocol};
use std::ops::ControlFlow;

const HEADER_LEN: u32 = 20;
const ICMP_HEADER_LEN: u32 = 8;

/// ICMP types, in the kernel's spelling.
pub(super) mod icmp {
    pub(in super::super) const ECHOREPLY: u8 = 0;
    pub(in super::super) const DEST_UNREACH: u8 = 3;
    pub(in super::super) const SOURCE_QUENCH: u8 = 4;
    pub(in super::super) const REDIRECT: u8 = 5;
    pub(in super::super) const ECHO: u8 = 8;
    pub(in super::super) const TIME_EXCEEDED: u8 = 11;
    pub(in super::super) const PARAMETERPROB: u8 = 12;
    pub(in super::super) const TIMESTAMP: u8 = 13;
    pub(in super::super) const TIMESTAMPREPLY: u8 = 14;
    pub(in super::super) const ADDRESS: u8 = 17;
    pub(in super::super) const ADDRESSREPLY: u8 = 18;

    /// The code of `DEST_UNREACH` that carries an MTU.
    pub(in super::super) const FRAG_NEEDED: u8 = 4;

    /// How much of a message of this type has to be there.
    pub(in super::super) fn required_len(kind: u8) -> u32 {
        match kind {
            ECHOREPLY | ECHO => 4,
            DEST_UNREACH | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETERPROB => 28,
            TIMESTAMP | TIMESTAMPREPLY => 20,
            ADDRESS | ADDRESSREPLY => 12,
            _ => 0,
        }
    }
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
        Ok(header) => Ipv4(header),
        Err(Missing::Ended) => {
            line.text(b"TRUNCATED");
            return ControlFlow::Break(());
        }
        Err(Missing::NotCopied) => return ControlFlow::Continue(()),
    };
    let total_len = match level {
        Level::Outer => ip.packet_len(data),
        Level::Quoted => ip.total_len().into(),
    };
    fixed_fields(line, ip, total_len);
    options(line, data, start, ip)?;

    let later_fragment = ip.fragment() != 0;
    let payload = start.saturating_add(ip.header_len());
    match ip.protocol() {
        protocol::TCP => transport::tcp(line, data, later_fragment, payload, style)?,
        number @ (protocol::UDP | protocol::UDPLITE) => {
            transport::udp(line, data, number, later_fragment, payload)?
        }
        protocol::ICMP => icmp(line, data, later_fragment, payload, level, style),
        // The kernel names AH in first fragments only, ESP in all.
        protocol::AH if later_fragment => {}
        protocol::AH => {
            line.text(b"PROTO=AH ");
            spi(
                line,
                data,
                payload,
                data.header(payload).map(|&[_, _, _, _, a, b, c, d, _, _, _, _]| [a, b, c, d]),
            );
        }
        protocol::ESP => {
            line.text(b"PROTO=ESP ");
            if !later_fragment {
                spi(line, data, payload, data.header(payload).map(|&[a, b, c, d, _, _, _, _]| [a, b, c, d]));
            }
        }
        number => {
            line.text(b"PROTO=");
            line.octet(number);
            line.text(b" ");
        }
    }
    ControlFlow::Continue(())
}

fn fixed_fields(line: &mut Line, ip: Ipv4<'_>, total_len: u32) {
    line.text(b"SRC=");
    line.ipv4(ip.src());
    line.text(b" DST=");
    line.ipv4(ip.dst());
    line.text(b" LEN=");
    line.decimal(total_len);
    line.text(&tos_and_precedence(ip.tos()));
    line.octet(ip.ttl());
    line.text(b" ID=");
    line.decimal(ip.id().into());
    line.text(b" ");
    if ip.frag_off() & 0x8000 != 0 {
        line.text(b"CE ");
    }
    if ip.frag_off() & 0x4000 != 0 {
        line.text(b"DF ");
    }
    if ip.frag_off() & 0x2000 != 0 {
        line.text(b"MF ");
    }
    if ip.fragment() != 0 {
        line.text(b"FRAG:");
        line.decimal(ip.fragment().into());
        line.text(b" ");
    }
}

fn tos_and_precedence(tos: u8) -> [u8; 24] {
    let mut text = *b" TOS=0x00 PREC=0x00 TTL=";
    [text[7], text[8]] = upper_hex8(tos & 0x1e);
    [text[17], text[18]] = upper_hex8(tos & 0xe0);
    text
}

fn options(line: &mut Line, data: Data<'_>, start: u32, ip: Ipv4<'_>) -> ControlFlow<()> {
    if ip.header_len() <= HEADER_LEN {
        return ControlFlow::Continue(());
    }
    let count = (ip.header_len() - HEADER_LEN) as usize;
    match data.slice(start.saturating_add(HEADER_LEN), count) {
        Ok(options) => {
            line.text(b"OPT (");
            line.upper_hex(options);
            line.text(b") ");
            ControlFlow::Continue(())
        }
        Err(Missing::Ended) => {
            line.text(b"TRUNCATED");
            ControlFlow::Break(())
        }
        Err(Missing::NotCopied) => ControlFlow::Continue(()),
    }
}

/// The security parameter index of AH or ESP. Unlike after TCP and UDP, owner and mark follow in any case.
fn spi(line: &mut Line, data: Data<'_>, offset: u32, index: Result<[u8; 4], Missing>) {
    match index {
        Ok(index) => {
            line.text(b"SPI=0x");
            line.short_hex(u32::from_be_bytes(index));
            line.text(b" ");
        }
        Err(missing) => _ = incomplete(line, data, offset, missing),
    }
}

/// Owner and mark follow in any case, here too.
fn icmp(line: &mut Line, data: Data<'_>, later_fragment: bool, offset: u32, level: Level, style: LogStyle) {
    line.text(b"PROTO=ICMP ");
    if later_fragment {
        return;
    }
    let &[kind, code, _, _, a, b, c, d] = match data.header(offset) {
        Ok(header) => header,
        Err(missing) => {
            _ = incomplete(line, data, offset, missing);
            return;
        }
    };
    line.text(b"TYPE=");
    line.octet(kind);
    line.text(b" CODE=");
    line.octet(code);
    line.text(b" ");
    if data.left(offset) < icmp::required_len(kind) {
        _ = incomplete(line, data, offset, Missing::Ended);
        return;
    }
    match kind {
        icmp::ECHOREPLY | icmp::ECHO => {
            line.text(b"ID=");
            line.decimal(u16::from_be_bytes([a, b]).into());
            line.text(b" SEQ=");
            line.decimal(u16::from_be_bytes([c, d]).into());
            line.text(b" ");
        }
        icmp::PARAMETERPROB => {
            line.text(b"PARAMETER=");
            line.octet(a);
            line.text(b" ");
        }
        icmp::REDIRECT | icmp::DEST_UNREACH | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED => {
            if kind == icmp::REDIRECT {
                line.text(b"GATEWAY=");
                line.ipv4([a, b, c, d]);
                line.text(b" ");
            }
            if level == Level::Outer {
                quoted(line, data, offset.saturating_add(ICMP_HEADER_LEN), style);
            }
            if kind == icmp::DEST_UNREACH && code == icmp::FRAG_NEEDED {
                line.text(b"MTU=");
                line.decimal(u16::from_be_bytes([c, d]).into());
                line.text(b" ");
            }
        }
        _ => {}
    }
}

/// The packet that an ICMP error is about.
fn quoted(line: &mut Line, data: Data<'_>, start: u32, style: LogStyle) {
    if data.header::<20>(start) == Err(Missing::NotCopied) {
        return;
    }
    line.text(b"[");
    _ = packet(line, data, start, Level::Quoted, style);
    line.text(b"] ");
}
