//! The command line: what was typed, and what it means.
//!
//! The clap types are dumb and private to this module's files; `config` functions turn each into a checked
//! configuration, the only thing that the rest of the program sees.
#![forbid(unsafe_code)]

pub mod bench;
pub mod diff;
pub mod doctor;
mod limit;
pub mod netns;
mod predicates;
pub mod read;
pub mod rules;
pub mod trace;
mod why;

#[cfg(test)]
mod tests;

use crate::sys::process::Process;
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  nftracer trace icmp                     show the rules that each ping meets
  nftracer trace -c 5 tcp port 22         the next five packets from or to port 22
  nftracer trace --netns blue -o json     everything in a namespace, for a script
  nftracer why tcp port 443               wait until a packet is dropped, and say what did it
  nftracer read /var/log/messages         the same from the lines of the TRACE target in a log
  nftracer doctor                         what works on this host, and what to do where it does not

Exit status: 0 done, 1 failed while running, 2 wrong usage, 3 nothing here can do what was asked.";

/// Shows which netfilter rules a packet met, without changing any rule
#[derive(Debug, Parser)]
#[command(name = "nftracer", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Trace(trace::TraceArgs),
    Why(why::WhyArgs),
    Read(read::ReadArgs),
    Rules(rules::RulesArgs),
    Doctor(doctor::DoctorArgs),
    /// Clear up when a process ends; started by `trace` for itself
    #[command(hide = true)]
    Guard {
        process: Process,
        /// Numbers of open namespaces
        namespaces: Vec<u32>,
    },
    Bench(bench::BenchArgs),
    Diff(diff::DiffArgs),
}

/// What is to be done, checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Trace packets.
    Trace(trace::TraceConfig),
    /// Say why a packet is dropped.
    Why(trace::TraceConfig),
    /// Show packets of a log or a recording.
    Read(read::ReadConfig),
    /// Show the loaded rules.
    Rules(rules::RulesConfig),
    /// Say what works here.
    Doctor(doctor::DoctorConfig),
    /// Show where two recordings or filters part.
    Diff(Box<diff::DiffConfig>),
    /// Measure what tracing costs here.
    Bench(bench::BenchConfig),
    /// Clear up after a process when it ends.
    Guard {
        /// The process.
        process: Process,
        /// The numbers of the descriptors of the namespaces that it changes.
        namespaces: Vec<u32>,
    },
}

/// A command line that can be parsed but makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// An option's value is out of range.
    #[error("{option} {value}: {reason}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Cli {
    /// Parses the program's arguments. Ends the program itself for `--help`, `--version` and what cannot be parsed.
    pub fn from_command_line() -> Self {
        Self::parse()
    }

    /// What the arguments mean.
    pub fn request(self) -> Result<Request, UsageError> {
        match self.command {
            Command::Trace(args) => args.config().map(Request::Trace),
            Command::Read(args) => Ok(Request::Read(args.config())),
            Command::Rules(args) => args.config().map(Request::Rules),
            Command::Doctor(args) => Ok(Request::Doctor(args.config())),
            Command::Guard { process, namespaces } => Ok(Request::Guard { process, namespaces }),
            Command::Bench(args) => args.config().map(Request::Bench),
            Command::Why(args) => args.config().map(Request::Why),
            Command::Diff(args) => args.config().map(Box::new).map(Request::Diff),
        }
    }
}
