//! Descriptions of types, of kernels and modules.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::btf::Btf;

fuzz_target!(|data: &[u8]| {
    if let Ok(btf) = Btf::parse(data) {
        btf.ids().for_each(|id| drop(btf.get(id)));
    }
});
