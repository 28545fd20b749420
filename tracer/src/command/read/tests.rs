//! Logs and what is shown of them, compared with what is expected to the byte.

use super::input::Input;
use super::log::LogReader;
use super::*;
use crate::kernel_log::Clock;
use crate::sink::{Json, Line, Output, Pretty, Sink};
use expect_test::{Expect, expect, expect_file};
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

const EL7: &str = include_str!("../../../../tests/data/kmsg/el7.txt");
const CENTOS: &str = include_str!("../../../../tests/data/kmsg/centos.txt");

/// Where a sink writes to.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Shown {
    out: String,
    errors: Vec<String>,
    summary: String,
}

fn show(log: &[u8], output: Output, filter: &str) -> Shown {
    show_limited(log, output, filter, None)
}

fn show_limited(log: &[u8], output: Output, filter: &str, per_rule: Option<NonZeroU32>) -> Shown {
    let written: Timestamp = "2026-04-01T00:00:00Z".parse().unwrap();
    let mut input = Input::of_bytes(log, written);
    let shared = Shared::default();
    let writer = shared.clone();
    let sink: Box<dyn Sink> = match output {
        Output::Pretty => Box::new(Pretty::new(writer, false).in_utc()),
        Output::Trace => Box::new(Line::new(writer)),
        Output::Json => Box::new(Json::new(writer)),
    };
    let filter = filter::compile(filter, &pcap::compile).unwrap();
    let choice = Choice::new(filter, Predicates::default(), per_rule);
    let mut reader = LogReader::new(sink, output, choice, Clock::new(TimeZone::UTC, written)).unwrap();
    let mut errors = Vec::new();
    while let Some(line) = input.next_line().unwrap() {
        errors.extend(reader.line(line).err().map(|error| error.to_string()));
    }
    let summary = reader.finish().unwrap();
    let out = String::from_utf8(shared.0.take()).unwrap();
    Shown { out, errors, summary }
}

#[test]
fn three_lines_of_centos_7() {
    expect_file!["snapshots/centos-pretty.txt"].assert_eq(&show(CENTOS.as_bytes(), Output::Pretty, "").out);
    expect_file!["snapshots/centos-json.txt"].assert_eq(&show(CENTOS.as_bytes(), Output::Json, "").out);
    let trace = show(CENTOS.as_bytes(), Output::Trace, "").out;
    let lines = CENTOS.lines().map(|line| line.split_once("kernel: ").unwrap().1);
    assert!(trace.lines().map(|line| line.trim_end_matches(' ')).eq(lines), "{trace}");
}

#[test]
fn every_record_of_a_centos_7_kernel() {
    let shown = show(EL7.as_bytes(), Output::Pretty, "");
    expect_file!["snapshots/el7-pretty.txt"].assert_eq(&shown.out);
    expect!["nftracer: 38 packets, 296 steps, 0 lost, 0 missed, 0 unordered, 2 inexact, 4 log lines, 0 other lines, 0 unreadable lines"].assert_eq(&shown.summary);
    let trace = show(EL7.as_bytes(), Output::Trace, "").out;
    assert!(trace.lines().eq(EL7.lines().map(|record| record.split_once(';').unwrap().1)));
}

#[test]
fn json_of_a_centos_7_kernel() {
    expect_file!["snapshots/el7-json.txt"].assert_eq(&show(EL7.as_bytes(), Output::Json, "icmp").out);
}

#[test]
fn a_filter_takes_whole_packets() {
    // Not the replies, and not those that only became this by translation.
    let forwarded = show(EL7.as_bytes(), Output::Trace, "tcp dst port 8080").out;
    assert!(forwarded.contains("filter:FORWARD:rule:2 IN=v0 OUT=w0 "));
    assert!(forwarded.contains("\nFWD: IN=v0 OUT=w0 "));
    assert!(!forwarded.contains("SPT=80 "));
    assert_eq!(show(EL7.as_bytes(), Output::Trace, "tcp dst port 80").out, "");
}

