//! `nftracer trace`

use crate::cli::trace::TraceConfig;
use crate::error::Failure;

/// Traces until it is told to stop.
pub fn run(config: TraceConfig) -> Result<(), Failure> {
    super::choose_backend(config.backend)?;
    Err(Failure::unusable(anyhow::anyhow!("trace: not built yet")))
}
