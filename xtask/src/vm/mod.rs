//! Virtual machines: the guest tests on every kernel of the matrix, or any command on any kernel.

mod cpio;
mod debian;
mod initramfs;
mod matrix;
mod qemu;
mod report;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::build;
use crate::places;

use matrix::Row;
use qemu::{Limits, Machine, Outcome, Verdict};
use report::{Report, Resume};

/// Which kernel, which machine.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub(crate) struct MachineOptions {
    /// A kernel of tests/kernels.toml
    #[arg(long, short, default_value = "all", conflicts_with_all = ["suite", "pattern"])]
    pub(crate) kernel: String,
    /// Any other kernel: the Debian suite that has it
    #[arg(long, requires = "pattern")]
    pub(crate) suite: Option<String>,
    /// Any other kernel: the newest that matches this, such as 6.1.*-cloud-amd64
    #[arg(long, requires = "suite")]
    pub(crate) pattern: Option<String>,
    /// Looks for newer packages of the kernels
    #[arg(long)]
    pub(crate) refresh: bool,
    /// CPUs of the machine
    #[arg(long, default_value_t = 2)]
    pub(crate) cpus: u32,
    /// Memory of the machine in MiB
    #[arg(long, default_value_t = 1024)]
    pub(crate) memory: u32,
    /// One CPU on which every instruction takes one nanosecond of the guest's time
    #[arg(long)]
    pub(crate) icount: bool,
    /// A file or folder to take along: HOST[:GUEST], else it lies in /root
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    pub(crate) files: Vec<String>,
    /// More words for the kernel's command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub(crate) append: String,
    /// Takes what was built before, if anything
    #[arg(long)]
    pub(crate) no_build: bool,
    #[command(flatten)]
    pub(crate) build: build::Options,
}

impl MachineOptions {
    /// One kernel, and a machine as it comes.
    pub(crate) fn for_kernel(name: &str, build: &build::Options) -> Self {
        Self {
            kernel: name.to_owned(),
            suite: None,
            pattern: None,
            refresh: false,
            cpus: 2,
            memory: 1024,
            icount: false,
            files: Vec::new(),
            append: String::new(),
            no_build: false,
            build: build.clone(),
        }
    }

    fn rows(&self) -> Result<Vec<Row>> {
        match (&self.suite, &self.pattern) {
            (Some(suite), Some(pattern)) => Ok(vec![Row::any(suite, pattern)]),
            _ => matrix::rows(&self.kernel),
        }
    }
}

/// What to run, where.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
    /// Seconds a machine may run
    #[arg(long, default_value_t = 900)]
    pub(crate) timeout: u64,
    /// Seconds a machine may say nothing
    #[arg(long, default_value_t = 180)]
    pub(crate) silence: u64,
    /// Machines that run at the same time
    #[arg(long, short, default_value_t = 1)]
    pub(crate) jobs: usize,
    /// Where to put what the guest leaves in /out; every kernel gets a folder below
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// The command, else the guest tests; a single word is taken as a shell script
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

impl Options {
    /// The guest tests on all kernels. Most of them keep one of a machine's CPUs busy.
    pub(crate) fn all_tests(build: &build::Options) -> Self {
        Self {
            machine: MachineOptions::for_kernel("all", build),
            // A busy machine can be ten times slower; what hangs is silent.
            timeout: 3 * 60 * 60,
            silence: 15 * 60,
            jobs: thread::available_parallelism().map_or(1, NonZeroUsize::get),
            out: None,
            command: Vec::new(),
        }
    }

    /// The guest tests whose figures are exact where instructions are counted.
    pub(crate) fn counted_tests(build: &build::Options) -> Self {
        let machine = MachineOptions { icount: true, ..MachineOptions::for_kernel("6.1", build) };
        let command = vec!["exec /bin/guest-tests latency_grows_with_rules".to_owned()];
        Self { machine, command, ..Self::all_tests(build) }
    }
}

