//! What `nftracer doctor` says of the ways of tracing, held against what then works.

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde::Deserialize;

use crate::check;
use crate::netns::Netns;
use crate::tracer::{self, Tracer};

#[derive(Deserialize)]
struct Report {
    backends: Vec<Backend>,
}

#[derive(Deserialize)]
struct Backend {
    name: String,
    mark: Option<String>,
    usable: bool,
    footprint: Option<String>,
    reason: Option<String>,
}

/// Asks it, then tries every way that it names and that is `wanted`, in `netns` or, where that is `None`, in the calling
/// thread's namespace. The calling thread's privileges and namespaces are those of what is started. Says what held.
pub fn holds(netns: Option<&Netns>, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let ended = tracer::run(&["doctor", "--json"], &[])?;
    // Doctor's output is one object, not rows.
    let text = ended.trace.odd.first().and_then(|odd| odd.split_once(": {"));
    let (_, text) = text.with_context(|| format!("doctor says nothing: {}", ended.errors.join("\n")))?;
    let report: Report = serde_json::from_str(&format!("{{{text}"))?;
    let any = report.backends.iter().any(|backend| backend.usable);
    let code = ended.status.code();
    check(code == Some(if any { 0 } else { 3 }), format!("doctor ends with {}", ended.status))?;
    let wanted = report.backends.iter().filter(|backend| wanted(&backend.name));
    wanted.map(|backend| tried(backend, netns)).collect()
}

fn tried(backend: &Backend, netns: Option<&Netns>) -> Result<String> {
    let Backend { name, mark, usable, footprint, reason } = backend;
    let mark = mark.as_deref().unwrap_or("none");
    let mut arguments = vec!["--backend", name, "--mark", mark];
    arguments.extend(netns.iter().flat_map(|netns| ["--netns", netns.name()]));
    match Tracer::start(&arguments, &[]) {
        Ok(tracer) => {
            check(*usable, format!("{name}, mark {mark} works, but doctor says: {reason:?}"))?;
            let errors = tracer.stop(Signal::INT)?.errors.join(" ");
            // What stays may be there since the last try.
            let changes = footprint.iter().flat_map(|footprint| footprint.split(", "));
            for change in changes.filter(|change| !change.ends_with("(stays)")) {
                // Its name ends with numbers that nobody knows before.
                let known = change.split("PID").next().unwrap_or(change).split(" (").next().unwrap_or(change);
                check(errors.contains(known), format!("{name}, mark {mark}: {known:?} is not in {errors}"))?;
            }
        }
        Err(error) => {
            check(!usable, format!("doctor says that {name}, mark {mark} works, but {error:#}"))?;
            let reason = reason.as_deref().with_context(|| format!("no reason for {name}"))?;
            let said = format!("{error:#}");
            check(said.contains(reason), format!("doctor says {reason:?}, and trace {said:?}"))?;
        }
    }
    Ok(format!("{name} {mark} {}, ", if *usable { "yes" } else { "no" }))
}
