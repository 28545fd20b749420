//! Filters as they are typed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::filter::{LibpcapError, compile};
use nftracer::sys::pcap;

fuzz_target!(|text: &str| {
    _ = compile(text, &|_, _| Err(LibpcapError::Absent));
    _ = compile(text, &pcap::compile);
});
