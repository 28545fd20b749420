//! What user space spends on a step, from the ring's records to lines in a file, beside programs that copy these lines;
//! and what recording a step, and reading it again, takes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::process::{self, cargo};
use crate::read_cost::{Folder, peak_kilobytes, seconds};
use crate::{build, places};

/// How much to replay.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Packets of eight steps each
    #[arg(long, default_value_t = 200_000)]
    packets: u64,
    /// How often to measure; the least counts
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Takes what was built before
    #[arg(long)]
    no_build: bool,
}

/// Steps of each packet that `replay-cost` makes.
const STEPS: u64 = 8;
/// Steps in a second that one CPU has to manage.
const LEAST: f64 = 500_000.0;

/// Packets of the recording.
const RECORDED: u64 = 250_000;
/// Bytes that a recorded step may have.
const MOST_BYTES: f64 = 60.0;
/// Steps of a recording in a second that one CPU has to read.
const LEAST_READ: f64 = 1_000_000.0;
/// What measurements of memory differ by.
const SLACK_KILOBYTES: u64 = 1024;

/// The forms of output, each with a program that copies it line by line.
const FORMS: [(&str, &str); 2] = [("trace", "grep TRACE"), ("json", "jq -c .")];

/// The `replay-cost` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let release = build::Options { release: true, ..build::Options::default() };
    if !options.no_build {
        let mut command = cargo();
        command.current_dir(places::root()).env("NFTRACER_LIBPCAP", places::libpcap());
        command.args(["build", "--release", "--package", "nftracer", "--example", "replay-cost"]);
        process::run(&mut command)?;
        build::run(&release)?;
    }
    let program = build::already(&release).program("examples/replay-cost");
    let folder = Folder::new("replay-cost")?;
    let mut enough = true;
    for (form, copier) in FORMS {
        enough &= measure(options, &program, (form, copier), &folder)?;
    }
    enough &= record(options, &program, &build::already(&release).program("nftracer"), &folder)?;
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what a recording costs, and whether that is little enough: its size, the time to read it, and the memory, which
/// is the same however long the recording.
fn record(options: &Options, replay: &Path, nftracer: &Path, Folder(folder): &Folder) -> Result<bool> {
    let make = |packets: u64| -> Result<PathBuf> {
        let path = folder.join(format!("{packets}.recording"));
        seconds(&format!("{} recording {packets} show >{}", replay.display(), path.display()))?;
        Ok(path)
    };
    let (short, long) = (make(RECORDED / 10)?, make(RECORDED)?);
    let read = format!("{} read -o trace {} >/dev/null 2>&1", nftracer.display(), long.display());
    let mut least = f64::MAX;
    for _ in 0..options.rounds {
        least = least.min(seconds(&read)?);
    }
    let steps = (RECORDED * STEPS) as f64;
    let bytes = std::fs::metadata(&long).with_context(|| format!("cannot read {}", long.display()))?.len();
    let (few, many) = (peak_kilobytes(nftracer, &short)?, peak_kilobytes(nftracer, &long)?);
    let each = bytes as f64 / steps;
    let passes = each <= MOST_BYTES && steps / least >= LEAST_READ && many <= few + SLACK_KILOBYTES;
    println!(
        "{}: recording: {steps:.0} steps, {each:.1} bytes each; read -o trace: {:.0} steps per second; memory: {many} KB \
         at most, {few} KB for a tenth of them",
        if passes { "pass" } else { "FAIL" },
        steps / least
    );
    Ok(passes)
}

/// Says what one form costs, and whether that is little enough.
fn measure(
    options: &Options,
    program: &Path,
    (form, copier): (&str, &str),
    Folder(folder): &Folder,
) -> Result<bool> {
    let (out, copy) = (folder.join("out"), folder.join("copy"));
    let ours = format!("{} {form} {} show >{}", program.display(), options.packets, out.display());
    let theirs = format!("{copier} {} >{}", out.display(), copy.display());
    let theirs = copier.split(' ').next().and_then(process::find).map(|_| theirs);
    let mut least = f64::MAX;
    for _ in 0..options.rounds {
        least = least.min(seconds(&ours)?);
    }
    // Once: some of them take a minute.
    let copied = theirs.as_deref().map(seconds).transpose()?;
    let steps = (options.packets * STEPS) as f64;
    let rate = steps / least;
    let bytes = std::fs::metadata(&out).with_context(|| format!("cannot read {}", out.display()))?.len();
    let verdict = if rate >= LEAST { "pass" } else { "FAIL" };
    println!(
        "{verdict}: -o {form}: {steps:.0} steps, {} MB, {least:.2} s of processor time, {rate:.0} steps per second",
        bytes / 1_000_000
    );
    match copied {
        Some(copied) => println!("{copier}: {copied:.2} s, so {:.2} times as much", least / copied),
        None => println!("{copier} is not installed"),
    }
    Ok(rate >= LEAST)
}
