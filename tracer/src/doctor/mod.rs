//! What works on this host, why something does not, and what to do about it.
//!
//! [`Host`] holds the facts; checks and the answer for each backend are functions of it. The choice of a backend, the
//! error on an explicit choice, and `nftracer doctor` all use [`diagnose`].
#![forbid(unsafe_code)]

mod checks;
mod json;
#[cfg(test)]
mod tests;

use crate::sys::kernel::Host;
use crate::text::Escaped;
use std::fmt;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something will be missing or different.
    Warn,
    /// The eBPF backend cannot work; others may.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub what: String,
    /// What follows from it, unless all is well.
    pub reason: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Whether a way of tracing can be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usability {
    /// The backend's name.
    pub backend: &'static str,
    /// How packets are marked for it; `None` where they need not be.
    pub mark: Option<&'static str>,
    /// Why not, and what to do; `None` when it can be used.
    pub obstacle: Option<Obstacle>,
    /// What is worse than in the ways before, though it can be used.
    pub degraded: Option<String>,
    /// What it would change on the host, where that is known.
    pub footprint: Option<String>,
}

/// Why a backend cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Why not.
    pub reason: String,
    /// What to do about it, where something can be done.
    pub remedy: Option<String>,
}

/// All findings, and what follows from them for each backend, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// One for each check.
    pub findings: Vec<Finding>,
    /// One for each backend.
    pub backends: Vec<Usability>,
}

/// Makes every check. `others` are the ways of tracing without probes, which have been tried.
pub fn diagnose(host: &Host, others: Vec<Usability>) -> Diagnosis {
    let findings: Vec<Finding> = checks::ALL.iter().map(|check| check.run(host)).collect();
    let ebpf = Usability {
        backend: "ebpf",
        mark: None,
        obstacle: obstacle(&findings),
        degraded: None,
        footprint: None,
    };
    let backends = std::iter::once(ebpf).chain(others).collect();
    Diagnosis { findings, backends }
}

impl Diagnosis {
    /// The best backend that works here.
    pub fn best(&self) -> Option<&'static str> {
        self.backends.iter().find(|usability| usability.obstacle.is_none()).map(|usability| usability.backend)
    }

    /// Why a backend does not work here; `None` when it does.
    pub fn obstacle(&self, backend: &str) -> Option<&Obstacle> {
        self.backends.iter().find(|usability| usability.backend == backend)?.obstacle.as_ref()
    }

    /// As one JSON object, on one line.
    pub fn to_json(&self) -> String {
        json::write(self)
    }
}

/// Every failed check stands in the way. What helps against the first comes first: later checks may fail only because of
/// it, and where nothing helps against it, nothing helps.
fn obstacle(findings: &[Finding]) -> Option<Obstacle> {
    let failed: Vec<&Finding> = findings.iter().filter(|finding| finding.status == Status::Fail).collect();
    let reasons: Vec<String> =
        failed.iter().map(|finding| format!("{}: {}", finding.name, finding.what)).collect();
    let remedy = failed.first().and_then(|finding| finding.remedy.clone());
    (!failed.is_empty()).then(|| Obstacle { reason: reasons.join("; "), remedy })
}

/// A list to read.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for finding in &self.findings {
            let Finding { name, status, what, reason, remedy } = finding;
            writeln!(f, "{name:<width$}  {status:<4}  {}", Escaped(what))?;
            for (word, text) in [("", reason), ("remedy: ", remedy)] {
                if let Some(text) = text {
                    writeln!(f, "{:indent$}{word}{}", "", Escaped(text), indent = width + 8)?;
                }
            }
        }
        writeln!(f)?;
        self.backends.iter().try_for_each(|usability| writeln!(f, "{usability}"))
    }
}

impl fmt::Display for Usability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend {}", self.backend)?;
        if let Some(mark) = self.mark {
            write!(f, ", mark {mark}")?;
        }
        match (&self.obstacle, &self.degraded) {
            (Some(obstacle), _) => {
                write!(f, ": not usable: {}", Escaped(&obstacle.reason))?;
                // Those of the first are with its findings.
                if let Some(remedy) = obstacle.remedy.as_ref().filter(|_| self.mark.is_some()) {
                    write!(f, "\n    remedy: {}", Escaped(remedy))?;
                }
            }
            (None, Some(degraded)) => write!(f, ": degraded: {}", Escaped(degraded))?,
            (None, None) => f.write_str(": usable")?,
        }
        match &self.footprint {
            Some(footprint) => write!(f, "\n    footprint: {}", Escaped(footprint)),
            None => Ok(()),
        }
    }
}
