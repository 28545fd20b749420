//! Rows and the paths that they give. A row is written as a line of the kernel's log, without the parts that are the same
//! in all.

use super::*;
use crate::path::Certainty;
use crate::trace_line::{self, LogStyle};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::collections::HashMap;

fn row(text: &str, clock_ns: Option<u64>) -> Row {
    let line = format!("TRACE: {text}");
    let found = trace_line::trace_line(&line).expect(text);
    let packet = trace_line::packet(found.content, &mut LogStyle::default()).expect(text);
    Row { met: Rc::new(found.step.into()), packet: Rc::new(packet), time_ns: None, clock_ns, netns: None }
}

/// `IN OUT SRC DST ID` of a UDP packet.
fn udp(name: &str, fields: &str) -> String {
    let [indev, outdev, src, dst, id] = fields.split(' ').collect::<Vec<_>>().try_into().expect(fields);
    let [indev, outdev] = [indev, outdev].map(|name: &str| name.trim_matches('-').to_owned());
    let [(src, sport), (dst, dport)] = [src, dst].map(|end: &str| end.split_once(':').expect(end));
    let mac = if indev.is_empty() { "" } else { "MAC= " };
    format!(
        "{name} IN={indev} OUT={outdev} {mac}SRC={src} DST={dst} LEN=32 TOS=0x00 PREC=0x00 TTL=64 ID={id} PROTO=UDP \
         SPT={sport} DPT={dport} LEN=12 "
    )
}

/// Each packet in a line: the actions in brackets.
fn paths(rows: impl IntoIterator<Item = Row>) -> String {
    let mut grouper = Grouper::new(Hold::UntilKnown);
    let mut steps: BTreeMap<u64, String> = BTreeMap::new();
    let mut text = String::new();
    let mut give = |grouped| match grouped {
        Grouped::Step(step) => {
            let hook = step.hook.map_or("?", Hook::name);
            let action = step.action.as_ref().map_or("-".to_owned(), ToString::to_string);
            *steps.entry(step.packet).or_default() += &format!("  {hook} {} [{action}]\n", step.row.met.name);
        }
        Grouped::Logged { packet, logged } => {
            *steps.entry(packet).or_default() += &format!("  logged {:?}\n", logged.prefix);
        }
        Grouped::Path(path) => {
            let verdict = path.verdict.map_or("?".to_owned(), |verdict| verdict.to_string());
            let why = path.why.join("; ");
            let outcome = path.outcome.map_or(String::new(), |outcome| format!(" {outcome}"));
            text += &format!("{} {verdict} {}{outcome}: {why}\n", path.packet, path.certainty);
            text += &steps.remove(&path.packet).unwrap_or_default();
        }
    };
    rows.into_iter().for_each(|row| {
        let _ = grouper.add(row, &mut give);
    });
    grouper.finish(&mut give);
    assert!(steps.is_empty());
    text
}

/// Rows that are a millisecond apart, then one of another packet much later.
#[track_caller]
fn check(rows: &[(&str, &str)], expected: Expect) {
    let later = ("raw:OUTPUT:policy:1", "- e9 10.0.0.9:9 10.0.0.8:9 999");
    let rows = rows.iter().chain([&later]).enumerate().map(|(at, (name, fields))| {
        let ms = if at == rows.len() { 1_000_000 } else { at as u64 * 2 };
        row(&udp(name, fields), Some(ms * 1_000_000))
    });
    let text = paths(rows);
    let end = text
        .find("  output raw:OUTPUT:policy:1 [-]\n")
        .map_or(text.len(), |at| text[..at].trim_end().rfind('\n').map_or(0, |at| at + 1));
    expected.assert_eq(&text[..end]);
}

const IN: &str = "e0 - 10.0.0.1:1 10.0.0.2:2 7";
const FWD: &str = "e0 e1 10.0.0.1:1 10.0.0.2:2 7";
const POST: &str = "- e1 10.0.0.1:1 10.0.0.2:2 7";