/// A shell in which machine.
#[derive(clap::Args)]
pub(crate) struct ShellOptions {
    #[command(flatten)]
    machine: MachineOptions,
}

/// The program of the guest tests, as a command.
const GUEST_TESTS: &str = "exec /bin/guest-tests";

/// How often a machine is started anew whose emulator crashed: QEMU 10.0 was seen to fail an assertion of its own
/// at boot (`iotlb_to_section` in system/physmem.c).
const CRASHES: usize = 2;

/// The `vm` task: every failure is named at the end.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let rows = options.machine.rows()?;
    let programs = programs(&options.machine)?;
    let jobs = jobs(&rows, options.jobs > 1 && options.command.is_empty());
    let (count, left) = (jobs.len(), Mutex::new(jobs.into_iter()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let lane = || -> Result<Report> {
        let mut report = Report::default();
        while let Some(job) = next() {
            report.add(run_job(options, &job, &programs, count == 1)?);
        }
        Ok(report)
    };
    let report = thread::scope(|scope| -> Result<Report> {
        let lanes: Vec<_> = (0..options.jobs.clamp(1, count)).map(|_| scope.spawn(lane)).collect();
        let mut report = Report::default();
        for lane in lanes {
            report.add(lane.join().map_err(|_| anyhow!("a machine's thread panicked"))??);
        }
        Ok(report)
    })?;
    // A lone command behaves as if it had been run here.
    if let ([_], false) = (&rows[..], options.command.is_empty())
        && let Some(code) = report.only_exit_code()
    {
        return Ok(ExitCode::from(code));
    }
    println!("{report}");
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What one machine does.
struct Job<'a> {
    row: &'a Row,
    /// Which of the parts that the tests are split into, from 1; 0 for all of them.
    part: usize,
}

impl Job<'_> {
    /// The row's name, and the part.
    fn name(&self) -> String {
        match self.part {
            0 => self.row.name.clone(),
            part => format!("{}, part {part} of {PARTS}", self.row.name),
        }
    }
}

/// Parts that the tests of a kernel are split into where several machines may run: towards the end no machine has much
/// more to do than another.
const PARTS: usize = 2;

/// What there is to do, in the order in which it is begun: the kernels with the most tests first. The last part has the test
/// that takes longest.
fn jobs(rows: &[Row], split: bool) -> Vec<Job<'_>> {
    let parts = if split { 1..=PARTS } else { 0..=0 };
    let mut jobs: Vec<Job<'_>> =
        parts.rev().flat_map(|part| rows.iter().rev().map(move |row| Job { row, part })).collect();
    let is_all = |job: &Job<'_>| job.row.tests.iter().any(|name| name == "all");
    jobs.sort_by_key(|job| (!is_all(job), Reverse(job.part), Reverse(job.row.tests.len())));
    jobs
}

/// Runs the machine of a job.
fn run_job(options: &Options, job: &Job<'_>, programs: &[(PathBuf, PathBuf)], alone: bool) -> Result<Report> {
    let (row, name) = (job.row, job.name());
    let started = Instant::now();
    let limits = Limits {
        overall: Duration::from_secs(options.timeout),
        silence: Duration::from_secs(options.silence),
    };
    let mut lines = Report::kernel(row, options.command.is_empty(), alone, std::io::stdout());
    let mut whole = script(&options.command, &row.tests);
    if job.part != 0 {
        let _ = write!(whole, " --part {}/{PARTS}", job.part);
    }
    let mut script = whole.clone();
    let mut crashes = 0;
    let outcome = loop {
        let guest =
            Guest { options: &options.machine, row, part: job.part, programs, script: &script, limits };
        let prepared = guest.prepare(false)?;
        println!("== kernel {name}: {}", prepared.kernel.release);
        let outcome = guest.run(&prepared, |bytes| lines.take(bytes))?;
        let (Verdict::Crashed(said), true) = (&outcome.verdict, crashes < CRASHES) else { break outcome };
        let Some(resume) = lines.resume() else { break outcome };
        crashes += 1;
        println!("== kernel {name}: the emulator crashed, another machine goes on: {said}");
        if let Resume::After(test) = resume {
            script = format!("{whole} --after {}", initramfs::quote(&test));
        }
    };
    let report = lines.finish(&outcome.verdict, &outcome.complaints);
    println!("== kernel {name}: {} s", started.elapsed().as_secs());
    explain(row, &outcome);
    if let Some(folder) = &options.out {
        unpack(&outcome.files, &folder.join(&row.name))?;
    }
    Ok(report)
}

