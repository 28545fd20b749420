//! Kernel logs: any bytes can be read, what is read is written as it was, and every step comes out once.

#![no_main]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;
use nftracer::kernel_log::{Clock, Time, Undresser};
use nftracer::path::group::{Grouped, Grouper, Hold, Logged, Row};
use nftracer::trace_line::{LogStyle, TraceLine, log_line, packet, trace_line, write};
use std::rc::Rc;

fuzz_target!(|data: &[u8]| {
    let mut undresser = Undresser::new(Clock::new(TimeZone::UTC, Timestamp::UNIX_EPOCH));
    let mut grouper = Grouper::new(Hold::UntilKnown);
    let (mut added, mut given) = (0, 0);
    let mut give = |grouped| given += usize::from(matches!(grouped, Grouped::Step(_)));
    for line in data.split(|byte| *byte == b'\n') {
        let Some(record) = undresser.record(line) else { continue };
        if let Some(found) = trace_line(&record.text) {
            if let Some(row) = row(&found, record.time) {
                grouper.add(row, &mut give);
                added += 1;
            }
        } else if let Some(found) = log_line(&record.text)
            && let Ok(packet) = packet(found.content, &mut LogStyle::default())
        {
            let logged = Logged { prefix: found.prefix.into(), line: (&*record.text).into() };
            grouper.log(&packet, logged, &mut give);
        }
    }
    grouper.finish(&mut give);
    assert_eq!(given, added);
});

/// Reads a line of TRACE, and sees that it is written as it was.
fn row(found: &TraceLine<'_>, time: Option<Time>) -> Option<Row> {
    let mut style = LogStyle::default();
    let packet = packet(found.content, &mut style).ok()?;
    let mut again = Vec::new();
    write(&mut again, found.name, &packet.view(), style);
    let line = format!("TRACE: {} {}", found.name, found.content);
    // Only LOG leaves sequence numbers out; long lines and names that a terminal would act on are changed.
    let of_log = line.contains("PROTO=TCP SPT=") && !line.contains(" SEQ=");
    let is_plain = line.len() < 1000 && line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if is_plain && !of_log {
        let again = String::from_utf8_lossy(&again).into_owned();
        assert_eq!(again.trim_end_matches(' '), line.trim_end_matches(' '));
    }
    Some(Row {
        met: Rc::new(found.step.into()),
        packet: Rc::new(packet),
        time_ns: time.and_then(Time::epoch_ns),
        clock_ns: time.map(Time::ns),
        netns: None,
    })
}
