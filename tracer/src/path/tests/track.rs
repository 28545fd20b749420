//! What is made of the traversals of a packet: when its path is given out, and how certain it is.

use crate::history::{Loaded, Ranks};
use crate::netfilter::{Family, Hook, TableFamily, Verdict};
use crate::netlink::messages;
use crate::nftables::decode;
use crate::path::ending::{self, Device, Ending, Waited};
use crate::path::stands::Stands;
use crate::path::track::{Part, Tracker, Visit};
use crate::path::{Certainty, Path};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tracer_common::ending::{Freed, Reinjected};
use tracer_common::legacy::{Traversal, fact, rank, table_class};
use tracer_common::nft::Run;
use tracer_common::place;
use zerocopy::FromZeros as _;

const MS: u64 = 1_000_000;
const START: u64 = 1000 * MS;

const ESTABLISHED: (u8, u64) = (0, CONFIRMED | NAT);
const RELATED: u8 = 1;
const NEW: u8 = 2;
const RELATED_REPLY: u8 = 4;
const CONFIRMED: u64 = 1 << 3;
const SRC_NAT: u64 = 1 << 7;
const DST_NAT: u64 = 1 << 8;
const NAT: u64 = SRC_NAT | DST_NAT;
const TEMPLATE: u64 = 1 << 11;
/// The first packet of a connection, before nat, after its first decision, and when it was let through.
const FRESH: Option<(u8, u64)> = Some((NEW, 0));
const DECIDED: Option<(u8, u64)> = Some((NEW, DST_NAT));
const PASSED: Option<(u8, u64)> = Some((NEW, CONFIRMED | NAT));
const OLD: Option<(u8, u64)> = Some(ESTABLISHED);

const TABLES: [(&str, &[Hook]); 5] = {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    [
        ("raw", &[Prerouting, Output]),
        ("mangle", &[Prerouting, Input, Forward, Output, Postrouting]),
        ("nat", &[Prerouting, Input, Output, Postrouting]),
        ("filter", &[Input, Forward, Output]),
        ("security", &[Input, Forward, Output]),
    ]
};

fn hook(name: &str) -> Hook {
    Hook::ALL.into_iter().find(|hook| hook.chain().starts_with(name)).unwrap()
}

fn class(name: &str) -> u8 {
    let mut first = [0; 4];
    first.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    table_class(u32::from_ne_bytes(first))
}

fn stands(names: &str) -> Rc<Stands> {
    Rc::new(Stands::of(loaded(names), Family::Ipv4, None))
}

fn visit(traversal: &Traversal) -> Visit {
    Visit::of_traversal(traversal, Family::Ipv4).with_token(traversal.entry.copied, &traversal.entry_bytes)
}

fn loaded(names: &str) -> Loaded {
    let mut ranks = Ranks::default();
    for (table, hooks) in TABLES.iter().filter(|(table, _)| names.split(' ').any(|name| name == *table)) {
        hooks.iter().for_each(|hook| ranks[*hook as usize] |= 1 << rank(*hook as u8, class(table)));
    }
    Loaded { ranks, possible: ranks }
}

/// A table at a hook as `table:CHAIN`, the chain's first letters at least; the verdict when it is not accept.
fn traversal(place: &str, connection: Option<(u8, u64)>, entry_ns: u64) -> (Traversal, Verdict) {
    let mut words = place.split(' ');
    let (table, chain) = words.next().unwrap().split_once(':').unwrap();
    let mut verdict = Verdict::Accept;
    let mut traversal = Traversal {
        packet: 1,
        skb: 0x1000,
        entry_ns,
        hook: hook(chain) as u8,
        facts: fact::EXIT,
        netns: 1,
        ..Traversal::new_zeroed()
    };
    traversal.table_name[..table.len()].copy_from_slice(table.as_bytes());
    if let Some((info, status)) = connection {
        (traversal.ctinfo, traversal.ct_status) = (info, status as u32);
        traversal.facts |= fact::CONNTRACK;
    }
    set_header(&mut traversal, 7);
    for word in words {
        match word {
            "drop" => verdict = Verdict::Drop,
            "queue" => verdict = Verdict::Queue,
            "stolen" => verdict = Verdict::Stolen,
            "lo" => {
                traversal.facts |= fact::OUT;
                traversal.outdev[..3].copy_from_slice(b"lo\0");
            }
            "first" => traversal.facts |= fact::FIRST,
            "other" => set_header(&mut traversal, 8),
            "icmp" => (traversal.entry_bytes[9], traversal.exit_bytes[9]) = (1, 1),
            "missed" => (traversal.missed, traversal.checkpoint_ns) = (1, entry_ns - 5 * MS),
            _ => panic!("{word}"),
        }
    }
    (traversal, verdict)
}

fn set_header(traversal: &mut Traversal, id: u8) {
    (traversal.entry_bytes[5], traversal.exit_bytes[5]) = (id, id);
    (traversal.entry.copied, traversal.exit.copied) = (20, 20);
}

fn part(verdict: Option<Verdict>) -> Part<'static> {
    Part {
        steps: Box::leak(Box::new(vec!["step".into()])),
        certainty: Certainty::Complete,
        why: None,
        generation: None,
        outcome: None,
        verdict,
        queue: None,
        sighting: None,
    }
}

type Met<'a> = (&'a str, Option<(u8, u64)>);

/// Adds what a packet met.
fn meet(
    tracker: &mut Tracker,
    visit: &Visit,
    part: Part<'_>,
    stands: &Rc<Stands>,
    give: &mut impl FnMut(&Path),
) {
    let found = tracker.find(visit);
    tracker.add(visit, found, part, stands, give);
}