/// The `shell` task.
pub(crate) fn shell(options: &ShellOptions) -> Result<ExitCode> {
    attached(&options.machine, "exec bash")
}

/// Runs a command in a guest, attached to this terminal.
pub(crate) fn attached(options: &MachineOptions, script: &str) -> Result<ExitCode> {
    let mut rows = options.rows()?;
    let row = rows.pop().context("there is no such kernel")?;
    let programs = programs(options)?;
    let limits = Limits { overall: Duration::MAX, silence: Duration::MAX };
    let guest = Guest { options, row: &row, part: 0, programs: &programs, script, limits };
    let outcome = guest.run(&guest.prepare(true)?, |_| {})?;
    explain(&row, &outcome);
    Ok(match outcome.verdict {
        Verdict::Exited(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        _ => ExitCode::FAILURE,
    })
}

/// What runs in the machine of one row.
struct Guest<'a> {
    options: &'a MachineOptions,
    row: &'a Row,
    /// As in [`Job`].
    part: usize,
    programs: &'a [(PathBuf, PathBuf)],
    script: &'a str,
    limits: Limits,
}

/// A machine that can be started.
struct Prepared {
    kernel: debian::Kernel,
    /// Of this machine alone; holds its file system.
    folder: PathBuf,
    terminal: bool,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Guest<'_> {
    /// Fetches the kernel and writes the file system. What is kept in the cache, only one machine makes at a time.
    fn prepare(&self, terminal: bool) -> Result<Prepared> {
        static CACHE: Mutex<()> = Mutex::new(());
        let _only = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = debian::kernel(&self.row.suite, &self.row.pattern, self.options.refresh)?;
        let name = format!("nftracer-vm-{}-{}-{}", std::process::id(), self.row.name, self.part);
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder)?;
        let prepared = Prepared { kernel, folder, terminal };
        let mut files = self.programs.to_vec();
        for file in &self.options.files {
            files.push(placed(file)?);
        }
        let run = initramfs::Run {
            files: &files,
            script: self.script,
            environment: &BTreeMap::from([
                ("NFTRACER_KERNEL".to_owned(), self.row.name.clone()),
                ("NFTRACER_BACKENDS".to_owned(), self.row.backends.join(",")),
                ("NFTRACER_BTF".to_owned(), self.row.btf.clone()),
            ]),
            terminal: terminal.then(terminal_size),
        };
        initramfs::write(&prepared.kernel, &run, &prepared.initramfs())?;
        Ok(prepared)
    }

    fn run(&self, prepared: &Prepared, output: impl FnMut(&[u8])) -> Result<Outcome> {
        let machine = Machine {
            image: &prepared.kernel.image,
            initramfs: &prepared.initramfs(),
            cpus: self.options.cpus,
            memory: self.options.memory,
            count_instructions: self.options.icount,
            kernel_arguments: &self.options.append,
            terminal: prepared.terminal,
            limits: self.limits,
            folder: &prepared.folder,
        };
        qemu::run(&machine, output)
    }
}

impl Prepared {
    fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }
}

