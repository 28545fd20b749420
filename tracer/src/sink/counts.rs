//! Tables of what was counted, for people.

use crate::tally::{Numbers, Ranking, What};
use crate::text::Escaped;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Where rankings go.
pub trait CountSink {
    /// Shows what was counted up to now.
    fn show(&mut self, ranking: &Ranking) -> io::Result<()>;
    /// Says at the end what is in no count.
    fn end(&mut self, totals: &CountTotals) -> io::Result<()>;
}

/// What is said at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountTotals {
    /// Records of the rules' versions that were lost, and packets that could not be followed.
    pub lost: u64,
    /// Traversals and runs that no probe saw.
    pub missed: u64,
    /// What was seen and found no room in the table of counts.
    pub uncounted: u64,
    /// Traversals whose rules are in doubt; they are in no count.
    pub doubtful: u64,
}

/// The line that ends a run.
impl std::fmt::Display for CountTotals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lost, missed, uncounted, doubtful } = self;
        write!(
            f,
            "nftracer: not counted: {missed} missed, {doubtful} in doubt, {uncounted} without room; {lost} lost"
        )
    }
}

/// A table at each look: one below the other, or on a terminal in the same place.
pub struct Tables<W: Write> {
    out: W,
    zone: TimeZone,
    /// Whether a table takes the place of the one before.
    redraws: bool,
    /// Lines of the table before.
    lines: usize,
}

impl<W: Write> Tables<W> {
    /// Writes to `out`; `redraws` for a terminal. Times are local.
    pub fn new(out: W, redraws: bool) -> Self {
        Self { out, zone: TimeZone::system(), redraws, lines: 0 }
    }

    #[cfg(test)]
    pub(super) fn in_utc(mut self) -> Self {
        self.zone = TimeZone::UTC;
        self
    }
}

impl<W: Write> CountSink for Tables<W> {
    fn show(&mut self, ranking: &Ranking) -> io::Result<()> {
        let text = table(ranking, &self.zone);
        if self.redraws && self.lines > 0 {
            write!(self.out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        self.lines = text.lines().count();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    fn end(&mut self, _totals: &CountTotals) -> io::Result<()> {
        self.out.flush()
    }
}

fn table(ranking: &Ranking, zone: &TimeZone) -> String {
    let time = Timestamp::from_nanosecond(ranking.time_ns.into()).unwrap_or_default();
    let time = time.to_zoned(zone.clone()).strftime("%H:%M:%S");
    let seconds = ranking.elapsed.as_secs_f64();
    let span = if ranking.is_last { "all" } else { "last" };
    let unit = ranking.by.unit();
    let mut rows =
        vec![[unit.to_owned(), "per second".to_owned(), "course".to_owned(), ranking.by.name().to_owned()]];
    rows.extend(ranking.rows.iter().map(|(what, numbers)| row(ranking, numbers, words(what))));
    let (others, numbers) = &ranking.others;
    if *others > 0 {
        rows.push(row(ranking, numbers, format!("({others} others)")));
    }
    rows.push(row(ranking, &ranking.sum, "(all)".to_owned()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = format!("{time}, {span} {seconds:.1} s\n");
    for [count, rate, course, what] in rows {
        let _ = writeln!(text, "{count:>first$}  {rate:>second$}  {course:>third$}  {what}");
    }
    text
}

fn row(ranking: &Ranking, numbers: &Numbers, what: String) -> [String; 4] {
    [grouped(numbers.count), grouped(ranking.rate(numbers).round() as u64), course(numbers), what]
}

fn words(what: &What) -> String {
    let mut words = Escaped(&what.to_string()).to_string();
    if let Some(text) = &what.text {
        let _ = write!(words, "  {}", Escaped(text));
    }
    if let Some(owner) = &what.owner {
        let _ = write!(words, "  [{}]", Escaped(owner));
    }
    words
}

/// `1 234 567`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// A row's last looks as bars, each against its largest.
fn course(numbers: &Numbers) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = numbers.history.iter().copied().max().unwrap_or(0).max(1);
    let bar = |number: u64| (u128::from(number) * 8).div_ceil(most.into()) as usize;
    numbers.history.iter().map(|number| BARS[bar(*number).min(8)]).collect()
}
