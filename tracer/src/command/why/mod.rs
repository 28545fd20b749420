//! `nftracer why`

pub(super) mod explain;
mod look;
mod rules;
mod watch;

use super::trace;
use crate::cli::trace::TraceConfig;
use crate::error::Failure;
use crate::sink::{self, Sink};
use rules::Rules;
use std::io;
use watch::Watch;

/// Traces until a packet is dropped, and says why.
pub fn run(config: &TraceConfig) -> Result<(), Failure> {
    trace::run_into(config, &|| {
        let shown = sink::choose(config.output, super::colour_on_stdout(), io::stdout());
        let watch: Box<dyn Sink> = Box::new(Watch::new(shown, Rules::new(&config.netns)));
        Ok(match super::open_record(config.write.as_deref())? {
            Some(recorder) => Box::new(sink::Both(watch, recorder)),
            None => watch,
        })
    })
}
