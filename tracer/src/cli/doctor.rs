//! `nftracer doctor`

use clap::Args;

/// Say what works on this host, why something does not, and what to do about it
#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Print one JSON object instead of a list
    #[arg(long)]
    json: bool,

    /// Remove what a killed run left behind
    #[arg(long, conflicts_with = "json")]
    clean: bool,
}

/// What `nftracer doctor` is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoctorConfig {
    /// Print the findings as a list.
    List,
    /// Print the findings as one JSON object.
    Json,
    /// Remove leftovers.
    Clean,
}

impl DoctorArgs {
    pub(super) fn config(self) -> DoctorConfig {
        match self {
            Self { clean: true, .. } => DoctorConfig::Clean,
            Self { json: true, .. } => DoctorConfig::Json,
            _ => DoctorConfig::List,
        }
    }
}
