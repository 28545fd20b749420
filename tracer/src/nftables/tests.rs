//! Against what a kernel and the programs said about `tests/data/nftables/rules.sh`.

use super::trace::{TraceEvent, TraceKind, decode as decode_trace};
use super::traversal::Assembler;
use super::*;
use crate::netfilter::Family;
use crate::netlink::{Builder, Message, messages};
use crate::packet::headers;
use crate::path::Path;
use expect_test::{Expect, expect, expect_file};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

fn data(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nftables").join(name)
}

fn structure() -> Ruleset {
    let dump = fs::read(data("ruleset.bin")).unwrap();
    let mut parts = decode::Parts::default();
    messages(&dump).filter_map(|message| message.netfilter()).for_each(|message| parts.add(&message));
    parts.finish(7)
}

const SAVED: [(TableFamily, &str); 4] = [
    (TableFamily::Ip, "ip.save"),
    (TableFamily::Ip6, "ip6.save"),
    (TableFamily::Bridge, "bridge.save"),
    (TableFamily::Arp, "arp.save"),
];

fn ruleset() -> Ruleset {
    let mut ruleset = structure();
    assert_eq!(attach_listing(&mut ruleset, &fs::read(data("ruleset.nft")).unwrap()), []);
    for (family, file) in SAVED {
        assert_eq!(attach_save(&mut ruleset, family, &fs::read(data(file)).unwrap()), []);
    }
    ruleset
}

fn shown(ruleset: &Ruleset) -> String {
    let tables: Vec<&Table> = ruleset.tables.iter().collect();
    let mut out = String::new();
    display::write_rules(&mut out, &tables).unwrap();
    out
}

#[test]
fn rules_are_shown_in_their_owners_words() {
    expect_file![data("ruleset.rules")].assert_eq(&shown(&ruleset()));
}

#[test]
fn texts_outlast_what_cannot_change_them() {
    let before = ruleset();
    // The rules that have no text after a change, and how many of them have nothing but their own content to say.
    let lost = |change: fn(&mut Ruleset)| {
        let mut after = structure();
        change(&mut after);
        inherit_texts(&mut after, &before);
        let rules = |ruleset: &Ruleset| -> Vec<Rule> {
            let chains = ruleset.tables.iter().flat_map(|table| &table.chains);
            chains.flat_map(|chain| chain.rules.clone()).collect()
        };
        let (mut lost, mut plain) = (0, 0);
        for (now, then) in rules(&after).iter().zip(&rules(&before)) {
            assert!(now.text.is_none() || (&now.text, &now.nft) == (&then.text, &then.nft));
            if now.text.is_none() && then.text.is_some() {
                let mut names = now.expressions.iter();
                let elsewhere = names.any(|name| ["lookup", "dynset", "objref"].contains(&&**name));
                let holds = format!("{:?}", now.verdict).contains("__");
                lost += 1;
                plain += u32::from(!elsewhere && !holds);
            }
        }
        (lost > 0, plain)
    };
    let nothing = (false, 0);
    let all_but_plain = (true, 0);
    assert_eq!(lost(|_| {}), nothing);
    assert_eq!(lost(|after| after.generation += 1), nothing);
    assert_eq!(lost(|after| after.generation += 2), all_but_plain);
    let anew = |after: &mut Ruleset| after.tables.iter_mut().for_each(|table| table.handle += 100);
    assert_eq!(lost(anew), all_but_plain);
    let renamed =
        |after: &mut Ruleset| after.tables.iter_mut().for_each(|table| table.chains[0].name = "r".into());
    let (some, plain) = lost(renamed);
    assert!(some && plain > 0);
}

#[test]
fn without_the_programs_names_and_numbers_are_there() {
    expect_file![data("structure.rules")].assert_eq(&shown(&structure()));
}

#[test]
fn both_texts_are_known_where_they_differ() {
    let ruleset = ruleset();
    let table = ruleset.table(TableFamily::Ip, "filter").unwrap();
    assert!(table.is_of_iptables() && !ruleset.table(TableFamily::Inet, "filter").unwrap().is_of_iptables());
    let texts: Vec<_> =
        table.chain("web").unwrap().rules.iter().map(|rule| (&rule.text, &rule.nft)).collect();
    let text = |text: &str| Some(Arc::from(text));
    assert_eq!(*texts[0].0, text("-A web -s 10.0.0.0/8 -j RETURN"), "{texts:?}");
    assert_eq!(*texts[0].1, text("ip saddr 10.0.0.0/8 counter packets 0 bytes 0 return"));
    // nft added it to a chain of iptables.
    assert_eq!(texts[3], (&text("meta l4proto tcp drop"), &text("meta l4proto tcp drop")));
}

