//! The program under test: started, waited for, read, ended.

use std::borrow::Cow;
use std::env;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::ops::Deref;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use crate::hash::Map;
use crate::packet::Identity;
use crate::wait;

/// Loading and verifying the programs takes a while in an emulated machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
const ENDS_WITHIN: Duration = Duration::from_secs(180);

/// One step that nftracer gave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// nftracer's number of the packet.
    pub packet: u64,
    /// When it came to the table, to the nanosecond, as it is written; empty where it is not told.
    pub time: Box<str>,
    /// Inode number of the namespace; 0 where it is not told.
    pub netns: u64,
    /// Number of the netfilter hook; 255 where it is not told.
    pub hook: u8,
    /// `table:chain:kind:number`
    pub step: String,
    /// The packet at that moment.
    pub identity: Identity,
    /// Its mark.
    pub mark: u32,
    /// Says itself that it is not sure how the packet looked.
    pub doubt: bool,
    /// What the rule did with the packet, where that is known.
    pub verdict: Option<Box<str>>,
    /// The rule's text.
    pub text: Option<Box<str>>,
    /// What else is told of a step in nftables.
    pub nft: Option<Nft>,
    /// By what name its namespace is known.
    pub netns_name: Option<Box<str>>,
    /// Names of the devices that it came in by and leaves by.
    pub devices: [Option<Box<str>>; 2],
}

/// What is told of steps in nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nft {
    /// The family of the table.
    pub family: String,
    /// The handle of the rule; policies and ends of chains have none.
    pub handle: Option<u64>,
    /// What it decided.
    pub verdict: String,
    /// As nft prints it.
    pub text: Option<String>,
}

/// How sure nftracer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// Rules and order are right.
    Complete,
    /// Rules are right.
    Unordered,
    /// Says itself what is in doubt.
    Inexact,
}

/// What nftracer said about a packet when it was done.
#[derive(Clone, Debug)]
pub struct Packet {
    /// How sure it is.
    pub certainty: Certainty,
    /// Why it is not complete.
    pub why: String,
    /// All steps in order.
    pub path: Vec<String>,
    /// What the last table decided; empty where that is not known.
    pub verdict: String,
    /// What else is worth knowing.
    pub note: Option<String>,
    /// How it ended.
    pub ending: Value,
    /// The queues that it waited in.
    pub queues: Value,
    /// Its source port, where no step says it.
    pub sport: Option<u16>,
}

/// The totals of a run.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the output")]
pub struct Totals {
    pub packets: u64,
    pub steps: u64,
    pub lost: u64,
    pub missed: u64,
    pub unordered: u64,
    pub inexact: u64,
    pub sampled_out: Option<u64>,
    pub limited_out: Option<u64>,
}

/// What was read of `-o json` so far.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The steps in the order they came.
    pub steps: Vec<Step>,
    /// The packets that are done.
    pub packets: Map<u64, Packet>,
    /// The last line.
    pub end: Option<Totals>,
    /// Whether the first line was the one it has to be.
    pub started: bool,
    /// Lines that make no sense.
    pub odd: Vec<String>,
    /// Rows carry the IPv4 identification and the numbers of echo packets.
    pub detailed: bool,
}

#[derive(Debug, Default)]
struct Output {
    trace: Trace,
    lines: Vec<String>,
    errors: Vec<String>,
    /// Bytes of standard output so far.
    seen: u64,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The status it ended with.
    pub status: ExitStatus,
    /// Standard output of runs that are not read as JSON, as far as it was not taken.
    pub lines: Vec<String>,
    /// Standard error.
    pub errors: Vec<String>,
    /// What was read of `-o json` and not yet taken.
    pub trace: Trace,
}

impl Ended {
    /// How much it says it missed.
    pub fn missed(&self) -> u64 {
        self.trace.end.map_or(0, |totals| totals.missed)
    }
}

/// A running `nftracer`.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    output: Arc<Mutex<Output>>,
    readers: Vec<JoinHandle<()>>,
}

/// Where the program is: beside this one, or where the environment says.
pub fn program() -> String {
    env::var("NFTRACER").unwrap_or_else(|_| "/bin/nftracer".to_owned())
}

/// Runs it to its end.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Ended> {
    Tracer::spawn(arguments, environment)?.finish(READY_WITHIN)
}

