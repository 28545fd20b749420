//! The figures of one kernel.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// All rows of one kernel.
#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) kernel: String,
    /// What `uname -r` says.
    pub(crate) release: String,
    pub(crate) rows: Vec<Row>,
}

/// Instructions per packet.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) base: String,
    /// Nothing if it could not be measured.
    pub(crate) figure: Option<Figure>,
    /// Why it could not be measured.
    pub(crate) failed: Option<String>,
    pub(crate) rounds: Vec<Round>,
}

/// The median of the rounds.
#[derive(Serialize, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) total: f64,
    /// What the process that reads has of it.
    pub(crate) consumer: f64,
    /// What that process runs in a second without packets; not in the total.
    pub(crate) idle: f64,
    /// Largest minus smallest total, in parts of the median.
    pub(crate) spread: f64,
    /// Over the row it compares with.
    pub(crate) over: Option<f64>,
}

/// One measurement.
#[derive(Serialize, Deserialize, Clone)]
pub(crate) struct Round {
    pub(crate) total: f64,
    pub(crate) consumer: f64,
    pub(crate) idle: f64,
    /// The tracer's last line.
    pub(crate) said: String,
}

/// As the guest writes it.
#[derive(Deserialize)]
struct Report {
    rows: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    name: String,
    title: String,
    base: String,
    rounds: Vec<Round>,
    failed: Option<String>,
}

impl Figures {
    pub(crate) fn new(kernel: &str, release: &str) -> Self {
        Self { kernel: kernel.to_owned(), release: release.to_owned(), rows: Vec::new() }
    }

    /// Adds what the guest measured with one ruleset.
    pub(crate) fn add(&mut self, report: &str) -> Result<()> {
        let report: Report = serde_json::from_str(report)?;
        for measured in report.rows {
            let mut figure = Figure::of(&measured.rounds);
            let base = if measured.name == measured.base { None } else { self.figure(&measured.base) };
            if let (Some(figure), Some(base)) = (&mut figure, base) {
                figure.over = Some(figure.total - base.total);
            }
            let Measured { name, title, base, rounds, failed } = measured;
            self.rows.push(Row { name, title, base, figure, failed, rounds });
        }
        Ok(())
    }

    pub(crate) fn figure(&self, name: &str) -> Option<Figure> {
        self.rows.iter().find(|row| row.name == name)?.figure
    }

    /// What a row costs over the one it compares with.
    pub(crate) fn over(&self, name: &str) -> Option<f64> {
        self.figure(name)?.over
    }
}

impl Figure {
    fn of(rounds: &[Round]) -> Option<Self> {
        let mut totals: Vec<f64> = rounds.iter().map(|round| round.total).collect();
        let total = median(&mut totals)?;
        let spread = (totals.last()? - totals.first()?) / total;
        let consumer = median(&mut rounds.iter().map(|round| round.consumer).collect::<Vec<_>>())?;
        let idle = median(&mut rounds.iter().map(|round| round.idle).collect::<Vec<_>>())?;
        Some(Self { total, consumer, idle, spread, over: None })
    }
}

/// Sorts.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Figures with these medians; the first row is what the others compare with.
    pub(crate) fn figures(rows: &[(&str, &[f64])]) -> Figures {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, totals)| {
                let rounds: Vec<_> = totals
                    .iter()
                    .map(|total| serde_json::json!({ "total": total, "consumer": 0.0, "idle": 0.0, "said": "" }))
                    .collect();
                let failed = totals.is_empty().then_some("not here");
                serde_json::json!({ "name": name, "title": format!("the {name}"), "base": "baseline",
                    "rounds": rounds, "failed": failed })
            })
            .collect();
        let mut figures = Figures::new("6.1", "6.1.0-1");
        figures.add(&serde_json::json!({ "rows": rows }).to_string()).unwrap();
        figures
    }

    #[test]
    fn the_median_counts() {
        let figures = figures(&[("baseline", &[100.0, 102.0]), ("a", &[210.0, 200.0, 900.0])]);
        assert_eq!(figures.figure("baseline").unwrap().over, None);
        let figure = figures.figure("a").unwrap();
        assert_eq!((figure.total, figure.over), (210.0, Some(109.0)));
        assert!((figure.spread - 700.0 / 210.0).abs() < 1e-9);
    }
}