/// Our programs, and where they lie in the guest. Without their debugging information, which is most
/// of them.
fn programs(options: &MachineOptions) -> Result<Vec<(PathBuf, PathBuf)>> {
    let built = if options.no_build { build::already(&options.build) } else { build::run(&options.build)? };
    let folder = places::target().join("guest");
    fs::create_dir_all(&folder)?;
    let mut programs = Vec::new();
    for name in ["nftracer", "guest-tests"] {
        let program = built.program(name);
        if program.exists() {
            let stripped = folder.join(name);
            // Others may be packing the one that is there.
            let unfinished = folder.join(format!("{name}.unfinished-{}", std::process::id()));
            crate::process::run(
                crate::process::command("strip").arg("--strip-debug").arg("-o").arg(&unfinished).arg(program),
            )?;
            fs::rename(&unfinished, &stripped)?;
            programs.push((stripped, Path::new("/bin").join(name)));
        } else if !options.no_build {
            bail!("{} was not built", program.display());
        }
    }
    Ok(programs)
}

/// The guest's command as a shell script; without one, that of these tests.
fn script(command: &[String], tests: &[String]) -> String {
    match command {
        [] => tests.iter().fold(GUEST_TESTS.to_owned(), |text, name| text + " " + &initramfs::quote(name)),
        [script] => script.clone(),
        words => words.iter().fold("exec".to_owned(), |text, word| text + " " + &initramfs::quote(word)),
    }
}

/// `HOST[:GUEST]`.
fn placed(file: &str) -> Result<(PathBuf, PathBuf)> {
    let (host, guest) = match file.split_once(':') {
        Some((host, guest)) => (PathBuf::from(host), PathBuf::from(guest)),
        None => {
            let host = PathBuf::from(file);
            let name = host.file_name().with_context(|| format!("{file} has no name"))?;
            let guest = Path::new("/root").join(name);
            (host, guest)
        }
    };
    if !host.exists() {
        bail!("{} does not exist", host.display());
    }
    Ok((host, guest))
}

/// Rows and columns of this terminal, or what terminals used to have.
fn terminal_size() -> (u16, u16) {
    let said = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output();
    said.ok()
        .filter(|_| std::io::stdin().is_terminal())
        .and_then(|output| {
            let text = String::from_utf8(output.stdout).ok()?;
            let (rows, columns) = text.trim().split_once(' ')?;
            Some((rows.parse().ok()?, columns.parse().ok()?))
        })
        .filter(|(rows, columns)| *rows > 0 && *columns > 0)
        .unwrap_or((24, 80))
}

/// Shows why a machine did not end well.
fn explain(row: &Row, outcome: &Outcome) {
    if matches!(outcome.verdict, Verdict::Exited(_)) && outcome.complaints.is_empty() {
        return;
    }
    let lines: Vec<&str> = outcome.console.lines().collect();
    if !lines.is_empty() {
        let last = lines[lines.len().saturating_sub(80)..].join("\n   ");
        println!("-- the console of kernel {}:\n   {last}", row.name);
    }
    print!("{}", outcome.complaints);
}

/// Unpacks what the guest left.
fn unpack(archive: &[u8], folder: &Path) -> Result<()> {
    if archive.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let mut tar = crate::process::command("tar")
        .args(["--extract", "--no-same-owner", "--directory"])
        .arg(folder)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start tar")?;
    tar.stdin.take().context("its input is piped")?.write_all(archive)?;
    if !tar.wait()?.success() {
        bail!("cannot unpack what the guest left");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_begin_and_the_shortest_end() {
        let row = |name: &str, tests: &[&str]| Row {
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
            ..Row::any(name, "*")
        };
        let rows = [row("5", &["kernel", "a", "b"]), row("6", &["all"]), row("7", &["kernel"])];
        let names = |split| jobs(&rows, split).iter().map(Job::name).collect::<Vec<_>>();
        assert_eq!(names(false), ["6", "5", "7"]);
        let parts = [("6", 2), ("6", 1), ("5", 2), ("7", 2), ("5", 1), ("7", 1)];
        assert_eq!(names(true), parts.map(|(name, part)| format!("{name}, part {part} of 2")));
    }
}
