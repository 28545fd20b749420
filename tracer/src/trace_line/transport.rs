//! TCP, UDP and UDP-Lite: `nf_log_dump_tcp_header` and `nf_log_dump_udp_header`.

use super::text::{Line, hex8};
use super::{LogStyle, incomplete};
use crate::packet::data::{Data, Missing};
use crate::packet::ip::protocol;
use std::ops::ControlFlow;

pub(super) const TCP_HEADER_LEN: u32 = 20;

/// The flags of TCP's 14th byte, from the highest bit on.
pub(super) const FLAGS: [&[u8; 4]; 8] =
    [b"CWR ", b"ECE ", b"URG ", b"ACK ", b"PSH ", b"RST ", b"SYN ", b"FIN "];

pub(super) fn tcp(
    line: &mut Line,
    data: Data<'_>,
    later_fragment: bool,
    offset: u32,
    style: LogStyle,
) -> ControlFlow<()> {
    line.text(b"PROTO=TCP ");
    if later_fragment {
        return ControlFlow::Continue(());
    }
    let tcp: &[u8; 20] = match data.header(offset) {
        Ok(tcp) => tcp,
        Err(missing) => return incomplete(line, data, offset, missing),
    };
    line.text(b"SPT=");
    line.decimal(u16::from_be_bytes([tcp[0], tcp[1]]).into());
    line.text(b" DPT=");
    line.decimal(u16::from_be_bytes([tcp[2], tcp[3]]).into());
    line.text(b" SEQ=");
    line.decimal(u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]));
    line.text(b" ACK=");
    line.decimal(u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]));
    line.text(b" WINDOW=");
    line.decimal(u16::from_be_bytes([tcp[14], tcp[15]]).into());
    reserved_and_flags(line, tcp[12], tcp[13], style);
    line.text(b"URGP=");
    line.decimal(u16::from_be_bytes([tcp[18], tcp[19]]).into());
    line.text(b" ");
    options(line, data, offset, u32::from(tcp[12] >> 4) * 4)
}

fn reserved_and_flags(line: &mut Line, offset_and_reserved: u8, flags: u8, style: LogStyle) {
    let (reserved, ae) = match style.ae_flag {
        false => (offset_and_reserved & 0x0f, false),
        true => (offset_and_reserved & 0x0e, offset_and_reserved & 1 != 0),
    };
    let [high, low] = hex8(reserved << 2);
    line.text(&[b' ', b'R', b'E', b'S', b'=', b'0', b'x', high, low, b' ']);
    if ae {
        line.text(b"AE ");
    }
    for (bit, name) in FLAGS.iter().enumerate() {
        if flags & (0x80 >> bit) != 0 {
            line.text(name);
        }
    }
}

fn options(line: &mut Line, data: Data<'_>, offset: u32, header_len: u32) -> ControlFlow<()> {
    if header_len <= TCP_HEADER_LEN {
        return ControlFlow::Continue(());
    }
    let count = (header_len - TCP_HEADER_LEN) as usize;
    match data.slice(offset.saturating_add(TCP_HEADER_LEN), count) {
        Ok(options) => {
            line.text(b"OPT (");
            line.upper_hex(options);
            line.text(b") ");
            ControlFlow::Continue(())
        }
        Err(Missing::Ended) => {
            line.text(b"OPT (TRUNCATED)");
            ControlFlow::Break(())
        }
        Err(Missing::NotCopied) => ControlFlow::Continue(()),
    }
}

pub(super) fn udp(
    line: &mut Line,
    data: Data<'_>,
    number: u8,
    later_fragment: bool,
    offset: u32,
) -> ControlFlow<()> {
    match number {
        protocol::UDP => line.text(b"PROTO=UDP "),
        _ => line.text(b"PROTO=UDPLITE "),
    }
    if later_fragment {
        return ControlFlow::Continue(());
    }
    let udp: &[u8; 8] = match data.header(offset) {
        Ok(udp) => udp,
        Err(missing) => return incomplete(line, data, offset, missing),
    };
    line.text(b"SPT=");
    line.decimal(u16::from_be_bytes([udp[0], udp[1]]).into());
    line.text(b" DPT=");
    line.decimal(u16::from_be_bytes([udp[2], udp[3]]).into());
    line.text(b" LEN=");
    line.decimal(u16::from_be_bytes([udp[4], udp[5]]).into());
    line.text(b" ");
    ControlFlow::Continue(())
}
