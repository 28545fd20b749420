//! What user space spends on a step, from the ring's records to lines in a file, beside programs that copy these lines.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::process::{self, cargo};
use crate::read_cost::{Folder, seconds};
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
    }
    let program = build::already(&release).program("examples/replay-cost");
    let folder = Folder::new("replay-cost")?;
    let mut enough = true;
    for (form, copier) in FORMS {
        enough &= measure(options, &program, (form, copier), &folder)?;
    }
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
