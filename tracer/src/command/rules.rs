//! `nftracer rules`

use crate::cli::rules::RulesConfig;
use crate::error::Failure;

/// Shows the loaded rules.
pub fn run(_config: RulesConfig) -> Result<(), Failure> {
    Err(Failure::unusable(anyhow::anyhow!("rules: not built yet")))
}
