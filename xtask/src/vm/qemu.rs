//! One run of a virtual machine: command line, what it says, and when to give it up.
//!
//! The machine is emulated, never accelerated, so that it behaves the same everywhere. It has four
//! connections to this process, all of them sockets: the kernel's console, the output of the guest's
//! command, its result with files, and the monitor through which the machine is ended.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{command, find};

/// Marks the end of the output of the guest's command.
const END_OF_OUTPUT: u8 = 0x1e;

/// What the kernel prints when something is wrong with it.
const TROUBLE: &[&str] = &[
    "Kernel panic",
    "BUG:",
    "Oops:",
    "double fault",
    "general protection fault",
    "lockup",
    "LOCKUP",
    "blocked for more than",
    "detected stall",
    "self-detected stall",
    "detected expedited stalls",
    "kernel stack overflow",
    "stack guard page",
    "Unable to handle kernel",
    "Out of memory",
];

/// A machine may have to wait for this one's CPUs: what looks like a lockup soon is none yet.
const PATIENCE: &str = "watchdog_thresh=60 workqueue.watchdog_thresh=120 rcupdate.rcu_cpu_stall_timeout=120 \
                        rcupdate.rcu_exp_cpu_stall_timeout=120000";

/// How long a kernel in trouble may go on to explain itself.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The machine.
pub(crate) struct Machine<'a> {
    pub(crate) image: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) cpus: u32,
    /// In MiB.
    pub(crate) memory: u32,
    /// One instruction takes one nanosecond of the guest's time, on a single CPU.
    pub(crate) count_instructions: bool,
    /// More words for the kernel's command line.
    pub(crate) kernel_arguments: &'a str,
    /// Whether the terminal of this process is the guest's.
    pub(crate) terminal: bool,
    pub(crate) limits: Limits,
    /// For sockets and the console's text.
    pub(crate) folder: &'a Path,
}

/// When a machine counts as hanging.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) overall: Duration,
    pub(crate) silence: Duration,
}

/// How a run ended.
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// Lines in the kernel's log that no healthy kernel writes.
    pub(crate) complaints: String,
    /// A tar archive of what the guest left in `/out`.
    pub(crate) files: Vec<u8>,
    /// Everything on the kernel's console.
    pub(crate) console: String,
}

/// What became of the guest's command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It ended with this status.
    Exited(i32),
    /// The kernel got into trouble: the line that says so.
    Trouble(String),
    /// Nothing happened for too long.
    Hang(String),
    /// The machine ended before the command did.
    Vanished(String),
    /// The emulator itself was killed by a signal, such as that of an assertion of its own.
    Crashed(String),
}

impl Verdict {
    /// Tells a guest that ended early from an emulator that did, whose end this is.
    fn of_emulator(self, ended: ExitStatus) -> Self {
        match self {
            Self::Vanished(said) if ended.signal().is_some() => Self::Crashed(said),
            other => other,
        }
    }
}

enum Event {
    Console(String),
    Output(Vec<u8>),
    OutputEnd,
    Result(GuestResult),
    Ended(String),
}

struct GuestResult {
    status: i32,
    complaints: String,
    files: Vec<u8>,
}

/// Runs a machine; hands on the command's output as it comes.
pub(crate) fn run(machine: &Machine<'_>, mut output: impl FnMut(&[u8])) -> Result<Outcome> {
    let sockets = Sockets::listen(machine)?;
    let mut child = qemu(machine, &sockets)?.spawn().context("cannot start qemu-system-x86_64")?;
    let connected = sockets.connect(&mut child);
    let Connections { mut monitor, console, command, result } = match connected {
        Ok(connections) => connections,
        Err(error) => {
            let _ = child.kill();
            bail!("{error:#}: {}", read_errors(&mut child));
        }
    };

    let (sender, events) = channel();
    spawn_console(console, sender.clone());
    if let Some(command) = command {
        spawn_output(command, sender.clone());
    } else {
        sender.send(Event::OutputEnd)?;
    }
    spawn_result(result, sender.clone());
    let mut errors = child.stderr.take().context("its errors are piped")?;
    thread::spawn(move || {
        let mut said = String::new();
        let _ = errors.read_to_string(&mut said);
        let _ = sender.send(Event::Ended(said));
    });

    let mut outcome = follow(machine, &events, &mut output);
    // The monitor ends the machine in a way that restores the terminal.
    let _ = monitor.write_all(b"quit\n");
    match ends_soon(&mut child)? {
        Some(status) => outcome.verdict = outcome.verdict.of_emulator(status),
        None => {
            child.kill()?;
            child.wait()?;
        }
    }
    let _ = fs::write(machine.folder.join("console"), &outcome.console);
    Ok(outcome)
}

