//! Everything that has to hold before a change goes in, cheapest first.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::process::cargo;
use crate::{build, places, process, setup, tidy, vm};

/// How far to go.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leaves out the virtual machines
    #[arg(long)]
    no_vm: bool,
    #[command(flatten)]
    build: build::Options,
}

/// The `test` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options { build_only: options.no_vm })?;
    tidy::run()?;
    step(&["fmt", "--all", "--check"])?;
    build::run(&options.build)?;
    step(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"])?;
    step(&["test", "--quiet"])?;
    if options.no_vm {
        return Ok(ExitCode::SUCCESS);
    }
    // Emulated, an unoptimised reader falls behind.
    let release = build::Options { release: true, ..options.build.clone() };
    build::run(&release)?;
    vm::run(&vm::Options::all_tests(&release))
}

fn step(arguments: &[&str]) -> Result<()> {
    println!("== cargo {}", arguments.join(" "));
    let mut command = cargo();
    command.current_dir(places::root()).args(arguments).env("NFTRACER_BPF_OBJECT", places::bpf_object());
    if process::run(&mut command).is_err() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
