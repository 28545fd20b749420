//! What reading a kernel log costs, beside `grep` on the same file.
//!
//! The log is that of a CentOS 7 machine in `tests/data`, over and over, each time with other packets: numbers of
//! records, times, ports and identifications go on.

use std::env;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{command, read};
use crate::{build, places};

/// How much to read.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Size of the log in megabytes
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// How often to measure; the least counts
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Takes what was built before
    #[arg(long)]
    no_build: bool,
}

/// Between two looks at the memory of a process.
const LOOK: Duration = Duration::from_millis(20);
/// How long the log of the data is, in microseconds, with some time after it.
const SPAN: u64 = 30_000_000;

/// The `read-cost` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let release = build::Options { release: true, ..build::Options::default() };
    let built = if options.no_build { build::already(&release) } else { build::run(&release)? };
    let folder = Folder::new("read-cost")?;
    let (log, out) = (folder.0.join("log"), folder.0.join("out"));
    let lines = write_log(&log, options.megabytes * 1_000_000)?;
    let bytes = fs::metadata(&log)?.len();
    println!("{lines} lines, {} MB", bytes / 1_000_000);
    let nftracer = format!("{} read -o trace", built.program("nftracer").display());
    let mut least = [f64::MAX; 2];
    for _ in 0..options.rounds {
        for (least, program) in least.iter_mut().zip([nftracer.as_str(), "grep TRACE"]) {
            *least = least.min(seconds(&format!("{program} {} >{} 2>&1", log.display(), out.display()))?);
        }
    }
    let [ours, grep] = least;
    println!(
        "nftracer read -o trace: {ours:.2} s of processor time, {:.0} lines per second",
        lines as f64 / ours
    );
    println!("grep TRACE: {grep:.2} s, so {:.2} times as much", ours / grep);
    println!("memory: {} KB at most", peak_kilobytes(&built.program("nftracer"), &log)?);
    Ok(ExitCode::SUCCESS)
}

/// A folder that goes with what is in it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("nftracer-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Processor time of a command, its own and the kernel's, as the shell tells it.
pub(crate) fn seconds(command_line: &str) -> Result<f64> {
    let script = format!("{command_line} && times");
    let said = read(command("sh").args(["-c", &script]))?;
    let children = said.lines().nth(1).context("the shell does not tell times")?;
    let seconds = |word: &str| -> Option<f64> {
        let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    let both: Option<f64> = children.split_whitespace().map(seconds).sum();
    both.with_context(|| format!("times that cannot be read: {children}"))
}

/// The most memory that reading a file took.
pub(crate) fn peak_kilobytes(nftracer: &Path, log: &Path) -> Result<u64> {
    let mut child = command(nftracer)
        .args(["read", "-o", "trace"])
        .arg(log)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait()?.is_none() {
        // The kernel keeps the highest value, so that no peak is between two looks.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        most = peak.and_then(|peak| peak.parse().ok()).unwrap_or(most);
        thread::sleep(LOOK);
    }
    Ok(most)
}

/// Writes a log of at least this size. Says how many lines it has.
fn write_log(path: &Path, bytes: u64) -> Result<u64> {
    let data = places::root().join("tests/data/kmsg/el7.txt");
    let text = fs::read_to_string(&data).with_context(|| format!("cannot read {}", data.display()))?;
    let mut out = BufWriter::new(File::create(path)?);
    let (mut lines, mut written, mut round) = (0, 0, 0);
    while written < bytes {
        for line in text.lines() {
            let line = of_round(line, lines, round).with_context(|| format!("no line of a log: {line}"))?;
            writeln!(out, "{line}")?;
            written += line.len() as u64 + 1;
            lines += 1;
        }
        round += 1;
        if round > u64::from(u32::MAX) {
            bail!("so large a log cannot be made");
        }
    }
    out.flush()?;
    Ok(lines)
}

/// A line `level,number,microseconds,flags;text` as it is in a later round.
fn of_round(line: &str, number: u64, round: u64) -> Option<String> {
    let (head, text) = line.split_once(';')?;
    let [level, _, time, flags] = head.split(',').collect::<Vec<_>>().try_into().ok()?;
    let time = time.parse::<u64>().ok()? + round * SPAN;
    let words: Vec<String> = text.split(' ').map(|word| word_of_round(word, round)).collect();
    Some(format!("{level},{number},{time},{flags};{}", words.join(" ")))
}

/// Identifications and clients' ports are others in each round, the same for all lines of a packet.
fn word_of_round(word: &str, round: u64) -> String {
    let other = || {
        let (name, number) = word.split_once('=')?;
        let number: u64 = number.parse().ok()?;
        let number = match name {
            "ID" if number > 0 => (number + round * 11) % 65_536,
            "SPT" | "DPT" if number >= 32_768 => 32_768 + (number + round * 7) % 28_000,
            _ => return None,
        };
        Some(format!("{name}={number}"))
    };
    other().unwrap_or_else(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_differ_in_what_tells_packets_apart() {
        let line =
            "4,395,25,-;TRACE: raw:OUTPUT:policy:2 IN= LEN=72 ID=7 DF PROTO=TCP SPT=80 DPT=40000 ID=65530";
        assert_eq!(
            of_round(line, 0, 0).unwrap(),
            "4,0,25,-;TRACE: raw:OUTPUT:policy:2 IN= LEN=72 ID=7 DF PROTO=TCP SPT=80 DPT=44768 ID=65530"
        );
        assert_eq!(
            of_round(line, 9, 1).unwrap(),
            "4,9,30000025,-;TRACE: raw:OUTPUT:policy:2 IN= LEN=72 ID=18 DF PROTO=TCP SPT=80 DPT=44775 ID=5"
        );
        assert_eq!(of_round("something else", 0, 0), None);
    }
}
