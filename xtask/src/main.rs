//! Build, test, virtual machines and measurements.
//!
//! Everything a contributor or a build machine does with this repository is a subcommand here, so
//! that both do exactly the same thing.

mod apt;
mod bench;
mod build;
mod ci;
mod demo;
mod dist;
mod fuzz;
mod places;
mod process;
mod read_cost;
mod replay_cost;
mod setup;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Tasks of the nftracer repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Brings what the other tasks need and is missing
    Setup(setup::Options),
    /// Builds the kernel programs, then the tracer and the test binaries
    Build(build::Options),
    /// Runs the guest tests, or a command, on kernels in virtual machines
    Vm(vm::Options),
    /// Opens a shell in a virtual machine
    Shell(vm::ShellOptions),
    /// Everything that has to hold before a change goes in
    Test(ci::Options),
    /// Checks rules about the sources that no compiler checks
    Tidy,
    /// Counts what tracing costs, in instructions per packet
    Bench(bench::Options),
    /// Measures what reading a kernel log costs, beside grep
    ReadCost(read_cost::Options),
    /// Measures what user space spends on a step, beside grep and jq
    ReplayCost(replay_cost::Options),
    /// Looks for input that does harm to what is decoded
    Fuzz(fuzz::Options),
    /// Makes the static programs to give out, into target/dist
    Dist(dist::Options),
    /// Shows the tracer at work
    Demo(demo::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let Some(task) = arguments.task else {
        Arguments::command().print_help()?;
        return Ok(ExitCode::SUCCESS);
    };
    match task {
        Task::Setup(options) => setup::run(&options)?,
        Task::Build(options) => {
            build::run(&options)?;
        }
        Task::Vm(options) => return vm::run(&options),
        Task::Shell(options) => return vm::shell(&options),
        Task::Test(options) => return ci::run(&options),
        Task::Tidy => tidy::run()?,
        Task::Bench(options) => return bench::run(&options),
        Task::ReadCost(options) => return read_cost::run(&options),
        Task::ReplayCost(options) => return replay_cost::run(&options),
        Task::Fuzz(options) => return fuzz::run(&options),
        Task::Dist(options) => dist::run(&options)?,
        Task::Demo(options) => return demo::run(&options),
    }
    Ok(ExitCode::SUCCESS)
}
