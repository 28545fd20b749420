//! One module per subcommand; the only place that knows all layers.
#![forbid(unsafe_code)]

mod bench;
pub mod diff;
pub mod doctor;
pub mod guard;
mod choice;
mod held;
mod kept;
mod naming;
mod outlet;
mod per_rule;
pub mod read;
pub mod rules;
pub mod trace;
pub mod why;

use crate::cli::netns::Netns;
use crate::cli::{Cli, Request};
use crate::doctor::diagnose;
use crate::error::Failure;
use crate::recording::{Pcapng, Recorder};
use crate::sink::{self, Output, Sink};
use crate::sys::netns;
use anyhow::Context as _;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::Path;

/// Does what the command line asks for.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.request().map_err(Failure::usage)? {
        Request::Trace(config) => trace::run(config),
        Request::Read(config) => read::run(config),
        Request::Rules(config) => rules::run(config),
        Request::Doctor(config) => doctor::run(config),
        Request::Bench(config) => bench::run(&config),
        Request::Why(config) => why::run(&config),
        Request::Diff(config) => diff::run(&config),
        Request::Guard { process, namespaces } => guard::run(process, &namespaces),
    }
}

/// Whether standard output may be coloured: on a terminal that can, unless the user said no.
pub fn colour_on_stdout() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

/// Shows everything on standard output, and records it where that is wanted.
fn open_sink(output: Output, record: Option<&Path>) -> Result<Box<dyn Sink>, Failure> {
    let shown = sink::choose(output, colour_on_stdout(), io::stdout());
    Ok(match open_record(record)? {
        Some(recorder) => Box::new(sink::Both(shown, recorder)),
        None => shown,
    })
}

/// Records everything in a file, if one is wanted.
fn open_record(path: Option<&Path>) -> Result<Option<Box<dyn Sink>>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let record = || -> io::Result<Box<dyn Sink>> {
        let file = File::create(path)?;
        let for_wireshark = path.extension().is_some_and(|extension| extension == "pcapng");
        Ok(if for_wireshark { Box::new(Pcapng::new(file)?) } else { Box::new(Recorder::new(file)?) })
    };
    Ok(Some(record().with_context(|| format!("cannot record in {}", path.display()))?))
}

/// Opens one namespace.
fn open_namespace(namespace: &Netns) -> Result<File, Failure> {
    let opened = match namespace {
        Netns::Current | Netns::All => netns::current(),
        named => netns::open(&named.to_string()),
    };
    opened.map_err(Failure::running)
}

/// Why the eBPF backend does not work here, as `doctor` says it; `None` when doctor knows of nothing.
fn ebpf_obstacle() -> Option<Failure> {
    let diagnosis = diagnose(&doctor::host(), Vec::new());
    let reason = &diagnosis.obstacle("ebpf")?.reason;
    let failure = Failure::unusable(anyhow::anyhow!("cannot trace with ebpf: {reason}"));
    Some(doctor::with_remedy(failure, &diagnosis, "ebpf"))
}