impl Tracer {
    /// Starts `nftracer trace` and waits until it says that it traces.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let words: Vec<&str> = std::iter::once("trace").chain(arguments.iter().copied()).collect();
        let mut tracer = Self::spawn(&words, environment)?;
        tracer.ready().with_context(|| format!("nftracer {}", words.join(" ")))?;
        Ok(tracer)
    }

    /// Starts a command whose output is that of `nftracer trace`, and waits until it says that it traces.
    pub fn start_command(command: Command) -> Result<Self> {
        let words = format!("{command:?}");
        let mut tracer = Self::spawn_command(command)?;
        tracer.ready().context(words)?;
        Ok(tracer)
    }

    fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(program());
        command.args(arguments).envs(environment.iter().copied());
        Self::spawn_command(command)
    }

    /// Starts a command whose output is nftracer's.
    pub fn spawn_command(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let output = Arc::new(Mutex::new(Output::default()));
        let stdout = child.stdout.take().context("piped")?;
        let stderr = child.stderr.take().context("piped")?;
        let (one, other) = (Arc::clone(&output), Arc::clone(&output));
        let readers = vec![
            thread::spawn(move || read_stdout(stdout, &one)),
            thread::spawn(move || read_stderr(stderr, &other)),
        ];
        Ok(Self { child, output, readers })
    }

    /// Waits for the line that says so.
    pub fn ready(&mut self) -> Result<()> {
        let ready = wait::until(READY_WITHIN, || {
            if self.locked().errors.iter().any(|line| line.starts_with("tracing ")) {
                return Some(true);
            }
            self.child.try_wait().ok().flatten().map(|_| false)
        });
        match ready {
            Some(true) => Ok(()),
            Some(false) => {
                // The last words may still be on their way.
                self.readers.drain(..).for_each(|reader| drop(reader.join()));
                bail!("ended early: {}", self.locked().errors.join("\n"))
            }
            None => bail!("not ready in {READY_WITHIN:?}: {}", self.locked().errors.join("\n")),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What came since the last call. Packets that are not done stay for the next.
    pub fn take(&self) -> Trace {
        std::mem::take(&mut self.locked().trace)
    }

    /// Bytes of output so far.
    pub fn seen(&self) -> u64 {
        self.locked().seen
    }

    /// How many lines wait, of runs that are not read as JSON.
    pub fn lines(&self) -> usize {
        self.locked().lines.len()
    }

    /// The lines that came since the last call, of runs that are not read as JSON.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.locked().lines)
    }

    /// Looks at what came.
    pub fn look<T>(&self, look: impl FnOnce(&Trace) -> T) -> T {
        look(&self.locked().trace)
    }

    /// Lines of standard error so far.
    pub fn errors(&self) -> Vec<String> {
        self.locked().errors.clone()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().ok().flatten().is_some()
    }

    /// Sends a signal and waits for the end.
    pub fn stop(self, signal: Signal) -> Result<Ended> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process")?;
        kill_process(pid, signal)?;
        self.finish(ENDS_WITHIN)
    }

    /// Waits for the end.
    pub fn finish(mut self, within: Duration) -> Result<Ended> {
        let Some(status) = wait::until(within, || self.child.try_wait().ok().flatten()) else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            bail!("nftracer did not end in {within:?}: {}", self.locked().errors.join("\n"));
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let mut output = self.locked();
        Ok(Ended {
            status,
            lines: std::mem::take(&mut output.lines),
            errors: std::mem::take(&mut output.errors),
            trace: std::mem::take(&mut output.trace),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_stderr(stderr: ChildStderr, output: &Mutex<Output>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        output.lock().unwrap_or_else(PoisonError::into_inner).errors.push(line);
    }
}

fn read_stdout(stdout: ChildStdout, output: &Mutex<Output>) {
    let mut reader = BufReader::with_capacity(256 << 10, stdout);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end_matches('\n');
        // What only some ask for is read by them.
        let is_extra = [
            r#"{"type":"why","#,
            r#"{"type":"passed","#,
            r#"{"type":"count"#,
            r#"{"type":"freed","#,
            r#"{"type":"spent","#,
            r#"{"type":"sender","#,
            r#"{"type":"latency","#,
            r#"{"type":"hot","#,
        ]
        .iter()
        .any(|word| line.starts_with(word));
        let is_row = line.starts_with('{') && !is_extra;
        let row = is_row.then(|| parse(line));
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.seen += u64::try_from(bytes.len()).unwrap_or(0);
        match row {
            Some(Ok(row)) => output.trace.add(row, line),
            Some(Err(error)) => output.trace.odd.push(format!("{error}: {line}")),
            None => output.lines.push(line.to_owned()),
        }
        drop(output);
        bytes.clear();
    }
}

/// Steps and packets are most of the rows, and are read in one go when the type comes first.
fn parse(line: &str) -> serde_json::Result<Row<'_>> {
    if line.starts_with(r#"{"type":"step","#) {
        return serde_json::from_str(line).map(Row::Step);
    }
    if line.starts_with(r#"{"type":"packet","#) {
        return serde_json::from_str(line).map(Row::Packet);
    }
    serde_json::from_str(line)
}

