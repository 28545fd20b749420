//! `nftracer why`

use super::UsageError;
use super::predicates::{CgroupArgs, PredicateArgs};
use super::trace::{SourceArgs, TraceConfig, parse_duration};
use crate::predicate::Predicates;
use crate::sink::Output;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
FILTER is a pcap-filter(7) expression, as with tcpdump; without one, the first packet that is dropped is taken.

Examples:
  nftracer why tcp port 443 and host 192.0.2.1
  nftracer why --for 1m 'udp port 53 and src net 10.0.0.0/8'
  nftracer why --netns blue -o json icmp";

/// Say why a packet is dropped: what did it, and which rules nearly had it otherwise
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct WhyArgs {
    /// Which packets to watch
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,

    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    predicates: PredicateArgs,

    #[command(flatten)]
    cgroup: CgroupArgs,

    /// Give up after this time: 30s, 2m30s, 500ms; a plain number is seconds
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Words, or JSON Lines
    #[arg(short, long, value_name = "OUTPUT", default_value = "pretty")]
    output: OutputArg,

    /// Also record everything that was seen, as `nftracer trace -w` does
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Say more on standard error
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutputArg {
    Pretty,
    Json,
}

impl WhyArgs {
    pub(super) fn config(self) -> Result<TraceConfig, UsageError> {
        let source = self.source.config()?;
        let cgroup = self.cgroup.cgroup;
        TraceConfig {
            cgroup,
            predicates: Predicates { mark: source.predicates.mark, ..self.predicates.predicates() },
            filter: self.filter.join(" ").trim().to_owned(),
            duration: self.duration,
            // Where the kernel is asked; without probes nobody knows.
            who: true,
            output: match self.output {
                OutputArg::Pretty => Output::Pretty,
                OutputArg::Json => Output::Json,
            },
            write: self.write,
            verbose: self.verbose,
            ..source
        }
        .checked()
    }
}
