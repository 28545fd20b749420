//! What the programs of nftables print of rules that are known.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::netfilter::TableFamily;
use nftracer::netlink::messages;
use nftracer::nftables::decode::Parts;
use nftracer::nftables::{attach_listing, attach_save};

/// `tests/data/nftables/ruleset.bin`
const DUMP: &[u8] = include_bytes!("../../data/nftables/ruleset.bin");

fuzz_target!(|text: &[u8]| {
    let mut parts = Parts::default();
    messages(DUMP).filter_map(|message| message.netfilter()).for_each(|message| parts.add(&message));
    let mut ruleset = parts.finish(1);
    _ = attach_listing(&mut ruleset, text);
    for family in [TableFamily::Ip, TableFamily::Ip6, TableFamily::Bridge, TableFamily::Arp] {
        _ = attach_save(&mut ruleset, family, text);
    }
});
