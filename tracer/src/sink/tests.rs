//! The same short trace in all forms, compared with what is expected to the byte.

use super::{
    CountJson, CountSink, CountTotals, Namespace, Output, Pretty, Row, Sink, Start, Summarised, Tables,
    Totals, choose,
};
use crate::container::{Container, Group, Names, Runtime};
use crate::explain::{Known, explain};
use crate::latency::Spent;
use crate::netfilter::{Engine, Family, Hook, StepKind, TableFamily, Verdict};
use crate::packet::{Link, PacketView, Sender};
use crate::path::ending::{Device, Ending, Freed, HookFunction, Waited};
use crate::path::{Action, Certainty, Path, Sighting, Step};
use crate::ruleset::{Chain, Entry, Rule, Table, Target};
use crate::tally::{By, Ranking, Tally, What};
use crate::why::{Fate, Listed, Met, Passed, Told, Why};
use expect_test::{Expect, expect, expect_file};
use std::io;
use std::time::Duration;

const TIME_NS: u64 = 1_795_446_245_000_000_042;
const NETNS: u32 = 4_026_531_840;

/// TCP from 10.0.0.1:4242 to 10.0.0.2:80, 60 bytes.
const TCP: [u8; 24] =
    [0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0x92, 0, 80];

fn entry(chain: usize, number: u32, kind: StepKind, text: Option<&str>) -> Entry {
    let target = Target::Verdict(Verdict::Accept);
    let tail = kind != StepKind::Rule;
    let (chain, text) = (Some(chain), text.map(Into::into));
    Entry { chain, number, kind, tail, unconditional: tail, target, text }
}

fn table(name: &str, chain: &str, hook: Hook, rules: &[Option<&str>]) -> Table {
    let mut entries: Vec<Entry> =
        (1..).zip(rules).map(|(number, text)| entry(0, number, StepKind::Rule, *text)).collect();
    entries.push(entry(0, entries.len() as u32 + 1, StepKind::Policy, None));
    let chains = vec![Chain { name: chain.to_owned(), hook: Some(hook), entries: 0..entries.len() }];
    Table {
        family: Family::Ipv4,
        name: name.to_owned(),
        entries,
        chains,
        hook_entry: [None; 5],
        underflow: [None; 5],
        size: 0,
    }
}

fn view<'a>(bytes: &'a [u8]) -> PacketView<'a> {
    PacketView {
        family: Family::Ipv4,
        indev: Some(b"eth0"),
        outdev: None,
        link: Link::default(),
        len: 60,
        bytes,
        mark: 0,
        owner: None,
    }
}

fn step<'a>(
    packet: u64,
    table: &'a Table,
    entry: usize,
    action: Action<'a>,
    view: PacketView<'a>,
) -> Step<'a> {
    let hook = table.chains[0].hook;
    let rule = table.rule(entry).expect("an entry of a chain");
    let name = &table.chains[0].name;
    let name = format!("{}:{name}:{}:{}", table.name, rule.kind, table.entries[entry].number).leak();
    let (time_ns, netns) = (Some(TIME_NS), Some(NETNS));
    Step {
        packet,
        time_ns,
        hook,
        rule,
        name,
        action: Some(action),
        view,
        view_doubt: None,
        tracked: None,
        netns,
    }
}

fn path(packet: u64, verdict: Option<Verdict>, certainty: Certainty, why: &[&str]) -> Path {
    Path {
        steps: vec!["raw:PREROUTING:policy:1".into(), "filter:INPUT:rule:2".into()],
        verdict,
        certainty,
        why: why.iter().map(|&why| why.to_owned()).collect(),
        generation: vec!["raw@1".into(), "filter@7".into()],
        ..Path::new(packet, Family::Ipv4, Some(NETNS))
    }
}