fn follow(machine: &Machine<'_>, events: &Receiver<Event>, output: &mut impl FnMut(&[u8])) -> Outcome {
    let started = Instant::now();
    let mut last_sign = started;
    let mut console = String::new();
    let mut result: Option<GuestResult> = None;
    let mut output_complete = false;
    let mut trouble: Option<(String, Instant)> = None;
    let verdict = loop {
        if let Some(GuestResult { status, .. }) = &result
            && output_complete
        {
            break Verdict::Exited(*status);
        }
        let now = Instant::now();
        if let Some((line, _)) = trouble.take_if(|(_, since)| now - *since > LAST_WORDS) {
            break Verdict::Trouble(line);
        }
        if !machine.terminal {
            if now - started > machine.limits.overall {
                break Verdict::Hang(format!("not finished after {} s", machine.limits.overall.as_secs()));
            }
            if now - last_sign > machine.limits.silence {
                break Verdict::Hang(format!("silent for {} s", machine.limits.silence.as_secs()));
            }
        }
        let event = match events.recv_timeout(Duration::from_millis(200)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => Event::Ended(String::new()),
        };
        last_sign = Instant::now();
        match event {
            Event::Console(line) => {
                if trouble.is_none() && TROUBLE.iter().any(|sign| line.contains(sign)) {
                    trouble = Some((line.trim().to_owned(), Instant::now()));
                }
                console += &line;
            }
            Event::Output(bytes) => output(&bytes),
            Event::OutputEnd => output_complete = true,
            Event::Result(received) => result = Some(received),
            Event::Ended(said) => {
                // What is still on its way from the sockets' readers.
                while let Ok(event) = events.recv_timeout(Duration::from_millis(100)) {
                    match event {
                        Event::Console(line) => console += &line,
                        Event::Output(bytes) => output(&bytes),
                        Event::Result(received) => result = Some(received),
                        Event::OutputEnd | Event::Ended(_) => {}
                    }
                }
                break match (trouble.take(), &result) {
                    (Some((line, _)), _) => Verdict::Trouble(line),
                    (None, Some(result)) => Verdict::Exited(result.status),
                    (None, None) => Verdict::Vanished(said.trim().to_owned()),
                };
            }
        }
    };
    let (complaints, files) = result.map(|result| (result.complaints, result.files)).unwrap_or_default();
    Outcome { verdict, complaints, files, console }
}

fn qemu(machine: &Machine<'_>, sockets: &Sockets) -> Result<Command> {
    let program = find("qemu-system-x86_64").context("qemu is missing; run `cargo xtask setup`")?;
    // Ends with this process, however that ends.
    let mut command = command("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.args(["-machine", "pc,accel=tcg", "-nodefaults", "-no-user-config", "-no-reboot"]);
    // With cmpxchg16b, QEMU 7.2 makes kernels from 6.12 on fault under load. To copy byte by byte is fast on a real machine
    // and slow on one that is emulated; measurements are of kernels as people run them.
    let cpu = if machine.count_instructions { "max,-cx16" } else { "max,-cx16,-erms,-fsrm" };
    command.args(["-cpu", cpu, "-display", "none"]);
    command.args(["-m", &machine.memory.to_string()]);
    if machine.count_instructions {
        // Two possible CPUs, because with one the kernel keeps its counters elsewhere; the second is never started.
        command.args(["-icount", "shift=0,sleep=off", "-smp", "2"]);
    } else {
        command.args(["-smp", &machine.cpus.to_string()]);
    }
    let arguments = format!(
        "console=ttyS0 loglevel=4 panic=-1 oops=panic random.trust_cpu=on rdinit=/init {PATIENCE} {} {}",
        if machine.count_instructions { "maxcpus=1".to_owned() } else { unmeasured() },
        machine.kernel_arguments
    );
    command
        .arg("-kernel")
        .arg(machine.image)
        .arg("-initrd")
        .arg(machine.initramfs)
        .args(["-append", &arguments]);

    let socket = |name: &str| format!("socket,id={name},path={}", sockets.path(name).display());
    command.args(["-chardev", &socket("monitor"), "-mon", "chardev=monitor,mode=readline"]);
    command.args(["-chardev", &socket("console"), "-serial", "chardev:console"]);
    command.args(["-device", "virtio-serial-pci,max_ports=8"]);
    if machine.terminal {
        command.args(["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]);
    } else {
        command.args([
            "-chardev",
            &socket("output"),
            "-device",
            "virtserialport,nr=1,chardev=output,name=output",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    command.args([
        "-chardev",
        &socket("result"),
        "-device",
        "virtserialport,nr=2,chardev=result,name=result",
    ]);
    command.stderr(Stdio::piped());
    Ok(command)
}

/// What spares a kernel time where nothing is measured: a guard of every return, and a clock that is a device, which it takes
/// where it does not trust the processors' own.
fn unmeasured() -> String {
    const ALWAYS: &str = "mitigations=off";
    // By itself it finds out how fast that one is in a few milliseconds of its start, in which this machine may do
    // something else: guests were seen whose clocks were far ahead.
    tsc_khz().map_or(ALWAYS.to_owned(), |khz| format!("{ALWAYS} tsc=reliable tsc_early_khz={khz}"))
}

/// How fast the time-stamp counter of this machine is, which is also that of an emulated one.
#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> Option<u128> {
    static KHZ: LazyLock<u128> = LazyLock::new(|| {
        #[expect(unsafe_code, reason = "an instruction without preconditions")]
        // SAFETY: as just said.
        let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
        let (start, first) = (Instant::now(), ticks());
        thread::sleep(Duration::from_millis(200));
        let (counted, took) = (ticks() - first, start.elapsed());
        u128::from(counted) * 1_000_000 / took.as_nanos()
    });
    Some(*KHZ)
}

/// A machine of another kind has none.
#[cfg(not(target_arch = "x86_64"))]
fn tsc_khz() -> Option<u128> {
    None
}

/// Listening sockets, by the name of what connects to them.
struct Sockets {
    folder: PathBuf,
    listeners: Vec<(&'static str, UnixListener)>,
}

struct Connections {
    monitor: UnixStream,
    console: UnixStream,
    command: Option<UnixStream>,
    result: UnixStream,
}

impl Sockets {
    fn listen(machine: &Machine<'_>) -> Result<Self> {
        let mut sockets = Self { folder: machine.folder.to_owned(), listeners: Vec::new() };
        for name in ["monitor", "console", "output", "result"] {
            if machine.terminal && name == "output" {
                continue;
            }
            let path = sockets.path(name);
            let _ = fs::remove_file(&path);
            let listener =
                UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
            listener.set_nonblocking(true)?;
            sockets.listeners.push((name, listener));
        }
        Ok(sockets)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn connect(self, child: &mut Child) -> Result<Connections> {
        let mut accept = |wanted: &str| -> Result<Option<UnixStream>> {
            let Some((_, listener)) = self.listeners.iter().find(|(name, _)| *name == wanted) else {
                return Ok(None);
            };
            let given_up = Instant::now() + Duration::from_secs(20);
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false)?;
                        return Ok(Some(stream));
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
                if child.try_wait()?.is_some() || Instant::now() > given_up {
                    bail!("qemu did not start");
                }
                thread::sleep(Duration::from_millis(5));
            }
        };
        Ok(Connections {
            monitor: accept("monitor")?.context("always there")?,
            console: accept("console")?.context("always there")?,
            command: accept("output")?,
            result: accept("result")?.context("always there")?,
        })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for (name, _) in &self.listeners {
            let _ = fs::remove_file(self.folder.join(name));
        }
    }
}

fn spawn_console(stream: UnixStream, events: Sender<Event>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if events.send(Event::Console(String::from_utf8_lossy(&line).replace('\r', ""))).is_err() {
                return;
            }
            line.clear();
        }
    });
}

fn spawn_output(mut stream: UnixStream, events: Sender<Event>) {
    thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let (bytes, end) = match buffer[..length].iter().position(|byte| *byte == END_OF_OUTPUT) {
                Some(at) => (&buffer[..at], true),
                None => (&buffer[..length], false),
            };
            if events.send(Event::Output(bytes.to_vec())).is_err() || end {
                break;
            }
        }
        let _ = events.send(Event::OutputEnd);
    });
}

