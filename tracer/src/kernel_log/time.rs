//! Times as logs write them.

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

/// When something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Nanoseconds since the epoch.
    Epoch(u64),
    /// Nanoseconds since the kernel started.
    Uptime(u64),
}

impl Time {
    /// Nanoseconds, of whichever beginning.
    pub fn ns(self) -> u64 {
        let (Self::Epoch(ns) | Self::Uptime(ns)) = self;
        ns
    }

    /// Nanoseconds since the epoch.
    pub fn epoch_ns(self) -> Option<u64> {
        match self {
            Self::Epoch(ns) => Some(ns),
            Self::Uptime(_) => None,
        }
    }

    /// `12.345678`
    pub(super) fn uptime(text: &str) -> Option<Self> {
        decimal_seconds(text).map(Self::Uptime)
    }

    /// `1773625596.123456`
    pub(super) fn epoch(text: &str) -> Option<Self> {
        decimal_seconds(text).map(Self::Epoch)
    }
}

fn decimal_seconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    let seconds = seconds.parse::<u64>().ok().filter(|_| !seconds.starts_with('+'))?;
    seconds.checked_mul(1_000_000_000)?.checked_add(fraction_ns(fraction)?)
}

/// Up to nine digits after the point, as nanoseconds.
fn fraction_ns(digits: &str) -> Option<u64> {
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse::<u64>().ok()? * 10_u64.pow(9 - digits.len() as u32))
}

/// What local times and times without a year mean.
#[derive(Debug)]
pub struct Clock {
    zone: TimeZone,
    /// Nothing was said later than this, in local time.
    latest: DateTime,
    /// The last local time, and its seconds since the epoch: lines of the same second follow one another.
    last: Option<(DateTime, i64)>,
    /// The last time without a year, as it was written.
    last_text: (String, Option<Time>),
}

impl Clock {
    /// Local times are those of `zone`. Of the years that a time without one may be of, the last that does not put it
    /// after `not_after` counts: when the log was last written to, or now.
    pub fn new(zone: TimeZone, not_after: Timestamp) -> Self {
        // A day's grace, for clocks and zones that differ.
        let latest =
            not_after.checked_add(24.hours()).unwrap_or(Timestamp::MAX).to_zoned(zone.clone()).datetime();
        Self { zone, latest, last: None, last_text: (String::new(), None) }
    }

    /// Local time.
    fn local(&mut self, time: DateTime, fraction_ns: u64) -> Option<Time> {
        let seconds = match self.last {
            Some((last, seconds)) if last == time => seconds,
            _ => time.to_zoned(self.zone.clone()).ok()?.timestamp().as_second(),
        };
        self.last = Some((time, seconds));
        epoch(seconds, fraction_ns)
    }

    /// `Mar 16 02:46:36 `, also with a fraction; gives what follows.
    pub(super) fn traditional<'a>(&mut self, line: &'a str) -> Option<(Time, &'a str)> {
        let end = 7 + line.get(7..)?.find(' ')?;
        let (text, rest) = (&line[..end], &line[end + 1..]);
        if self.last_text.0 != text {
            self.last_text = (text.to_owned(), self.without_year(text));
        }
        Some((self.last_text.1?, rest))
    }

    /// `Mar 16 02:46:36`
    fn without_year(&mut self, text: &str) -> Option<Time> {
        let (month, day) = (month(text.get(..3)?)?, text.get(3..6)?.trim_start().parse().ok()?);
        let (hour, minute, second, fraction_ns) = time_of_day(text.get(6..)?.strip_prefix(' ')?)?;
        let in_year = |year: i16| Some(Date::new(year, month, day).ok()?.at(hour, minute, second, 0));
        // February 29 may be eight years ago.
        let years = (self.latest.year() - 8..=self.latest.year()).rev();
        let found = years.filter_map(in_year).find(|time| *time <= self.latest)?;
        self.local(found, fraction_ns)
    }

    /// `2026-03-16 02:46:36 UTC `, also with a fraction; gives what follows.
    pub(super) fn full<'a>(&mut self, text: &'a str) -> Option<(Time, &'a str)> {
        let (date, rest) = text.split_once(' ')?;
        let (time, rest) = rest.split_once(' ')?;
        let (zone, rest) = rest.split_once(' ')?;
        let (hour, minute, second, fraction_ns) = time_of_day(time)?;
        let time = date.parse::<Date>().ok()?.at(hour, minute, second, 0);
        let time = match zone {
            "UTC" => epoch(TimeZone::UTC.to_timestamp(time).ok()?.as_second(), fraction_ns)?,
            _ => self.local(time, fraction_ns)?,
        };
        Some((time, rest))
    }

    /// `Mon Mar 16 02:46:36 2026`
    pub(super) fn c_time(&mut self, text: &str) -> Option<Time> {
        let mut words = text.split_ascii_whitespace().skip(1);
        let (month, day) = (month(words.next()?)?, words.next()?.parse().ok()?);
        let (hour, minute, second, fraction_ns) = time_of_day(words.next()?)?;
        let date = Date::new(words.next()?.parse().ok()?, month, day).ok()?;
        self.local(date.at(hour, minute, second, 0), fraction_ns)
    }

    /// `2026-03-16T02:46:36.123456+01:00`, `2026-03-16T02:46:36+0100`, `2026-03-16T02:46:36,123456+01:00`, `…Z`
    pub(super) fn iso(&mut self, text: &str) -> Option<Time> {
        let (date, time) = text.split_once('T').filter(|(date, _)| date.len() == 10)?;
        let at = time.find(['Z', '+', '-'])?;
        let (time, zone) = time.split_at(at);
        let (hour, minute, second, fraction_ns) = time_of_day(time)?;
        let (sign, digits) = match zone.split_at_checked(1)? {
            ("Z", "") => (1, "0000".to_owned()),
            (sign, digits) => (if sign == "-" { -1 } else { 1 }, digits.replace(':', "")),
        };
        let (hours, minutes) = digits.split_at_checked(2).filter(|_| digits.len() == 4)?;
        let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
        let offset = Offset::from_seconds(sign * seconds).ok()?;
        let time = date.parse::<Date>().ok()?.at(hour, minute, second, 0);
        epoch(offset.to_timestamp(time).ok()?.as_second(), fraction_ns)
    }
}

fn epoch(seconds: i64, fraction_ns: u64) -> Option<Time> {
    let ns = u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(fraction_ns)?;
    Some(Time::Epoch(ns))
}

fn month(name: &str) -> Option<i8> {
    const NAMES: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    (1..).zip(NAMES).find(|(_, known)| *known == name).map(|(number, _)| number)
}

/// `02:46:36`, also with a fraction after a point or comma: hours, minutes, seconds, nanoseconds.
fn time_of_day(text: &str) -> Option<(i8, i8, i8, u64)> {
    let (time, fraction) = match text.split_once(['.', ',']) {
        Some((time, fraction)) => (time, fraction_ns(fraction)?),
        None => (text, 0),
    };
    let mut parts = time.split(':');
    let mut part = |limit: i8| parts.next()?.parse::<i8>().ok().filter(|value| (0..limit).contains(value));
    // A leap second is told as the one before.
    let (hour, minute, second) = (part(24)?, part(60)?, part(61)?.min(59));
    Some((hour, minute, second, fraction))
}