/// Sends one packet, 1 ms between traversals. Says whether it was given out at its last one, and its path.
fn packet(tables: &str, met: &[Met<'_>]) -> (bool, Path) {
    let mut tracker = Tracker::default();
    let mut paths = Vec::new();
    for (index, (place, connection)) in met.iter().enumerate() {
        assert_eq!(paths, []);
        let (mut traversal, verdict) = traversal(place, *connection, START + index as u64 * MS);
        if index == 0 {
            traversal.facts |= fact::FIRST;
        }
        assert_eq!(tracker.find(&visit(&traversal)).number, 1);
        tracker.notice(&traversal);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands(tables), &mut |path| {
            paths.push(path.clone())
        });
    }
    let at_once = !paths.is_empty();
    tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert_eq!(paths.len(), 1);
    (at_once, paths.pop().unwrap())
}

/// Complete, and given out with its last table.
#[track_caller]
fn check_done(tables: &str, met: &[Met<'_>]) {
    let (at_once, path) = packet(tables, met);
    assert_eq!((at_once, path.certainty, &path.why[..]), (true, Certainty::Complete, &[][..]));
    assert_eq!(path.steps.len(), met.len());
}

/// Complete, but something could still have come.
#[track_caller]
fn check_waited(tables: &str, met: &[Met<'_>]) {
    let (at_once, path) = packet(tables, met);
    assert_eq!((at_once, path.certainty, &path.why[..]), (false, Certainty::Complete, &[][..]));
}

#[track_caller]
fn check_doubt(tables: &str, met: &[Met<'_>], why: &[&str]) {
    let (_, path) = packet(tables, met);
    assert_eq!(path.certainty, Certainty::Inexact);
    assert_eq!(path.why, why);
}

const ALL: &str = "raw mangle nat filter security";

#[test]
fn a_first_packet_comes_in() {
    let met = [
        ("raw:PRE", None),
        ("mangle:PRE", FRESH),
        ("nat:PRE", FRESH),
        ("mangle:INPUT", DECIDED),
        ("filter:INPUT", DECIDED),
        ("security:INPUT", DECIDED),
        ("nat:INPUT", DECIDED),
    ];
    check_done(ALL, &met);
    for missing in 0..6 {
        let mut met = met.to_vec();
        let (name, _) = met.remove(missing);
        let (table, chain) = name.split_once(':').unwrap();
        check_doubt(ALL, &met, &[&format!("{table}:{} was not seen", hook(chain).chain())]);
    }
    check_waited(ALL, &met[..6]);
}

#[test]
fn a_known_connection_meets_no_nat() {
    check_done(
        ALL,
        &[
            ("raw:PRE", None),
            ("mangle:PRE", OLD),
            ("mangle:FORWARD", OLD),
            ("filter:FORWARD", OLD),
            ("security:FORWARD", OLD),
            ("mangle:POST", OLD),
        ],
    );
}

#[test]
fn nat_is_expected_as_the_kernel_asks_it() {
    let mut met = [("mangle:PRE", None), ("mangle:FORWARD", None), ("mangle:POST", None)];
    // Untracked.
    check_done("mangle nat", &met);
    // Decided elsewhere.
    met[2].1 = Some((NEW, NAT));
    check_done("mangle nat", &[("mangle:PRE", Some((NEW, DST_NAT))), ("mangle:FORWARD", DECIDED), met[2]]);
    // A connection that another one announced; an error message is about one that exists.
    let expected = Some((RELATED, 0));
    let before = [("mangle:PRE", expected), ("mangle:FORWARD", DECIDED), met[2]];
    check_doubt("mangle nat", &before, &["nat:PREROUTING was not seen"]);
    let error = Some((RELATED, CONFIRMED | NAT));
    check_done("mangle nat", &[("mangle:PRE", error), ("mangle:FORWARD", error), ("mangle:POST", error)]);
    // What REJECT sends belongs to the refused connection, which nothing will confirm. A reset is asked about.
    let refused = Some((RELATED_REPLY, DST_NAT));
    let error =
        [("mangle:OUT lo icmp", refused), ("mangle:POST lo icmp", refused), ("mangle:PRE icmp", refused)];
    check_waited("mangle nat", &error);
    let reset = [("mangle:OUT lo", refused), ("mangle:POST lo", refused), ("mangle:PRE", refused)];
    check_doubt("mangle nat", &reset, &["nat:POSTROUTING was not seen"]);
    // The nat table came later than the connection: it may be asked, or not.
    let late = Some((NEW, CONFIRMED));
    check_waited("mangle nat", &[("mangle:PRE", late), ("mangle:FORWARD", late), ("mangle:POST", late)]);
    // A template is not a connection yet.
    check_waited("raw nat", &[("raw:PRE", Some((NEW, TEMPLATE)))]);
}

#[test]
fn loopback_is_one_packet() {
    check_done(
        ALL,
        &[
            ("raw:OUT lo", None),
            ("mangle:OUT lo", FRESH),
            ("nat:OUT lo", FRESH),
            ("filter:OUT lo", DECIDED),
            ("security:OUT lo", DECIDED),
            ("mangle:POST lo", DECIDED),
            ("nat:POST lo", DECIDED),
            ("raw:PRE", PASSED),
            ("mangle:PRE", PASSED),
            ("mangle:INPUT", PASSED),
            ("filter:INPUT", PASSED),
            ("security:INPUT", PASSED),
        ],
    );
    check_waited("mangle", &[("mangle:OUT lo", OLD), ("mangle:POST lo", OLD)]);
    check_done("mangle", &[("mangle:OUT", OLD), ("mangle:POST", OLD)]);
    check_done("filter", &[("filter:OUT lo", OLD), ("filter:INPUT", OLD)]);
    let all = [("mangle:OUT lo", OLD), ("mangle:POST lo", OLD), ("mangle:INPUT", OLD)];
    check_doubt("mangle", &all, &["mangle:PREROUTING was not seen"]);
}

#[test]
fn it_ends_with_its_verdict() {
    check_done(ALL, &[("raw:PRE drop", None)]);
    check_done("filter", &[("filter:INPUT stolen", None)]);
    check_waited("mangle filter", &[("mangle:PRE queue", OLD)]);
    check_done("filter", &[("filter:OUT", OLD)]);
    check_waited("filter mangle", &[("mangle:OUT", OLD)]);
    // The rest may have been dropped by others.
    check_waited("raw filter", &[("raw:PRE", None)]);
}

#[test]
fn it_begins_in_the_middle() {
    check_doubt(
        "mangle filter",
        &[("filter:INPUT", OLD)],
        &["mangle:INPUT was not seen", "it was not seen in PREROUTING"],
    );
    check_done("filter", &[("filter:INPUT", OLD)]);
    check_done("filter nat", &[("filter:INPUT", OLD)]);
    check_doubt("filter nat", &[("filter:FORWARD", FRESH)], &["it was not seen in PREROUTING"]);
    check_doubt("nat", &[("nat:POST", DECIDED)], &["it was not seen in OUTPUT or PREROUTING"]);
    check_doubt("filter mangle", &[("mangle:POST", OLD)], &["it was not seen in OUTPUT or FORWARD"]);
    // Forwarded without a table that shows it.
    check_done("raw nat", &[("raw:PRE", None), ("nat:PRE", FRESH), ("nat:POST", DECIDED)]);
}

#[test]
fn chains_at_devices_come_before_the_hooks_of_ip() {
    let dump = std::fs::read("../tests/data/nftables/ruleset.bin").unwrap();
    let mut parts = decode::Parts::default();
    messages(&dump).filter_map(|message| message.netfilter()).for_each(|message| parts.add(&message));
    let mut ruleset = parts.finish(1);
    ruleset.tables.retain(|table| table.family == TableFamily::Netdev);
    let stands = Rc::new(Stands::of(loaded("raw"), Family::Ipv4, Some(&ruleset)));
    let table = &ruleset.tables[0];
    let run = |chain: &str, device: &str| {
        let (hook, priority) = (place::INGRESS, table.chain(chain).unwrap().base.as_ref().unwrap().priority);
        let mut run =
            Run { packet: 1, skb: 0x1000, entry_ns: START, netns: 1, hook, priority, ..Run::new_zeroed() };
        (run.table, run.chain) = (table.handle, table.chain(chain).unwrap().handle);
        run.indev[..device.len()].copy_from_slice(device.as_bytes());
        run
    };
    let why = |runs: &[(&str, &str)], device: &str| {
        let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
        let (mut traversal, verdict) = traversal("raw:PRE", None, START);
        traversal.indev[..device.len()].copy_from_slice(device.as_bytes());
        let runs: Vec<Run> = runs.iter().map(|(chain, device)| run(chain, device)).collect();
        let mut visits: Vec<Visit> = runs.iter().map(|run| Visit::of_run(run, Family::Ipv4)).collect();
        visits.push(visit(&traversal));
        for (index, visit) in visits.iter_mut().enumerate() {
            visit.first = index == 0;
            meet(&mut tracker, visit, part(Some(verdict)), &stands, &mut |path| paths.push(path.clone()));
        }
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert_eq!(paths.len(), 1, "{paths:?}");
        paths.pop().unwrap().why.join("; ")
    };
    let seen = "";
    assert_eq!(why(&[], "lo"), "netdev edge:first was not seen");
    assert_eq!(why(&[], "left"), "netdev edge:both was not seen");
    assert_eq!(why(&[], "leftover"), seen);
    assert_eq!(why(&[("first", "lo")], "lo"), seen);
    assert_eq!(why(&[("both", "right")], "right"), seen);
    // One device on top of others.
    assert_eq!(why(&[("both", "right")], "above"), seen);
    assert_eq!(why(&[("both", "right"), ("both", "left")], "above"), seen);
    assert_eq!(why(&[("both", "right")], "left"), "netdev edge:both was not seen");
}

#[test]
fn the_hooks_of_ip_lie_within_those_of_a_bridge() {
    let dump = std::fs::read("../tests/data/nftables/ruleset.bin").unwrap();
    let mut parts = decode::Parts::default();
    messages(&dump).filter_map(|message| message.netfilter()).for_each(|message| parts.add(&message));
    let mut ruleset = parts.finish(1);
    ruleset.tables.retain(|table| table.family == TableFamily::Bridge);
    let stands = Rc::new(Stands::of(loaded("mangle"), Family::Ipv4, Some(&ruleset)));
    let run = |table: &str, chain: &str| {
        let table = ruleset.table(TableFamily::Bridge, table).unwrap();
        let (chain, hook) = (table.chain(chain).unwrap(), Hook::BridgeForward as u8);
        let priority = chain.base.as_ref().unwrap().priority;
        let mut run =
            Run { packet: 1, skb: 0x1000, entry_ns: START, netns: 1, hook, priority, ..Run::new_zeroed() };
        (run.table, run.chain) = (table.handle, chain.handle);
        run
    };
    let why = |places: &[&str]| {
        let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
        for (index, place) in places.iter().enumerate() {
            let mut visit = match place.split_once('/') {
                Some((table, chain)) => Visit::of_run(&run(table, chain), Family::Ipv4),
                None => visit(&traversal(place, OLD, START).0),
            };
            visit.first = index == 0;
            meet(&mut tracker, &visit, part(Some(Verdict::Accept)), &stands, &mut |path| {
                paths.push(path.clone())
            });
        }
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert_eq!(paths.len(), 1, "{paths:?}");
        paths.pop().unwrap().why.join("; ")
    };
    let (first, last) = ("filter/FORWARD", "filter2/through");
    assert_eq!(why(&[first, last]), "");
    assert_eq!(why(&["mangle:PRE", first, "mangle:FOR", last, "mangle:POST"]), "");
    assert_eq!(why(&["mangle:PRE", first, last, "mangle:POST"]), "mangle:FORWARD was not seen");
    assert_eq!(why(&[last]), "bridge filter:FORWARD was not seen");
    assert_eq!(why(&[first]), "bridge filter2:through was not seen");
    assert_eq!(
        why(&["mangle:PRE", first, "mangle:FOR", "mangle:POST"]),
        "bridge filter2:through was not seen"
    );
    assert_eq!(why(&[first, last, first]), "it went back, or is two packets");
}

#[test]
fn another_packet_at_its_address() {
    check_doubt(
        "mangle",
        &[("mangle:PRE", OLD), ("mangle:INPUT other", OLD)],
        &["another packet may have come to its place in memory"],
    );
}

/// A datagram in place of what `traversal` has.
fn set_datagram(traversal: &mut Traversal, id: u8, len: u8, payload: u8) {
    for bytes in [&mut traversal.entry_bytes[..], &mut traversal.exit_bytes[..]] {
        bytes.fill(0);
        (bytes[0], bytes[3], bytes[5], bytes[9]) = (0x45, len, id, 17);
        bytes[28..36].fill(payload);
    }
    (traversal.entry.copied, traversal.exit.copied) = (36, 36);
}

/// Paths of what was seen under one number of the kernel program's: headers as [`set_datagram`] takes them.
fn datagrams(connection: Option<(u8, u64)>, met: [(&str, [u8; 3]); 2]) -> Vec<Path> {
    let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
    for (at, (place, [id, len, payload])) in (0..).zip(met) {
        let (mut traversal, verdict) = traversal(place, connection, START + at * MS);
        set_datagram(&mut traversal, id, len, payload);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |path| {
            paths.push(path.clone())
        });
    }
    tracker.finish(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert!(tracker.is_empty());
    paths
}

#[test]
fn what_cannot_be_the_same_packet_is_another() {
    let seen = |connection, second, header| {
        let paths = datagrams(connection, [("mangle:PRE first", [7, 60, 1]), (second, header)]);
        paths.into_iter().map(|path| (path.steps.len(), path.certainty, path.why)).collect::<Vec<_>>()
    };
    let whole = [(2, Certainty::Complete, Vec::new())];
    let doubted =
        [(2, Certainty::Inexact, vec!["another packet may have come to its place in memory".to_owned()])];
    let two = [
        (1, Certainty::Inexact, vec!["another packet has come to its place in memory".to_owned()]),
        (
            1,
            Certainty::Inexact,
            vec!["its earlier tables were not seen, or shown before, as another packet".to_owned()],
        ),
    ];
    let input = "mangle:INPUT";
    assert_eq!(seen(OLD, input, [7, 60, 1]), whole);
    // A rule can change one of them.
    for header in [[8, 60, 1], [7, 64, 1], [7, 60, 2]] {
        assert_eq!(seen(OLD, input, header), doubted, "{header:?}");
    }
    for header in [[8, 64, 1], [8, 60, 2], [7, 64, 2]] {
        assert_eq!(seen(OLD, input, header), two, "{header:?}");
    }
    // As a helper of conntrack does it.
    let shifts = Some((0, CONFIRMED | NAT | 1 << 6));
    assert_eq!(seen(shifts, input, [7, 60, 2]), whole);
    assert_eq!(seen(shifts, input, [7, 64, 2]), doubted);
}

#[test]
fn another_packet_can_begin_where_the_kernel_program_took_it_for_the_same() {
    for (begins, certainty) in [("mangle:OUT", Certainty::Complete), ("mangle:INPUT", Certainty::Inexact)] {
        let paths = datagrams(OLD, [("mangle:PRE first", [7, 60, 1]), (begins, [8, 64, 2])]);
        let seen: Vec<_> = paths.iter().map(|path| (path.steps.len(), path.certainty)).collect();
        assert_eq!(seen, [(1, certainty), (1, certainty)], "{begins}");
    }
}

#[test]
fn user_space_may_change_all_of_a_packet() {
    let paths = datagrams(OLD, [("mangle:PRE first queue", [7, 60, 1]), ("mangle:INPUT", [8, 64, 2])]);
    assert_eq!((paths.len(), paths[0].certainty), (1, Certainty::Inexact), "{paths:?}");
}

#[test]
fn a_packet_is_cut_on_its_way_through_loopback() {
    // Length, more fragments and offset, next header; then the fragment header's next header, and more again.
    let headers = [
        (Family::Ipv4, [(2, 90), (9, 17)].as_slice(), [(2, 60), (6, 0x20), (9, 17)].as_slice()),
        (Family::Ipv6, &[(4, 90), (6, 17)], &[(4, 60), (6, 44), (40, 17), (43, 1)]),
    ];
    let change = |later: &str, address: u8, cut: bool| {
        for (family, whole, fragment) in headers {
            let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
            for (index, (place, header)) in
                [("nat:OUT lo first", whole), (later, fragment)].iter().enumerate()
            {
                let (mut traversal, verdict) = traversal(place, OLD, START + index as u64 * MS);
                for bytes in [&mut traversal.entry_bytes, &mut traversal.exit_bytes] {
                    bytes.fill(0);
                    header.iter().for_each(|(at, byte)| bytes[*at] = *byte);
                    bytes[15] = if index == 0 { 0 } else { address };
                }
                (traversal.entry.copied, traversal.exit.copied) = (48, 48);
                let part = part(Some(verdict));
                let visit = Visit::of_traversal(&traversal, family);
                meet(&mut tracker, &visit, part, &stands("nat"), &mut |path| paths.push(path.clone()));
            }
            tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
            let doubtful = paths.iter().filter(|path| path.certainty != Certainty::Complete).count();
            let outcome = paths[0].outcome.as_deref();
            assert_eq!(
                (paths.len(), doubtful),
                if cut { (2, 0) } else { (1, 1) },
                "{family} {later} {paths:?}"
            );
            assert_eq!(outcome, cut.then_some("cut into fragments"));
        }
    };
    change("nat:PRE", 0, true);
    change("nat:PRE", 1, false);
}

/// A packet leaves by loopback with the lowest byte of its identification and its length; then a packet of its own comes in, which
/// has the third number above its offset, in this skb. How many of both are in doubt, and what became of the first.
fn cut_into_others(
    [id, len]: [u8; 2],
    [other_id, other_len, piece]: [u8; 3],
    (place, skb): (&str, u64),
) -> (usize, Option<String>) {
    let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
    // Else one that is not seen again may have been freed.
    tracker.hold();
    let seen = [
        ("mangle:OUT first lo", 1, 0x100, [id, len, 0]),
        ("mangle:POST lo", 1, 0x100, [id, len, 0]),
        (place, 2, skb, [other_id, other_len, piece]),
    ];
    for (at, (place, packet, skb, [id, len, piece])) in (0..).zip(seen) {
        let (mut traversal, verdict) = traversal(place, OLD, START + at * MS);
        set_datagram(&mut traversal, id, len, 0);
        (traversal.entry_bytes[6], traversal.exit_bytes[6]) = (piece, piece);
        (traversal.packet, traversal.skb) = (packet, skb);
        traversal.indev[..2].copy_from_slice(b"lo");
        tracker.notice(&traversal);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |path| {
            paths.push(path.clone())
        });
    }
    tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert!(tracker.is_empty());
    let cut = paths.iter().find(|path| path.packet == 1).unwrap();
    (paths.iter().filter(|path| path.certainty != Certainty::Complete).count(), cut.outcome.clone())
}

#[test]
fn a_packet_can_be_cut_into_new_ones() {
    const MORE: u8 = 0x20;
    let (new, same) = (("mangle:PRE first", 0x200), ("mangle:PRE first", 0x100));
    // The first of its fragments, or all of them, put together again.
    for other in [[7, 60, MORE], [7, 90, 0]] {
        let cut = cut_into_others([7, 90], other, new);
        assert_eq!(cut, (0, Some("cut into fragments".to_owned())), "{other:?}");
        assert_eq!(cut_into_others([7, 90], other, same), (1, None), "{other:?}");
        // Something of both may have been missed.
        assert_eq!(cut_into_others([7, 90], other, ("mangle:PRE first missed", 0x200)).0, 2, "{other:?}");
    }
    // Of another datagram, of another length, or one that cannot be told from others.
    for (packet, other) in [
        ([7, 90], [8, 60, MORE]),
        ([7, 90], [8, 90, 0]),
        ([7, 60], [7, 60, MORE]),
        ([7, 90], [7, 60, 0]),
        ([0, 90], [0, 60, MORE]),
        ([0, 90], [0, 90, 0]),
    ] {
        assert_eq!(cut_into_others(packet, other, new), (1, None), "{packet:?} {other:?}");
    }
}

#[test]
fn what_was_missed_of_a_packet_is_found_out_after_another_has_come_to_its_place() {
    let certainties = |missed: bool| {
        let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
        for (at, place, header) in [(0, "mangle:PRE first", [7, 60, 1]), (1, "mangle:OUT", [8, 64, 2])] {
            let (mut traversal, verdict) = traversal(place, OLD, START + at * MS);
            let [id, len, payload] = header;
            set_datagram(&mut traversal, id, len, payload);
            meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |_| panic!());
        }
        if missed {
            tracker.lost(START, START + MS / 2);
        }
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert!(tracker.is_empty());
        paths.sort_by_key(|path| path.packet);
        paths.iter().map(|path| path.certainty).collect::<Vec<_>>()
    };
    assert_eq!(certainties(false), [Certainty::Complete, Certainty::Complete]);
    assert_eq!(certainties(true), [Certainty::Inexact, Certainty::Complete]);
}

#[test]
fn what_was_missed_may_have_been_its_end() {
    let later = |place: &str, missed: &str, wait_ns: u64| {
        let mut tracker = Tracker::default();
        let mut paths = Vec::new();
        for (packet, place, at) in [(1, place, START), (2, missed, START + wait_ns)] {
            let (mut traversal, verdict) = traversal(place, OLD, at);
            (traversal.packet, traversal.skb) = (packet, packet * 0x100);
            let part = part(Some(verdict));
            tracker.notice(&traversal);
            meet(&mut tracker, &visit(&traversal), part, &stands("mangle"), &mut |path| {
                paths.push(path.clone())
            });
            tracker.expire(at, &mut |path| paths.push(path.clone()));
        }
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        paths.into_iter().find(|path| path.packet == 1).unwrap().certainty
    };
    let missed = "mangle:PRE first missed";
    assert_eq!(later("mangle:PRE first", missed, 3 * MS), Certainty::Inexact);
    assert_eq!(later("mangle:PRE first", "mangle:PRE first", 3 * MS), Certainty::Complete);
    assert_eq!(later("mangle:PRE first", missed, 200 * MS), Certainty::Complete);
    assert_eq!(later("mangle:PRE first drop", missed, 3 * MS), Certainty::Complete);
    assert_eq!(later("mangle:PRE first queue", missed, 20_000 * MS), Certainty::Inexact);
    assert_eq!(later("mangle:POST first", missed, 3 * MS), Certainty::Inexact);
}

/// Fragments by the packet's number, the offset in units of eight bytes with the flag for more, and the length; then what
/// became of them at INPUT, while traversals are missed. How certain the paths of the fragments are, and their outcomes.
fn put_together(pieces: &[(u64, u16, u8)], whole: (u64, u8)) -> Vec<(u64, Certainty, Option<String>)> {
    let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
    let seen = pieces.iter().map(|(packet, offset, len)| (*packet, *offset, *len, "mangle:PRE first"));
    for (packet, offset, len, place) in seen.chain([(whole.0, 0, whole.1, "mangle:INPUT missed")]) {
        let (mut traversal, verdict) = traversal(place, None, START + MS);
        set_datagram(&mut traversal, 7, len, 0);
        for bytes in [&mut traversal.entry_bytes[..], &mut traversal.exit_bytes[..]] {
            bytes[6..8].copy_from_slice(&offset.to_be_bytes());
        }
        (traversal.packet, traversal.skb) = (packet, packet * 0x100);
        tracker.notice(&traversal);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |path| {
            paths.push(path.clone())
        });
    }
    tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert!(tracker.is_empty());
    let of_pieces = paths.into_iter().filter(|path| path.packet <= pieces.len() as u64);
    of_pieces.map(|path| (path.packet, path.certainty, path.outcome)).collect()
}

