//! What is typed, and which packets it chooses.

use super::*;
use crate::netfilter::{Engine, Family, TableFamily};
use crate::packet::{Link, Owner};
use crate::path::ending;
use crate::ruleset::Rule;
use expect_test::{Expect, expect};

#[track_caller]
fn check_text<T: FromStr<Err = &'static str> + ToString>(texts: &[(&str, Option<&str>)]) {
    for (text, expected) in texts {
        let read = text.parse::<T>().ok().map(|read| read.to_string());
        assert_eq!(read.as_deref(), *expected, "{text:?}");
    }
}

#[test]
fn devices() {
    check_text::<Device>(&[
        ("eth0", Some("eth0")),
        ("eth+", Some("eth+")),
        ("+", Some("+")),
        ("", None),
        ("fifteen-bytes-5", Some("fifteen-bytes-5")),
        ("sixteen-bytes-16", None),
        ("a b", None),
        ("a/b", None),
        ("..", None),
    ]);
    let is = |text: &str, name: &str| text.parse::<Device>().unwrap().is(name.as_bytes());
    assert!(is("eth0", "eth0") && !is("eth0", "eth01") && !is("eth0", "eth"));
    assert!(is("eth+", "eth0") && is("eth+", "eth") && !is("eth+", "wlan0") && is("+", "lo"));
}

#[test]
fn marks() {
    check_text::<Masked>(&[
        ("0", Some("0x0")),
        ("16", Some("0x10")),
        ("0x10", Some("0x10")),
        ("0x10/0xff", Some("0x10/0xff")),
        ("4294967295", Some("0xffffffff")),
        ("4294967296", None),
        ("0x110/0xff", None),
        ("-1", None),
        ("+1", None),
        ("0x+1", None),
        ("1/", None),
        ("/1", None),
        ("1/2/3", None),
        ("nft", None),
    ]);
    let mark: Masked = "0x10/0xf0".parse().unwrap();
    assert!(mark.is(0x10) && mark.is(0xabc1f) && !mark.is(0x20) && !mark.is(0));
}

#[test]
fn users() {
    check_text::<User>(&[
        ("0", Some("0")),
        ("1000", Some("1000")),
        ("www-data", Some("www-data")),
        ("4294967296", None),
        ("-1", None),
        ("", None),
        ("a:b", None),
        ("a b", None),
    ]);
}

#[test]
fn places() {
    check_text::<Place>(&[
        ("filter:FORWARD:3", Some("filter:FORWARD:3")),
        ("filter:FORWARD:rule:3", Some("filter:FORWARD:rule:3")),
        ("filter:FORWARD:policy:4", Some("filter:FORWARD:policy:4")),
        ("filter:input:policy", Some("filter:input:policy")),
        ("filter:a:b:3", Some("filter:a:b:3")),
        ("filter:FORWARD:0", None),
        ("filter:FORWARD:-1", None),
        ("filter:FORWARD", None),
        ("filter:policy", None),
        ("filter:3", None),
        (":FORWARD:3", None),
        ("filter::3", None),
        ("3", None),
        ("", None),
    ]);
}

#[test]
fn verdicts() {
    assert_eq!(verdict("drop"), Ok(Verdict::Drop));
    assert_eq!(verdict("queue"), Ok(Verdict::Queue));
    for wrong in ["", "DROP", "reject", "verdict 9"] {
        assert!(verdict(wrong).is_err(), "{wrong}");
    }
}

/// A packet that came in by eth0 and leaves by eth1, at the second rule of filter:FORWARD.
fn step<'a>(hook: Hook, view: PacketView<'a>) -> Step<'a> {
    let rule = Rule {
        engine: Engine::Legacy,
        family: TableFamily::Ip,
        table: "filter",
        chain: "FORWARD",
        kind: StepKind::Rule,
        number: Some(2),
        handle: None,
        text: None,
        nft: None,
        owner: None,
    };
    Step {
        packet: 1,
        time_ns: None,
        hook: Some(hook),
        rule,
        name: "filter:FORWARD:rule:2",
        action: None,
        view,
        view_doubt: None,
        tracked: None,
        netns: None,
    }
}

fn view() -> PacketView<'static> {
    PacketView {
        family: Family::Ipv4,
        indev: Some(b"eth0"),
        outdev: Some(b"eth1"),
        link: Link { physin: Some(b"port1"), ..Link::default() },
        len: 0,
        bytes: &[],
        mark: 0x10,
        owner: Some(Owner { uid: 7, gid: 7 }),
    }
}

/// Asks about a packet with this one step and this end.
fn choice(predicates: &Predicates, step: &Step<'_>, verdict: Option<Verdict>) -> Choice {
    let mut met = Met::default();
    met.add(predicates.met(step));
    predicates.choose(met, verdict, None)
}

