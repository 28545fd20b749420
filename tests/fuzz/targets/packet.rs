//! Headers of packets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::netfilter::Family;
use nftracer::packet::{Link, PacketView, headers, quoted, tcp};
use nftracer::trace_line::{LogStyle, write};

fuzz_target!(|bytes: &[u8]| {
    for family in [Family::Ipv4, Family::Ipv6] {
        let (indev, outdev, link) = (None, None, Link::default());
        let view =
            PacketView { family, indev, outdev, link, len: bytes.len() as u32, bytes, mark: 0, owner: None };
        _ = headers(&view);
        _ = quoted(&view).map(|inner| headers(&inner));
        _ = tcp(&view).map(|tcp| (tcp.flags(), tcp.options()));
        write(&mut Vec::new(), "raw:OUTPUT:policy:1", &view, LogStyle::default());
    }
});
