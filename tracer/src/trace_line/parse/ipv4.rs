//! IPv4 and ICMP.

use super::super::ipv4::icmp;
use super::super::{Level, LogStyle};
use super::build::Builder;
use super::cursor::{Case, Cursor, Unreadable};
use super::transport;
use crate::packet::ip::protocol;
use std::ops::ControlFlow;

/// Bytes of a header without options.
const HEADER_LEN: u32 = 20;

/// From after `SRC=` on.
pub(super) fn packet(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    level: Level,
    style: &mut LogStyle,
) -> Result<ControlFlow<()>, Unreadable> {
    let start = packet.offset();
    let later_fragment = fixed_fields(packet, cursor, level)?;
    if cursor.eat(b"OPT (") {
        packet.push(&cursor.options()?);
        packet.bytes[start] = 0x40 | ((packet.offset() - start) / 4) as u8;
    } else if cursor.eat(b"TRUNCATED") {
        // How many options there would have been is not said.
        packet.bytes[start] = 0x4f;
        packet.ends_after(0);
        return Ok(ControlFlow::Break(()));
    }
    if !cursor.eat(b"PROTO=") {
        // The kernel names AH in first fragments only.
        packet.bytes[start + 9] = protocol::AH;
        return if later_fragment { Ok(ControlFlow::Continue(())) } else { cursor.wrong("PROTO=") };
    }
    let name = cursor.take_value();
    let number = number(cursor, name)?;
    packet.bytes[start + 9] = number;
    if packet.bytes[start + 2..start + 4] == [0, 0] && number != protocol::TCP {
        packet.no_longer_than_stated(cursor)?;
    }
    match number {
        protocol::TCP => transport::tcp(packet, cursor, later_fragment, style),
        protocol::UDP | protocol::UDPLITE => transport::udp(packet, cursor, later_fragment),
        protocol::ICMP => icmp(packet, cursor, later_fragment, level, style),
        protocol::AH if later_fragment => cursor.wrong("no name for a later fragment of AH before this"),
        protocol::AH => spi(packet, cursor, [6, 4, 0, 0]),
        protocol::ESP if !later_fragment => spi(packet, cursor, []),
        _ => Ok(ControlFlow::Continue(())),
    }
}

fn number(cursor: &Cursor<'_>, name: &[u8]) -> Result<u8, Unreadable> {
    use protocol::*;
    Ok(match name {
        b"TCP" => TCP,
        b"UDP" => UDP,
        b"UDPLITE" => UDPLITE,
        b"ICMP" => ICMP,
        b"AH" => AH,
        b"ESP" => ESP,
        _ => match transport::plain_number(name) {
            Some(number) if !matches!(number, TCP | UDP | UDPLITE | ICMP | AH | ESP) => number,
            _ => return cursor.wrong("a protocol of IPv4 before this"),
        },
    })
}

/// The header without options. Says whether it is a later fragment.
fn fixed_fields(packet: &mut Builder, cursor: &mut Cursor<'_>, level: Level) -> Result<bool, Unreadable> {
    let source = cursor.ipv4()?;
    cursor.expect(" DST=")?;
    let destination = cursor.ipv4()?;
    cursor.expect(" LEN=")?;
    let total_len = packet.stated_len(cursor, level, 0)?;
    cursor.expect("TOS=0x")?;
    let [tos] = cursor.hex_bytes(Case::Upper)?;
    cursor.expect(" PREC=0x")?;
    let [precedence] = cursor.hex_bytes(Case::Upper)?;
    if tos & !0x1e != 0 || precedence & !0xe0 != 0 {
        return cursor.wrong("bits of TOS and PREC before this");
    }
    cursor.expect(" TTL=")?;
    let ttl: u8 = cursor.number()?;
    cursor.expect("ID=")?;
    let [id_high, id_low] = cursor.number::<u16>()?.to_be_bytes();
    let mut frag_off = 0_u16;
    for (flag, bit) in [(b"CE", 0x8000), (b"DF", 0x4000), (b"MF", 0x2000)] {
        if cursor.word(flag) {
            frag_off |= bit;
        }
    }
    let later_fragment = cursor.eat(b"FRAG:");
    if later_fragment {
        match cursor.number::<u16>()? {
            offset @ 1..=0x1fff => frag_off |= offset,
            _ => return cursor.wrong("a fragment offset before this"),
        }
    }
    let ([len_high, len_low], [frag_high, frag_low]) = (total_len.to_be_bytes(), frag_off.to_be_bytes());
    packet.push(&[0x45, tos | precedence, len_high, len_low, id_high, id_low, frag_high, frag_low]);
    packet.push(&[ttl, 0, 0, 0]);
    packet.push(&source);
    packet.push(&destination);
    Ok(later_fragment)
}

/// `SPI=0x%x `, with what comes before the index in the header.
fn spi<const N: usize>(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    before: [u8; N],
) -> Result<ControlFlow<()>, Unreadable> {
    let header_len = N as u32 + 8;
    if cursor.eat(b"SPI=0x") {
        packet.push(&before);
        packet.push(&cursor.short_hex()?.to_be_bytes());
        packet.push(&[0; 4]);
    } else if !packet.incomplete(cursor, packet.offset(), header_len)? {
        packet.needs_after(header_len);
    }
    Ok(ControlFlow::Continue(()))
}

/// Owner and mark follow in any case.
fn icmp(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    later_fragment: bool,
    level: Level,
    style: &mut LogStyle,
) -> Result<ControlFlow<()>, Unreadable> {
    let offset = packet.offset();
    if later_fragment || packet.incomplete(cursor, offset, 8)? {
        return Ok(ControlFlow::Continue(()));
    }
    let Some([kind, code]) = transport::kind_and_code(packet, cursor)? else {
        return Ok(ControlFlow::Continue(()));
    };
    if packet.incomplete(cursor, offset, icmp::required_len(kind))? {
        return Ok(ControlFlow::Continue(()));
    }
    packet.needs(offset as u32 + icmp::required_len(kind));
    match kind {
        icmp::ECHOREPLY | icmp::ECHO => transport::echo(packet, cursor, offset)?,
        icmp::PARAMETERPROB => {
            cursor.expect("PARAMETER=")?;
            packet.bytes[offset + 4] = cursor.number()?;
        }
        icmp::REDIRECT | icmp::DEST_UNREACH | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED => {
            if kind == icmp::REDIRECT {
                cursor.expect("GATEWAY=")?;
                packet.bytes[offset + 4..offset + 8].copy_from_slice(&cursor.ipv4()?);
                cursor.expect_blank()?;
            }
            transport::quoted(packet, cursor, level, HEADER_LEN, |packet, cursor| {
                self::packet(packet, cursor, Level::Quoted, style)
            })?;
            if kind == icmp::DEST_UNREACH && code == icmp::FRAG_NEEDED {
                cursor.expect("MTU=")?;
                let mtu: u16 = cursor.number()?;
                packet.bytes[offset + 6..offset + 8].copy_from_slice(&mtu.to_be_bytes());
            }
        }
        _ => {}
    }
    Ok(ControlFlow::Continue(()))
}