fn start() -> Start {
    Start {
        filter: "tcp port 80".to_owned(),
        choice: String::new(),
        netns: "blue".to_owned(),
        backend: "ebpf",
        footprint: "none".to_owned(),
        kernel: "6.1.0-18-amd64".to_owned(),
        log_style: crate::trace_line::LogStyle::of_tcp_header(false),
    }
}

const TOTALS: Totals = Totals {
    packets: 12,
    steps: 80,
    lost: 1,
    missed: 2,
    unordered: 3,
    inexact: 4,
    sampled_out: None,
    limited_out: None,
    undecided: 0,
};

fn container() -> Container {
    let id = "3f4e8f1b2c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5".to_owned();
    let pod = Some("0d8c9b7e-1f2a-4c3d-9e8f-7a6b5c4d3e2f".to_owned());
    let known = |name: &str| Some(name.to_owned());
    Container {
        group: Group { runtime: Some(Runtime::Containerd), id: Some(id), pod },
        names: Names { container: known("web"), pod: known("cart-0"), namespace: known("shop") },
    }
}

/// Two packets whose steps interleave, and one that nothing is known of.
pub(crate) fn play(sink: &mut dyn Sink) -> io::Result<()> {
    let accept = Action::Verdict(Verdict::Accept);
    let raw = table("raw", "PREROUTING", Hook::Prerouting, &[]);
    let mangle =
        table("mangle", "PREROUTING", Hook::Prerouting, &[Some("-A PREROUTING -j MARK --set-mark 1")]);
    let filter =
        table("filter", "INPUT", Hook::Input, &[None, Some("-A INPUT -p tcp -m tcp --dport 80 -j DROP")]);
    let marked = PacketView { mark: 0x1f, ..view(&TCP) };

    sink.row(Row::Start(&start()))?;
    sink.row(Row::Namespace(
        NETNS,
        &Namespace { name: Some("blue".to_owned()), container: Some(container()) },
    ))?;
    sink.row(Row::Step(&step(1, &raw, 0, accept.clone(), view(&TCP))))?;
    sink.row(Row::Step(&step(
        2,
        &raw,
        0,
        accept.clone(),
        PacketView { outdev: Some(b"eth1"), ..view(&TCP[..10]) },
    )))?;
    sink.row(Row::Step(&step(1, &mangle, 0, Action::Continue, view(&TCP))))?;
    sink.row(Row::Step(&step(1, &filter, 0, Action::Jump("web"), marked)))?;
    let doubtful = step(1, &filter, 1, Action::Verdict(Verdict::Drop), marked);
    let rule = Rule { owner: Some("firewalld zone public"), ..doubtful.rule };
    sink.row(Row::Step(&Step {
        rule,
        view_doubt: Some("which rule set the mark is not known"),
        ..doubtful
    }))?;
    sink.row(Row::Path(&path(1, Some(Verdict::Drop), Certainty::Complete, &[])))?;
    sink.row(Row::Namespace(NETNS, &Namespace::default()))?;
    let doubts = ["table replaced", "probe missed"];
    sink.row(Row::Path(&Path {
        note: Some("nat: established, not consulted".into()),
        ..path(2, Some(Verdict::Accept), Certainty::Inexact, &doubts)
    }))?;
    sink.row(Row::Path(&path(3, None, Certainty::Unordered, &["a chain was entered more than once"])))?;
    // Of which no step tells.
    let freed = Freed { symbol: "nf_hook_slow+0x96".to_owned(), ..Freed::default() };
    let conntrack = HookFunction { name: "ipv4_conntrack_in".to_owned(), priority: -200 };
    let by = Ending::ByFunction { hooks: vec![Hook::Prerouting], functions: vec![conntrack], freed };
    sink.row(Row::Path(&Path {
        steps: Vec::new(),
        generation: Vec::new(),
        sighting: Some(Box::new(Sighting { time_ns: TIME_NS, packet: view(&TCP).into() })),
        ending: Some(by),
        ..path(4, Some(Verdict::Drop), Certainty::Inexact, &["no rule dropped it"])
    }))?;
    sink.row(Row::End(&TOTALS))
}