/// Of each second; the time since a boot does not tell which those are.
#[test]
fn of_each_rule_some_packets_are_shown() {
    let text = |record: &str| record.split_once(';').unwrap().1.to_owned();
    let dated = |record| format!("2026-03-31T10:00:00.000000+00:00 el7 kernel: {}\n", text(record));
    let log: String = EL7.lines().map(dated).collect();
    let check = |log: &str, expected: Expect| {
        let shown = show_limited(log.as_bytes(), Output::Trace, "", NonZeroU32::new(1));
        expected.assert_eq(&shown.summary);
    };
    check(
        &log,
        expect![
            "nftracer: 8 packets, 70 steps, 0 lost, 0 missed, 0 unordered, 1 inexact, 30 left out by --limit, 4 log lines, 0 other lines, 0 unreadable lines"
        ],
    );
    check(
        EL7,
        expect![
            "nftracer: 38 packets, 296 steps, 0 lost, 0 missed, 0 unordered, 2 inexact, 0 left out by --limit, 4 log lines, 0 other lines, 0 unreadable lines"
        ],
    );
}

#[test]
fn packed_logs() {
    let plain = show(EL7.as_bytes(), Output::Trace, "").out;
    let (first, second) = EL7.as_bytes().split_at(40_000);
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| compress_to_vec(bytes, CompressionLevel::Fastest);
    for packed in [
        gzip(EL7.as_bytes()),
        [gzip(first), gzip(second)].concat(),
        zstd(EL7.as_bytes()),
        [zstd(first), zstd(second)].concat(),
    ] {
        assert!(show(&packed, Output::Trace, "").out == plain);
    }
}

#[track_caller]
fn check_summary(log: &str, expected: Expect) {
    let shown = show(log.as_bytes(), Output::Json, "");
    expected.assert_eq(&format!("{}\n{}", shown.errors.join("\n"), shown.summary));
}

#[test]
fn what_cannot_be_read_is_counted() {
    let mut records = EL7.lines().skip(36).take(16);
    let mut log: Vec<&str> = records.by_ref().take(8).collect();
    log.extend([
        "",
        "4,0,0;no record",
        "Linux version 3.10.0",
        "DROP: IN=a OUT= and so on",
        "TRACE: raw:PRERO",
    ]);
    let torn = EL7.lines().nth(44).unwrap().split_at(90).0;
    log.push(torn);
    log.extend(records);
    check_summary(
        &log.join("\r\n"),
        expect![[r#"
            column 1: expected table:chain:kind:number
            column 43: expected hexadecimal digits
            nftracer: 1 packets, 16 steps, 0 lost, 0 missed, 0 unordered, 1 inexact, 0 log lines, 4 other lines, 2 unreadable lines"#]],
    );
    check_summary(
        "",
        expect![[r#"

        nftracer: 0 packets, 0 steps, 0 lost, 0 missed, 0 unordered, 0 inexact, 0 log lines, 0 other lines, 0 unreadable lines"#]],
    );
}

#[test]
fn what_the_log_lost_is_counted() {
    let gap: Vec<&str> = EL7.lines().skip(36).take(4).chain(EL7.lines().skip(45).take(7)).collect();
    check_summary(
        &gap.join("\n"),
        expect![[r#"

        nftracer: 1 packets, 11 steps, 5 lost, 0 missed, 0 unordered, 1 inexact, 0 log lines, 0 other lines, 0 unreadable lines"#]],
    );
    let told = "Mar 16 02:46:36 localhost systemd-journald[1]: Missed 12 kernel messages\n\
                Mar 16 02:46:36 localhost rsyslogd: imjournal: 30 messages lost due to rate-limiting";
    check_summary(
        told,
        expect![[r#"

        nftracer: 0 packets, 0 steps, 42 lost, 0 missed, 0 unordered, 0 inexact, 0 log lines, 2 other lines, 0 unreadable lines"#]],
    );
}

#[test]
fn a_line_without_end() {
    let long =
        [b"TRACE: raw:PREROUTING:policy:2 IN=".repeat(10_000), b"\n".to_vec(), CENTOS.as_bytes().to_vec()];
    let shown = show(&long.concat(), Output::Trace, "");
    assert_eq!((shown.errors.len(), shown.out.lines().count()), (1, 3));
}