#[test]
fn fragments_that_make_a_datagram_have_met_nothing_else() {
    const MORE: u16 = 0x2000;
    let together = || Some("put together with other fragments".to_owned());
    let (sure, doubted) = (Certainty::Complete, Certainty::Inexact);
    let three = [(1, MORE, 36), (2, MORE | 2, 36), (3, 4, 29)];
    let all = put_together(&three, (3, 61));
    assert_eq!(all, [(1, sure, together()), (2, sure, together()), (3, sure, together())]);
    // One was not seen, or came twice, or both: nobody knows which of them went elsewhere.
    let twice = [(1, MORE, 36), (2, MORE, 36), (3, 4, 29)];
    for (pieces, whole) in [(three, (3, 45)), (three, (3, 77)), (twice, (3, 61))] {
        let left = put_together(&pieces, whole);
        assert_eq!(left, [(3, doubted, together()), (1, doubted, None), (2, doubted, None)]);
    }
}

#[test]
fn a_fragment_that_others_have_replaced_has_met_nothing_else() {
    let certainty = |function: &str| {
        let (mut tracker, mut paths) = (Tracker::default(), Vec::new());
        let (mut traversal, verdict) = traversal("mangle:PRE first", None, START);
        set_datagram(&mut traversal, 7, 36, 0);
        (traversal.entry_bytes[7], traversal.exit_bytes[7]) = (2, 2);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |_| panic!());
        tracker.lost(START, START + MS);
        let freed = ending::Freed { symbol: function.to_owned(), ..Default::default() };
        tracker.end(1, Ending::Freed(freed), false, &mut |_| panic!());
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert!(tracker.is_empty());
        paths[0].certainty
    };
    assert_eq!(certainty("ip_defrag+0x42d"), Certainty::Complete);
    assert_eq!(certainty("ip_rcv_finish+0x1"), Certainty::Inexact);
}

