//! Records of the ring buffer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::backend::ebpf::decode::{Record, decode};
use std::mem::size_of;
use tracer_common::legacy::{Traversal, kind};
use zerocopy::IntoBytes as _;

fuzz_target!(|data: &[u8]| {
    // As in the ring: aligned. And never too short, because that is refused at once.
    let words = (data.len() / 8 + 1).max(size_of::<Traversal>() / 8 + 1);
    let mut record = vec![0_u64; words];
    record.as_mut_bytes()[..data.len()].copy_from_slice(data);
    for kind in [None, Some(kind::TRAVERSAL), Some(kind::LONG_TRAVERSAL)] {
        let bytes = record.as_mut_bytes();
        if let Some(kind) = kind {
            bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        }
        if let Some(Record::Traversal(seen)) = decode(bytes) {
            assert!(seen.entry_bytes.len() <= bytes.len() && seen.matches.len() <= bytes.len());
        }
    }
});
