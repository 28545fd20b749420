//! The wire form of `nftracer doctor --json`.

use super::{Diagnosis, Finding, Usability};
use serde::Serialize;

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    checks: Vec<Check<'a>>,
    backends: Vec<Backend<'a>>,
}

#[derive(Serialize)]
struct Check<'a> {
    name: &'a str,
    status: String,
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

#[derive(Serialize)]
struct Backend<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<&'a str>,
    usable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    footprint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

impl<'a> From<&'a Finding> for Check<'a> {
    fn from(Finding { name, status, what, reason, remedy }: &'a Finding) -> Self {
        let status = status.to_string();
        Self { name, status, what, reason: reason.as_deref(), remedy: remedy.as_deref() }
    }
}

impl<'a> From<&'a Usability> for Backend<'a> {
    fn from(Usability { backend, mark, obstacle, degraded, footprint }: &'a Usability) -> Self {
        Self {
            name: backend,
            mark: *mark,
            usable: obstacle.is_none(),
            degraded: degraded.as_deref(),
            footprint: footprint.as_deref(),
            reason: obstacle.as_ref().map(|obstacle| obstacle.reason.as_str()),
            remedy: obstacle.as_ref().and_then(|obstacle| obstacle.remedy.as_deref()),
        }
    }
}

pub(super) fn write(diagnosis: &Diagnosis) -> String {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        checks: diagnosis.findings.iter().map(Check::from).collect(),
        backends: diagnosis.backends.iter().map(Backend::from).collect(),
    };
    serde_json::to_string(&report).expect("strings and booleans have a JSON form")
}