#[test]
fn lost_records_may_have_been_its_end() {
    let mut tracker = Tracker::default();
    let mut paths = Vec::new();
    let (traversal, verdict) = traversal("mangle:PRE first", OLD, START);
    meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |_| panic!());
    tracker.lost(START, START + 10 * MS);
    tracker.expire(START + 300 * MS, &mut |path| paths.push(path.clone()));
    assert_eq!(paths[0].certainty, Certainty::Inexact);
}

/// What was lost behind a packet is known before the packet's own records are taken.
#[test]
fn records_are_taken_long_after_others_were_lost() {
    let mut tracker = Tracker::default();
    let mut paths = Vec::new();
    tracker.lost(START, START + 10 * MS);
    tracker.heard(START + 10_000 * MS);
    for (packet, entry_ns) in [(1, START + 5 * MS), (2, START + 15 * MS)] {
        let (mut traversal, verdict) = traversal("mangle:PRE first", OLD, entry_ns);
        (traversal.packet, traversal.skb) = (packet, packet * 0x100);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |_| panic!());
    }
    tracker.expire(START + 10_000 * MS, &mut |_| panic!());
    tracker.expire(START + 10_600 * MS, &mut |path| paths.push(path.clone()));
    let certainties: Vec<_> = paths.iter().map(|path| path.certainty).collect();
    assert_eq!(certainties, [Certainty::Inexact, Certainty::Complete], "{paths:?}");
}

