//! The same record in every dress.

use super::*;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use proptest::prelude::*;

const TEXT: &str = "TRACE: raw:PREROUTING:policy:2 IN=lo OUT= MAC= SRC=127.0.0.1 ";
/// 2026-03-16T02:46:36+01:00
const SECOND: u64 = 1_773_625_596;

fn undresser() -> Undresser {
    let written: Timestamp = "2026-03-20T00:00:00Z".parse().unwrap();
    Undresser::new(Clock::new(TimeZone::fixed(Offset::constant(1)), written))
}

fn epoch(fraction_ns: u64) -> Option<Time> {
    Some(Time::Epoch(SECOND * 1_000_000_000 + fraction_ns))
}

const UPTIME: Option<Time> = Some(Time::Uptime(12_345_678_000));

#[test]
fn every_dress() {
    let micro = epoch(123_456_000);
    for (head, time) in [
        ("", None),
        ("Mar 16 02:46:36 localhost kernel: ", epoch(0)),
        ("Mar 16 02:46:36 localhost kernel: [   12.345678] ", epoch(0)),
        ("Mar 16 02:46:36 localhost kernel:[   12.345678] ", epoch(0)),
        ("Mar 16 02:46:36.123456 localhost kernel: ", micro),
        ("2026-03-16T02:46:36.123456+01:00 localhost kernel: ", micro),
        ("2026-03-16T02:46:36.123456+01:00 localhost kernel: [   12.345678] ", micro),
        ("2026-03-16T01:46:36Z localhost kernel: ", epoch(0)),
        ("2026-03-16T02:46:36+0100 localhost kernel: ", epoch(0)),
        ("2026-03-15T22:16:36.123456-0330 localhost kernel: ", micro),
        ("<4>1 2026-03-16T02:46:36.123456+01:00 localhost kernel - - - ", micro),
        ("<4>Mar 16 02:46:36 localhost kernel: ", epoch(0)),
        ("Mon 2026-03-16 02:46:36 CET localhost kernel: ", epoch(0)),
        ("Mon 2026-03-16 01:46:36.123456 UTC localhost kernel: ", micro),
        ("Mon Mar 16 02:46:36 2026 kern.warn kernel: [   12.345678] ", epoch(0)),
        ("1773625596.123456 localhost kernel: ", micro),
        ("[   12.345678] localhost kernel: ", UPTIME),
        ("[   12.345678] ", UPTIME),
        ("[   12.345678][  T123] ", UPTIME),
        ("[   12.345678][    C1] ", UPTIME),
        ("<4>[   12.345678] ", UPTIME),
        ("<4>", None),
        ("kern  :warn  : [   12.345678] ", UPTIME),
        ("[Mon Mar 16 02:46:36 2026] ", epoch(0)),
        ("[Mar16 02:46] ", None),
        ("[  +0.000012] ", None),
        ("2026-03-16T02:46:36,123456+01:00 ", micro),
        ("4,1234,12345678,-;", UPTIME),
        ("4,1234,12345678,-,caller=T1;", UPTIME),
        ("collector-7 | ", None),
        ("MESSAGE=", None),
    ] {
        for end in ["", "\r"] {
            let line = format!("{head}{TEXT}{end}");
            let record = undresser().record(line.as_bytes()).expect(head);
            assert_eq!((&*record.text, record.time), (TEXT, time), "{head}");
        }
    }
}

#[test]
fn journal_entries() {
    let mut undresser = undresser();
    let mut check = |line: &str, expected: Option<Option<Time>>| {
        let found = undresser.record(line.as_bytes());
        if let Some(record) = &found {
            assert_eq!(record.text, "TRACE: x");
        }
        assert_eq!(found.map(|record| record.time), expected, "{line}");
    };
    let stamp = r#""__REALTIME_TIMESTAMP":"1773625596123456""#;
    let time = epoch(123_456_000);
    check(&format!(r#"{{{stamp},"MESSAGE":"TRACE: x","_TRANSPORT":"kernel"}}"#), Some(time));
    check(&format!(r#"{{{stamp},"MESSAGE":[84,82,65,67,69,58,32,120]}}"#), Some(time));
    check(r#"{"MESSAGE":"TR\u0041CE: x","SYSLOG_IDENTIFIER":"kernel"}"#, Some(None));
    check(&format!(r#"{{{stamp},"MESSAGE":"TRACE: x","_TRANSPORT":"syslog"}}"#), None);
    check(&format!(r#"{{{stamp},"MESSAGE":null}}"#), None);
    check("{", None);

    check("__CURSOR=s=1;i=2", None);
    check("__REALTIME_TIMESTAMP=1773625596123456", None);
    check("_TRANSPORT=kernel", None);
    check("MESSAGE=TRACE: x", Some(time));
}

#[test]
fn what_is_not_the_kernels() {
    for line in [
        "",
        "\r",
        " SUBSYSTEM=net",
        "Mar 16 02:46:36 localhost sshd[1]: TRACE: raw:x",
        "Mar 16 02:46:36 localhost",
        "<4>1 2026-03-16T02:46:36Z localhost sshd 1 - - TRACE: raw:x",
    ] {
        assert_eq!(undresser().record(line.as_bytes()), None, "{line}");
    }
    // An unknown line is what the kernel might have said.
    for line in ["Linux version 3.10.0", "eth0: link up", "MESS", "4,2"] {
        assert_eq!(undresser().record(line.as_bytes()).map(|record| record.text), Some(line.into()));
    }
}

#[test]
fn sequence_and_escapes_of_kmsg() {
    let mut undresser = undresser();
    let record = undresser.record(br"4,99,1000,-;TRACE: a\x0ab\x5cx41\xc3\xa4\xff\xzz").unwrap();
    assert_eq!(record.sequence, Some(99));
    assert_eq!(record.text, "TRACE: a\nb\\x41ä\\xff\\xzz");
}

#[test]
fn bytes_that_are_not_text() {
    let record = undresser().record(b"Mar 16 02:46:36 h kernel: TRACE: a\xff").unwrap();
    assert_eq!((&*record.text, record.time), ("TRACE: a\\xff", epoch(0)));
}

#[test]
fn the_year_is_the_last_one_not_after_the_log() {
    let year = |month_and_day: &str| {
        let line = format!("{month_and_day} 12:00:00 h kernel: x");
        let time = undresser().record(line.as_bytes())?.time?.epoch_ns()?;
        Some(Timestamp::from_nanosecond(time.into()).ok()?.to_zoned(TimeZone::UTC).year())
    };
    assert_eq!(year("Jan  1"), Some(2026));
    assert_eq!(year("Mar 20"), Some(2026));
    assert_eq!(year("Mar 22"), Some(2025));
    assert_eq!(year("Dec 31"), Some(2025));
    assert_eq!(year("Feb 29"), Some(2024));
    assert_eq!(year("Feb 30"), None);
}

proptest! {
    #[test]
    fn any_line_can_be_undressed(
        head in prop::sample::select(vec!["", "{", "<", "[", "Mar 1", "2026-", "4,5,6,-;", "MESSAGE=", "kern  :", "Mon "]),
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        text: String,
    ) {
        let mut undresser = undresser();
        _ = undresser.record(&bytes);
        _ = undresser.record(&[head.as_bytes(), &bytes].concat());
        _ = undresser.record(format!("{head}{text}").as_bytes());
    }
}