#[test]
fn chains_within_a_table() {
    check(
        &[
            ("raw:PREROUTING:policy:2", IN),
            ("mangle:PREROUTING:rule:1", IN),
            ("mangle:a:rule:1", IN),
            ("mangle:b:rule:3", IN),
            ("mangle:b:return:4", IN),
            ("mangle:a:rule:5", IN),
            ("mangle:PREROUTING:rule:2", IN),
            ("mangle:a:rule:1", IN),
            ("mangle:a:rule:2", IN),
            ("mangle:PREROUTING:policy:3", IN),
            ("mangle:PREROUTING:policy:9", IN),
            ("filter:INPUT:rule:1", IN),
        ],
        expect![[r#"
            1 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              prerouting mangle:PREROUTING:rule:1 [-]
              prerouting mangle:a:rule:1 [-]
              prerouting mangle:b:rule:3 [continue]
              prerouting mangle:b:return:4 [return]
              prerouting mangle:a:rule:5 [return]
              prerouting mangle:PREROUTING:rule:2 [-]
              prerouting mangle:a:rule:1 [continue]
              prerouting mangle:a:rule:2 [return]
              prerouting mangle:PREROUTING:policy:3 [return]
              prerouting mangle:PREROUTING:policy:9 [accept]
              input filter:INPUT:rule:1 [-]
        "#]],
    );
}

#[test]
fn translated_on_the_way() {
    check(
        &[
            ("raw:PREROUTING:policy:2", "e0 - 10.0.0.1:1 10.0.0.2:2 7"),
            ("nat:PREROUTING:rule:1", "e0 - 10.0.0.1:1 10.0.0.2:2 7"),
            ("filter:FORWARD:rule:1", "e0 e1 10.0.0.1:1 10.1.0.2:3 7"),
            ("nat:POSTROUTING:policy:1", "- e1 10.0.0.1:1 10.1.0.2:3 7"),
            // Another with the same identification.
            ("raw:PREROUTING:policy:2", "e0 - 10.0.0.5:1 10.0.0.2:2 7"),
            ("filter:INPUT:policy:2", "e0 - 10.0.0.5:1 10.0.0.2:2 7"),
        ],
        expect![[r#"
            1 accept complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              prerouting nat:PREROUTING:rule:1 [accept]
              forward filter:FORWARD:rule:1 [accept]
              postrouting nat:POSTROUTING:policy:1 [accept]
            2 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:policy:2 [-]
        "#]],
    );
}

#[test]
fn over_loopback() {
    check(
        &[
            ("raw:OUTPUT:policy:1", "- lo 127.0.0.1:1 127.0.0.1:2 7"),
            ("nat:POSTROUTING:policy:1", "- lo 127.0.0.1:1 127.0.0.1:2 7"),
            ("raw:PREROUTING:policy:1", "lo - 127.0.0.1:1 127.0.0.1:2 7"),
            ("filter:INPUT:policy:1", "lo - 127.0.0.1:1 127.0.0.1:2 7"),
            ("nat:INPUT:policy:1", "lo - 127.0.0.1:1 127.0.0.1:2 7"),
        ],
        expect![[r#"
            1 accept complete: 
              output raw:OUTPUT:policy:1 [accept]
              postrouting nat:POSTROUTING:policy:1 [accept]
              prerouting raw:PREROUTING:policy:1 [accept]
              input filter:INPUT:policy:1 [accept]
              input nat:INPUT:policy:1 [accept]
        "#]],
    );
}

#[test]
fn two_at_once() {
    let other = "e0 - 10.0.0.1:1 10.0.0.2:2 8";
    check(
        &[
            ("raw:PREROUTING:policy:2", IN),
            ("raw:PREROUTING:policy:2", other),
            ("filter:INPUT:rule:1", other),
            ("filter:INPUT:rule:1", IN),
        ],
        expect![[r#"
            1 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:rule:1 [-]
            2 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:rule:1 [-]
        "#]],
    );
}

#[test]
fn two_that_are_the_same() {
    check(
        &[
            ("raw:PREROUTING:policy:2", IN),
            ("raw:PREROUTING:policy:2", IN),
            ("filter:INPUT:rule:1", IN),
            ("filter:INPUT:rule:1", IN),
        ],
        expect![[r#"
            1 ? inexact: another packet with the same headers was on its way at the same time
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:rule:1 [-]
            2 ? inexact: another packet with the same headers was on its way at the same time
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:rule:1 [-]
        "#]],
    );
    // The first was dropped: nothing is in doubt.
    check(
        &[
            ("raw:PREROUTING:policy:2", IN),
            ("filter:INPUT:rule:1", IN),
            ("raw:PREROUTING:policy:2", IN),
            ("filter:INPUT:rule:1", IN),
        ],
        expect![[r#"
            1 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:rule:1 [-]
            2 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              input filter:INPUT:rule:1 [-]
        "#]],
    );
}

#[test]
fn what_is_not_there() {
    check(
        &[
            ("raw:PREROUTING:policy:2", IN),
            ("mangle:FORWARD:policy:1", FWD),
            ("filter:FORWARD:policy:1", FWD),
            ("raw:PREROUTING:policy:2", "e0 - 10.0.0.1:1 10.0.0.2:2 8"),
            ("filter:FORWARD:policy:1", "e0 e1 10.0.0.1:1 10.0.0.2:2 8"),
        ],
        expect![[r#"
            1 ? complete: 
              prerouting raw:PREROUTING:policy:2 [accept]
              forward mangle:FORWARD:policy:1 [accept]
              forward filter:FORWARD:policy:1 [-]
            2 ? inexact: no step of mangle:FORWARD is there, and other packets have some
              prerouting raw:PREROUTING:policy:2 [accept]
              forward filter:FORWARD:policy:1 [-]
        "#]],
    );
    check(
        &[("filter:FORWARD:rule:1", FWD), ("mangle:POSTROUTING:policy:1", POST)],
        expect![[r#"
        1 ? inexact: its first steps are not there: tracing begins in the raw table
          forward filter:FORWARD:rule:1 [accept]
          postrouting mangle:POSTROUTING:policy:1 [-]
    "#]],
    );
    check(
        &[("raw:PREROUTING:policy:2", IN), ("filter:a:rule:1", IN), ("filter:INPUT:rule:4", IN)],
        expect![[r#"
            1 ? inexact: steps before filter:a:rule:1 are not there
              prerouting raw:PREROUTING:policy:2 [-]
              input filter:a:rule:1 [return]
              input filter:INPUT:rule:4 [-]
        "#]],
    );
}

#[test]
fn hooks_of_user_chains() {
    // The trace begins in a user chain; what follows tells the hook, or does not.
    check(
        &[("raw:a:return:2", IN), ("raw:PREROUTING:policy:2", IN)],
        expect![[r#"
            1 ? complete: 
              prerouting raw:a:return:2 [return]
              prerouting raw:PREROUTING:policy:2 [-]
        "#]],
    );
    check(
        &[("mangle:a:return:2", IN), ("mangle:PREROUTING:policy:2", IN)],
        expect![[r#"
            1 ? inexact: its first steps are not there: tracing begins in the raw table
              prerouting mangle:a:return:2 [return]
              prerouting mangle:PREROUTING:policy:2 [-]
        "#]],
    );
    check(
        &[("mangle:a:return:2", IN), ("mangle:INPUT:policy:2", IN)],
        expect![[r#"
            1 ? inexact: its first steps are not there: tracing begins in the raw table
              ? mangle:a:return:2 [-]
              input mangle:INPUT:policy:2 [-]
        "#]],
    );
    check(
        &[("filter:PREROUTING:return:2", IN)],
        expect![[r#"
            1 ? inexact: its first steps are not there: tracing begins in the raw table
              input filter:PREROUTING:return:2 [-]
        "#]],
    );
}

#[test]
fn long_gone() {
    let rows = [(0, "raw:PREROUTING:policy:2"), (3_000_000_000, "raw:PREROUTING:policy:2")];
    let mut grouper = Grouper::new(Hold::Never);
    let mut paths = 0;
    for (clock_ns, name) in rows {
        grouper.add(row(&udp(name, IN), Some(clock_ns)), &mut |_| {});
        grouper
            .expire(clock_ns + 1, &mut |grouped| paths += usize::from(matches!(grouped, Grouped::Path(_))));
    }
    assert_eq!(paths, 1);
}

/// A packet that a program in user space decides on may be away for longer than others.
#[test]
fn queued() {
    let paths_after = |waits: bool| {
        let mut grouper = Grouper::new(Hold::Never);
        let mut paths = 0;
        for (clock_ns, name) in [(0, "raw:PREROUTING:rule:1"), (8_000_000_000, "filter:INPUT:rule:1")] {
            let mut row = row(&udp(name, IN), Some(clock_ns));
            row.met = Rc::new(Met::clone(&row.met).waiting(waits));
            grouper
                .expire(clock_ns, &mut |grouped| paths += usize::from(matches!(grouped, Grouped::Path(_))));
            grouper.add(row, &mut |_| {});
        }
        grouper
            .expire(30_000_000_000, &mut |grouped| paths += usize::from(matches!(grouped, Grouped::Path(_))));
        paths
    };
    assert_eq!((paths_after(true), paths_after(false)), (1, 2));
}

/// A way that a packet may go, as names and fields.
fn way(id: u32) -> Vec<(&'static str, String)> {
    let packet = |devices: &str, id: u32| format!("{devices} 10.0.0.1:1 10.0.0.2:2 {id}");
    let forward: &[(&str, &str)] = &[
        ("raw:PREROUTING:policy:2", "e0 -"),
        ("mangle:PREROUTING:rule:1", "e0 -"),
        ("mangle:a:return:2", "e0 -"),
        ("mangle:PREROUTING:policy:2", "e0 -"),
        ("filter:FORWARD:rule:1", "e0 e1"),
        ("nat:POSTROUTING:policy:1", "e0 e1"),
    ];
    let local: &[(&str, &str)] = &[
        ("raw:OUTPUT:policy:1", "- lo"),
        ("nat:OUTPUT:policy:1", "- lo"),
        ("filter:OUTPUT:rule:1", "- lo"),
        ("raw:PREROUTING:policy:2", "lo -"),
        ("mangle:PREROUTING:policy:2", "lo -"),
        ("filter:INPUT:rule:1", "lo -"),
        ("filter:b:rule:1", "lo -"),
    ];
    let way = if id.is_multiple_of(2) { forward } else { local };
    way.iter().map(|(name, devices)| (*name, packet(devices, id))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However packets interleave, each gets its own steps, in their order, and nothing is in doubt.
    #[test]
    fn interleaved(turns in prop::collection::vec(0_usize..5, 0..60)) {
        let ways: Vec<_> = (0..5).map(way).collect();
        let mut done = [0; 5];
        let mut rows = Vec::new();
        let all = turns.into_iter().chain((0..5).flat_map(|packet| [packet; 7]));
        for packet in all {
            if let Some((name, fields)) = ways[packet].get(done[packet]) {
                done[packet] += 1;
                rows.push(row(&udp(name, fields), None));
            }
        }
        let mut grouper = Grouper::new(Hold::UntilKnown);
        let mut found = Vec::new();
        let mut give = |grouped| if let Grouped::Path(path) = grouped { found.push(path) };
        rows.into_iter().for_each(|row| {
        let _ = grouper.add(row, &mut give);
    });
        grouper.finish(&mut give);
        prop_assert_eq!(found.len(), 5);
        for path in &found {
            let expected = ways.iter().any(|way| {
                way.iter().map(|(name, _)| *name).eq(path.steps.iter().map(|step| &**step))
            });
            prop_assert!(expected, "{path:?}");
            let ended_early = path.why.iter().all(|why| why.starts_with("the log ends"));
            prop_assert!(path.certainty == Certainty::Complete || ended_early, "{path:?}");
        }
    }

    /// Whatever comes, every step is given out once, in the order of its packet.
    #[test]
    fn nothing_is_lost(
        picks in prop::collection::vec((0_usize..13, 0_u32..3, any::<bool>()), 0..80),
        hold in prop::sample::select(vec![Hold::Never, Hold::UntilKnown]),
    ) {
        let names = [way(0), way(1)].concat();
        let rows: Vec<Row> = picks
            .iter()
            .map(|(at, id, late)| {
                let (name, fields) = &names[*at];
                let head = fields.rsplit_once(' ').map_or("", |(head, _)| head);
                row(&udp(name, &format!("{head} {id}")), late.then_some(5_000_000_000))
            })
            .collect();
        let count = rows.len();
        let mut grouper = Grouper::new(hold);
        let mut steps: HashMap<u64, Vec<Rc<str>>> = HashMap::new();
        let mut given = 0;
        let mut give = |grouped| match grouped {
            Grouped::Step(step) => {
                given += 1;
                steps.entry(step.packet).or_default().push(Rc::clone(&step.row.met.name));
            }
            Grouped::Path(path) => assert_eq!(steps.remove(&path.packet), Some(path.steps)),
            Grouped::Logged { .. } => {}
        };
        rows.into_iter().for_each(|row| {
        let _ = grouper.add(row, &mut give);
    });
        grouper.finish(&mut give);
        prop_assert_eq!(given, count);
    }
}