/// Changes what a program printed, and expects that the table at fault gets no text.
#[track_caller]
fn check_mismatch(file: &str, from: &str, to: &str, expected: Expect) {
    let printed = fs::read_to_string(data(file)).unwrap();
    assert!(printed.contains(from), "{printed}");
    let printed = printed.replacen(from, to, 1);
    let mut ruleset = structure();
    let saved = SAVED.iter().find(|(_, saved)| *saved == file);
    let mismatches = match saved {
        Some((family, _)) => attach_save(&mut ruleset, *family, printed.as_bytes()),
        None => attach_listing(&mut ruleset, printed.as_bytes()),
    };
    let mut told = String::new();
    for (family, table, mismatch) in &mismatches {
        let table = ruleset.table(*family, table).unwrap();
        assert!(table.chains.iter().flat_map(|chain| &chain.rules).all(|rule| rule.text.is_none()));
        writeln!(told, "{} {}: {mismatch}", family.name(), table.name).unwrap();
    }
    expected.assert_eq(&told);
}

#[test]
fn a_contradiction_is_enough_for_no_text() {
    check_mismatch(
        "ip.save",
        "-A web -j DROP\n",
        "",
        expect![[r#"
        ip filter: it printed other rules for chain "web" than the kernel holds
    "#]],
    );
    check_mismatch(
        "ip.save",
        "-A web -j DROP\n",
        "-A web -j ACCEPT\n",
        expect![[r#"
        ip filter: it printed other rules for chain "web" than the kernel holds
    "#]],
    );
    check_mismatch("ip.save", "--dport 80", "--dport 80 -j web2", expect![[""]]);
    check_mismatch(
        "ip.save",
        "-j web\n",
        "-j web2\n",
        expect![[r#"
        ip filter: it printed other rules for chain "INPUT" than the kernel holds
    "#]],
    );
    check_mismatch(
        "ip.save",
        ":FORWARD DROP",
        ":FORWARD ACCEPT",
        expect![[r#"
        ip filter: it printed another policy for chain "FORWARD" than the kernel holds
    "#]],
    );
    check_mismatch(
        "ip.save",
        ":web - [0:0]\n",
        "",
        expect![[r#"
        ip filter: it did not print the table that the kernel holds
    "#]],
    );
    check_mismatch(
        "ip.save",
        "COMMIT\n",
        "-A mangle -j DROP\nCOMMIT\nwhat is this\n",
        expect![[r#"
        ip filter: it printed a line that is not understood: "what is this"
        ip nat: it printed a line that is not understood: "what is this"
        ip asleep: it printed a line that is not understood: "what is this"
    "#]],
    );
    check_mismatch(
        "bridge.save",
        "-A odd",
        "-A odd -j ACCEPT\n-A odd",
        expect![[r#"
        bridge filter: it printed other rules for chain "odd" than the kernel holds
    "#]],
    );
    check_mismatch(
        "ruleset.nft",
        "# handle 8\n",
        "# handle 80\n",
        expect![[r#"
        ip filter: it printed other rules for chain "web" than the kernel holds
    "#]],
    );
    check_mismatch(
        "ruleset.nft",
        "table ip nat { # handle 2",
        "table ip nat { # handle 99",
        expect![[r#"
        ip nat: it did not print the table that the kernel holds
    "#]],
    );
    check_mismatch(
        "ruleset.nft",
        "\t\t\tip saddr @hosts accept\n",
        "",
        expect![[r#"
        inet filter: it printed other rules for chain "in" than the kernel holds
    "#]],
    );
    check_mismatch(
        "ruleset.nft",
        "limit rate 100/second comment",
        "limit rate 100/second\ncomment",
        expect![[""]],
    );
}

/// As versions print it that show the handles of rules only.
#[test]
fn older_listings_are_read() {
    let listing = fs::read_to_string(data("ruleset.nft")).unwrap();
    let older: String = listing
        .split_inclusive('\n')
        .map(|line| {
            line.split_once(" { # handle").map_or(line.to_owned(), |(head, _)| format!("{head} {{\n"))
        })
        .collect();
    assert_ne!(older, listing);
    let mut read = structure();
    assert_eq!(attach_listing(&mut read, older.as_bytes()), []);
    let mut expected = structure();
    attach_listing(&mut expected, listing.as_bytes());
    assert_eq!(read, expected);
}

fn events(capture: &[u8]) -> Vec<TraceEvent<'_>> {
    let messages = messages(capture).filter_map(|message| message.netfilter());
    messages.map(|message| decode_trace(&message).unwrap()).collect()
}

fn device(index: u32) -> Option<Rc<[u8]>> {
    (index == 1).then(|| Rc::from(&b"lo"[..]))
}

/// What the messages of some packets become, a line for each step and path.
fn assembled<'a>(
    ruleset: &Ruleset,
    events: impl IntoIterator<Item = &'a TraceEvent<'a>>,
) -> (String, Vec<Path>) {
    let (mut assembler, mut out, mut paths) = (Assembler::default(), String::new(), Vec::new());
    let mut done = |path| paths.push(path);
    for event in events {
        let added = assembler.add(event, ruleset.locate(event), (1, None), &mut device, &mut done);
        if let Some(step) = &added.step {
            let headers = headers(&step.view);
            let (hook, action) = (step.hook.map_or("?", |hook| hook.name()), step.action.as_ref().unwrap());
            write!(out, "{} {hook} {} {} {action}", step.packet, step.rule.family.name(), step.name).unwrap();
            write!(out, " | in {:?} out {:?}", step.view.indev.map(text), step.view.outdev.map(text))
                .unwrap();
            write!(out, " mark {} len {}", step.view.mark, step.view.len).unwrap();
            let end = |address: Option<std::net::IpAddr>, port: Option<u16>| {
                let address = address.map_or_else(|| "-".to_owned(), |address| address.to_string());
                format!("{address}:{}", port.map_or_else(|| "-".to_owned(), |port| port.to_string()))
            };
            write!(out, " {} > {}", end(headers.src, headers.sport), end(headers.dst, headers.dport))
                .unwrap();
            writeln!(out, " | {}", step.rule.text.map_or("", |text| text)).unwrap();
        }
        if let Some(verdict) = added.verdict {
            writeln!(out, "  base chain: {verdict}").unwrap();
        }
    }
    assembler.expire(u64::MAX, &mut done);
    for path in &paths {
        writeln!(out, "{} = {:?}, {} {:?}", path.packet, path.verdict, path.certainty, path.why).unwrap();
    }
    (out, paths)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const TRACES: [&str; 5] = ["udp", "udp6", "tcp-reset", "tcp-drop", "ingress-drop"];

#[test]
fn messages_become_steps() {
    let ruleset = ruleset();
    for name in TRACES {
        let capture = fs::read(data(&format!("{name}.bin"))).unwrap();
        let (shown, paths) = assembled(&ruleset, &events(&capture));
        expect_file![data(&format!("{name}.steps"))].assert_eq(&shown);
        assert!(paths.iter().all(|path| path.why.is_empty()));
    }
}

#[test]
fn a_message_says_all_of_this() {
    let capture = fs::read(data("udp.bin")).unwrap();
    expect![[r#"
        TraceEvent {
            id: 2828307182,
            family: Inet,
            table: "filter",
            chain: "out",
            kind: Rule,
            handle: Some(
                13,
            ),
            verdict: Some(
                Continue,
            ),
            mark: 0,
            packet_family: Some(
                Ipv4,
            ),
            packet: Some(
                TracedPacket {
                    indev: None,
                    outdev: Some(
                        Device {
                            index: 1,
                            dev_type: 772,
                        },
                    ),
                    link: None,
                    network: Some(
                        [
                            69,
                            0,
                            0,
                            30,
                            212,
                            155,
                            64,
                            0,
                            64,
                            17,
                            104,
                            49,
                            127,
                            0,
                            0,
                            1,
                            127,
                            0,
                            0,
                            1,
                        ],
                    ),
                    transport: Some(
                        [
                            208,
                            43,
                            19,
                            136,
                            0,
                            10,
                            254,
                            29,
                            120,
                            10,
                        ],
                    ),
                },
            ),
            conntrack: Some(
                Conntrack {
                    id: Some(
                        4064158838,
                    ),
                    reply: false,
                    status: 256,
                    state: 8,
                },
            ),
        }
    "#]]
    .assert_debug_eq(&events(&capture)[0]);
}

/// What goes to a chain or leaves one cannot be missing unnoticed, unless it is all that a base chain did.
#[test]
fn a_gap_is_noticed() {
    let ruleset = ruleset();
    for name in TRACES {
        let capture = fs::read(data(&format!("{name}.bin"))).unwrap();
        let events = events(&capture);
        for (index, missing) in events.iter().enumerate() {
            let rest = events.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, event)| event);
            let (shown, paths) = assembled(&ruleset, rest);
            let noticed = paths.iter().any(|path| !path.why.is_empty());
            let leads_nowhere = missing.verdict == Some(RuleVerdict::Continue);
            let alone = missing.packet.is_some() && matches!(missing.verdict, Some(RuleVerdict::Final(_)));
            assert!(noticed || leads_nowhere || alone, "{name} {index}\n{shown}");
        }
    }
}

#[test]
fn a_rule_of_another_generation_has_no_number_and_no_text() {
    let capture = fs::read(data("udp.bin")).unwrap();
    let events = events(&capture);
    let (shown, paths) = assembled(&Ruleset::default(), &events[..1]);
    expect![[r#"
        1 ? inet filter:out:rule:? continue | in None out Some("lo") mark 0 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | 
        1 = None, inexact ["rule 13 of inet filter out is not known, the rules changed", "nothing says how inet filter ended"]
    "#]].assert_eq(&shown);
    assert_eq!(paths[0].why.len(), 2);
}

/// Kernels say different things about the same: type, verdict, handle.
#[test]
fn kernels_of_all_ages_are_understood() {
    const POLICY: u32 = 1;
    const RETURN: u32 = 2;
    const RULE: u32 = 3;
    #[track_caller]
    fn check(said: (u32, i32, Option<u64>), expected: (TraceKind, RuleVerdict<'_>, Option<u64>)) {
        let (kind, verdict, handle) = said;
        let message = Builder::new().netfilter((10, 17), 0, 0, (2, 0), |body| {
            body.attribute(4, &kind.to_be_bytes()).attribute(6, &[0, 0, 0, 1]).text(1, "t").text(2, "c");
            match kind {
                POLICY => body.attribute(16, &verdict.to_be_bytes()),
                _ => body.nested(5, |body| {
                    body.attribute(1, &verdict.to_be_bytes());
                }),
            };
            handle.iter().for_each(|handle| {
                body.attribute(3, &handle.to_be_bytes());
            });
        });
        let message = messages(message.as_bytes()).next().unwrap();
        let event = decode_trace(&message.netfilter().unwrap()).unwrap();
        assert_eq!((event.kind, event.verdict.unwrap(), event.handle), expected);
        assert_eq!((event.packet_family, event.mark, event.packet), (Some(Family::Ipv4), 0, None));
    }
    let end = (TraceKind::Return, RuleVerdict::Return, None);
    // With the last rule's handle; without a handle; as if it were a rule.
    check((RETURN, -1, Some(9)), end.clone());
    check((RETURN, -1, None), end.clone());
    check((RULE, -1, None), end);
    check((RULE, -1, Some(9)), (TraceKind::Rule, RuleVerdict::Continue, Some(9)));
    check((RETURN, -5, Some(9)), (TraceKind::Rule, RuleVerdict::Return, Some(9)));
    check((RULE, -5, Some(9)), (TraceKind::Rule, RuleVerdict::Return, Some(9)));
    check((RULE, 0, Some(9)), (TraceKind::Rule, RuleVerdict::Final(Verdict::Drop), Some(9)));
    // A queue's number, and an error for the sender, are in the upper bits.
    check((RULE, 0x0005_0003, Some(9)), (TraceKind::Rule, RuleVerdict::Final(Verdict::Queue), Some(9)));
    check((POLICY, 0, Some(9)), (TraceKind::Policy, RuleVerdict::Final(Verdict::Drop), None));
}

/// The number of an id is used again, for a packet of another path.
#[test]
fn the_same_chain_again_is_another_packet() {
    let (ruleset, capture) = (ruleset(), fs::read(data("udp.bin")).unwrap());
    let events = events(&capture);
    let (_, once) = assembled(&ruleset, &events);
    let (_, twice) = assembled(&ruleset, events.iter().chain(&events));
    assert_eq!((once.len(), twice.len()), (4, 8));
    for path in &twice {
        let first = once.iter().find(|first| first.steps == path.steps).unwrap();
        assert_eq!((&path.why, path.verdict), (&first.why, first.verdict));
    }
}

/// A packet may be marked for tracing in any chain.
#[test]
fn tracing_may_begin_in_the_middle() {
    let (ruleset, capture) = (ruleset(), fs::read(data("udp.bin")).unwrap());
    let mut events = events(&capture);
    events.truncate(8);
    let first = events.remove(0);
    events[1].packet = first.packet;
    let (shown, paths) = assembled(&ruleset, &events[1..]);
    expect![[r#"
        1 ? inet filter:marked:rule:1 continue | in None out Some("lo") mark 7 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | udp dport 5000 counter packets 0 bytes 0
        1 ? inet filter:marked:return:4 return | in None out Some("lo") mark 7 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | 
        1 output inet filter:out:rule:3 goto gone | in None out Some("lo") mark 7 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | udp dport 5000 goto gone
        1 output inet filter:gone:rule:1 continue | in None out Some("lo") mark 7 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | limit rate 100/second comment "with # handle 9"
        1 output inet filter:gone:return:2 return | in None out Some("lo") mark 7 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | 
        1 output inet filter:out:policy:5 accept | in None out Some("lo") mark 7 len 30 127.0.0.1:53291 > 127.0.0.1:5000 | 
          base chain: accept
        1 = Some(Accept), complete []
    "#]].assert_eq(&shown);
    assert_eq!(paths[0].why, [""; 0]);
}

#[test]
fn losses_are_in_every_open_path() {
    let (ruleset, capture) = (ruleset(), fs::read(data("udp.bin")).unwrap());
    let events = events(&capture);
    let mut assembler = Assembler::default();
    assembler.add(&events[0], ruleset.locate(&events[0]), (1, None), &mut device, &mut |_| ());
    assembler.lost();
    let mut paths = Vec::new();
    assembler.expire(1, &mut |path| paths.push(path));
    assert!(paths.is_empty());
    assembler.expire(2, &mut |path| paths.push(path));
    assert_eq!(paths[0].why, ["trace messages were lost", "nothing says how inet filter ended"]);
}

/// While rules are replaced, only what cannot be mistaken is known.
#[test]
fn between_two_generations() {
    let capture = fs::read(data("udp.bin")).unwrap();
    let (old, event) = (ruleset(), &events(&capture)[4]);
    let changed = |change: fn(&mut Table)| {
        let mut next = Ruleset { generation: old.generation + 1, ..old.clone() };
        let table = next.tables.iter_mut().find(|table| table.family == TableFamily::Inet).unwrap();
        change(table);
        table.index = Index::of(&table.chains);
        next
    };
    let number = |next: &Ruleset| old.locate_before(next, event).map(|located| located.number);
    assert_eq!(number(&changed(|_| ())), Some(3));
    // Another chain has one rule less.
    assert_eq!(number(&changed(|table| drop(table.chains[0].rules.pop()))), Some(3));
    // A rule before it is gone; it is gone; the table was made anew; the policy changed.
    assert_eq!(number(&changed(|table| drop(table.chains[3].rules.remove(0)))), None);
    assert_eq!(number(&changed(|table| drop(table.chains[3].rules.remove(2)))), None);
    assert_eq!(number(&changed(|table| table.handle += 1)), None);
    assert_eq!(number(&changed(|table| table.chains[3].base.as_mut().unwrap().policy = Verdict::Drop)), None);
    // Nothing is known of the generations between.
    assert_eq!(number(&Ruleset { generation: old.generation + 2, ..old.clone() }), None);
}

/// A message of the trace group with these attributes.
fn netfilter(attributes: &[u8]) -> Message<'_> {
    Message { kind: 0x0a11, flags: 0, sequence: 0, port: 0, payload: attributes }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..30) {
        let mut parts = decode::Parts::default();
        for kind in [0x11, kind] {
            let message = Message { kind: 0x0a00 | u16::from(kind), ..netfilter(&bytes) };
            if let Some(message) = message.netfilter() {
                parts.add(&message);
                let _ = (decode_trace(&message), decode::generation(&message));
            }
        }
        parts.finish(0);
    }

    /// Real messages with some bytes changed, through everything.
    #[test]
    fn damaged_messages_harm_nobody(
        file in 0..TRACES.len(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..20),
    ) {
        let mut capture = fs::read(data(&format!("{}.bin", TRACES[file]))).unwrap();
        let mut dump = fs::read(data("ruleset.bin")).unwrap();
        for (at, byte) in changes {
            *at.get_mut(&mut capture) = byte;
            *at.get_mut(&mut dump) = byte;
        }
        let mut parts = decode::Parts::default();
        messages(&dump).filter_map(|message| message.netfilter()).for_each(|message| parts.add(&message));
        let ruleset = parts.finish(1);
        shown(&ruleset);
        let mut assembler = Assembler::default();
        for event in messages(&capture).filter_map(|message| decode_trace(&message.netfilter()?)) {
            assembler.add(&event, ruleset.locate(&event), (1, None), &mut device, &mut |_| ());
        }
        assembler.expire(u64::MAX, &mut |_| ());
    }

    #[test]
    fn any_text_is_read(listing in "(table |chain |\t|\n|\\{|\\}| # handle [0-9]|\"|:|-A |a| |\\*){0,60}") {
        let mut ruleset = ruleset();
        attach_listing(&mut ruleset, listing.as_bytes());
        attach_save(&mut ruleset, TableFamily::Ip, listing.as_bytes());
    }
}
