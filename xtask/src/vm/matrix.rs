//! The kernels of `tests/kernels.toml`.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::places;

/// A kernel, and what has to work on it.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) suite: String,
    pub(crate) pattern: String,
    #[serde(default)]
    pub(crate) backends: Vec<String>,
    #[serde(default)]
    pub(crate) btf: String,
    #[serde(default)]
    pub(crate) may_skip: Vec<String>,
    /// Words for the guest's program: groups, and names of tests.
    #[serde(default = "all")]
    pub(crate) tests: Vec<String>,
}

fn all() -> Vec<String> {
    vec!["all".to_owned()]
}

impl Row {
    /// A kernel outside the matrix: nothing is demanded of it.
    pub(crate) fn any(suite: &str, pattern: &str) -> Self {
        Self {
            name: suite.to_owned(),
            suite: suite.to_owned(),
            pattern: pattern.to_owned(),
            backends: Vec::new(),
            btf: String::new(),
            may_skip: Vec::new(),
            tests: all(),
        }
    }

    /// Whether a skipped test is as bad as a failed one.
    pub(crate) fn must_run(&self, test: &str) -> bool {
        !self.backends.is_empty() && !self.may_skip.iter().any(|name| name == test)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    kernels: Vec<Row>,
}

/// The row with this name, or `all`.
pub(crate) fn rows(name: &str) -> Result<Vec<Row>> {
    let file = places::root().join("tests/kernels.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut rows = toml::from_str::<Matrix>(&text).with_context(|| format!("in {}", file.display()))?.kernels;
    if name != "all" {
        let known: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
        rows.retain(|row| row.name == name);
        if rows.is_empty() {
            bail!("there is no kernel {name} in tests/kernels.toml, only {}", known.join(", "));
        }
    }
    Ok(rows)
}
