//! Everything that has to hold before a change goes in, cheapest first.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::process::cargo;
use crate::{bench, build, places, process, setup, tidy, vm};

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
    timed("setup", || setup::run(&setup::Options { build_only: options.no_vm }))?;
    timed("tidy", tidy::run)?;
    step(&["fmt", "--all", "--check"])?;
    let object = build::Options { object_only: true, ..options.build.clone() };
    timed("the kernel programs", || build::run(&object).map(drop))?;
    // Emulated, an unoptimised reader falls behind.
    let release = build::Options { release: true, ..options.build.clone() };
    let built = thread::scope(|scope| -> Result<_> {
        // Most of it is one crate in one piece, which leaves a CPU for what else has to be compiled.
        let build = || timed("the programs for the guests", || build::run(&release));
        let building = (!options.no_vm).then(|| scope.spawn(build));
        step(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"])?;
        step(&["test", "--quiet"])?;
        let Some(building) = building else { return Ok(None) };
        building.join().map_err(|_| anyhow!("the build's thread panicked"))?.map(Some)
    })?;
    native(&options.build)?;
    let Some(built) = built else { return Ok(ExitCode::SUCCESS) };
    // The same program without a shared library is another program to the kernel.
    let old_kernel = ["test", "--quiet", "--package", "nftracer", "--test", "old_kernel"];
    step_with(&old_kernel, &[("NFTRACER", built.program("nftracer"))])?;
    let passed = timed("guests", || vm::run(&vm::Options::all_tests(&release)))?;
    if passed != ExitCode::SUCCESS {
        return Ok(passed);
    }
    // One after the other: what else keeps this machine busy is seen in the figures.
    let passed =
        timed("a guest that counts instructions", || vm::run(&vm::Options::counted_tests(&release)))?;
    if passed != ExitCode::SUCCESS {
        return Ok(passed);
    }
    timed("bench", || bench::run(&bench::Options::quick_check()))
}

/// What needs no probes, and network namespaces of this machine, for which one has to be root.
fn native(options: &build::Options) -> Result<()> {
    let built = build::run(options)?;
    println!("== native-tests");
    let program = |name: &str| built.program(name).display().to_string();
    let mut command = process::as_root("env")?;
    command.arg(format!("NFTRACER={}", program("nftracer"))).args([&program("native-tests"), "all"]);
    process::run(&mut command)
}

fn step(arguments: &[&str]) -> Result<()> {
    step_with(arguments, &[])
}

fn step_with(arguments: &[&str], environment: &[(&str, PathBuf)]) -> Result<()> {
    let words = format!("cargo {}", arguments.join(" "));
    timed(&words, || {
        let mut command = cargo();
        command.current_dir(places::root()).args(arguments).env("NFTRACER_BPF_OBJECT", places::bpf_object());
        command.env("NFTRACER_LIBPCAP", places::libpcap());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        if process::run(&mut command).is_err() {
            bail!("{words} failed");
        }
        Ok(())
    })
}

/// Says what is being done, and how long it took.
fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("== {what}");
    let started = Instant::now();
    let done = work()?;
    println!("== {what}: {:.0} s", started.elapsed().as_secs_f32());
    Ok(done)
}