fn spawn_result(stream: UnixStream, events: Sender<Event>) {
    thread::spawn(move || {
        if let Some(result) = read_result(BufReader::new(stream)) {
            let _ = events.send(Event::Result(result));
        }
    });
}

/// One line of `name=number` words, then as many bytes as it says.
fn read_result(mut reader: impl BufRead) -> Option<GuestResult> {
    let mut header = String::new();
    reader.read_line(&mut header).ok()?;
    let number = |name: &str| -> Option<usize> {
        let word = header.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word?.parse().ok()
    };
    let status = i32::try_from(number("exit")?).ok()?;
    let mut complaints = vec![0; number("complaints")?];
    reader.read_exact(&mut complaints).ok()?;
    let mut files = vec![0; number("files")?];
    reader.read_exact(&mut files).ok()?;
    Some(GuestResult { status, complaints: String::from_utf8_lossy(&complaints).into_owned(), files })
}

fn ends_soon(child: &mut Child) -> Result<Option<ExitStatus>> {
    for _ in 0..200 {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

fn read_errors(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(errors) = &mut child.stderr {
        let _ = errors.read_to_string(&mut said);
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_signal_is_the_emulators_fault() {
        let vanished = || Verdict::Vanished("said".to_owned());
        assert_eq!(vanished().of_emulator(ExitStatus::from_raw(6)), Verdict::Crashed("said".to_owned()));
        assert_eq!(vanished().of_emulator(ExitStatus::from_raw(1 << 8)), vanished());
        assert_eq!(Verdict::Exited(0).of_emulator(ExitStatus::from_raw(6)), Verdict::Exited(0));
    }

    #[test]
    fn a_result_is_a_line_and_two_blocks() {
        let result = read_result(&b"exit=3 complaints=4 files=2\nBUG\nab"[..]).unwrap();
        assert_eq!(
            (result.status, result.complaints.as_str(), result.files.as_slice()),
            (3, "BUG\n", &b"ab"[..])
        );
        assert!(read_result(&b"exit=3 complaints=4 files=2\nBUG\na"[..]).is_none());
        assert!(read_result(&b""[..]).is_none());
    }
}
