//! Counts what the guests say about their tests: `test NAME ... ok`, `FAILED` or `skipped (reason)`.

use std::fmt;
use std::io::Write;

use super::matrix::Row;
use super::qemu::Verdict;

/// The tests of all kernels.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    skipped: usize,
    /// Where and what.
    failures: Vec<String>,
    exit_codes: Vec<Option<u8>>,
}

impl Report {
    /// Begins the report of one kernel, whose output is shown on `show`. If the guest is to run tests, it has to name
    /// at least one. If it is not `alone`, others run at the same time, and each line names its kernel.
    pub(crate) fn kernel<W: Write>(row: &Row, tests: bool, alone: bool, show: W) -> Lines<'_, W> {
        Lines {
            report: Self::default(),
            row,
            tests,
            alone,
            show,
            line: Vec::new(),
            last: None,
            said_anything: false,
        }
    }

    /// Adds what another kernel's tests came to.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.exit_codes.extend(other.exit_codes);
    }

    pub(crate) fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// The status of the command, if there was only one and it ended by itself.
    pub(crate) fn only_exit_code(&self) -> Option<u8> {
        match self.exit_codes[..] {
            [code] => code,
            _ => None,
        }
    }

    fn count(&self) -> usize {
        self.passed + self.skipped + self.failures.len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "failed: {failure}")?;
        }
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skipped)
    }
}

/// Where to go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    Start,
    /// This test.
    After(String),
}

/// The output of one guest: shown as it comes, read line by line.
pub(crate) struct Lines<'a, W> {
    report: Report,
    row: &'a Row,
    tests: bool,
    alone: bool,
    show: W,
    line: Vec<u8>,
    /// The last test that said how it ended.
    last: Option<String>,
    said_anything: bool,
}

impl<W: Write> Lines<'_, W> {
    /// The next bytes of the output.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.said_anything = true;
        if self.alone {
            let _ = self.show.write_all(bytes).and_then(|()| self.show.flush());
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.read_line();
            }
        }
    }

    /// Where another machine can go on after the emulator of this one crashed, which says nothing about the guest:
    /// after the test that this names, or at the beginning. None where it would repeat what was already said.
    pub(crate) fn resume(&mut self) -> Option<Resume> {
        self.line.clear();
        match &self.last {
            Some(test) if self.tests => Some(Resume::After(test.clone())),
            None if self.tests || !self.said_anything => Some(Resume::Start),
            _ => None,
        }
    }

    /// The guest has ended.
    pub(crate) fn finish(mut self, verdict: &Verdict, complaints: &str) -> Report {
        if !self.line.is_empty() {
            self.read_line();
        }
        let code = match verdict {
            Verdict::Exited(status) if complaints.is_empty() => u8::try_from(*status).ok(),
            _ => None,
        };
        self.report.exit_codes.push(code);
        let nothing_yet = self.report.failures.is_empty();
        match verdict {
            Verdict::Exited(0) => {}
            Verdict::Exited(status) if nothing_yet => self.fail(&format!("ended with status {status}")),
            Verdict::Exited(_) => {}
            Verdict::Trouble(line) => self.fail(&format!("the kernel got into trouble: {line}")),
            Verdict::Hang(how) => self.fail(&format!("hang: {how}")),
            Verdict::Vanished(said) => self.fail(&format!("the machine ended early {said}")),
            Verdict::Crashed(said) => self.fail(&format!("the emulator crashed again and again: {said}")),
        }
        if !complaints.is_empty() {
            self.fail("the kernel's log has complaints");
        }
        let named_none = self.report.count() == 0;
        if !self.tests && named_none {
            self.report.passed += 1;
        } else if named_none {
            self.fail("ran no test");
        }
        self.report
    }

    fn read_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        let test = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        if !self.alone {
            // Whole lines, whoever else writes.
            let shown = match test {
                Some((name, result)) => format!("test {}::{name} ... {result}\n", self.row.name),
                None => format!("{}: {line}\n", self.row.name),
            };
            let _ = self.show.write_all(shown.as_bytes());
        }
        let Some((name, result)) = test else { return };
        self.last = Some(name.to_owned());
        match result.split_whitespace().next() {
            Some("ok") => self.report.passed += 1,
            Some("FAILED") => self.fail(name),
            Some("skipped") if self.row.must_run(name) => {
                self.fail(&format!("{name} must run here: {result}"))
            }
            Some("skipped") => self.report.skipped += 1,
            _ => {}
        }
    }

    fn fail(&mut self, what: &str) {
        self.report.failures.push(format!("kernel {}: {what}", self.row.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backends: &[&str]) -> Row {
        Row { backends: backends.iter().map(|name| (*name).to_owned()).collect(), ..Row::any("suite", "*") }
    }

    fn report(row: &Row, output: &[u8], verdict: &Verdict) -> String {
        let mut lines = Report::kernel(row, true, true, std::io::sink());
        lines.take(output);
        lines.finish(verdict, "").to_string()
    }

    #[test]
    fn results_are_counted() {
        let output = b"test a ... ok\ntest b ... FAILED\ntest c ... skipped (no ebpf)\n";
        let text = report(&row(&[]), output, &Verdict::Exited(1));
        assert_eq!(text, "failed: kernel suite: b\n1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn kernels_are_added_up() {
        let row = row(&[]);
        let mut sum = Report::default();
        let mut shown = Vec::new();
        for output in [&b"test a ... ok\n"[..], b"a: no route\ntest a ... FAILED\n"] {
            let mut lines = Report::kernel(&row, true, false, &mut shown);
            lines.take(output);
            sum.add(lines.finish(&Verdict::Exited(0), ""));
        }
        let expected = "test suite::a ... ok\nsuite: a: no route\ntest suite::a ... FAILED\n";
        assert_eq!(String::from_utf8_lossy(&shown), expected);
        assert_eq!(sum.to_string(), "failed: kernel suite: a\n1 passed, 1 failed, 0 skipped");
        assert_eq!(sum.only_exit_code(), None);
    }

    #[test]
    fn a_skip_fails_where_a_backend_is_demanded() {
        let text = report(&row(&["ebpf"]), b"test c ... skipped (no ebpf)\n", &Verdict::Exited(0));
        assert!(text.ends_with("0 passed, 1 failed, 0 skipped"), "{text}");
    }

    #[test]
    fn tests_go_on_after_the_last_one() {
        let row = row(&[]);
        let mut lines = Report::kernel(&row, true, true, std::io::sink());
        assert_eq!(lines.resume(), Some(Resume::Start));
        lines.take(b"test a ... ok\ntest b ... F");
        assert_eq!(lines.resume(), Some(Resume::After("a".to_owned())));
        lines.take(b"test b ... ok\n");
        assert_eq!(lines.finish(&Verdict::Exited(0), "").to_string(), "2 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_command_that_spoke_is_not_repeated() {
        let row = row(&[]);
        let mut lines = Report::kernel(&row, false, true, std::io::sink());
        assert_eq!(lines.resume(), Some(Resume::Start));
        lines.take(b"one");
        assert_eq!(lines.resume(), None);
    }

    #[test]
    fn silence_and_crashes_fail() {
        assert!(report(&row(&[]), b"", &Verdict::Exited(0)).contains("ran no test"));
        let text = report(&row(&[]), b"test a ... ok\n", &Verdict::Hang("silent for 1 s".to_owned()));
        assert!(text.ends_with("1 passed, 1 failed, 0 skipped"), "{text}");
    }
}
