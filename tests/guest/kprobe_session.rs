//! `--attach session`: where the kernel has kprobe.session it works, elsewhere it says what is missing.

use std::fs;

use anyhow::Result;
use nftracer_tests::tracer;

use crate::{Options, Outcome, check};

/// The options that ask for it.
const SESSION: &[&str] = &["--attach", "session"];
/// Its programs are those of fentry and kprobes: a part of what is tested with these will do.
const PART: usize = 8;

/// Runs a test with it, where the kernel has it.
pub(crate) fn with_session(
    options: &Options,
    test: impl FnOnce(&Options, &[&str]) -> Result<Outcome>,
) -> Result<Outcome> {
    if fs::read_to_string("/proc/kallsyms")?.contains(" register_fprobe_ips\n") {
        let part =
            Options { packets: options.packets / PART, seconds: options.seconds / 4, ..options.clone() };
        return test(&part, SESSION);
    }
    crate::load_modules();
    let ended = tracer::run(&[&["trace", "--backend", "ebpf", "--for", "1s"], SESSION].concat(), &[])?;
    let errors = ended.errors.join("\n");
    check(ended.status.code() == Some(3), format!("ended with {}: {errors}", ended.status))?;
    let said = ["kprobe.session does not work here", "register_fprobe_ips", "Linux 6.10", "--attach auto"];
    check(said.iter().all(|words| errors.contains(words)), &errors)?;
    Ok(Outcome::Skipped(errors))
}
