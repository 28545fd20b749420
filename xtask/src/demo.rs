//! Shows the tracer at work, in a guest: a machine of one's own may lack kprobes, and has rules.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, setup, vm};

/// Where to show it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A kernel of tests/kernels.toml
    #[arg(long, default_value = "6.12")]
    kernel: String,
    #[command(flatten)]
    build: build::Options,
}

/// What the guest runs.
const SCRIPT: &str = "nftracer --help; exec bash";

/// The `demo` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    vm::attached(&vm::MachineOptions::for_kernel(&options.kernel, &options.build), SCRIPT)
}
