//! Messages of netfilter over netlink: what was logged, rules of nftables, and its trace messages with what is made of
//! them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nftracer::netlink::messages;
use nftracer::netlink::nflog::Logged;
use nftracer::nftables::decode::{Parts, generation};
use nftracer::nftables::trace::decode;
use nftracer::nftables::traversal::Assembler;

fuzz_target!(|data: &[u8]| {
    let netfilter = || messages(data).filter_map(|message| message.netfilter());
    let mut parts = Parts::default();
    for message in netfilter() {
        _ = Logged::parse(&message).map(|logged| logged.step().is_some());
        _ = generation(&message);
        parts.add(&message);
    }
    let ruleset = parts.finish(1);
    let mut assembler = Assembler::default();
    for (at, message) in netfilter().enumerate() {
        let Some(event) = decode(&message) else { continue };
        let located = ruleset.locate(&event);
        let added = assembler.add(
            &event,
            located,
            (at as u64, None),
            &mut |index| Some([index as u8].into()),
            &mut drop,
        );
        drop(added.step);
        if at % 4 == 0 {
            assembler.lost();
        }
    }
    assembler.expire(u64::MAX, &mut drop);
});
