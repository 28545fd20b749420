//! Halves and the packets that they give.

use super::*;
use crate::netfilter::{Hook, TableFamily, Verdict};
use crate::nftables::stands::Layer;
use crate::packet::Link;
use expect_test::{Expect, expect};
use std::fmt::Write as _;

/// A UDP packet of IPv4: identification, last bytes of the addresses, destination port.
fn packet(id: u16, [src, dst]: [u8; 2], dport: u16) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 29];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 0, 64, 17, 0, 0, 10, 0, 0, src, 10, 0, 0, dst]);
    bytes.extend([0x9c, 0x40]);
    bytes.extend(dport.to_be_bytes());
    bytes.extend([0, 9, 0, 0, b'x']);
    bytes
}

/// What joins, and what it said so far.
struct Fixture {
    join: Join<&'static str>,
    stands: Rc<Stands>,
    clock_ns: u64,
    /// By which packets come in.
    indev: &'static [u8],
    text: String,
}

impl Fixture {
    fn new() -> Self {
        let stands = Rc::new(Stands::of(&crate::nftables::Ruleset::default(), |_| false));
        Self { join: Join::new(None, false), stands, clock_ns: 0, indev: b"lo", text: String::new() }
    }

    /// `gone` says that this was its last step.
    fn meet(
        &mut self,
        half: Half,
        (hook, priority): (Hook, i32),
        bytes: &[u8],
        step: &'static str,
        gone: bool,
    ) {
        self.clock_ns += 1;
        let outdev = matches!(hook, Hook::Output | Hook::Postrouting).then_some(&b"lo"[..]);
        let view = PacketView {
            family: Family::Ipv4,
            indev: outdev.is_none().then_some(self.indev),
            outdev,
            link: Link::default(),
            len: 29,
            bytes,
            mark: 0,
            owner: None,
        };
        let seen = Seen {
            at: Some(At { hook, priority }),
            view: Some(view),
            clock_ns: self.clock_ns,
            begins: None,
            inside: false,
            gone,
            queued: false,
        };
        self.join.meet(half, seen, &self.stands);
        self.join.keep(half, self.clock_ns, step);
    }

    fn close(&mut self, half: Half, verdict: Verdict) {
        let path = Path { verdict: Some(verdict), ..Open::<()>::new(0, None, &self.stands).path };
        if let Some(Joined { number, steps, path, .. }) = self.join.close(half, path) {
            let why = path.why.join("; ");
            let verdict = path.verdict.map_or("?".to_owned(), |verdict| verdict.to_string());
            let _ = writeln!(self.text, "{number} {verdict} {} {}: {why}", path.certainty, steps.join(" "));
        }
    }

    #[track_caller]
    fn check(&self, expected: Expect) {
        expected.assert_eq(&self.text);
    }
}

const PRE: Hook = Hook::Prerouting;

