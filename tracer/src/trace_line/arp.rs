//! `dump_arp_packet`.

use super::text::Line;
use crate::packet::data::Data;
use std::ops::ControlFlow;

/// The fixed part of the header.
const HEADER_LEN: u32 = 8;

/// What the kernel writes of an ARP packet, without owner and mark.
pub(super) fn packet(line: &mut Line, data: Data<'_>) -> ControlFlow<()> {
    let Ok(&[htype @ .., a, b, hardware, network, c, d]) = data.header::<{ HEADER_LEN as usize }>(0) else {
        line.text(b"TRUNCATED");
        return ControlFlow::Break(());
    };
    let number = |bytes| u32::from(u16::from_be_bytes(bytes));
    line.text(b"ARP HTYPE=");
    line.decimal(number(htype));
    line.text(b" PTYPE=0x");
    line.hex16(u16::from_be_bytes([a, b]));
    line.text(b" OPCODE=");
    line.decimal(number([c, d]));
    // Ethernet and IPv4.
    if (htype, hardware, network) == ([0, 1], 6, 4) {
        match data.header::<20>(HEADER_LEN) {
            Ok(addresses) => ends(line, addresses),
            Err(_) => {
                line.text(b" INCOMPLETE [");
                line.decimal(data.left(HEADER_LEN));
                line.text(b" bytes]");
            }
        }
    }
    ControlFlow::Break(())
}

/// Who asks or answers, and whom.
fn ends(line: &mut Line, addresses: &[u8; 20]) {
    let words: [(&[u8; 8], &[u8; 7]); 2] = [(b" MACSRC=", b" IPSRC="), (b" MACDST=", b" IPDST=")];
    for ((hardware, network), address) in words.into_iter().zip(addresses.chunks_exact(10)) {
        line.text(hardware);
        line.colon_hex(&address[..6]);
        line.text(network);
        line.ipv4([address[6], address[7], address[8], address[9]]);
    }
}
