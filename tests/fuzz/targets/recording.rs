//! Recordings, from after their first bytes on.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::recording::{MAGIC, Reader};

/// As this program writes.
const VERSION: [u8; 2] = [1, 0];

fuzz_target!(|data: &[u8]| {
    let bytes = [&MAGIC[..], &VERSION, data].concat();
    let Ok(mut reader) = Reader::new(&bytes[..]) else { return };
    while let Ok(Some(_)) = reader.next_event() {}
    _ = reader.is_cut();
});
