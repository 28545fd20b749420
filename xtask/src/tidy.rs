//! Rules about the sources that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::places;
use crate::process::{command, read};

/// What no committed file says, and why.
const BANNED: &[(&str, &str)] = &[
    // Split, so that this file does not contain them.
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/tm", "p/wt"), "a path of one machine"),
    (concat!("FIX", "ME"), "fix it, or describe it in an issue"),
    (concat!("XX", "X:"), "fix it, or describe it in an issue"),
    (concat!("dbg", "!("), "left over from a search"),
];

/// The `tidy` task.
pub(crate) fn run() -> Result<()> {
    let mut complaints = Vec::new();
    for file in files()? {
        // What is not text is none of this task's business.
        let Ok(text) = fs::read_to_string(places::root().join(&file)) else { continue };
        complaints.extend(module_docs(&file, &text));
        complaints.extend(banned(&file, &text));
    }
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}

/// Every module says first what it is for.
fn module_docs(file: &Path, text: &str) -> Option<String> {
    let is_module = file.extension().is_some_and(|ending| ending == "rs");
    (is_module && !text.starts_with("//!")).then(|| format!("{}:1: no module documentation", file.display()))
}

fn banned(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (phrase, why) in BANNED {
            if line.contains(phrase) {
                found.push(format!("{}:{}: {phrase:?}: {why}", file.display(), number + 1));
            }
        }
    }
    found
}

/// What git knows or is about to know.
fn files() -> Result<Vec<PathBuf>> {
    let mut git = command("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(places::root());
    let list = read(&mut git).context("git lists the files to look at")?;
    Ok(list.lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_file_and_line() {
        let file = Path::new("a.rs");
        assert!(module_docs(file, "//! Doc.\n").is_none());
        assert_eq!(module_docs(file, "fn a() {}\n").unwrap(), "a.rs:1: no module documentation");
        assert_eq!(banned(file, concat!("a\ndbg", "!(1)\n")).len(), 1);
    }
}
