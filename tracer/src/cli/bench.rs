//! `nftracer bench`

use super::UsageError;
use super::trace::parse_duration;
use clap::{Args, ValueEnum};
use std::time::Duration;

const EXAMPLES: &str = "\
Packets are sent between two network namespaces that are made for it and go with it: the rules of
this host stay as they are. The ways that write to the kernel's log leave up to 40 000 lines there.

Examples:
  nftracer bench
  nftracer bench --no-kernel-log --for 20s
  nftracer bench --row netlink --row trace-netlink -o json";

/// Measure what tracing costs on this host, beside the ways that log
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    /// Begin no other round after this time: 20s, 1m
    #[arg(long = "for", value_name = "DURATION", default_value = "40s", value_parser = parse_duration)]
    duration: Duration,

    /// Measure each way so many times at most
    #[arg(long, value_name = "N", default_value_t = 15)]
    rounds: u32,

    /// Only this way of tracing, by its name in JSON; can be given several times
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,

    /// Leave out what writes to the kernel's log
    #[arg(long)]
    no_kernel_log: bool,

    /// A table with bars, or one JSON object
    #[arg(short, long, value_name = "OUTPUT", default_value = "table")]
    output: OutputArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutputArg {
    Table,
    Json,
}

/// What `nftracer bench` is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchConfig {
    /// How long to begin rounds.
    pub duration: Duration,
    /// Rounds at most.
    pub rounds: u32,
    /// The names of what is to be measured; all when there are none.
    pub rows: Vec<String>,
    /// Whether lines may be written to the kernel's log.
    pub fill_log: bool,
    /// Whether to print JSON instead of a table.
    pub json: bool,
}

impl BenchArgs {
    pub(super) fn config(self) -> Result<BenchConfig, UsageError> {
        const MOST: Duration = Duration::from_secs(3600);
        if self.duration > MOST {
            let (value, reason) = (format!("{:?}", self.duration), "an hour at most");
            return Err(UsageError::Value { option: "--for", value, reason });
        }
        if self.rounds == 0 {
            let reason = "at least one round";
            return Err(UsageError::Value { option: "--rounds", value: "0".to_owned(), reason });
        }
        Ok(BenchConfig {
            duration: self.duration,
            rounds: self.rounds,
            rows: self.rows,
            fill_log: !self.no_kernel_log,
            json: matches!(self.output, OutputArg::Json),
        })
    }
}
