//! `--attach session`: where the kernel has kprobe.session it works, elsewhere it says what is missing.

use std::fs;

use anyhow::Result;
use nftracer_tests::tracer;

use crate::{Outcome, check};

/// The options that ask for it.
const SESSION: &[&str] = &["--attach", "session"];

/// Runs a test with it, where the kernel has it. To be run when the modules of legacy tables are there.
pub(crate) fn with_session(test: impl FnOnce(&[&str]) -> Result<Outcome>) -> Result<Outcome> {
    if fs::read_to_string("/proc/kallsyms")?.contains(" register_fprobe_ips\n") {
        return test(SESSION);
    }
    crate::load_modules();
    let ended = tracer::run(&[&["trace", "--for", "1s"], SESSION].concat(), &[])?;
    let errors = ended.errors.join("\n");
    check(ended.status.code() == Some(3), format!("ended with {}: {errors}", ended.status))?;
    let said = ["kprobe.session does not work here", "register_fprobe_ips", "Linux 6.10", "--attach auto"];
    check(said.iter().all(|words| errors.contains(words)), &errors)?;
    Ok(Outcome::Skipped(errors))
}
