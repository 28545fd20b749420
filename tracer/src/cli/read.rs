//! `nftracer read`

use super::limit::parse_per_rule;
use super::predicates::{HEADING, PredicateArgs, VerdictArgs};
use super::trace::OutputArg;
use crate::predicate::{Masked, Predicates};
use crate::sink::Output;
use clap::Args;
use std::num::NonZeroU32;
use std::path::PathBuf;

const EXAMPLES: &str = "\
FILE may be compressed with gzip or zstd. FILTER is a pcap-filter(7) expression, as with trace; a packet is
shown when it matches as it was at its first step.

Examples:
  nftracer read /var/log/messages
  nftracer read - host 192.0.2.1 < /var/log/kern.log.1.gz
  nftracer read --verdict drop --in eth0 kern.log
  journalctl -k -o short-iso-precise | nftracer read -o json
  dmesg | nftracer read - tcp port 22";

/// Show the packets of a kernel log with TRACE lines, or of a recording
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReadArgs {
    /// The file; - or nothing for standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Which packets to show
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,

    #[command(flatten)]
    predicates: PredicateArgs,

    #[command(flatten)]
    verdicts: VerdictArgs,

    /// That had this mark at one of their steps: 0x10, or 0x10/0xff
    #[arg(long, value_name = "MARK", help_heading = HEADING)]
    mark: Option<Masked>,

    /// Show at most so many packets in each second of those that the same rule decides about
    #[arg(long, value_name = "N/s/rule", value_parser = parse_per_rule)]
    limit: Option<NonZeroU32>,

    /// A block for each packet, the lines of the TRACE target, or JSON Lines
    #[arg(short, long, value_name = "OUTPUT", default_value = "pretty")]
    output: OutputArg,

    /// Show lines that cannot be read on standard error
    #[arg(short, long)]
    verbose: bool,
}

/// What `nftracer read` is asked to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadConfig {
    /// The file; `None` for standard input.
    pub file: Option<PathBuf>,
    /// The filter as typed, words joined by spaces; empty for none.
    pub filter: String,
    /// What packets are chosen by beside the filter.
    pub predicates: Predicates,
    /// Show at most so many packets in a second that one rule decides about.
    pub limit_per_rule: Option<NonZeroU32>,
    /// In which form packets are shown.
    pub output: Output,
    /// Show lines that cannot be read.
    pub verbose: bool,
}

impl ReadArgs {
    pub(super) fn config(self) -> ReadConfig {
        ReadConfig {
            file: self.file.filter(|file| file.as_os_str() != "-"),
            filter: self.filter.join(" ").trim().to_owned(),
            predicates: Predicates {
                mark: self.mark,
                verdicts: self.verdicts.verdicts(),
                ..self.predicates.predicates()
            },
            limit_per_rule: self.limit,
            output: self.output.into(),
            verbose: self.verbose,
        }
    }
}