#[test]
fn packets_are_chosen_by_their_steps() {
    let none = Predicates::default();
    let forward = step(Hook::Forward, view());
    let cases: Vec<(Predicates, bool)> = vec![
        (none.clone(), true),
        (Predicates { indev: "eth0".parse().ok(), ..none.clone() }, true),
        (Predicates { indev: "eth1".parse().ok(), ..none.clone() }, false),
        (Predicates { indev: "port1".parse().ok(), ..none.clone() }, true),
        (Predicates { outdev: "eth1".parse().ok(), ..none.clone() }, true),
        (Predicates { outdev: "eth0".parse().ok(), ..none.clone() }, false),
        (Predicates { mark: "0x10/0xf0".parse().ok(), ..none.clone() }, true),
        (Predicates { mark: "0x11".parse().ok(), ..none.clone() }, false),
        (Predicates { table: Some("filter".to_owned()), ..none.clone() }, true),
        (Predicates { table: Some("nat".to_owned()), ..none.clone() }, false),
        (Predicates { chain: Some("FORWARD".to_owned()), ..none.clone() }, true),
        (Predicates { chain: Some("INPUT".to_owned()), ..none.clone() }, false),
        (Predicates { rule: "filter:FORWARD:2".parse().ok(), ..none.clone() }, true),
        (Predicates { rule: "filter:FORWARD:policy:2".parse().ok(), ..none.clone() }, false),
        (Predicates { rule: "filter:FORWARD:3".parse().ok(), ..none.clone() }, false),
        (Predicates { rule: "filter:INPUT:2".parse().ok(), ..none.clone() }, false),
        // A socket that takes the packet is no sender.
        (Predicates { uid: "7".parse().ok(), ..none.clone() }, false),
        (Predicates { indev: "eth0".parse().ok(), mark: "1".parse().ok(), ..none }, false),
    ];
    for (predicates, wanted) in cases {
        let expected = if wanted { Choice::Wanted } else { Choice::Unwanted };
        assert_eq!(choice(&predicates, &forward, None), expected, "{predicates}");
    }
    let user = Predicates { uid: "7".parse().ok(), ..Predicates::default() };
    assert_eq!(choice(&user, &step(Hook::Output, view()), None), Choice::Wanted);
}

#[test]
fn several_steps_together_meet_what_is_asked() {
    let predicates =
        Predicates { indev: "eth0".parse().ok(), mark: "0x20".parse().ok(), ..Predicates::default() };
    let mut met = predicates.met(&step(Hook::Prerouting, view()));
    assert_eq!(predicates.choose(met, None, None), Choice::Unwanted);
    met.add(predicates.met(&step(Hook::Output, PacketView { indev: None, mark: 0x20, ..view() })));
    assert_eq!(predicates.choose(met, None, None), Choice::Wanted);
    // A chain of this name in another table does not do.
    let chain = Predicates {
        table: Some("nat".to_owned()),
        chain: Some("FORWARD".to_owned()),
        ..Predicates::default()
    };
    assert_eq!(chain.choose(chain.met(&step(Hook::Forward, view())), None, None), Choice::Unwanted);
}

#[test]
fn packets_are_chosen_by_their_verdict() {
    let predicates = Predicates { verdicts: vec![Verdict::Drop, Verdict::Queue], ..Predicates::default() };
    let forward = step(Hook::Forward, view());
    let choose = |verdict| choice(&predicates, &forward, verdict);
    assert_eq!(choose(Some(Verdict::Drop)), Choice::Wanted);
    assert_eq!(choose(Some(Verdict::Queue)), Choice::Wanted);
    assert_eq!(choose(Some(Verdict::Accept)), Choice::Unwanted);
    assert_eq!(choose(None), Choice::Unknown);
}

#[test]
fn dropped_packets_without_steps_are_chosen_unless_steps_are_asked_about() {
    let dropped = Predicates { verdicts: vec![Verdict::Drop], ..Predicates::default() };
    let choose = |predicates: &Predicates, verdict| predicates.choose(Met::default(), Some(verdict), None);
    assert_eq!(choose(&dropped, Verdict::Drop), Choice::Wanted);
    assert_eq!(choose(&dropped, Verdict::Accept), Choice::Unwanted);
    let by_device = Predicates { indev: "eth0".parse().ok(), ..dropped };
    assert_eq!(choose(&by_device, Verdict::Drop), Choice::Unwanted);
}

#[test]
fn packets_are_chosen_by_their_ending() {
    let met = Predicates::default().met(&step(Hook::Forward, view()));
    let wanted = |asked: Verdict, verdict, ending: &Ending| {
        let predicates = Predicates { verdicts: vec![asked], ..Predicates::default() };
        predicates.choose(met, Some(verdict), Some(ending)) == Choice::Wanted
    };
    let function =
        Ending::ByFunction { hooks: Vec::new(), functions: Vec::new(), freed: ending::Freed::default() };
    assert!(wanted(Verdict::Drop, Verdict::Accept, &function));
    assert!(!wanted(Verdict::Accept, Verdict::Accept, &function));
    let user = Ending::ByUser { queue: Some(5) };
    assert!(wanted(Verdict::Drop, Verdict::Queue, &user));
    assert!(wanted(Verdict::Queue, Verdict::Queue, &user));
    // Nothing tells whether it had come to its end.
    let freed = Ending::Freed(ending::Freed::default());
    assert!(!wanted(Verdict::Drop, Verdict::Accept, &freed));
    assert!(wanted(Verdict::Accept, Verdict::Accept, &freed));
}

#[track_caller]
fn check_shown(predicates: &Predicates, expected: Expect) {
    expected.assert_eq(&predicates.to_string());
}

#[test]
fn all_is_shown_as_typed() {
    check_shown(&Predicates::default(), expect![""]);
    let all = Predicates {
        indev: "eth+".parse().ok(),
        outdev: "ppp0".parse().ok(),
        mark: "16/0xff".parse().ok(),
        uid: "www-data".parse().ok(),
        table: Some("nat".to_owned()),
        chain: Some("PREROUTING".to_owned()),
        rule: "filter:INPUT:3".parse().ok(),
        verdicts: vec![Verdict::Drop, Verdict::Stolen],
    };
    check_shown(
        &all,
        expect![
            "--in eth+ --out ppp0 --mark 0x10/0xff --uid www-data --table nat --chain PREROUTING --rule \
             filter:INPUT:3 --verdict drop,stolen"
        ],
    );
}
