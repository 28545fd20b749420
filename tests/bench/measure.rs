//! One batch of packets with one tracer, and what to count.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::consumer::Consumer;
use crate::rows::{Means, Row, Tracer};
use crate::traffic::Traffic;

/// Packets before each batch: caches fill, connections are confirmed, tables get their names.
const WARM_UP: u32 = 100;
/// How often to look whether the guest has finished booting.
const SETTLE_TRIES: u32 = 120;

/// Instructions per packet.
#[derive(Default)]
pub(crate) struct Figures {
    /// From the first packet sent to the last one received, and what the consumer ran after that until
    /// it was idle. Without what it would have run in the same time without packets.
    total: f64,
    /// Of this, what the consumer ran, its system calls included.
    consumer: f64,
    /// What the consumer runs in a second (a thousand million instructions) without packets.
    idle: f64,
    /// Last line the tracer printed.
    said: String,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        json!({ "total": self.total, "consumer": self.consumer, "idle": self.idle, "said": self.said })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}", self.total)?;
        if self.consumer > 0.0 {
            write!(f, ", {:.0} of it in the consumer; idle {:.0} a second", self.consumer, self.idle)?;
        }
        if !self.said.is_empty() {
            write!(f, " ({})", self.said)?;
        }
        Ok(())
    }
}

/// Waits until batches take the same time: a guest works for a while after it has booted.
pub(crate) fn settle(traffic: &mut Traffic, packets: u32) -> Result<()> {
    let mut before = traffic.batch(packets)?;
    for _ in 0..SETTLE_TRIES {
        thread::sleep(Duration::from_millis(500));
        let now = traffic.batch(packets)?;
        if now.abs_diff(before) < now / 100 {
            return Ok(());
        }
        before = now;
    }
    bail!("the guest does not come to rest")
}

/// Measures a row once.
pub(crate) fn row(row: &Row, means: &Means<'_>, traffic: &mut Traffic, packets: u32) -> Result<Figures> {
    match (row.start)(means)? {
        Tracer::Silent(_tracer) => {
            traffic.batch(WARM_UP)?;
            let total = per_packet(traffic.batch(packets)?, packets);
            Ok(Figures { total, ..Figures::default() })
        }
        Tracer::Read(consumer, _rules) => read(consumer, traffic, packets),
        Tracer::Stopped(consumer) => stopped(consumer, traffic, packets),
    }
}

/// The consumer runs.
fn read(mut consumer: Consumer, traffic: &mut Traffic, packets: u32) -> Result<Figures> {
    traffic.batch(WARM_UP)?;
    consumer.wait_until_idle()?;
    let idle = consumer.idle_share()?;
    let (start, before) = (Instant::now(), consumer.run_time()?);
    let during = traffic.batch(packets)?;
    let at_the_end = consumer.run_time()?;
    let after = consumer.wait_until_idle()?;
    let background = start.elapsed().mul_f64(idle);
    let total = (during + (after - at_the_end)).saturating_sub(background);
    let consumed = (after - before).saturating_sub(background);
    let said = complete(consumer)?;
    Ok(Figures {
        total: per_packet(total, packets),
        consumer: per_packet(consumed, packets),
        idle: idle * 1e9,
        said,
    })
}

/// The consumer sleeps while the packets pass: what is left is the probes' own part.
fn stopped(mut consumer: Consumer, traffic: &mut Traffic, packets: u32) -> Result<Figures> {
    traffic.batch(WARM_UP)?;
    consumer.wait_until_idle()?;
    consumer.stop()?;
    let during = traffic.batch(packets);
    consumer.signal(Signal::CONT)?;
    consumer.wait_until_idle()?;
    let said = complete(consumer)?;
    Ok(Figures { total: per_packet(during?, packets), said, ..Figures::default() })
}

/// Ends a consumer. Figures of one that lost records are worth nothing.
fn complete(consumer: Consumer) -> Result<String> {
    let said = consumer.end()?;
    let last = said.lines().last().unwrap_or_default();
    if let Some(lost) = number_before(last, "lost") {
        ensure!(lost == 0, "records were lost: {last}");
    }
    Ok(last.to_owned())
}

/// The number in `17 lost` or `lost 17`.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> =
        line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|other| *other == word)?;
    let near = [at.checked_sub(1), Some(at + 1)];
    near.into_iter().flatten().find_map(|at| words.get(at)?.parse().ok())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_packet(time: Duration, packets: u32) -> f64 {
    time.as_nanos() as f64 / f64::from(packets)
}