/// Names and texts made by someone who wishes the reader ill.
fn play_hostile(sink: &mut dyn Sink) -> io::Result<()> {
    let comment = "-A X -m comment --comment \"\x1b[2J\u{9b}31m\u{202e}\n\" -j ACCEPT";
    let table = table("filter", "X\x1b[1m\u{9b}ü", Hook::Input, &[Some(comment)]);
    let view = PacketView { indev: Some(b"e\x1b]0;h\x07\xff"), ..view(&TCP) };
    sink.row(Row::Namespace(NETNS, &Namespace { name: Some("n\x1b[2J".to_owned()), container: None }))?;
    sink.row(Row::Step(&Step {
        view_doubt: Some("\x08"),
        ..step(1, &table, 0, Action::Jump("Y\x1bc"), view)
    }))?;
    sink.row(Row::Path(&Path {
        steps: vec!["filter:X\x1b:rule:1".into()],
        ..path(1, None, Certainty::Inexact, &["\x1b[8m"])
    }))?;
    sink.row(Row::End(&Totals::default()))
}

/// A packet that a rule dropped, one that a policy dropped, one that was not routed, and none at all.
fn play_why(sink: &mut dyn Sink) -> io::Result<()> {
    const NEAR: &str = "-A INPUT -s 10.9.0.0/16 -m conntrack --ctstate NEW -j ACCEPT";
    const BAD: &str = "-A INPUT -m comment --comment \"\x1b[2J\" -j DROP";
    const LATE: &str = "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT";
    let filter = table("filter", "INPUT", Hook::Input, &[Some(NEAR), Some(BAD), Some(LATE)]);
    let raw = table("raw", "PREROUTING", Hook::Prerouting, &[]);
    let met = |table, entry, verdict| Met::from(&step(1, table, entry, Action::Verdict(verdict), view(&TCP)));
    let listed: Vec<Listed> = [NEAR, BAD, LATE]
        .into_iter()
        .zip(1..)
        .map(|(text, number)| Listed { number, text: Some(text.into()), owner: Some("ufw".to_owned()) })
        .collect();
    let (dropped, accepted) = (Some(Verdict::Drop), Some(Verdict::Accept));
    let why = |met: Met, verdict, fate, certainty| {
        let path = path(1, verdict, certainty, if verdict == accepted { &["nothing came"] } else { &[] });
        let at = (fate != Fate::LastSeen).then_some(0);
        let why = Why::of(&path, &[met], (fate, at), &mut |_| Some(listed.clone()));
        Why { look: Some("iptables-legacy -nvL".to_owned()), ..why }
    };
    let by_rule = why(met(&filter, 1, Verdict::Drop), dropped, Fate::Dropped, Certainty::Complete);
    let cgroup = Some("/user.slice".to_owned());
    let sender = Sender { pid: 4711, name: "a\nprogram".to_owned(), uid: 1000, cgroup };
    let by_rule = Why { sender: Some(sender), ..by_rule };
    sink.row(Row::Told(1, "filter:INPUT:rule:1", &Told::Passed(by_rule.close[0].clone())))?;
    sink.row(Row::Why(&by_rule))?;
    let by_policy = why(met(&filter, 3, Verdict::Drop), dropped, Fate::Dropped, Certainty::Complete);
    sink.row(Row::Why(&by_policy))?;
    let lost = why(met(&raw, 0, Verdict::Accept), accepted, Fate::LastSeen, Certainty::Inexact);
    sink.row(Row::Why(&lost))?;
    sink.row(Row::NoDrop(7))?;
    sink.flush()
}

