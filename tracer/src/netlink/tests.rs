//! What is written is read again, and no bytes make the reader panic.

use super::nflog::Logged;
use super::*;
use expect_test::expect;
use proptest::prelude::*;
use std::fmt::Write as _;

#[test]
fn what_is_written_is_read() {
    let builder = Builder::new()
        .netfilter((10, 0), 1, 7, (2, 0x1234), |body| {
            body.text(1, "filter").nested(2, |inner| {
                inner.attribute(3, &[0, 0, 0, 9]).attribute(4, &[1, 2, 3, 4, 5, 6, 7, 8]);
            });
        })
        .netfilter((10, 1), 0, 8, (0, 0), |body| {
            body.attribute(5, &[0xff]);
        });
    let read: Vec<Message<'_>> = messages(builder.as_bytes()).collect();
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].kind, read[0].flags, read[0].sequence, read[0].port), (0x0a00, 1, 7, 0));
    let first = read[0].netfilter().unwrap();
    assert_eq!((first.subsystem, first.message, first.family, first.resource), (10, 0, 2, 0x1234));
    assert_eq!(find(first.attributes, 1).unwrap().text(), "filter");
    let nested: Vec<Attribute<'_>> = find(first.attributes, 2).unwrap().nested().collect();
    assert_eq!((nested[0].be32(), nested[0].be64()), (Some(9), None));
    assert_eq!(nested[1].be64(), Some(0x0102_0304_0506_0708));
    assert_eq!((nested[1].be16(), nested[1].u8()), (Some(0x0102), Some(1)));
    let second = read[1].netfilter().unwrap();
    assert_eq!(find(second.attributes, 5).unwrap().value, [0xff]);
    assert_eq!(find(second.attributes, 5).unwrap().text(), r"\xff");
}

#[test]
fn what_is_cut_short_ends_the_list() {
    let builder = Builder::new().netfilter((10, 0), 1, 7, (2, 0), |body| {
        body.text(1, "filter").text(2, "INPUT");
    });
    for length in 0..builder.as_bytes().len() {
        assert_eq!(messages(&builder.as_bytes()[..length]).count(), 0);
    }
    let attributes_of = |length: usize| attributes(&builder.as_bytes()[20..length]).count();
    let total = builder.as_bytes().len();
    // The padding of the last is no part of it.
    assert_eq!((attributes_of(total), attributes_of(total - 2), attributes_of(total - 3)), (2, 2, 1));
    // A length below that of the header goes nowhere.
    assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
    assert_eq!(messages(&[0; 64]).count(), 0);
}

/// See `tests/data/nflog/README.md`.
#[test]
fn rows_of_a_kernel_are_read() {
    let bytes = include_bytes!("../../../tests/data/nflog/trace.bin");
    let mut text = String::new();
    for message in messages(bytes) {
        let logged = message.netfilter().and_then(|message| Logged::parse(&message)).unwrap();
        let Logged { hook, indev, outdev, mark, uid, hard_header, payload, sequence, .. } = &logged;
        let header = hard_header.map(<[u8]>::len);
        let step = logged.step().unwrap();
        let length = payload.len();
        let _ = writeln!(
            text,
            "{step} hook {hook} in {indev:?} out {outdev:?} mark {mark:x} uid {uid:?} header {header:?} \
             length {length} sequence {sequence:?}"
        );
    }
    expect![[r#"
        raw:OUTPUT:policy:2 hook 3 in None out Some(1) mark 0 uid Some(0) header None length 36 sequence Some(0)
        mangle:OUTPUT:rule:1 hook 3 in None out Some(1) mark 0 uid Some(0) header None length 36 sequence Some(1)
        mangle:OUTPUT:policy:2 hook 3 in None out Some(1) mark 2a uid Some(0) header None length 36 sequence Some(2)
        filter:OUTPUT:policy:1 hook 3 in None out Some(1) mark 2a uid Some(0) header None length 36 sequence Some(3)
        mangle:POSTROUTING:policy:1 hook 4 in None out Some(1) mark 2a uid Some(0) header None length 36 sequence Some(4)
        raw:PREROUTING:policy:1 hook 0 in Some(1) out None mark 2a uid None header Some(14) length 36 sequence Some(5)
        mangle:PREROUTING:policy:1 hook 0 in Some(1) out None mark 2a uid None header Some(14) length 36 sequence Some(6)
        mangle:INPUT:policy:1 hook 1 in Some(1) out None mark 2a uid None header Some(14) length 36 sequence Some(7)
        filter:INPUT:rule:1 hook 1 in Some(1) out None mark 2a uid None header Some(14) length 36 sequence Some(8)
    "#]].assert_eq(&text);
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for message in messages(&bytes) {
            let _ = message.netfilter().and_then(|message| Logged::parse(&message).map(|logged| logged.step().is_some()));
        }
        for attribute in attributes(&bytes) {
            let _ = (attribute.text(), attribute.be64(), attribute.nested().count());
        }
    }
}
