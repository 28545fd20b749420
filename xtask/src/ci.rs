//! Everything that has to hold before a change goes in, cheapest first.

use std::path::PathBuf;
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
    let built = build::run(&release)?;
    // The same program without a shared library is another program to the kernel.
    let old_kernel = ["test", "--quiet", "--package", "nftracer", "--test", "old_kernel"];
    step_with(&old_kernel, &[("NFTRACER", built.program("nftracer"))])?;
    vm::run(&vm::Options::all_tests(&release))
}

fn step(arguments: &[&str]) -> Result<()> {
    step_with(arguments, &[])
}

fn step_with(arguments: &[&str], environment: &[(&str, PathBuf)]) -> Result<()> {
    println!("== cargo {}", arguments.join(" "));
    let mut command = cargo();
    command
        .current_dir(places::root())
        .args(arguments)
        .env("NFTRACER_BPF_OBJECT", places::bpf_object())
        .env("NFTRACER_LIBPCAP", places::libpcap())
        .envs(environment.iter().map(|(name, value)| (name, value)));
    if process::run(&mut command).is_err() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
