//! TCP, UDP, UDP-Lite, and what both kinds of ICMP share.

use super::super::transport::{FLAGS, TCP_HEADER_LEN};
use super::super::{Level, LogStyle};
use super::build::Builder;
use super::cursor::{Case, Cursor, Unreadable};
use std::ops::ControlFlow;

/// What follows `PROTO=TCP `.
pub(super) fn tcp(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    later_fragment: bool,
    style: &mut LogStyle,
) -> Result<ControlFlow<()>, Unreadable> {
    let start = packet.offset();
    if later_fragment {
        return Ok(ControlFlow::Continue(()));
    }
    if packet.incomplete(cursor, start, TCP_HEADER_LEN)? {
        return Ok(ControlFlow::Break(()));
    }
    if !cursor.eat(b"SPT=") {
        packet.needs_after(TCP_HEADER_LEN);
        return Ok(ControlFlow::Continue(()));
    }
    packet.push(&cursor.number::<u16>()?.to_be_bytes());
    cursor.expect("DPT=")?;
    packet.push(&cursor.number::<u16>()?.to_be_bytes());
    let [mut sequence, mut acknowledged] = [0_u32; 2];
    // LOG rules write them on request.
    if cursor.eat(b"SEQ=") {
        sequence = cursor.number()?;
        cursor.expect("ACK=")?;
        acknowledged = cursor.number()?;
    }
    packet.push(&sequence.to_be_bytes());
    packet.push(&acknowledged.to_be_bytes());
    cursor.expect("WINDOW=")?;
    let window: u16 = cursor.number()?;
    let [reserved, flags] = reserved_and_flags(cursor, style)?;
    packet.push(&[0x50 | reserved, flags]);
    packet.push(&window.to_be_bytes());
    packet.push(&[0, 0]);
    cursor.expect("URGP=")?;
    packet.push(&cursor.number::<u16>()?.to_be_bytes());
    options(packet, cursor, start)
}

fn reserved_and_flags(cursor: &mut Cursor<'_>, style: &mut LogStyle) -> Result<[u8; 2], Unreadable> {
    cursor.expect("RES=0x")?;
    let [shifted] = cursor.hex_bytes(Case::Lower)?;
    cursor.expect_blank()?;
    if shifted & !0x3c != 0 {
        return cursor.wrong("four reserved bits before this");
    }
    let mut reserved = shifted >> 2;
    if reserved & 1 != 0 {
        style.ae_flag = false;
    } else if cursor.word(b"AE") {
        style.ae_flag = true;
        reserved |= 1;
    }
    let mut flags = 0;
    for (bit, name) in FLAGS.iter().enumerate() {
        if cursor.eat(*name) {
            flags |= 0x80 >> bit;
        }
    }
    Ok([reserved, flags])
}

fn options(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    start: usize,
) -> Result<ControlFlow<()>, Unreadable> {
    if !cursor.eat(b"OPT (") {
        return Ok(ControlFlow::Continue(()));
    }
    let reserved = packet.bytes[start + 12] & 0x0f;
    if cursor.eat(b"TRUNCATED)") {
        // How many options there would have been is not said.
        packet.bytes[start + 12] = 0xf0 | reserved;
        packet.ends_after(0);
        return Ok(ControlFlow::Break(()));
    }
    packet.push(&cursor.options()?);
    packet.bytes[start + 12] = ((packet.offset() - start) as u8 / 4) << 4 | reserved;
    Ok(ControlFlow::Continue(()))
}

/// What follows `PROTO=UDP ` and `PROTO=UDPLITE `.
pub(super) fn udp(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    later_fragment: bool,
) -> Result<ControlFlow<()>, Unreadable> {
    if later_fragment {
        return Ok(ControlFlow::Continue(()));
    }
    if packet.incomplete(cursor, packet.offset(), 8)? {
        return Ok(ControlFlow::Break(()));
    }
    if !cursor.eat(b"SPT=") {
        packet.needs_after(8);
        return Ok(ControlFlow::Continue(()));
    }
    packet.push(&cursor.number::<u16>()?.to_be_bytes());
    cursor.expect("DPT=")?;
    packet.push(&cursor.number::<u16>()?.to_be_bytes());
    cursor.expect("LEN=")?;
    packet.push(&cursor.number::<u16>()?.to_be_bytes());
    packet.push(&[0, 0]);
    Ok(ControlFlow::Continue(()))
}

/// `ID=%u SEQ=%u ` of an echo message that begins at `offset`.
pub(super) fn echo(packet: &mut Builder, cursor: &mut Cursor<'_>, offset: usize) -> Result<(), Unreadable> {
    cursor.expect("ID=")?;
    let id: u16 = cursor.number()?;
    cursor.expect("SEQ=")?;
    let sequence: u16 = cursor.number()?;
    packet.bytes[offset + 4..offset + 6].copy_from_slice(&id.to_be_bytes());
    packet.bytes[offset + 6..offset + 8].copy_from_slice(&sequence.to_be_bytes());
    Ok(())
}

/// The header of ICMP and ICMPv6 with its type and code; `None` where whoever wrote the line did not know them.
pub(super) fn kind_and_code(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
) -> Result<Option<[u8; 2]>, Unreadable> {
    if !cursor.eat(b"TYPE=") {
        packet.needs_after(8);
        return Ok(None);
    }
    let kind = cursor.number()?;
    cursor.expect("CODE=")?;
    let code = cursor.number()?;
    packet.push(&[kind, code, 0, 0, 0, 0, 0, 0]);
    Ok(Some([kind, code]))
}

/// `[…] `, where there is one: a packet whose header has at least `least` bytes. `read` takes what is after its `SRC=`.
pub(super) fn quoted(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    level: Level,
    least: u32,
    read: impl FnOnce(&mut Builder, &mut Cursor<'_>) -> Result<ControlFlow<()>, Unreadable>,
) -> Result<(), Unreadable> {
    if level == Level::Quoted {
        return Ok(());
    }
    if !cursor.eat(b"[") {
        packet.needs_after(least);
        return Ok(());
    }
    if cursor.eat(b"TRUNCATED") {
        packet.ends_after(0);
    } else {
        cursor.expect("SRC=")?;
        _ = read(packet, cursor)?;
    }
    if cursor.word(b"]") { Ok(()) } else { cursor.wrong("\"]\"") }
}

/// A protocol that the kernel gives by its number.
pub(super) fn plain_number(text: &[u8]) -> Option<u8> {
    let number = str::from_utf8(text).ok()?.parse::<u8>().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}

impl Builder {
    /// `%u ` after `LEN=`: what the length field says that counts all but `uncounted` bytes. A length beyond it is that
    /// of a TCP segment not yet cut to size, whose field is zero.
    pub(super) fn stated_len(
        &mut self,
        cursor: &mut Cursor<'_>,
        level: Level,
        uncounted: u32,
    ) -> Result<u16, Unreadable> {
        let len: u32 = cursor.number()?;
        let Some(counted) = len.checked_sub(uncounted) else {
            return cursor.wrong("the length with the header before this");
        };
        let stated = u16::try_from(counted);
        if level == Level::Quoted && stated.is_err() {
            return cursor.wrong("a length in range before this");
        }
        if level == Level::Outer {
            self.needs(len);
            self.is_beyond_stated = stated.is_err();
        }
        Ok(stated.unwrap_or(0))
    }

    /// Only TCP segments may be longer than their header can say.
    pub(super) fn no_longer_than_stated(&self, cursor: &Cursor<'_>) -> Result<(), Unreadable> {
        if self.is_beyond_stated { cursor.wrong("a length in range before this") } else { Ok(()) }
    }
}
