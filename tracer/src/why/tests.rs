//! Packets that ended, and what is told of them.

use super::{Fate, Listed, Met, Passed, Told, Why, fate, told};
use crate::netfilter::{Engine, Family, Hook, StepKind, Verdict};
use crate::packet::{OwnedLink, Packet};
use crate::path::ending::{self, Ending};
use crate::path::{Certainty, Path};

/// TCP from 10.0.1.2:4242 to 10.0.2.2:80, a SYN.
fn syn() -> Packet {
    let mut bytes = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 1, 2, 10, 0, 2, 2];
    bytes.extend([0x10, 0x92, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
    Packet {
        family: Family::Ipv4,
        indev: Some(b"ra".to_vec()),
        outdev: Some(b"rb".to_vec()),
        link: OwnedLink::default(),
        len: 40,
        bytes,
        mark: 0,
        owner: None,
    }
}

/// `filter:FORWARD:rule:2` with its text and verdict.
fn met(name: &str, hook: Hook, text: &str, verdict: Option<Verdict>) -> Met {
    let parts: Vec<&str> = name.split(':').collect();
    let [table, chain, kind, number] = parts[..] else { panic!("{name}") };
    Met {
        time_ns: Some(1),
        hook: Some(hook),
        engine: Engine::Legacy,
        family: Family::Ipv4.into(),
        table: table.to_owned(),
        chain: chain.to_owned(),
        kind: match kind {
            "rule" => StepKind::Rule,
            "return" => StepKind::Return,
            _ => StepKind::Policy,
        },
        number: number.parse().ok(),
        handle: None,
        name: name.to_owned(),
        text: (!text.is_empty()).then(|| text.into()),
        owner: None,
        verdict,
        goes_on: verdict.is_none(),
        packet: syn(),
        doubtful: false,
    }
}

fn path(steps: &[Met], verdict: Option<Verdict>, why: &[&str]) -> Path {
    Path {
        steps: steps.iter().map(|step| step.name.as_str().into()).collect(),
        verdict,
        certainty: if why.is_empty() { Certainty::Complete } else { Certainty::Inexact },
        why: why.iter().map(|&why| why.to_owned()).collect(),
        ..Path::new(1, Family::Ipv4, None)
    }
}

fn listed(texts: &[&str]) -> Vec<Listed> {
    let rule = |(text, number): (&&str, u32)| Listed { number, text: Some((*text).into()), owner: None };
    texts.iter().zip(1..).map(rule).collect()
}

const LONG_NS: u64 = 1_000_000_000;
const FORWARD: [&str; 5] = [
    "-A FORWARD -i lo -j ACCEPT",
    "-A FORWARD -s 10.0.1.0/24 -p tcp -m tcp --dport 443 -j ACCEPT",
    "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A FORWARD -p udp -m udp --dport 53 -j ACCEPT",
    "-A FORWARD -j LOG",
];

fn close(steps: &[Met], rules: &[&str]) -> Vec<Passed> {
    let path = path(steps, Some(Verdict::Drop), &[]);
    let fate = fate(&path, steps, &mut |_| true, 0, false).expect("it was dropped");
    Why::of(&path, steps, fate, &mut |_| Some(listed(rules))).close
}

fn names(close: &[Passed]) -> Vec<&str> {
    close.iter().map(|close| close.name.as_str()).collect()
}

#[test]
fn what_nearly_let_a_packet_pass_is_found() {
    let logged = met("filter:FORWARD:rule:5", Hook::Forward, FORWARD[4], None);
    let policy = met("filter:FORWARD:policy:6", Hook::Forward, "", Some(Verdict::Drop));
    let found = close(&[logged, policy], &FORWARD);
    // UDP to port 53 fails twice.
    assert_eq!(names(&found), ["filter:FORWARD:rule:2", "filter:FORWARD:rule:1", "filter:FORWARD:rule:3"]);
    assert_eq!(found[0].failed().collect::<Vec<_>>(), [("--dport 443", "80")]);
    assert_eq!(found[2].unknown().collect::<Vec<_>>(), ["-m conntrack --ctstate RELATED,ESTABLISHED"]);
}

#[test]
fn what_stands_behind_the_wrong_rule_is_found() {
    let rules = [
        "-A FORWARD -p tcp -j DROP",
        "-A FORWARD -s 10.0.1.2/32 -p tcp -m tcp --dport 80 -j ACCEPT",
        "-A FORWARD -s 10.0.1.3/32 -j ACCEPT",
    ];
    let found = close(&[met("filter:FORWARD:rule:1", Hook::Forward, rules[0], Some(Verdict::Drop))], &rules);
    assert_eq!(names(&found), ["filter:FORWARD:rule:2"]);
    assert!(found[0].behind);
}

#[test]
fn of_rules_that_have_changed_nothing_is_said() {
    let drop =
        || met("filter:FORWARD:rule:2", Hook::Forward, "-A FORWARD -p tcp -j DROP", Some(Verdict::Drop));
    let rules = ["-A FORWARD -s 10.9.9.9/32 -j ACCEPT", "-A FORWARD -p tcp -j DROP"];
    assert_eq!(names(&close(&[drop()], &rules)), ["filter:FORWARD:rule:1"]);
    assert!(close(&[drop()], &["-A FORWARD -s 10.9.9.9/32 -j ACCEPT", "-A FORWARD -j DROP"]).is_empty());
    // The chain was entered twice.
    let twice = [met("filter:FORWARD:rule:2", Hook::Forward, rules[1], None), drop()];
    assert!(close(&twice, &rules).is_empty());
}

#[test]
fn a_packet_that_may_have_changed_is_not_asked() {
    let nft =
        |text: &str, verdict| Met { engine: Engine::Nft, ..met("f:in:rule:3", Hook::Input, text, verdict) };
    let rules = |second: &'static str| ["ip saddr 10.9.9.9 accept", second, "tcp dport 80 drop"];
    let drop = [nft("tcp dport 80 drop", Some(Verdict::Drop))];
    assert_eq!(close(&drop, &rules("tcp dport 81 accept"))[0].unknown().count(), 0);
    let set = close(&drop, &rules("meta mark set 0x00000001 tcp dport 81"));
    assert_eq!(set[0].unknown().collect::<Vec<_>>(), ["ip saddr 10.9.9.9"]);
}

#[test]
fn what_the_kernel_drops_elsewhere_is_told() {
    let input = met("filter:INPUT:policy:1", Hook::Input, "", Some(Verdict::Accept));
    let of = |reason: Option<&str>, input: &Met| {
        let freed = ending::Freed { reason: reason.map(str::to_owned), ..ending::Freed::default() };
        let path = Path {
            ending: Some(Ending::Freed(freed)),
            ..path(std::slice::from_ref(input), Some(Verdict::Accept), &[])
        };
        fate(&path, std::slice::from_ref(input), &mut |_| true, 0, false).map(|(fate, _)| fate)
    };
    assert_eq!(of(Some("NO_SOCKET"), &input), Some(Fate::Elsewhere));
    assert_eq!(of(Some("NOT_SPECIFIED"), &input), None, "it may have come to its end");
    assert_eq!(of(None, &input), None, "this kernel has no reasons");
    assert_eq!(of(Some("TCP_OLD_DATA"), &input), None, "TCP has it already");
    let mut multicast = input;
    multicast.packet.bytes[16] = 224;
    assert_eq!(of(Some("NO_SOCKET"), &multicast), None, "a multicast");
}

#[test]
fn how_a_packet_ended() {
    let none: Option<Fate> = None;
    let policy =
        |hook: Hook, verdict| met(&format!("filter:{}:policy:1", hook.chain()), hook, "", Some(verdict));
    let reject = met("filter:INPUT:rule:1", Hook::Input, "-A INPUT -j REJECT", Some(Verdict::Drop));
    let raw = policy(Hook::Prerouting, Verdict::Accept);
    let log = met("filter:INPUT:rule:1", Hook::Input, "-A INPUT -j LOG", None);
    let (drop, accept) = (Some(Verdict::Drop), Some(Verdict::Accept));
    let doubt: &[&str] = &["nothing came after it"];
    for (name, step, verdict, why, has_doubt, stands, expected) in [
        ("dropped", policy(Hook::Input, Verdict::Drop), drop, &[][..], false, true, Some(Fate::Dropped)),
        ("rejected", reject.clone(), drop, &[], false, true, Some(Fate::Rejected)),
        ("dropped, in doubt", reject, None, &["rows were lost"], true, true, Some(Fate::Rejected)),
        ("by a match", log.clone(), drop, &[], false, true, Some(Fate::Dropped)),
        ("taken in", policy(Hook::Input, Verdict::Accept), accept, &[], false, true, none),
        ("sent", policy(Hook::Postrouting, Verdict::Accept), accept, &[], false, true, none),
        ("not routed", raw.clone(), accept, &[], false, true, Some(Fate::LastSeen)),
        ("not routed, as rows tell it", raw.clone(), accept, doubt, true, true, Some(Fate::LastSeen)),
        ("perhaps not seen", raw.clone(), accept, doubt, false, true, none),
        ("perhaps lost", raw.clone(), accept, &["rows were lost", "nothing came"], true, true, none),
        ("nobody would see it", raw.clone(), accept, &[], false, false, none),
        ("waits in a queue", raw.clone(), Some(Verdict::Queue), &[], false, true, none),
    ] {
        let path = path(std::slice::from_ref(&step), verdict, why);
        let told = fate(&path, &[step], &mut |_| stands, LONG_NS, has_doubt);
        assert_eq!(told.map(|(fate, _)| fate), expected, "{name}");
    }
    let path = path(std::slice::from_ref(&raw), accept, &[]);
    assert_eq!(fate(&path, std::slice::from_ref(&raw), &mut |_| true, 1000, false), None, "it is on its way");
    let mut fragment = raw.clone();
    fragment.packet.bytes[6] = 0x20;
    assert_eq!(fate(&path, &[fragment], &mut |_| true, LONG_NS, false), None, "a fragment");
    let mut multicast = raw;
    multicast.packet.bytes[16] = 224;
    assert_eq!(fate(&path, &[multicast], &mut |_| true, LONG_NS, false), None, "a multicast");
}

#[test]
fn the_step_that_dropped_it_may_not_be_known() {
    let log = met("filter:INPUT:rule:1", Hook::Input, "-A INPUT -j LOG", None);
    let path = path(std::slice::from_ref(&log), Some(Verdict::Drop), &[]);
    let steps = [log];
    let told = fate(&path, &steps, &mut |_| true, LONG_NS, false).expect("it was dropped");
    let why = Why::of(&path, &steps, told, &mut |_| None);
    assert_eq!((why.is_certain, why.at.map(|at| at.name)), (false, Some("filter:INPUT:rule:1".to_owned())));
    assert!(why.close.is_empty());
}

#[test]
fn one_rule_that_was_passed() {
    let rule = |number: u32, hook| {
        met(&format!("filter:FORWARD:rule:{number}"), hook, FORWARD[number as usize - 1], None)
    };
    let forward = Hook::Forward;
    let end = || met("filter:FORWARD:policy:6", forward, "", Some(Verdict::Accept));
    let rules = listed(&FORWARD);
    let asked = |steps: &[Met], number, rules| match told(steps, number, rules) {
        None => "nothing".to_owned(),
        Some(Told::Unknown(why)) => why.to_owned(),
        Some(Told::Passed(passed)) => {
            passed.failed().map(|(text, value)| format!("{text}: {value}; ")).collect()
        }
    };
    let known = Some((rules.as_slice(), false));
    assert_eq!(asked(&[end()], 2, known), "--dport 443: 80; ");
    assert_eq!(asked(&[rule(2, forward), end()], 4, known), "-p udp: tcp; --dport 53: 80; ");
    assert_eq!(asked(&[end()], 3, known), "", "conntrack is not known");
    assert_eq!(asked(&[rule(2, forward), end()], 2, known), "nothing", "it matched");
    assert_eq!(asked(&[rule(2, forward)], 3, known), "nothing", "it did not come to it");
    assert_eq!(asked(&[], 3, known), "nothing");
    assert_eq!(asked(&[end()], 1, None), "the rules were changed meanwhile");
    assert_eq!(asked(&[end(), end()], 1, known), "it came to the chain more than once");
    assert_eq!(asked(&[rule(1, Hook::Input), end()], 2, known), "it came to the chain at several hooks");
    assert_eq!(asked(&[end()], 4, Some((rules.as_slice(), true))), "", "something may have changed it");
}
