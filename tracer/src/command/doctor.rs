//! `nftracer doctor`

use crate::cli::doctor::DoctorConfig;
use crate::doctor::{Diagnosis, diagnose};
use crate::error::Failure;
use crate::sys::kernel::Host;
use anyhow::{Context as _, anyhow};
use std::io::{self, Write as _};

/// Says what works on this host. Fails when no backend does.
pub fn run(config: DoctorConfig) -> Result<(), Failure> {
    match config {
        DoctorConfig::List => {
            let diagnosis = diagnose(&host());
            print(&diagnosis.to_string())?;
            verdict(&diagnosis)
        }
        DoctorConfig::Json => {
            let diagnosis = diagnose(&host());
            print(&format!("{}\n", diagnosis.to_json()))?;
            verdict(&diagnosis)
        }
        // Whatever a run sets up belongs to its process, and the kernel removes it with the process.
        DoctorConfig::Clean => Ok(print("nothing to clean: runs of this version leave nothing behind\n")?),
    }
}

/// The facts, with those that only this program can know about itself.
pub(super) fn host() -> Host {
    Host { programs: cfg!(bpf_object), ..Host::gather() }
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn verdict(diagnosis: &Diagnosis) -> Result<(), Failure> {
    match diagnosis.best() {
        Some(_) => Ok(()),
        None => Err(with_remedy(
            Failure::unusable(anyhow!("no backend is usable on this host")),
            diagnosis,
            "ebpf",
        )),
    }
}

/// Adds what can be done to make a backend usable.
pub(super) fn with_remedy(failure: Failure, diagnosis: &Diagnosis, backend: &str) -> Failure {
    match diagnosis.obstacle(backend).and_then(|obstacle| obstacle.remedy.as_deref()) {
        Some(remedy) => failure.with_remedy(remedy),
        None => failure,
    }
}