#[test]
fn both_halves_in_the_order_in_which_they_came() {
    let mut fixture = Fixture::new();
    let bytes = packet(7, [1, 2], 53);
    fixture.meet(Half::Nft(1), (PRE, -350), &bytes, "mark", false);
    fixture.meet(Half::Legacy(1), (PRE, -300), &bytes, "raw", false);
    fixture.meet(Half::Nft(1), (PRE, -150), &bytes, "nft", false);
    fixture.meet(Half::Legacy(1), (Hook::Input, 0), &bytes, "filter", true);
    fixture.close(Half::Nft(1), Verdict::Accept);
    fixture.close(Half::Legacy(1), Verdict::Drop);
    fixture.check(expect![[r#"
        1 drop complete mark raw nft filter: 
    "#]]);
}

#[test]
fn others_are_others() {
    let mut fixture = Fixture::new();
    fixture.meet(Half::Nft(1), (PRE, -350), &packet(7, [1, 2], 53), "first", false);
    // Another identification, another port, an earlier place, and after the end.
    fixture.meet(Half::Legacy(1), (PRE, -300), &packet(8, [1, 2], 53), "other-id", false);
    fixture.meet(Half::Legacy(2), (PRE, -300), &packet(7, [1, 2], 54), "other-port", false);
    fixture.meet(Half::Legacy(3), (PRE, -400), &packet(7, [1, 2], 53), "earlier", false);
    fixture.meet(Half::Nft(1), (PRE, 0), &packet(7, [1, 2], 53), "dropped", true);
    fixture.meet(Half::Legacy(4), (Hook::Input, 0), &packet(7, [1, 2], 53), "later", false);
    (1..=3).for_each(|half| fixture.close(Half::Legacy(half), Verdict::Accept));
    fixture.close(Half::Nft(1), Verdict::Drop);
    fixture.close(Half::Legacy(4), Verdict::Accept);
    fixture.check(expect![[r#"
        2 accept complete other-id: 
        3 accept complete other-port: 
        4 accept complete earlier: 
        1 drop complete first dropped: 
        5 accept complete later: 
    "#]]);
}

#[test]
fn nat_changes_ends_where_it_stands() {
    let mut fixture = Fixture::new();
    fixture.meet(Half::Nft(1), (PRE, -350), &packet(7, [1, 2], 53), "mark", false);
    fixture.meet(Half::Legacy(1), (Hook::Forward, 0), &packet(7, [1, 9], 5353), "translated", false);
    fixture.close(Half::Nft(1), Verdict::Accept);
    fixture.close(Half::Legacy(1), Verdict::Accept);
    // Sources do not change there.
    fixture.meet(Half::Nft(2), (PRE, -350), &packet(8, [1, 2], 53), "mark", false);
    fixture.meet(Half::Legacy(2), (Hook::Forward, 0), &packet(8, [3, 2], 53), "another", false);
    fixture.close(Half::Nft(2), Verdict::Accept);
    fixture.close(Half::Legacy(2), Verdict::Accept);
    fixture.check(expect![[r#"
        1 accept complete mark translated: 
        2 accept complete mark: 
        3 accept complete another: 
    "#]]);
}

#[test]
fn the_id_changes_on_loopback() {
    let mut fixture = Fixture::new();
    let bytes = packet(7, [1, 2], 53);
    fixture.meet(Half::Nft(1), (Hook::Output, -350), &bytes, "out", false);
    fixture.meet(Half::Nft(2), (PRE, -350), &bytes, "in", false);
    // The same headers again: a packet of its own.
    fixture.meet(Half::Nft(3), (Hook::Output, -350), &bytes, "next", false);
    (1..=3).for_each(|half| fixture.close(Half::Nft(half), Verdict::Accept));
    fixture.check(expect![[r#"
        1 accept complete out in: 
        2 accept complete next: 
    "#]]);
}

#[test]
fn the_id_changes_on_the_way_up_to_a_bridge() {
    let mut fixture = Fixture::new();
    let bytes = packet(7, [1, 2], 53);
    fixture.indev = b"port";
    fixture.meet(Half::Nft(1), (Hook::Ingress, 10), &bytes, "port", false);
    fixture.meet(Half::Nft(1), (Hook::BridgeInput, 0), &bytes, "bridge", false);
    fixture.indev = b"br0";
    fixture.meet(Half::Nft(2), (Hook::Ingress, 0), &bytes, "up", false);
    fixture.meet(Half::Legacy(1), (Hook::Input, -150), &bytes, "mangle", false);
    fixture.meet(Half::Nft(2), (Hook::Input, 0), &bytes, "in", false);
    // The same headers again, from where it went.
    fixture.meet(Half::Nft(3), (Hook::Input, 0), &bytes, "next", false);
    (1..=3).for_each(|half| fixture.close(Half::Nft(half), Verdict::Accept));
    fixture.close(Half::Legacy(1), Verdict::Accept);
    fixture.check(expect![[r#"
        2 accept complete next: 
        1 accept complete port bridge up mangle in: 
    "#]]);
}

/// With br_netfilter a bridge asks IP as if the packet had come by the bridge already.
#[test]
fn the_id_changes_where_a_bridge_asks_first() {
    let mut fixture = Fixture::new();
    let layer = |name: &[u8], is_bridge, below: &[&[u8]]| Layer {
        name: name.to_vec(),
        is_bridge,
        below: below.iter().map(|name| name.to_vec()).collect(),
    };
    let layers =
        vec![layer(b"br0", true, &[b"port"]), layer(b"port", false, &[]), layer(b"eth0", false, &[])];
    let stands = Stands::of(&crate::nftables::Ruleset::default(), |_| false).with_layers(layers);
    fixture.stands = Rc::new(stands);
    for (indev, id) in [(&b"br0"[..], 7), (b"eth0", 8)] {
        fixture.indev = indev;
        let bytes = packet(id, [1, 2], 53);
        let half = u64::from(id) * 10;
        fixture.meet(Half::Nft(half), (PRE, MARK), &bytes, "pre", false);
        fixture.meet(Half::Nft(half + 1), (Hook::Input, 0), &bytes, "in", false);
        [half, half + 1].into_iter().for_each(|half| fixture.close(Half::Nft(half), Verdict::Accept));
    }
    fixture.check(expect![[r#"
        1 accept complete pre in: 
        2 accept complete pre: 
        3 accept complete in: 
    "#]]);
}

#[test]
fn who_did_not_come_by_the_mark_is_in_doubt() {
    let mut fixture = Fixture::new();
    fixture.join = Join::new(None, true);
    fixture.meet(Half::Nft(1), (PRE, MARK), &packet(1, [1, 2], 53), "mark", false);
    fixture.meet(Half::Nft(2), (Hook::Forward, 0), &packet(2, [1, 2], 53), "forward", false);
    (1..=2).for_each(|half| fixture.close(Half::Nft(half), Verdict::Accept));
    fixture.check(expect![[r#"
        1 accept complete mark: 
        2 accept inexact forward: its first steps are not there: packets are marked before all others
    "#]]);
}

#[test]
fn equal_packets_are_in_doubt() {
    let mut fixture = Fixture::new();
    let bytes = packet(7, [1, 2], 53);
    fixture.meet(Half::Nft(1), (PRE, -350), &bytes, "one", false);
    fixture.meet(Half::Nft(2), (PRE, -350), &bytes, "two", false);
    fixture.meet(Half::Legacy(1), (PRE, -300), &bytes, "whose", false);
    (1..=2).for_each(|half| fixture.close(Half::Nft(half), Verdict::Accept));
    fixture.close(Half::Legacy(1), Verdict::Accept);
    fixture.check(expect![[r#"
        1 accept inexact one: another packet with the same headers was on its way at the same time
        2 accept inexact two whose: another packet with the same headers was on its way at the same time
    "#]]);
}

#[test]
fn who_is_on_its_way_at_the_end_is_in_doubt() {
    let mut fixture = Fixture::new();
    fixture.meet(Half::Nft(1), (PRE, -350), &packet(1, [1, 2], 53), "before", false);
    fixture.meet(Half::Nft(2), (Hook::Input, 0), &packet(2, [1, 2], 53), "after", false);
    fixture.join.end(fixture.clock_ns + 1);
    (1..=2).for_each(|half| fixture.close(Half::Nft(half), Verdict::Accept));
    fixture.check(expect![[r#"
        1 accept inexact before: the trace ended when it may have been on its way
        2 accept complete after: 
    "#]]);
}

#[test]
fn silent_base_chains_are_told() {
    let mut parts = crate::nftables::decode::Parts::default();
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nftables/ruleset.bin");
    let dump = std::fs::read(data).unwrap();
    crate::netlink::messages(&dump)
        .filter_map(|message| message.netfilter())
        .for_each(|message| parts.add(&message));
    let stands = Stands::of(&parts.finish(7), |_| false);
    let at = |hook, priority| At { hook, priority };
    let silent = |family, places: &[At], met: &[(TableFamily, &str, &str)]| {
        let met = met.iter().map(|(family, table, chain)| {
            ((*family, (*table).into(), (*chain).into()), (*chain == "both").then(|| b"left".to_vec()))
        });
        stands
            .silent(
                family,
                places,
                false,
                &met.collect(),
                crate::nftables::stands::Devices { indev: Some(b"left"), outdev: None },
            )
            .join("\n")
    };
    expect![[r#"
        ip filter:INPUT is not there: it told nothing
        inet filter:in is not there: it told nothing
        netdev edge:both is not there: the mark comes after it"#]]
    .assert_eq(&silent(Family::Ipv4, &[at(PRE, -350), at(Hook::Input, -5)], &[]));
    let told = [
        (TableFamily::Ip, "filter", "INPUT"),
        (TableFamily::Inet, "filter", "in"),
        (TableFamily::Netdev, "edge", "both"),
    ];
    expect![""].assert_eq(&silent(Family::Ipv4, &[at(PRE, -350), at(Hook::Input, 0)], &told));
    // A bridge that is seen by none of its ports' chains, because the mark comes later.
    let layer = |name: &[u8], is_bridge, below: &[&[u8]]| Layer {
        name: name.to_vec(),
        is_bridge,
        below: below.iter().map(|name| name.to_vec()).collect(),
    };
    let stands = stands.with_layers(vec![
        layer(b"vlan", false, &[b"br0"]),
        layer(b"br0", true, &[b"left", b"other"]),
        layer(b"left", false, &[]),
        layer(b"other", false, &[]),
    ]);
    let met =
        told[..2].iter().map(|(family, table, chain)| ((*family, (*table).into(), (*chain).into()), None));
    let met = met.collect();
    let devices = crate::nftables::stands::Devices { indev: Some(b"vlan"), outdev: None };
    let places = [at(PRE, -350), at(Hook::Input, 0)];
    expect!["netdev edge:both may have to be there: the mark comes after it"]
        .assert_eq(&stands.silent(Family::Ipv4, &places, false, &met, devices).join("\n"));
}