#[test]
fn a_table_that_may_have_come_is_waited_for() {
    let mut tracker = Tracker::default();
    let mut paths = Vec::new();
    let coming = Loaded { possible: loaded("filter nat").ranks, ..loaded("filter") };
    let coming = Rc::new(Stands::of(coming, Family::Ipv4, None));
    for place in ["filter:OUT first", "nat:POST"] {
        let (traversal, verdict) = traversal(place, FRESH, START);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &coming, &mut |path| {
            paths.push(path.clone())
        });
    }
    assert_eq!((paths.len(), paths[0].certainty, paths[0].steps.len()), (1, Certainty::Complete, 2));
}

#[test]
fn the_trace_ends() {
    let ended = |place: &str, after_ns: u64| {
        let mut tracker = Tracker::default();
        let mut paths = Vec::new();
        let (traversal, verdict) = traversal(place, OLD, START);
        let part = part(Some(verdict));
        meet(&mut tracker, &visit(&traversal), part, &stands("mangle"), &mut |path| paths.push(path.clone()));
        tracker.finish(START + after_ns, &mut |path| paths.push(path.clone()));
        assert_eq!(paths.len(), 1);
        paths[0].certainty
    };
    assert_eq!(ended("mangle:PRE first", MS), Certainty::Inexact);
    assert_eq!(ended("mangle:PRE first", 200 * MS), Certainty::Complete);
    assert_eq!(ended("mangle:INPUT drop first", MS), Certainty::Inexact);
    assert_eq!(ended("mangle:PRE drop first", MS), Certainty::Complete);
}

