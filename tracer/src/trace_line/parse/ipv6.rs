//! IPv6, its extension headers, and ICMPv6.

use super::super::ipv6::icmpv6;
use super::super::{Level, LogStyle};
use super::build::Builder;
use super::cursor::{Case, Cursor, Unreadable};
use super::transport;
use crate::packet::ip::{Ipv6, is_extension, protocol};
use std::ops::ControlFlow;

/// From after `SRC=` on.
pub(super) fn packet(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    level: Level,
    style: &mut LogStyle,
) -> Result<ControlFlow<()>, Unreadable> {
    let start = packet.offset();
    fixed_fields(packet, cursor, level)?;
    let mut chain = Chain { next_at: start + 6, later_fragment: false };
    while cursor.eat(b"OPT ( ") {
        if chain.extension(packet, cursor)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    if cursor.eat(b"TRUNCATED") {
        packet.bytes[chain.next_at] = protocol::DSTOPTS;
        packet.ends_after(0);
        return Ok(ControlFlow::Break(()));
    }
    if !cursor.eat(b"PROTO=") {
        // Another extension header follows that whoever wrote the line did not know.
        packet.bytes[chain.next_at] = protocol::DSTOPTS;
        packet.needs_after(8);
        return Ok(ControlFlow::Continue(()));
    }
    let name = cursor.take_value();
    let number = number(cursor, name)?;
    packet.bytes[chain.next_at] = number;
    if packet.bytes[start + 4..start + 6] == [0, 0] && (number != protocol::TCP || chain.next_at != start + 6)
    {
        packet.no_longer_than_stated(cursor)?;
    }
    match number {
        protocol::TCP => transport::tcp(packet, cursor, chain.later_fragment, style),
        protocol::UDP | protocol::UDPLITE => transport::udp(packet, cursor, chain.later_fragment),
        protocol::ICMPV6 => icmpv6(packet, cursor, chain.later_fragment, level, style),
        _ => Ok(ControlFlow::Continue(())),
    }
}

fn number(cursor: &Cursor<'_>, name: &[u8]) -> Result<u8, Unreadable> {
    use protocol::*;
    Ok(match name {
        b"TCP" => TCP,
        b"UDP" => UDP,
        b"UDPLITE" => UDPLITE,
        b"ICMPv6" => ICMPV6,
        _ => match transport::plain_number(name) {
            Some(number) if !matches!(number, TCP | UDP | UDPLITE | ICMPV6) && !is_extension(number) => {
                number
            }
            _ => return cursor.wrong("a protocol of IPv6 before this"),
        },
    })
}

fn fixed_fields(packet: &mut Builder, cursor: &mut Cursor<'_>, level: Level) -> Result<(), Unreadable> {
    let source = cursor.ipv6()?;
    cursor.expect(" DST=")?;
    let destination = cursor.ipv6()?;
    cursor.expect(" LEN=")?;
    let payload_len = packet.stated_len(cursor, level, Ipv6::LEN)?;
    cursor.expect("TC=")?;
    let class: u8 = cursor.number()?;
    cursor.expect("HOPLIMIT=")?;
    let hop_limit: u8 = cursor.number()?;
    cursor.expect("FLOWLBL=")?;
    let label: u32 = cursor.number()?;
    if label > 0x000f_ffff {
        return cursor.wrong("a flow label before this");
    }
    let first_word = 0x6000_0000 | u32::from(class) << 20 | label;
    packet.push(&first_word.to_be_bytes());
    packet.push(&payload_len.to_be_bytes());
    packet.push(&[0, hop_limit]);
    packet.push(&source);
    packet.push(&destination);
    Ok(())
}

/// The chain of extension headers, as far as it was read.
struct Chain {
    /// Where the number of the next header stands.
    next_at: usize,
    later_fragment: bool,
}

impl Chain {
    /// What follows `OPT ( `. Breaks where the kernel ends the line.
    fn extension(
        &mut self,
        packet: &mut Builder,
        cursor: &mut Cursor<'_>,
    ) -> Result<ControlFlow<()>, Unreadable> {
        if cursor.eat(b"FRAG:") {
            self.fragment(packet, cursor)
        } else if cursor.eat(b"AH ") {
            self.security(packet, cursor, protocol::AH)
        } else if cursor.eat(b"ESP ") {
            self.security(packet, cursor, protocol::ESP)
        } else if self.later_fragment {
            self.add(packet, protocol::DSTOPTS, [0; 7]);
            cursor.expect(")")?;
            Ok(ControlFlow::Break(()))
        } else {
            self.add(packet, protocol::DSTOPTS, [0; 7]);
            self.close(cursor)
        }
    }

    /// A header of eight bytes, of which the first is the next number.
    fn add(&mut self, packet: &mut Builder, number: u8, rest: [u8; 7]) {
        packet.bytes[self.next_at] = number;
        self.next_at = packet.offset();
        packet.last_extension = Some((packet.offset(), number));
        packet.push(&[0]);
        packet.push(&rest);
    }

    fn close(&self, cursor: &mut Cursor<'_>) -> Result<ControlFlow<()>, Unreadable> {
        if cursor.word(b")") { Ok(ControlFlow::Continue(())) } else { cursor.wrong("\")\"") }
    }

    fn fragment(
        &mut self,
        packet: &mut Builder,
        cursor: &mut Cursor<'_>,
    ) -> Result<ControlFlow<()>, Unreadable> {
        if cursor.word(b"TRUNCATED") {
            packet.bytes[self.next_at] = protocol::FRAGMENT;
            packet.push(&[0; 2]);
            packet.ends_after(0);
            return Ok(ControlFlow::Break(()));
        }
        let offset: u16 = cursor.number()?;
        if offset & 7 != 0 {
            return cursor.wrong("an offset in steps of eight before this");
        }
        let more = u16::from(cursor.word(b"INCOMPLETE"));
        cursor.expect("ID:")?;
        let [a, b, c, d] = cursor.hex_bytes(Case::Lower)?;
        cursor.expect_blank()?;
        let [high, low] = (offset | more).to_be_bytes();
        self.add(packet, protocol::FRAGMENT, [0, high, low, a, b, c, d]);
        packet.last_extension = None;
        self.later_fragment |= offset != 0;
        self.close(cursor)
    }

    /// AH or ESP; ESP hides what follows.
    fn security(
        &mut self,
        packet: &mut Builder,
        cursor: &mut Cursor<'_>,
        number: u8,
    ) -> Result<ControlFlow<()>, Unreadable> {
        let is_ah = number == protocol::AH;
        if self.later_fragment {
            packet.bytes[self.next_at] = number;
            packet.push(&[0; 12]);
            cursor.expect(")")?;
            return Ok(ControlFlow::Break(()));
        }
        let needed = if is_ah { 12 } else { 8 };
        if packet.incomplete(cursor, packet.offset(), needed)? {
            packet.bytes[self.next_at] = number;
            packet.push(&[0; 12]);
            cursor.expect(")")?;
            return Ok(ControlFlow::Break(()));
        }
        cursor.expect("SPI=0x")?;
        let [a, b, c, d] = cursor.short_hex()?.to_be_bytes();
        if !is_ah {
            packet.bytes[self.next_at] = number;
            packet.push(&[a, b, c, d, 0, 0, 0, 0]);
            cursor.expect(")")?;
            return Ok(ControlFlow::Break(()));
        }
        // Twelve bytes: the length counts words, and two less.
        self.add(packet, number, [1, 0, 0, a, b, c, d]);
        packet.push(&[0; 4]);
        self.close(cursor)
    }
}

fn icmpv6(
    packet: &mut Builder,
    cursor: &mut Cursor<'_>,
    later_fragment: bool,
    level: Level,
    style: &mut LogStyle,
) -> Result<ControlFlow<()>, Unreadable> {
    let offset = packet.offset();
    if later_fragment {
        return Ok(ControlFlow::Continue(()));
    }
    if packet.incomplete(cursor, offset, 8)? {
        return Ok(ControlFlow::Break(()));
    }
    let Some([kind, _code]) = transport::kind_and_code(packet, cursor)? else {
        return Ok(ControlFlow::Continue(()));
    };
    let mut argument = [0; 4];
    match kind {
        icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY => {
            transport::echo(packet, cursor, offset)?;
            return Ok(ControlFlow::Continue(()));
        }
        icmpv6::PARAMPROB | icmpv6::DEST_UNREACH | icmpv6::PKT_TOOBIG | icmpv6::TIME_EXCEED => {
            if kind == icmpv6::PARAMPROB {
                cursor.expect("POINTER=")?;
                argument = cursor.hex_bytes(Case::Lower)?;
                cursor.expect_blank()?;
            }
            transport::quoted(packet, cursor, level, Ipv6::LEN, |packet, cursor| {
                self::packet(packet, cursor, Level::Quoted, style)
            })?;
            if kind == icmpv6::PKT_TOOBIG {
                cursor.expect("MTU=")?;
                argument = cursor.number::<u32>()?.to_be_bytes();
            }
        }
        _ => {}
    }
    packet.bytes[offset + 4..offset + 8].copy_from_slice(&argument);
    Ok(ControlFlow::Continue(()))
}
