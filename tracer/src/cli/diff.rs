//! `nftracer diff`

use clap::Args;
use std::path::PathBuf;

/// Show where two recorded flows part: the first rule that one met and the other did not
#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// A recording, made with `nftracer trace -w`
    #[arg(value_name = "A")]
    first: PathBuf,
    /// Another, of the flow that behaves differently
    #[arg(value_name = "B")]
    second: PathBuf,
}

/// What `nftracer diff` is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffConfig {
    /// The one recording.
    pub first: PathBuf,
    /// The other.
    pub second: PathBuf,
}

impl DiffArgs {
    pub(super) fn config(self) -> DiffConfig {
        DiffConfig { first: self.first, second: self.second }
    }
}
