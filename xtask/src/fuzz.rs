//! Runs the fuzz targets of `tests/fuzz` with libFuzzer, one after the other.
//!
//! The compiler that builds everything else builds them, with the passes that tell the fuzzer where it has been. There
//! is no unsafe code in what they try, so that panics and assertions are what is looked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::process::{cargo, command};
use crate::{places, process, setup};

/// How long to look, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// For each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets
    #[arg(long, num_args = 1..)]
    target: Vec<String>,
}

/// A target, what its input begins with, and where in `tests/data` others like it are: a folder and endings.
struct Target {
    name: &'static str,
    before: &'static [u8],
    seeds: &'static [(&'static str, &'static str)],
}

const TARGETS: &[Target] = &[
    Target { name: "lines", before: &[], seeds: &[("kmsg", "txt")] },
    Target { name: "netlink", before: &[], seeds: &[("nflog", "bin"), ("nftables", "bin")] },
    Target { name: "listing", before: &[], seeds: &[("nftables", "nft"), ("nftables", "save")] },
    Target { name: "tables", before: &[0; 5], seeds: &[("xtables", "blob"), ("xtables", "save")] },
    Target { name: "records", before: &[], seeds: &[] },
    Target { name: "recording", before: &[], seeds: &[] },
    Target { name: "btf", before: &[], seeds: &[("btf/5.10", "btf"), ("btf/6.12", "btf")] },
    Target { name: "filter", before: &[], seeds: &[] },
    Target { name: "packet", before: &[], seeds: &[] },
];

/// What makes the compiler add what libFuzzer needs.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];
const MACHINE: &str = "x86_64-unknown-linux-gnu";
/// The longest input, in bytes.
const LONGEST: usize = 16 * 1024;

/// The `fuzz` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options { build_only: true })?;
    let folder = places::target().join("fuzz");
    let mut build = cargo();
    build
        .current_dir(places::root())
        .args([
            "build",
            "--release",
            "--package",
            "nftracer-fuzz",
            "--bins",
            "--target",
            MACHINE,
            "--target-dir",
        ])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .env("NFTRACER_BPF_OBJECT", places::bpf_object())
        .env("NFTRACER_LIBPCAP", places::libpcap());
    process::run(&mut build)?;
    let wanted =
        |target: &&Target| options.target.is_empty() || options.target.iter().any(|name| name == target.name);
    let mut found = false;
    for target in TARGETS.iter().filter(wanted) {
        found |= !try_target(target, &folder, options.seconds)?;
    }
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether nothing was found.
fn try_target(target: &Target, folder: &Path, seconds: u32) -> Result<bool> {
    let Target { name, .. } = target;
    let [corpus, seeds, log] = ["corpus", "seeds", "log"].map(|part| folder.join(part).join(name));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&seeds)?;
    fs::create_dir_all(folder.join("log"))?;
    for (number, seed) in seed_files(target)?.iter().enumerate() {
        let bytes = fs::read(seed).with_context(|| format!("cannot read {}", seed.display()))?;
        fs::write(seeds.join(number.to_string()), [target.before, &bytes].concat())?;
    }
    let artifacts = format!("{}/found-{name}-", folder.display());
    let status = command(folder.join(MACHINE).join("release").join(name))
        .args([&corpus, &seeds])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-artifact_prefix={artifacts}"))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .status()?;
    let said = fs::read_to_string(&log)?;
    let number = |what: &str| -> String {
        let line = said.lines().rev().find_map(|line| line.split_once(what)).map_or("", |(_, rest)| rest);
        line.split_whitespace().next().unwrap_or("?").to_owned()
    };
    let (runs, coverage) = (number("stat::number_of_executed_units:"), number("cov:"));
    println!("{name}: {runs} inputs, {coverage} places of the program reached");
    if !status.success() {
        println!("{name}: {status}; the input is {artifacts}*, what was said {}", log.display());
    }
    Ok(status.success())
}

fn seed_files(target: &Target) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (folder, ending) in target.seeds {
        let folder = places::root().join("tests/data").join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            files.extend(path.extension().is_some_and(|found| found == *ending).then_some(path));
        }
    }
    files.sort();
    Ok(files)
}
