//! What tracing costs: instructions per packet, counted in a guest that executes one per nanosecond.
//!
//! The figures do not depend on the machine they are taken on and repeat within a fraction of a per cent, so they
//! compare with those of another day. `tests/bench` has the program that takes them.

mod baseline;
mod figures;
mod limits;
mod peers;
mod table;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{build, places, process, setup, vm};

use baseline::{Baseline, Change};
use figures::Figures;

/// What to measure, and how to show it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernels of tests/kernels.toml
    #[arg(long, default_value = "6.1", num_args = 1..)]
    kernel: Vec<String>,
    /// Only these rows (`empty-pair`, `match-trace`, …) and those they compare with
    #[arg(long, num_args = 1..)]
    row: Vec<String>,
    /// How often to measure each row
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Writes the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Prints Markdown
    #[arg(long)]
    markdown: bool,
    /// Fails when a row costs over 3 % more than the committed tests/bench/baseline.toml says
    #[arg(long)]
    check: bool,
    /// Writes what was measured to tests/bench/baseline.toml
    #[arg(long, conflicts_with = "check")]
    save: bool,
    /// Takes what was built before
    #[arg(long)]
    no_build: bool,
}

impl Options {
    /// What is cheap enough to be checked with every change, with what was built before.
    pub(crate) fn quick_check() -> Self {
        Self {
            kernel: vec!["6.1".to_owned()],
            row: ["no-match", "match-trace"].map(str::to_owned).to_vec(),
            // What the reader does once a second is in one batch of packets in twenty.
            rounds: 3,
            json: None,
            markdown: false,
            check: true,
            save: false,
            no_build: true,
        }
    }
}

/// The rulesets, in the order in which they are measured.
const WORLDS: &[&str] = &["seven", "many", "nft"];

/// In MiB: their libraries are in the guest's memory, and while they are unpacked twice.
const MEMORY_WITH_PEERS: u32 = 3072;

/// What the guest runs before it measures.
const PREPARE: &str = "
dmesg -n 1
for module in ip_tables iptable_raw iptable_mangle iptable_nat iptable_filter nf_conntrack xt_TRACE xt_tcpudp \\
    nfnetlink_log nf_log_syslog nf_log_ipv4 nf_tables nft_chain_nat; do
    modprobe -q $module
done
ip netns add nft && ip -n nft link set lo up
";

/// The `bench` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    let build = build::Options { release: true, ..build::Options::default() };
    let built = if options.no_build { build::already(&build) } else { build::run(&build)? };
    let programs = places::target().join("guest/bench");
    fs::create_dir_all(&programs)?;
    let load = programs.join("bench-load");
    process::run(
        process::command("strip").arg("--strip-debug").arg("-o").arg(&load).arg(built.program("bench-load")),
    )?;
    let mut files = vec![
        format!("{}:/bin/bench-load", load.display()),
        format!("{}:/root/nftracer.bpf.o", places::bpf_object().display()),
    ];
    let mut memory = None;
    for peer in peers::PEERS {
        if !options.row.iter().any(|row| row.starts_with(peer.name)) {
            continue;
        }
        match peer.folder() {
            Ok(folder) => files.push(format!("{}:/{}", folder.display(), peer.name)),
            Err(error) => println!("{} is left out: {error:#}", peer.name),
        }
        memory = Some(MEMORY_WITH_PEERS);
    }

    let mut all = Vec::new();
    for kernel in &options.kernel {
        let usual = vm::MachineOptions::for_kernel(kernel, &build);
        let machine = vm::MachineOptions {
            icount: true,
            no_build: true,
            files: files.clone(),
            memory: memory.unwrap_or(usual.memory),
            ..usual
        };
        all.push(measure(options, kernel, machine)?);
    }

    let mut failed = false;
    for figures in &all {
        println!("\n{}", table::text(figures, options.markdown));
        let checks = limits::check(figures);
        failed |= checks.iter().any(|check| check.passed == Some(false));
        checks.iter().for_each(|check| println!("{check}"));
    }
    let baseline = Baseline::read()?;
    if options.save {
        baseline.save(&all)?;
    } else if options.check {
        let changes: Vec<Change> = all.iter().flat_map(|figures| baseline.changes(figures)).collect();
        changes.iter().for_each(|change| println!("{change}"));
        // What some figures have to be beside others is another question, which needs all of them.
        failed = changes.iter().any(Change::is_worse);
    }
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One kernel, all rows.
fn measure(options: &Options, kernel: &str, machine: vm::MachineOptions) -> Result<Figures> {
    let folder = env::temp_dir().join(format!("nftracer-bench-{}", std::process::id()));
    let ended = vm::run(&vm::Options {
        machine,
        timeout: 3 * 60 * 60,
        silence: 30 * 60,
        jobs: 1,
        out: Some(folder.clone()),
        command: vec![script(options)],
    })?;
    let figures = read(&folder.join(kernel), kernel);
    let _ = fs::remove_dir_all(&folder);
    if ended != ExitCode::SUCCESS {
        bail!("kernel {kernel}: the measurement failed");
    }
    figures
}

fn script(options: &Options) -> String {
    let rows =
        if options.row.is_empty() { String::new() } else { format!("--rows {} ", options.row.join(",")) };
    let mut script = PREPARE.to_owned() + "uname -r > /out/release\n";
    for world in WORLDS {
        let place = if *world == "nft" { "ip netns exec nft " } else { "" };
        script += &format!(
            "{place}bench-load {world} --rounds {} {rows}--probe-floor /root/nftracer.bpf.o \
             --out /out/{world}.json || exit 1\n",
            options.rounds,
        );
    }
    script
}

/// What the guest left.
fn read(folder: &Path, kernel: &str) -> Result<Figures> {
    let mut figures =
        Figures::new(kernel, fs::read_to_string(folder.join("release")).unwrap_or_default().trim());
    for world in WORLDS {
        let file = folder.join(format!("{world}.json"));
        if file.exists() {
            figures.add(&fs::read_to_string(&file)?).with_context(|| format!("in {}", file.display()))?;
        }
    }
    if figures.rows.is_empty() {
        bail!("there is no such row");
    }
    Ok(figures)
}
