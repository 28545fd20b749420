//! The figures as bars.

use super::{ENGINES, Report, title};
use std::fmt::Write as _;

/// Columns of the longest bar.
const WIDTH: f64 = 40.0;
/// A column that is filled by so many eighths.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// How many packets each way of tracing leaves, beside what is possible without.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for engine in ENGINES {
        let rows: Vec<_> = report.of(engine).collect();
        let longest = rows.iter().map(|(row, _)| row.title.chars().count()).max().unwrap_or(0);
        let most = rows.iter().map(|(_, figures)| figures.ratio).fold(1.0, f64::max);
        for (at, (row, figures)) in rows.iter().enumerate() {
            if at == 0 {
                let _ = writeln!(text, "\n{}, packets/s", title(engine));
            }
            let bar = bar(figures.ratio / most);
            let _ = writeln!(text, "{:longest$}  {bar} {:.1} %", row.title, figures.ratio * 100.0);
        }
    }
    text
}

/// A bar of such a part of the longest.
pub(super) fn bar(part: f64) -> String {
    let eighths = (part.clamp(0.0, 1.0) * WIDTH * 8.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}
