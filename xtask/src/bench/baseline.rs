//! What each row cost when somebody last looked: a committed file, and what has grown since.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::figures::Figures;
use crate::places;

/// The file.
const FILE: &str = "tests/bench/baseline.toml";
/// How it begins.
const HEAD: &str = "# Instructions per packet of each row of `cargo xtask bench`, by kernel. `cargo xtask bench --save` writes \
                    this file,\n# `cargo xtask bench --check` fails where a row has grown by more than 3 %.\n\n";
/// By so much a row may grow: the figures repeat within a fraction of that.
const GROWTH: f64 = 0.03;

/// All kernels.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Baseline(BTreeMap<String, Kernel>);

/// One kernel.
#[derive(Default, Serialize, Deserialize)]
struct Kernel {
    /// What `uname -r` said. Another build of the kernel may cost something else by itself.
    release: String,
    rows: BTreeMap<String, u64>,
}

/// A row whose cost is not what it was.
pub(crate) struct Change {
    kernel: String,
    row: String,
    before: u64,
    /// Nothing if it could not be measured any more.
    now: Option<f64>,
    /// What `uname -r` said then, if it says something else now.
    other_release: Option<String>,
}

impl Change {
    /// Whether that must not be.
    pub(crate) fn is_worse(&self) -> bool {
        self.now.is_none_or(|now| now > self.before as f64)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, row, before, now, other_release } = self;
        let verdict = if self.is_worse() { "FAIL" } else { "less" };
        write!(f, "{verdict}: {kernel} {row}: ")?;
        match now {
            Some(now) => {
                let percent = (now / *before as f64 - 1.0) * 100.0;
                write!(f, "{now:.0} instructions per packet, {before} before, {percent:+.1} %")?;
            }
            None => write!(f, "cannot be measured any more, {before} instructions per packet before")?,
        }
        match other_release {
            Some(release) => write!(f, " on {release}"),
            None => Ok(()),
        }
    }
}

impl Baseline {
    /// The committed one; empty where there is none yet.
    pub(crate) fn read() -> Result<Self> {
        match fs::read_to_string(places::root().join(FILE)) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("cannot understand {FILE}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {FILE}")),
        }
    }

    /// Takes what was measured as what it costs from now on. Rows that were not measured stay.
    pub(crate) fn save(mut self, all: &[Figures]) -> Result<()> {
        all.iter().for_each(|figures| self.take(figures));
        let text = HEAD.to_owned() + &toml::to_string(&self)?;
        fs::write(places::root().join(FILE), text).with_context(|| format!("cannot write {FILE}"))
    }

    fn take(&mut self, figures: &Figures) {
        let kernel = self.0.entry(figures.kernel.clone()).or_default();
        kernel.release.clone_from(&figures.release);
        for row in &figures.rows {
            if let Some(figure) = row.figure {
                kernel.rows.insert(row.name.clone(), figure.total.round() as u64);
            }
        }
    }

    /// The rows of one kernel that cost more, and those that cost less. Those that nobody knows are left out.
    pub(crate) fn changes(&self, figures: &Figures) -> Vec<Change> {
        let Some(known) = self.0.get(&figures.kernel) else { return Vec::new() };
        let other_release = (known.release != figures.release).then(|| known.release.clone());
        let changed = |row: &super::figures::Row| {
            let before = *known.rows.get(&row.name)?;
            let now = row.figure.map(|figure| figure.total);
            let is_same = now.is_some_and(|now| (now - before as f64).abs() <= before as f64 * GROWTH);
            (!is_same).then(|| Change {
                kernel: figures.kernel.clone(),
                row: row.name.clone(),
                before,
                now,
                other_release: other_release.clone(),
            })
        };
        figures.rows.iter().filter_map(changed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::figures;
    use super::*;

    #[test]
    fn what_has_grown_is_told() {
        let before = figures(&[("baseline", &[100.0]), ("a", &[1000.0]), ("b", &[1000.0]), ("c", &[1000.0])]);
        let mut baseline = Baseline::default();
        baseline.take(&before);
        assert!(baseline.changes(&before).is_empty());
        let rows: &[(&str, &[f64])] =
            &[("baseline", &[102.0]), ("a", &[1031.0]), ("b", &[900.0]), ("c", &[]), ("d", &[5.0])];
        let mut now = figures(rows);
        let changes = baseline.changes(&now);
        let said: Vec<String> = changes.iter().map(Change::to_string).collect();
        assert_eq!(
            said,
            [
                "FAIL: 6.1 a: 1031 instructions per packet, 1000 before, +3.1 %",
                "less: 6.1 b: 900 instructions per packet, 1000 before, -10.0 %",
                "FAIL: 6.1 c: cannot be measured any more, 1000 instructions per packet before",
            ]
        );
        now.release = "6.1.0-2".to_owned();
        assert!(baseline.changes(&now)[0].to_string().ends_with("+3.1 % on 6.1.0-1"));
        now.kernel = "7".to_owned();
        assert!(baseline.changes(&now).is_empty());
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let mut baseline = Baseline::default();
        baseline.take(&figures(&[("baseline", &[100.4])]));
        let text = toml::to_string(&baseline).unwrap();
        assert_eq!(text, "[\"6.1\"]\nrelease = \"6.1.0-1\"\n\n[\"6.1\".rows]\nbaseline = 100\n");
        assert_eq!(toml::from_str::<Baseline>(&text).unwrap().0["6.1"].rows["baseline"], 100);
    }
}