#[test]
fn why_in_words() {
    expect_file!["snapshots/why.txt"].assert_eq(&capture(Output::Pretty, play_why));
    let rows = capture(Output::Json, play_why);
    expect_file!["snapshots/why-json.txt"].assert_eq(&rows);
    for row in rows.lines() {
        let value: serde_json::Value = serde_json::from_str(row).expect(row);
        assert!(["why", "passed"].iter().any(|word| value["type"] == **word), "{row}");
    }
}

/// A rule that a packet passed stands behind its steps.
#[test]
fn what_was_passed() {
    let mut bytes = Vec::new();
    let mut sink = Pretty::new(&mut bytes, false).in_utc();
    let raw = table("raw", "PREROUTING", Hook::Prerouting, &[]);
    let mut show = || {
        sink.row(Row::Step(&step(1, &raw, 0, Action::Continue, view(&TCP))))?;
        let checks = explain("-A PREROUTING -i eth1 -m set --match-set x src", &view(&TCP), Known::All);
        let passed = Passed {
            name: "raw:PREROUTING:rule:1".to_owned(),
            text: "-A PREROUTING -i eth1 -m set --match-set x src".into(),
            owner: None,
            behind: false,
            checks,
        };
        sink.row(Row::Told(1, "raw:PREROUTING:rule:1", &Told::Passed(passed)))?;
        sink.row(Row::Told(1, "raw:PREROUTING:rule:2", &Told::Unknown("its path is in doubt")))?;
        sink.row(Row::Path(&path(1, Some(Verdict::Accept), Certainty::Complete, &[])))?;
        sink.flush()
    };
    show().expect("memory can be written to");
    drop(sink);
    expect![[r#"
        15:04:05.000000 ip in eth0 10.0.0.1:4242 > 10.0.0.2:80 tcp length 60 netns 4026531840 packet 1
          prerouting   raw:PREROUTING:policy:1  continue
          passed raw:PREROUTING:rule:1  -A PREROUTING -i eth1 -m set --match-set x src
            -i eth1: the packet has eth0
            -m set --match-set x src: not known
          whether it passed raw:PREROUTING:rule:2 is not known: its path is in doubt
          = accept, complete
    "#]]
    .assert_eq(&String::from_utf8(bytes).expect("sinks write UTF-8"));
}

fn capture(output: Output, play: fn(&mut dyn Sink) -> io::Result<()>) -> String {
    let mut bytes = Vec::new();
    let sink: Box<dyn Sink + '_> = match output {
        Output::Pretty => Box::new(Pretty::new(&mut bytes, false).in_utc()),
        other => choose(other, false, &mut bytes),
    };
    finish(sink, play);
    String::from_utf8(bytes).expect("sinks write UTF-8")
}

fn finish(mut sink: Box<dyn Sink + '_>, play: fn(&mut dyn Sink) -> io::Result<()>) {
    play(sink.as_mut()).expect("memory can be written to");
}

#[track_caller]
fn check_hostile(output: Output, expected: Expect) {
    let text = capture(output, play_hostile);
    assert!(!text.contains(|c| c != '\n' && crate::text::is_unsafe(c)), "{text:?}");
    expected.assert_eq(&text);
}

#[test]
fn every_form() {
    expect_file!["snapshots/trace.txt"].assert_eq(&capture(Output::Trace, play));
    expect_file!["snapshots/pretty.txt"].assert_eq(&capture(Output::Pretty, play));
    expect_file!["snapshots/json.txt"].assert_eq(&capture(Output::Json, play));
}

#[test]
fn every_json_line_is_an_object() {
    for line in capture(Output::Json, play).lines().chain(capture(Output::Json, play_hostile).lines()) {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value["type"].is_string(), "{line}");
    }
}

