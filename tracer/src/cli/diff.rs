//! `nftracer diff`

use super::UsageError;
use super::trace::{SourceArgs, TraceConfig, checked_count, parse_duration};
use clap::Args;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
A and B are recordings when there are files of these names; otherwise they are filters, as those of `nftracer trace`,
and both are traced in one run until a packet of each has come to its end. What matches both filters is left out.

Examples:
  nftracer diff good.rec bad.rec
  nftracer diff 'host 10.0.0.1' 'host 10.0.0.2'
  nftracer diff --netns blue --for 1m 'tcp dst port 80' 'tcp dst port 443'";

/// Show where two flows part: the first rule that one met and the other did not
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct DiffArgs {
    /// A recording, made with `nftracer trace -w`, or a filter
    #[arg(value_name = "A")]
    first: PathBuf,
    /// Another, of the flow that behaves differently
    #[arg(value_name = "B")]
    second: PathBuf,

    /// Take both for filters, also where there are files of these names
    #[arg(long)]
    live: bool,

    #[command(flatten)]
    source: SourceArgs,

    /// Compare so many packets of each filter, in the order in which they come [default: 1]
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,

    /// Compare what has come after this time: 30s, 2m30s, 500ms; a plain number is seconds
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Say more on standard error
    #[arg(short, long)]
    verbose: bool,
}

/// What `nftracer diff` is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffConfig {
    /// The one recording or filter.
    pub first: PathBuf,
    /// The other.
    pub second: PathBuf,
    /// Both are filters.
    pub live: bool,
    /// Packets of each filter that are compared.
    pub count: Option<NonZeroU64>,
    /// How filters are traced. It has neither filter nor count itself.
    pub trace: TraceConfig,
}

impl DiffArgs {
    pub(super) fn config(self) -> Result<DiffConfig, UsageError> {
        Ok(DiffConfig {
            first: self.first,
            second: self.second,
            live: self.live,
            count: self.count.map(checked_count).transpose()?,
            trace: TraceConfig { duration: self.duration, verbose: self.verbose, ..self.source.config()? },
        })
    }
}
