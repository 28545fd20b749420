//! What tracing may cost at most.

use std::fmt;

use super::figures::Figures;

/// A requirement, and whether it holds.
pub(crate) struct Check {
    what: &'static str,
    measured: String,
    /// Nothing if the rows it needs were not measured.
    pub(crate) passed: Option<bool>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.passed {
            Some(true) => "pass",
            Some(false) => "FAIL",
            None => "not measured",
        };
        write!(f, "{verdict}: {} ({})", self.what, self.measured)
    }
}

/// What a row costs over its baseline, at most so much of what others cost together.
struct Limit {
    what: &'static str,
    row: &'static str,
    reference: &'static [&'static str],
    factor: f64,
}

const LIMITS: &[Limit] = &[
    Limit {
        what: "not matching costs at most 1.5 times the empty pair",
        row: "no-match",
        reference: &["empty-pair"],
        factor: 1.5,
    },
    Limit {
        what: "not matching ten terms costs at most 1.3 times not matching one",
        row: "no-match-ten",
        reference: &["no-match"],
        factor: 1.3,
    },
    Limit {
        what: "with `--verdict drop` an accepted packet costs at most 1.3 times one that does not match",
        row: "accepted-last-rule",
        reference: &["no-match"],
        factor: 1.3,
    },
    Limit {
        what: "matching, `-o trace`, costs at most a fifth of TRACE to the kernel log",
        row: "match-trace",
        reference: &["trace-kmsg"],
        factor: 0.2,
    },
    Limit {
        what: "matching, `-o json`, costs at most a fifth of TRACE to the kernel log",
        row: "match-json",
        reference: &["trace-kmsg"],
        factor: 0.2,
    },
    Limit {
        what: "20 000 rules: matching costs at most 3 times TRACE to nfnetlink_log",
        row: "many-match",
        reference: &["many-trace-nflog"],
        factor: 3.0,
    },
    Limit {
        what: "nftables: not matching costs at most 1.25 times the empty pair and the kernel's own cost of telling",
        row: "nft-no-match",
        reference: &["nft-empty-pair", "nft-key"],
        factor: 1.25,
    },
    Limit {
        what: "nftables: with `--verdict drop` an accepted packet costs at most 1.3 times one that does not match",
        row: "nft-accepted-last-rule",
        reference: &["nft-no-match"],
        factor: 1.3,
    },
    Limit {
        what: "nftables: matching, `-o trace`, costs at most a third of `nft monitor trace`",
        row: "nft-match-trace",
        reference: &["nft-monitor"],
        factor: 1.0 / 3.0,
    },
];

/// How much not matching may differ between 7 and 20 000 rules.
const SAME: f64 = 0.02;
/// How many instructions not matching may cost with kprobe.session.
const SESSION: f64 = 4400.0;

/// All requirements.
pub(crate) fn check(figures: &Figures) -> Vec<Check> {
    let mut checks: Vec<Check> = LIMITS.iter().map(|limit| limit.check(figures)).collect();
    checks.push(same_with_many_rules(figures));
    checks.push(with_session(figures));
    checks
}

impl Limit {
    fn check(&self, figures: &Figures) -> Check {
        let over = figures.over(self.row);
        let reference: Option<f64> = self.reference.iter().map(|row| figures.over(row)).sum();
        let Some((over, reference)) = over.zip(reference) else {
            return Check { what: self.what, measured: "rows are missing".to_owned(), passed: None };
        };
        Check {
            what: self.what,
            measured: format!("{over:.0} against {reference:.0}, {:.2} times", over / reference),
            passed: Some(over <= reference * self.factor),
        }
    }
}

/// The difference of two large totals carries their spread, so this is the one that needs it.
fn same_with_many_rules(figures: &Figures) -> Check {
    let what = "not matching costs the same with 20 000 rules as with 7, within 2 %";
    let rows = ["no-match", "many-no-match"].map(|row| figures.over(row));
    let noise = ["many-baseline", "many-no-match"]
        .map(|row| figures.figure(row).map_or(0.0, |figure| figure.spread * figure.total / 2.0));
    let [Some(few), Some(many)] = rows else {
        return Check { what, measured: "rows are missing".to_owned(), passed: None };
    };
    let (difference, noise) = ((many - few).abs(), noise[0].max(noise[1]));
    Check {
        what,
        measured: format!("{many:.0} against {few:.0}, measured to ±{noise:.0}"),
        passed: Some(difference <= few * SAME + noise),
    }
}

fn with_session(figures: &Figures) -> Check {
    let what = "not matching with kprobe.session costs at most 4 400 instructions";
    match figures.over("no-match-session") {
        Some(over) => Check { what, measured: format!("{over:.0}"), passed: Some(over <= SESSION) },
        None => Check { what, measured: "rows are missing".to_owned(), passed: None },
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn limits_are_checked() {
        let figures = figures(&[
            ("baseline", &[100.0]),
            ("empty-pair", &[200.0]),
            ("no-match", &[251.0]),
            ("trace-kmsg", &[1100.0]),
            ("match-trace", &[300.0]),
            ("nft-empty-pair", &[150.0]),
            ("nft-key", &[130.0]),
            ("nft-no-match", &[200.0]),
            ("no-match-session", &[4500.0]),
        ]);
        let checks = check(&figures);
        let passed: Vec<_> = checks.iter().map(|check| check.passed).collect();
        assert_eq!(
            passed,
            [Some(false), None, None, Some(true), None, None, Some(true), None, None, None, Some(true)]
        );
        assert_eq!(
            checks[0].to_string(),
            "FAIL: not matching costs at most 1.5 times the empty pair (151 against 100, 1.51 times)"
        );
    }
}