#[test]
fn nothing_a_terminal_acts_on_gets_through() {
    check_hostile(
        Output::Trace,
        expect![[r#"
        TRACE: filter:X\x1b[1m\xc2\x9b\xc3\xbc:rule:1 IN=e\x1b]0;h\x07\xff OUT= MAC= SRC=10.0.0.1 DST=10.0.0.2 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=TCP 
    "#]],
    );
    check_hostile(
        Output::Pretty,
        expect![[r#"
            15:04:05.000000 ip in e\x1b]0;h\x07\xff 10.0.0.1:4242 > 10.0.0.2:80 tcp length 60 netns 4026531840 (n\x1b[2J) packet 1
              input        filter:X\x1b[1m\u{9b}ü:rule:1  jump Y\x1bc  -A X -m comment --comment "\x1b[2J\u{9b}31m\u{202e}\n" -j ACCEPT  (\x08)
              = verdict unknown, inexact: \x1b[8m
        "#]],
    );
    check_hostile(
        Output::Json,
        expect![[r#"
            {"type":"netns","netns":4026531840,"name":"n\u001b[2J"}
            {"type":"step","packet":1,"time":"2026-11-23T15:04:05.000000042Z","family":"ip","engine":"legacy","hook":"input","table":"filter","chain":"X\u001b[1m\u009bü","kind":"rule","rule":1,"text":"-A X -m comment --comment \"\u001b[2J\u009b31m\u202e\n\" -j ACCEPT","verdict":"jump Y\u001bc","in":"e\u001b]0;h\u0007\\xff","src":"10.0.0.1","dst":"10.0.0.2","proto":"tcp","sport":4242,"dport":80,"length":60,"ttl":64,"id":1,"mark":0,"netns":4026531840,"netns_name":"n\u001b[2J","doubt":"\b"}
            {"type":"packet","packet":1,"path":["filter:X\u001b:rule:1"],"certainty":"inexact","why":"\u001b[8m","family":"ip","generation":["raw@1","filter@7"],"netns":4026531840,"netns_name":"n\u001b[2J"}
            {"type":"end","packets":0,"steps":0,"lost":0,"missed":0,"unordered":0,"inexact":0}
        "#]],
    );
}

#[test]
fn colour_only_changes_colour() {
    let mut bytes = Vec::new();
    play(&mut Pretty::new(&mut bytes, true).in_utc()).expect("memory can be written to");
    let coloured = String::from_utf8(bytes).expect("sinks write UTF-8");
    assert!(coloured.contains("\x1b[31m"), "{coloured}");
    assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), capture(Output::Pretty, play));
}

#[test]
fn unfinished_packets_do_not_pile_up() {
    let mut bytes = Vec::new();
    let mut sink = Pretty::new(&mut bytes, false).in_utc().with_most_pending_steps(2);
    let raw = table("raw", "PREROUTING", Hook::Prerouting, &[]);
    for packet in [1, 2, 1, 3] {
        sink.row(Row::Step(&step(packet, &raw, 0, Action::Continue, view(&TCP))))
            .expect("memory can be written to");
    }
    sink.row(Row::Path(&path(1, Some(Verdict::Accept), Certainty::Complete, &[])))
        .expect("memory can be written to");
    sink.row(Row::End(&TOTALS)).expect("memory can be written to");
    drop(sink);
    expect![[r#"
        15:04:05.000000 ip in eth0 10.0.0.1:4242 > 10.0.0.2:80 tcp length 60 netns 4026531840 packet 1
          prerouting   raw:PREROUTING:policy:1  continue
          prerouting   raw:PREROUTING:policy:1  continue
          = not finished
        ip netns 4026531840 packet 1
          raw:PREROUTING:policy:1
          filter:INPUT:rule:2
          = accept, complete
        15:04:05.000000 ip in eth0 10.0.0.1:4242 > 10.0.0.2:80 tcp length 60 netns 4026531840 packet 2
          prerouting   raw:PREROUTING:policy:1  continue
          = not finished
        15:04:05.000000 ip in eth0 10.0.0.1:4242 > 10.0.0.2:80 tcp length 60 netns 4026531840 packet 3
          prerouting   raw:PREROUTING:policy:1  continue
          = not finished
    "#]]
    .assert_eq(&String::from_utf8(bytes).expect("sinks write UTF-8"));
}

/// Each way in which a packet can end, with its verdict.
fn endings() -> Vec<(Verdict, Ending)> {
    let device = Device(*b"rb\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let freed = |symbol: &str, reason: Option<&str>, netns| Freed {
        symbol: symbol.to_owned(),
        reason: reason.map(str::to_owned),
        netns,
    };
    let function = |name: &str, priority| HookFunction { name: name.to_owned(), priority };
    let by = |hooks: &[Hook], functions: &[HookFunction]| Ending::ByFunction {
        hooks: hooks.to_vec(),
        functions: functions.to_vec(),
        freed: freed("nf_hook_slow+0x96", Some("NETFILTER_DROP"), None),
    };
    let conntrack = function("ipv4_conntrack_in", -200);
    let (ip_vs, confirm) = (function("ip_vs_in_hook", 99), function("nf_confirm", i32::MAX));
    let accept = [
        by(&[Hook::Prerouting], std::slice::from_ref(&conntrack)),
        by(&[Hook::Input, Hook::Forward], &[ip_vs, confirm]),
        by(&[Hook::Input], &[]),
        Ending::Freed(freed("ip_rcv_finish_core+0x1b2", Some("IP_RPFILTER"), None)),
        Ending::Freed(freed("__udp4_lib_rcv+0x7", None, Some(4_026_532_195))),
        Ending::Accepted(Hook::Input),
        Ending::Forwarded(device),
        Ending::Sent(device),
        Ending::Unknown,
    ];
    let queue = [
        Ending::Queued { queue: Some(5) },
        Ending::Queued { queue: None },
        Ending::ByUser { queue: Some(5) },
    ];
    let others = [(Verdict::Drop, Ending::Dropped), (Verdict::Stolen, Ending::Stolen)];
    let of = |verdict: Verdict| move |ending| (verdict, ending);
    let accept = accept.into_iter().map(of(Verdict::Accept));
    accept.chain(queue.into_iter().map(of(Verdict::Queue))).chain(others).collect()
}

fn shown_endings(output: Output) -> String {
    let mut bytes = Vec::new();
    let mut sink = choose(output, false, &mut bytes);
    for (verdict, ending) in endings() {
        let waited = match &ending {
            Ending::ByUser { queue } => {
                vec![Waited { queue: *queue, waited_ns: 1_234_567, verdict: Verdict::Drop }]
            }
            _ => Vec::new(),
        };
        let path = Path { ending: Some(ending), waited, ..path(1, Some(verdict), Certainty::Complete, &[]) };
        sink.row(Row::Path(&path)).expect("memory can be written to");
    }
    sink.flush().expect("memory can be written to");
    drop(sink);
    let text = String::from_utf8(bytes).expect("sinks write UTF-8");
    let wanted =
        |line: &&str| line.starts_with("  =") || line.starts_with("  queue") || line.starts_with('{');
    let fields = |line: &str| match line.split_once("\"ending\":") {
        Some((_, ending)) => ending.split(",\"family\"").next().unwrap_or_default().to_owned(),
        None => line.trim_start().to_owned(),
    };
    text.lines().filter(wanted).map(|line| fields(line) + "\n").collect()
}

#[test]
fn how_a_packet_ended_for_people() {
    expect![[r#"
          = accept, then dropped by ipv4_conntrack_in (priority -200), at prerouting, complete
          = accept, then dropped by one of ip_vs_in_hook (priority 99), nf_confirm (priority 2147483647), at input or forward, complete
          = accept, then dropped by a function that is not known, at input, complete
          = accept, then freed in ip_rcv_finish_core+0x1b2, reason IP_RPFILTER, complete
          = accept, then freed in __udp4_lib_rcv+0x7, in netns 4026532195, complete
          = accept at input, complete
          = accept, forwarded out rb, complete
          = accept, sent out rb, complete
          = accept, complete
          = queue 5, complete
          = queue, complete
          queue 5: drop after 1.2 ms
          = queue 5, then dropped by user space, complete
          = drop by filter:INPUT:rule:2, complete
          = stolen by filter:INPUT:rule:2, complete
    "#]].assert_eq(&shown_endings(Output::Pretty));
}

#[test]
fn how_a_packet_ended_for_scripts() {
    expect![[r#"
        {"kind":"dropped","by":"function","hooks":["prerouting"],"functions":[{"name":"ipv4_conntrack_in","priority":-200}],"symbol":"nf_hook_slow+0x96","reason":"NETFILTER_DROP"}
        {"kind":"dropped","by":"function","hooks":["input","forward"],"functions":[{"name":"ip_vs_in_hook","priority":99},{"name":"nf_confirm","priority":2147483647}],"symbol":"nf_hook_slow+0x96","reason":"NETFILTER_DROP"}
        {"kind":"dropped","by":"function","hooks":["input"],"symbol":"nf_hook_slow+0x96","reason":"NETFILTER_DROP"}
        {"kind":"freed","symbol":"ip_rcv_finish_core+0x1b2","reason":"IP_RPFILTER"}
        {"kind":"freed","symbol":"__udp4_lib_rcv+0x7","netns":4026532195}
        {"kind":"accepted","hook":"input"}
        {"kind":"forwarded","device":"rb"}
        {"kind":"sent","device":"rb"}
        {"kind":"unknown"}
        {"kind":"queued","queue":5}
        {"kind":"queued"}
        {"kind":"dropped","queue":5,"by":"user"},"queues":[{"queue":5,"waited_ns":1234567,"verdict":"drop"}]
        {"kind":"dropped","step":"filter:INPUT:rule:2"}
        {"kind":"stolen","step":"filter:INPUT:rule:2"}
    "#]].assert_eq(&shown_endings(Output::Json));
}

#[test]
fn what_is_freed_later_has_a_line_of_its_own() {
    let freed = Freed {
        symbol: "arp_error_report+0x1f".to_owned(),
        reason: Some("NEIGH_FAILED".to_owned()),
        netns: None,
    };
    let mut bytes = Vec::new();
    Pretty::new(&mut bytes, false)
        .in_utc()
        .row(Row::Freed(7, TIME_NS, &freed))
        .expect("memory can be written to");
    expect![[r#"
        15:04:05.000000 packet 7, shown before: freed in arp_error_report+0x1f, reason NEIGH_FAILED
    "#]]
    .assert_eq(&String::from_utf8(bytes).expect("sinks write UTF-8"));
    let mut bytes = Vec::new();
    choose(Output::Json, false, &mut bytes)
        .row(Row::Freed(7, TIME_NS, &freed))
        .expect("memory can be written to");
    expect![[r#"
        {"type":"freed","packet":7,"time":"2026-11-23T15:04:05.000000042Z","symbol":"arp_error_report+0x1f","reason":"NEIGH_FAILED"}
    "#]].assert_eq(&String::from_utf8(bytes).expect("sinks write UTF-8"));
}

#[test]
fn lines_on_standard_error() {
    let all = Start { filter: String::new(), netns: "all".to_owned(), ..start() };
    expect!["tracing tcp port 80 in namespace blue with ebpf, footprint: none"]
        .assert_eq(&start().to_string());
    expect!["tracing all packets in all namespaces with ebpf, footprint: none"].assert_eq(&all.to_string());
    expect!["nftracer: 12 packets, 80 steps, 1 lost, 2 missed, 3 unordered, 4 inexact"]
        .assert_eq(&TOTALS.to_string());
}

fn ranking(is_last: bool) -> Ranking {
    let mut tally = Tally::default();
    let rule = |number, text: &str, owner: Option<&str>| What {
        name: format!("filter:INPUT:rule:{number}"),
        family: Some("ip"),
        netns: None,
        text: Some(text.into()),
        owner: owner.map(str::to_owned),
    };
    let policy = What { family: Some("ip6"), ..What::named("filter:INPUT:policy:3") };
    let (ssh, other) =
        (rule(1, "-A INPUT -p tcp --dport 22 -j ACCEPT", Some("ufw")), rule(2, "-A INPUT -j \u{1b}x", None));
    for count in [0, 900_000, 1_000_000, 1_234_567] {
        tally.look([(ssh.clone(), count), (other.clone(), 7), (policy.clone(), count / 1000)]);
    }
    tally.ranking(By::Rule, 2, 1_700_000_000_123_456_789, Duration::from_millis(2500), is_last)
}

#[test]
fn counts_golden() {
    for (form, expected) in [
        ("pretty", expect_file!["snapshots/counts.txt"]),
        ("terminal", expect_file!["snapshots/counts-terminal.txt"]),
        ("json", expect_file!["snapshots/counts-json.txt"]),
    ] {
        let mut out = Vec::new();
        {
            let mut sink: Box<dyn CountSink> = match form {
                "json" => Box::new(CountJson::new(&mut out)),
                form => Box::new(Tables::new(&mut out, form == "terminal").in_utc()),
            };
            sink.show(&ranking(false)).unwrap();
            sink.show(&ranking(true)).unwrap();
            sink.end(&CountTotals { lost: 1, missed: 2, uncounted: 3, doubtful: 4 }).unwrap();
        }
        expected.assert_eq(&String::from_utf8(out).unwrap().replace('\u{1b}', "ESC"));
    }
}

/// Packets whose sender and time are told, and the summary of all.
fn play_latency(sink: &mut dyn Sink) -> io::Result<()> {
    let filter = table("filter", "INPUT", Hook::Input, &[Some("-A INPUT -p tcp -j ACCEPT")]);
    let spent = |engine, hook, ns, steps_ns: &[u64]| Spent {
        hook,
        engine,
        family: TableFamily::Ip,
        table: "filter".into(),
        chain: "INPUT".into(),
        ns,
        steps_ns: steps_ns.to_vec(),
    };
    sink.row(Row::Start(&start()))?;
    for packet in 1..=3 {
        sink.row(Row::Step(&step(packet, &filter, 0, Action::Verdict(Verdict::Accept), view(&TCP))))?;
        let cgroup = (packet == 1).then(|| "/user.slice".to_owned());
        sink.row(Row::Sender(
            packet,
            &Sender { pid: 4711, name: "a\nprogram".to_owned(), uid: 1000, cgroup },
        ))?;
        sink.row(Row::Spent(packet, &spent(Engine::Nft, Hook::Ingress, 999, &[900, 99])))?;
        sink.row(Row::Spent(packet, &spent(Engine::Legacy, Hook::Input, 1_000 << packet, &[])))?;
        sink.row(Row::Path(&path(packet, Some(Verdict::Accept), Certainty::Complete, &[])))?;
    }
    sink.row(Row::End(&TOTALS))
}

#[test]
fn latency_golden() {
    for (output, shown, ending) in [
        (Output::Pretty, expect_file!["snapshots/latency.txt"], expect_file!["snapshots/summary.txt"]),
        (
            Output::Json,
            expect_file!["snapshots/latency-json.txt"],
            expect_file!["snapshots/summary-json.txt"],
        ),
    ] {
        let (mut packets, mut summary) = (Vec::new(), Vec::new());
        {
            let sink: Box<dyn Sink> = match output {
                Output::Json => choose(output, false, &mut packets),
                _ => Box::new(Pretty::new(&mut packets, false).in_utc()),
            };
            play_latency(&mut Summarised::new(sink, output, &mut summary)).unwrap();
        }
        shown.assert_eq(&String::from_utf8(packets).unwrap());
        ending.assert_eq(&String::from_utf8(summary).unwrap());
    }
}
