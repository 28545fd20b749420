//! The figures, for people.

use std::fmt::Write;

use super::figures::{Figures, Row};

const HEADER: [&str; 6] = [
    "what",
    "instructions per packet",
    "over baseline",
    "of it in the reader",
    "reader idle, per s",
    "spread",
];

/// A table, in Markdown on request.
pub(crate) fn text(figures: &Figures, markdown: bool) -> String {
    let mut lines = vec![HEADER.map(str::to_owned)];
    lines.extend(figures.rows.iter().map(cells));
    let mut text = format!("Kernel {} ({})\n\n", figures.kernel, figures.release);
    let widths: Vec<usize> = (0..HEADER.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    for (number, line) in lines.iter().enumerate() {
        if markdown {
            let _ = writeln!(text, "| {} |", line.join(" | "));
            if number == 0 {
                text += "| --- | ---: | ---: | ---: | ---: | ---: |\n";
            }
            continue;
        }
        let _ = write!(text, "{:width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    for row in &figures.rows {
        if let Some(why) = &row.failed {
            let _ = writeln!(text, "{}{}: {why}", if markdown { "\n" } else { "" }, row.name);
        }
    }
    text
}

fn cells(row: &Row) -> [String; 6] {
    let Some(figure) = row.figure else {
        return [&row.title, "-", "-", "-", "-", "-"].map(str::to_owned);
    };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        row.title.clone(),
        grouped(figure.total),
        or_none(
            figure.over.map(|over| format!("{}{}", if over < 0.0 { "-" } else { "+" }, grouped(over.abs()))),
        ),
        or_none((figure.consumer > 0.0).then(|| grouped(figure.consumer))),
        or_none((figure.idle > 0.0).then(|| grouped(figure.idle))),
        format!("{:.2} %", figure.spread * 100.0),
    ]
}

/// A number with a space between the thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn markdown() {
        let figures = figures(&[("baseline", &[10_000.0]), ("a", &[1_012_345.0]), ("b", &[])]);
        assert_eq!(
            text(&figures, true),
            "Kernel 6.1 (6.1.0-1)\n\n\
             | what | instructions per packet | over baseline | of it in the reader | reader idle, per s | spread |\n\
             | --- | ---: | ---: | ---: | ---: | ---: |\n\
             | the baseline | 10 000 | - | - | - | 0.00 % |\n\
             | the a | 1 012 345 | +1 002 345 | - | - | 0.00 % |\n\
             | the b | - | - | - | - | - |\n\nb: not here\n"
        );
    }
}