impl Trace {
    /// Leaves only steps of those tables that are wanted.
    pub fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        let wanted = |step: &String| wanted(step.split(':').next().unwrap_or_default());
        self.steps.retain(|step| wanted(&step.step));
        self.packets.values_mut().for_each(|packet| packet.path.retain(&wanted));
    }

    /// Puts what came later behind.
    pub fn append(&mut self, mut later: Self) {
        self.steps.append(&mut later.steps);
        self.packets.extend(later.packets);
        self.end = later.end.or(self.end);
        self.started |= later.started;
        self.odd.append(&mut later.odd);
        self.detailed |= later.detailed;
    }

    fn add(&mut self, row: Row<'_>, line: &str) {
        match row {
            Row::Start {} => self.started = true,
            Row::Step(step) => match step.read() {
                Some(read) => {
                    self.detailed |= step.id.is_some() || step.icmp_id.is_some();
                    self.steps.push(read);
                }
                None => self.odd.push(line.to_owned()),
            },
            Row::Packet(row) => {
                let PacketRow { packet, path, certainty, why, verdict, note, ending, queues, sport } = *row;
                let (why, verdict) = (why.unwrap_or_default(), verdict.unwrap_or_default());
                self.packets
                    .insert(packet, Packet { certainty, why, path, verdict, note, ending, queues, sport });
            }
            Row::End(totals) => self.end = Some(totals),
            Row::Other => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Row<'a> {
    Start {},
    #[serde(borrow)]
    Step(Box<StepRow<'a>>),
    Packet(Box<PacketRow>),
    End(Totals),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct PacketRow {
    packet: u64,
    path: Vec<String>,
    certainty: Certainty,
    why: Option<String>,
    verdict: Option<String>,
    note: Option<String>,
    #[serde(default)]
    ending: Value,
    #[serde(default)]
    queues: Value,
    sport: Option<u16>,
}

/// Text that is copied only where it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
struct StepRow<'a> {
    packet: u64,
    #[serde(default)]
    time: &'a str,
    engine: &'a str,
    family: &'a str,
    handle: Option<u64>,
    #[serde(borrow)]
    nft: Option<Text<'a>>,
    #[serde(borrow)]
    verdict: Option<Text<'a>>,
    hook: Option<&'a str>,
    table: &'a str,
    #[serde(borrow)]
    chain: Cow<'a, str>,
    kind: &'a str,
    rule: Option<u32>,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    #[serde(borrow)]
    proto: Option<Text<'a>>,
    sport: Option<u16>,
    dport: Option<u16>,
    length: Option<u32>,
    id: Option<u16>,
    icmp_id: Option<u16>,
    icmp_seq: Option<u16>,
    arp_op: Option<u16>,
    #[serde(default)]
    mark: u32,
    #[serde(default)]
    netns: u64,
    #[serde(borrow)]
    netns_name: Option<Text<'a>>,
    #[serde(borrow, rename = "in")]
    indev: Option<Text<'a>>,
    #[serde(borrow, rename = "out")]
    outdev: Option<Text<'a>>,
    doubt: Option<serde::de::IgnoredAny>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

impl StepRow<'_> {
    fn read(&self) -> Option<Step> {
        let hooks = ["prerouting", "input", "forward", "output", "postrouting", "ingress", "egress"];
        let of_arp = ["input", "output", "forward"];
        let hook = match self.hook {
            // Those of a bridge are counted from there on.
            Some(name) if self.family == "bridge" => 7 + hooks.iter().position(|hook| *hook == name)?,
            // And those of ARP behind them.
            Some(name) if self.family == "arp" => 12 + of_arp.iter().position(|hook| *hook == name)?,
            Some(name) => hooks.iter().position(|hook| *hook == name)?,
            None => usize::from(u8::MAX),
        };
        let rule = self.rule.map_or_else(|| "?".to_owned(), |rule| rule.to_string());
        let step = [self.table, &self.chain, self.kind, &rule].join(":");
        Some(Step {
            packet: self.packet,
            time: self.time.into(),
            netns: self.netns,
            hook: u8::try_from(hook).ok()?,
            step,
            identity: Identity {
                src: self.src?,
                dst: self.dst?,
                // What follows extension headers is not told of all packets.
                protocol: self.proto.as_deref().map_or(Some(0), number)?,
                ports: [self.sport.or(self.arp_op).unwrap_or(0), self.dport.unwrap_or(0)],
                length: self.length?,
                id: self.id,
                echo: self.icmp_id.zip(self.icmp_seq).map(|(id, sequence)| [id, sequence]),
            },
            mark: self.mark,
            doubt: self.doubt.is_some(),
            verdict: self.verdict.as_deref().map(Box::from),
            text: self.text.as_deref().map(Box::from),
            netns_name: self.netns_name.as_deref().map(Box::from),
            devices: [&self.indev, &self.outdev].map(|device| device.as_deref().map(Box::from)),
            nft: (self.engine == "nft").then(|| Nft {
                family: self.family.to_owned(),
                handle: self.handle,
                verdict: self.verdict.as_deref().unwrap_or_default().to_owned(),
                text: self.nft.as_deref().or(self.text.as_deref()).map(str::to_owned),
            }),
        })
    }
}

fn number(protocol: &str) -> Option<u8> {
    match protocol {
        "icmp" => Some(1),
        "igmp" => Some(2),
        "tcp" => Some(6),
        "udp" => Some(17),
        "gre" => Some(47),
        "icmpv6" => Some(58),
        "sctp" => Some(132),
        other => other.parse().ok(),
    }
}
