//! Everything that is decoded: no bytes do harm. The first byte chooses the decoder.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz decoders`

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::backend::ebpf::decode::decode;
use nftracer::btf::Btf;
use nftracer::filter;
use nftracer::netfilter::Family;
use nftracer::packet::{Link, PacketView, headers, quoted, tcp};
use nftracer::recording::Reader;
use nftracer::sys::pcap;
use nftracer::xtables::{Form, RawTable, TargetNames};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 6 {
        0 => _ = decode(data),
        1 => _ = Btf::parse(data).map(|btf| btf.ids().filter_map(|id| btf.get(id).ok()).count()),
        2 => _ = str::from_utf8(data).map(|text| filter::compile(text, &pcap::compile)),
        3 => table(data),
        4 => {
            if let Ok(mut reader) = Reader::new(data) {
                while let Ok(Some(_)) = reader.next_event() {}
            }
        }
        _ => packet(data),
    }
});

fn table(data: &[u8]) {
    let Some((offsets, bytes)) = data.split_first_chunk::<5>() else { return };
    let hook_entry = offsets.map(|offset| u32::from(offset) * 8);
    for form in [Form::User, Form::Kernel] {
        let raw = RawTable {
            family: if bytes.len() % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 },
            name: "filter".to_owned(),
            valid_hooks: 0b01110,
            hook_entry,
            underflow: hook_entry,
            number: bytes.len() as u32 / 150,
            form,
            bytes: bytes.to_vec(),
        };
        _ = raw.decode(&TargetNames::default());
    }
}

fn packet(bytes: &[u8]) {
    for family in [Family::Ipv4, Family::Ipv6] {
        let (indev, outdev, link) = (None, None, Link::default());
        let view =
            PacketView { family, indev, outdev, link, len: bytes.len() as u32, bytes, mark: 0, owner: None };
        _ = headers(&view);
        _ = quoted(&view).map(|inner| headers(&inner));
        _ = tcp(&view).map(|tcp| (tcp.flags(), tcp.options()));
    }
}
