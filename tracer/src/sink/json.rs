//! JSON Lines. The wire form is apart from the model: its field names and their order are stable.

use super::{BUFFER_BYTES, Sink, Start, Totals, name, rule_text};
use crate::netfilter::{StepKind, Verdict};
use crate::packet::{headers, protocol_name};
use crate::path::{Action, Certainty, Path, Step};
use crate::text;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;
use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::rc::Rc;

/// Writes JSON Lines.
#[derive(Debug)]
pub struct Json<W: Write> {
    out: BufWriter<W>,
    backend: Option<&'static str>,
    clock: Clock,
}

impl<W: Write> Json<W> {
    /// Writes to `writer`.
    pub fn new(writer: W) -> Self {
        Self { out: BufWriter::with_capacity(BUFFER_BYTES, writer), backend: None, clock: Clock::default() }
    }
}

impl<W: Write> Sink for Json<W> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.backend = Some(start.backend);
        write_row(&mut self.out, &StartRow::from(start))
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        let name = name(step)?;
        let headers = headers(&step.view);
        let row = StepRow {
            packet: step.packet,
            time: self.clock.at(step.time_ns),
            backend: self.backend,
            family: step.view.family.name(),
            engine: "legacy",
            hook: step.hook.name(),
            table: name.table,
            chain: name.chain,
            kind: Text(name.kind),
            rule: name.number,
            text: rule_text(step).map(AsRef::as_ref),
            verdict: Text(&step.action),
            indev: step.view.indev.map(text::lossy),
            outdev: step.view.outdev.map(text::lossy),
            src: headers.src,
            dst: headers.dst,
            proto: headers.protocol.map(protocol_name),
            sport: headers.sport,
            dport: headers.dport,
            length: headers.length,
            id: headers.id,
            icmp_id: headers.echo.map(|[id, _]| id),
            icmp_seq: headers.echo.map(|[_, sequence]| sequence),
            mark: step.view.mark,
            netns: step.netns,
            doubt: step.view_doubt,
        };
        write_row(&mut self.out, &row)
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        let row = PacketRow {
            packet: path.packet,
            path: Names(&path.steps),
            verdict: path.verdict.map(Text),
            certainty: Text(path.certainty),
            why: (!path.why.is_empty()).then(|| path.why.join("; ")),
            outcome: path.outcome.as_deref(),
            family: path.family.name(),
            generation: Names(&path.generation),
            netns: path.netns,
        };
        write_row(&mut self.out, &row)
    }

    fn finish(&mut self, totals: &Totals) -> io::Result<()> {
        write_row(&mut self.out, &EndRow::from(totals))?;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "start")]
struct StartRow<'a> {
    version: &'static str,
    filter: &'a str,
    netns: &'a str,
    backend: &'static str,
    footprint: &'a str,
    kernel: &'a str,
}

impl<'a> From<&'a Start> for StartRow<'a> {
    fn from(Start { filter, netns, backend, footprint, kernel }: &'a Start) -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), filter, netns, backend, footprint, kernel }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "step")]
struct StepRow<'a> {
    packet: u64,
    time: Time<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'static str>,
    family: &'static str,
    engine: &'static str,
    hook: &'static str,
    table: &'a str,
    chain: &'a str,
    kind: Text<StepKind>,
    rule: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    verdict: Text<&'a Action<'a>>,
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    indev: Option<Cow<'a, str>>,
    #[serde(rename = "out", skip_serializing_if = "Option::is_none")]
    outdev: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proto: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_seq: Option<u16>,
    mark: u32,
    netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    doubt: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "packet")]
struct PacketRow<'a> {
    packet: u64,
    path: Names<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Text<Verdict>>,
    certainty: Text<Certainty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    family: &'static str,
    generation: Names<'a>,
    netns: u32,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "end")]
struct EndRow {
    packets: u64,
    steps: u64,
    lost: u64,
    missed: u64,
    unordered: u64,
    inexact: u64,
}

impl From<&Totals> for EndRow {
    fn from(&Totals { packets, steps, lost, missed, unordered, inexact }: &Totals) -> Self {
        Self { packets, steps, lost, missed, unordered, inexact }
    }
}

/// A list of strings.
struct Names<'a>(&'a [Rc<str>]);

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(AsRef::<str>::as_ref))
    }
}

/// Written as the string that it displays as.
struct Text<T>(T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Turns nanoseconds into RFC 3339 and remembers the second it formatted last.
#[derive(Debug, Default)]
struct Clock {
    second: Option<u64>,
    /// `2026-11-23T15:04:05`
    text: String,
}

/// A moment in UTC, with nanoseconds.
struct Time<'a> {
    second: &'a str,
    nanosecond: u64,
}

impl Clock {
    fn at(&mut self, time_ns: u64) -> Time<'_> {
        let second = time_ns / 1_000_000_000;
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = second_text(second);
        }
        Time { second: &self.text, nanosecond: time_ns % 1_000_000_000 }
    }
}

/// 64 bits of nanoseconds end in the year 2554, which a timestamp can hold.
fn second_text(second: u64) -> String {
    let timestamp = i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok());
    timestamp.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

impl Serialize for Time<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}.{:09}Z", self.second, self.nanosecond))
    }
}

fn write_row(out: &mut impl Write, row: &impl Serialize) -> io::Result<()> {
    row.serialize(&mut serde_json::Serializer::with_formatter(&mut *out, SafeFormatter))?;
    out.write_all(b"\n")
}

/// Compact JSON that also escapes those characters a terminal acts on which JSON itself leaves alone.
struct SafeFormatter;

impl Formatter for SafeFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for part in fragment.split_inclusive(text::is_unsafe) {
            let mut rest = part.chars();
            match rest.next_back() {
                Some(last) if text::is_unsafe(last) => {
                    writer.write_all(rest.as_str().as_bytes())?;
                    write!(writer, "\\u{:04x}", u32::from(last))?;
                }
                _ => writer.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}