#[test]
fn two_halves_are_not_two_packets() {
    let mut tracker = Tracker::default();
    let mut paths = Vec::new();
    for (packet, place) in [(1, "nat:PRE first"), (2, "nat:POST first")] {
        let (mut traversal, verdict) = traversal(place, DECIDED, START);
        traversal.packet = packet;
        let part = part(Some(verdict));
        meet(&mut tracker, &visit(&traversal), part, &stands("nat"), &mut |path| paths.push(path.clone()));
    }
    tracker.finish(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert_eq!(paths.len(), 2);
    assert!(paths.iter().all(|path| path.certainty == Certainty::Inexact), "{paths:?}");
}

#[test]
fn silent_packets_come_out_in_order() {
    let mut tracker = Tracker::default();
    let mut numbers = Vec::new();
    for packet in 1..5 {
        let place = if packet == 2 { "mangle:PRE first queue" } else { "mangle:PRE first" };
        let (mut traversal, verdict) = traversal(place, OLD, START + packet * MS);
        (traversal.packet, traversal.skb) = (packet, packet);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |_| panic!());
    }
    let mut until = |ms| tracker.expire(START + ms * MS, &mut |path| numbers.push(path.packet));
    until(250);
    until(253);
    until(254);
    until(60_000);
    assert_eq!(numbers, [1, 3, 4, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, each packet is given out once, steps are neither lost nor made, and nothing stays.
    #[test]
    fn each_packet_once(
        records in prop::collection::vec(
            (0..6_u64, 0..4_u64, any::<[u8; 8]>(), any::<u64>(), 0..400_u64, 0..3_u64),
            0..100,
        ),
    ) {
        let mut tracker = Tracker::default();
        let mut now_ns = START;
        let mut paths: Vec<Path> = Vec::new();
        let mut sent: BTreeMap<u64, usize> = BTreeMap::new();
        for (packet, skb, bytes, status, wait_ms, look) in records {
            let [table, hook, verdict, info, facts, missed, tables, copied] = bytes;
            now_ns += wait_ms * wait_ms / 400 * MS;
            let mut traversal = Traversal {
                packet,
                skb,
                entry_ns: now_ns,
                hook: hook % 6,
                ctinfo: info % 8,
                ct_status: status as u32,
                facts: u32::from(facts),
                missed: u32::from(missed / 128),
                checkpoint_ns: now_ns - MS,
                ..Traversal::new_zeroed()
            };
            let name = TABLES.get(usize::from(table % 6)).map_or("other", |(name, _)| name);
            traversal.table_name[..name.len()].copy_from_slice(name.as_bytes());
            if facts & 1 == 0 {
                traversal.outdev[..3].copy_from_slice(b"lo\0");
            }
            (traversal.entry.copied, traversal.exit.copied) = (u32::from(copied), u32::from(copied / 2));
            let verdict = match verdict % 8 {
                7 => None,
                number => Some(Verdict::from_return(u32::from(number))),
            };
            let ranks = [tables; 8];
            let loaded = Loaded { ranks, possible: ranks.map(|ranks| ranks | info) };
            let family = if skb & 1 == 0 { Family::Ipv4 } else { Family::Ipv6 };
            let visit = Visit::of_traversal(&traversal, family);
            *sent.entry(tracker.find(&visit).number).or_default() += 1;
            tracker.notice(&traversal);
            let stands = Rc::new(Stands::of(loaded, family, None));
            meet(&mut tracker, &visit, part(verdict), &stands, &mut |path| paths.push(path.clone()));
            if look == 0 {
                tracker.expire(now_ns, &mut |path| paths.push(path.clone()));
            }
        }
        tracker.expire(now_ns + 31_000 * MS, &mut |path| paths.push(path.clone()));
        prop_assert!(tracker.is_empty());
        tracker.finish(now_ns, &mut |_| panic!("a packet was left"));
        let given: BTreeSet<u64> = paths.iter().map(|path| path.packet).collect();
        prop_assert_eq!(given.len(), paths.len());
        let given: BTreeMap<u64, usize> =
            paths.iter().map(|path| (path.packet, path.steps.len())).collect();
        prop_assert_eq!(given, sent);
        for path in paths {
            prop_assert_eq!(path.certainty == Certainty::Complete, path.why.is_empty());
        }
    }
}

/// What the kernel says of a packet that it frees, whose header is that of [`set_header`].
fn freed(packet: u64, id: u8) -> Freed {
    let mut freed = Freed::new_zeroed();
    (freed.packet, freed.copied, freed.bytes[5]) = (packet, 20, id);
    freed
}

fn met(tracker: &mut Tracker, tables: &str, places: &[&str]) -> Vec<Path> {
    let mut paths = Vec::new();
    for (index, place) in places.iter().enumerate() {
        let (mut traversal, verdict) = traversal(place, None, START + index as u64 * MS);
        if index == 0 {
            traversal.facts |= fact::FIRST;
        }
        traversal.facts |= fact::OUT;
        traversal.outdev[..2].copy_from_slice(b"rb");
        let part = Part { queue: (verdict == Verdict::Queue).then_some(5), ..part(Some(verdict)) };
        meet(tracker, &visit(&traversal), part, &stands(tables), &mut |path| paths.push(path.clone()));
    }
    paths
}

/// How a packet ended, by what it met alone.
#[track_caller]
fn check_ending(tables: &str, places: &[&str], expected: Ending) {
    let mut tracker = Tracker::default();
    tracker.hold();
    let mut paths = met(&mut tracker, tables, places);
    tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert_eq!(paths.iter().map(|path| path.ending.clone()).collect::<Vec<_>>(), [Some(expected)]);
    assert!(tracker.is_empty());
}

#[test]
fn what_a_packet_met_tells_how_it_ended() {
    let rb = Device(*b"rb\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    check_ending("filter", &["filter:INPUT drop"], Ending::Dropped);
    check_ending("filter", &["filter:INPUT stolen"], Ending::Stolen);
    check_ending("filter", &["filter:INPUT queue"], Ending::Queued { queue: Some(5) });
    check_ending("filter", &["filter:INPUT"], Ending::Accepted(Hook::Input));
    check_ending("filter", &["filter:FORWARD"], Ending::Accepted(Hook::Forward));
    check_ending("mangle", &["mangle:PRE", "mangle:FORWARD", "mangle:POST"], Ending::Forwarded(rb));
    check_ending("mangle", &["mangle:OUTPUT", "mangle:POST"], Ending::Sent(rb));
    check_ending("mangle", &["mangle:PRE"], Ending::Unknown);
    check_ending("mangle", &["mangle:FORWARD"], Ending::Unknown);
}

#[test]
fn what_had_to_go_on_and_was_not_freed_was_missed() {
    // Legacy tables alone would not tell: that packets are dropped between them is usual.
    for (places, holds, certainty) in [
        (["mangle:PRE", "mangle:FORWARD"].as_slice(), true, Certainty::Inexact),
        (&["mangle:PRE", "mangle:FORWARD"], false, Certainty::Complete),
        (&["mangle:PRE"], true, Certainty::Complete),
    ] {
        let mut tracker = Tracker::default();
        if holds {
            tracker.hold();
        }
        let mut paths = met(&mut tracker, "mangle", places);
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert_eq!(paths.iter().map(|path| path.certainty).collect::<Vec<_>>(), [certainty], "{paths:?}");
    }
}

#[test]
fn a_packet_that_the_kernel_frees_has_ended_there() {
    let said = || Ending::Freed(ending::Freed { symbol: "ip_error+0x1".to_owned(), ..Default::default() });
    for (tables, places) in [("mangle", ["mangle:PRE"].as_slice()), ("filter", &["filter:INPUT"])] {
        let mut tracker = Tracker::default();
        tracker.hold();
        let mut paths = met(&mut tracker, tables, places);
        assert_eq!(tracker.freed(&freed(2, 7), "ip_error"), None, "nothing of it was seen");
        assert_eq!(tracker.freed(&freed(1, 8), "ip_error"), None, "another packet has its place");
        assert_eq!(tracker.freed(&freed(1, 7), "ip_rcv_core.isra.0"), None, "so does one that has just come");
        assert!(tracker.freed(&freed(1, 7), "ip_error").is_some());
        tracker.end(1, said(), false, &mut |path| paths.push(path.clone()));
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert_eq!(paths.iter().map(|path| path.ending.clone()).collect::<Vec<_>>(), [Some(said())]);
        assert!(paths[0].why.is_empty(), "{paths:?}");
        assert!(tracker.is_empty());
    }
}

#[test]
fn a_packet_can_be_dropped_where_it_was_not_seen() {
    let mut tracker = Tracker::default();
    tracker.hold();
    let mut paths = met(&mut tracker, "mangle", &["mangle:PRE"]);
    tracker.end(1, Ending::Freed(ending::Freed::default()), true, &mut |path| paths.push(path.clone()));
    tracker.finish(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert_eq!((paths.len(), &paths[0].why[..]), (1, &["what dropped it was not seen".to_owned()][..]));
}

#[test]
fn a_packet_that_was_freed_is_not_on_its_way_when_the_trace_ends() {
    let mut tracker = Tracker::default();
    tracker.hold();
    let mut paths = met(&mut tracker, "mangle", &["mangle:PRE"]);
    tracker.end(1, Ending::Freed(ending::Freed::default()), false, &mut |path| paths.push(path.clone()));
    tracker.finish(START + MS, &mut |path| paths.push(path.clone()));
    assert_eq!((paths.len(), paths[0].certainty), (1, Certainty::Complete), "{paths:?}");
}

#[test]
fn a_packet_that_left_can_be_freed_later() {
    let mut tracker = Tracker::default();
    tracker.hold();
    let mut paths = met(&mut tracker, "mangle", &["mangle:OUTPUT", "mangle:POST"]);
    tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
    assert_eq!(paths.len(), 1);
    assert_eq!(tracker.freed_later(&freed(1, 8), "arp_error_report"), None, "another packet has its place");
    assert_eq!(
        tracker.freed_later(&freed(1, 7), "enqueue_to_backlog"),
        None,
        "so does one that has just come"
    );
    assert_eq!(tracker.freed_later(&freed(1, 7), "arp_error_report"), Some((1, Some(1))));
    assert_eq!(tracker.freed_later(&freed(1, 7), "arp_error_report"), None, "once");
}

#[test]
fn functions_can_have_dropped_what_no_table_saw() {
    let unseen = |tables: &str, places: &[&str]| {
        let mut tracker = Tracker::default();
        tracker.hold();
        met(&mut tracker, tables, places);
        let mut unseen = tracker.freed(&freed(1, 7), "nf_hook_slow").unwrap().unseen;
        unseen.sort();
        unseen
    };
    use Hook::{Forward, Input, Postrouting, Prerouting};
    let (first, last) = (i32::MIN, i32::MAX);
    assert_eq!(unseen("raw mangle", &["raw:PRE"]), [(Prerouting, -300, -150)]);
    assert_eq!(
        unseen("raw filter", &["raw:PRE"]),
        [(Prerouting, -300, last), (Input, first, 0), (Forward, first, 0)]
    );
    assert_eq!(
        unseen("raw", &["raw:PRE"]),
        [(Prerouting, -300, last), (Input, first, last), (Forward, first, last), (Postrouting, first, last)]
    );
    assert_eq!(unseen("filter", &["filter:INPUT"]), [(Input, 0, last)]);
}

#[test]
fn user_space_decides_about_a_packet_in_a_queue() {
    for (code, expected) in [(0, Ending::ByUser { queue: Some(5) }), (1, Ending::Accepted(Hook::Input))] {
        let mut tracker = Tracker::default();
        tracker.hold();
        let mut paths = met(&mut tracker, "filter", &["filter:INPUT queue"]);
        let mut reinjected = Reinjected::new_zeroed();
        (reinjected.packet, reinjected.verdict, reinjected.time_ns) = (1, code, START + 3 * MS);
        tracker.reinjected(&reinjected, &mut |path| paths.push(path.clone()));
        tracker.expire(START + 60_000 * MS, &mut |path| paths.push(path.clone()));
        assert_eq!(paths.len(), 1);
        assert_eq!(paths[0].ending, Some(expected));
        let verdict = Verdict::from_return(code);
        assert_eq!(paths[0].waited, [Waited { queue: Some(5), waited_ns: 3 * MS, verdict }]);
        assert!(tracker.is_empty());
    }
}

#[test]
fn a_packet_whose_task_had_to_wait_inside_a_table_is_not_over() {
    let mut tracker = Tracker::default();
    let mut paths = Vec::new();
    // It entered the table long before its record came.
    tracker.heard(START + 400 * MS);
    for (place, time_ns) in [("mangle:PRE first", START), ("mangle:INPUT", START + 402 * MS)] {
        let (traversal, verdict) = traversal(place, None, time_ns);
        meet(&mut tracker, &visit(&traversal), part(Some(verdict)), &stands("mangle"), &mut |path| {
            paths.push(path.clone())
        });
        tracker.expire(time_ns.max(START + 400 * MS), &mut |path| paths.push(path.clone()));
    }
    assert_eq!((paths.len(), paths[0].steps.len()), (1, 2), "{paths:?}");
}
