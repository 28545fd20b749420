//! Legacy tables: the blob of one after five bytes that say where its hooks begin, and what iptables-save prints.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::netfilter::Family;
use nftracer::ruleset::text::attach;
use nftracer::xtables::{Form, RawTable, TargetNames};

/// `tests/data/xtables/ip-filter`
const BLOB: &[u8] = include_bytes!("../../data/xtables/ip-filter.blob");
const HOOK_ENTRY: [u32; 5] = [u32::MAX, 0, 2496, 2800, u32::MAX];
const UNDERFLOW: [u32; 5] = [u32::MAX, 2344, 2648, 2952, u32::MAX];

fuzz_target!(|data: &[u8]| {
    saved(data);
    let Some((offsets, bytes)) = data.split_first_chunk::<5>() else { return };
    let hook_entry = offsets.map(|offset| u32::from(offset) * 8);
    for form in [Form::User, Form::Kernel] {
        let raw = RawTable {
            family: if bytes.len().is_multiple_of(2) { Family::Ipv4 } else { Family::Ipv6 },
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
});

/// What a program prints of a table that is known.
fn saved(text: &[u8]) {
    let raw = RawTable {
        family: Family::Ipv4,
        name: "filter".to_owned(),
        valid_hooks: 0b01110,
        hook_entry: HOOK_ENTRY,
        underflow: UNDERFLOW,
        number: 33,
        form: Form::User,
        bytes: BLOB.to_vec(),
    };
    let mut table = raw.decode(&TargetNames::default()).expect("a captured table");
    _ = attach(&mut table, text);
}
