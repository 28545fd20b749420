//! A way of tracing while it is in use: started, asked how long it has run, ended, asked what it saw.

use super::rows::{Logger, Matching, Way};
use super::traffic::{FROM, PORT};
use super::world::{World, because, obstacle};
use crate::backend::log::{self, Log};
use crate::backend::netlink::{self, Netlink};
use crate::doctor::Obstacle;
use crate::netfilter::Family;
use crate::nftables::trace;
use crate::sys::child::Running;
use crate::sys::{child, program, sysctl};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a program may take until it traces.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks at something that tells of no change.
const PAUSE: Duration = Duration::from_millis(2);
/// Room for messages of nfnetlink_log.
const BUFFER_BYTES: usize = 64 << 20;
/// Rows that the kernel keeps back, to send more of them together, have come by then.
const LAST_WITHIN: Duration = Duration::from_millis(40);
/// The setting that says where TRACE of IPv4 goes.
const SETTING: &str = "net/netfilter/nf_log/2";

/// Rules that mark all packets for `nft monitor trace`.
const MARK: &str = "insert rule ip raw prerouting udp dport 5005 meta nftrace set 1\n";
const UNMARK: &str = "flush chain ip raw prerouting\n";

/// What traces.
pub(super) enum Tracing<'a> {
    Nftracer { running: Running, said: Receiver<String>, matching: Matching },
    Rules { _rules: Rules<'a>, reader: Option<Reader>, log: Option<Log> },
    Monitor { running: Running, _rules: Rules<'a> },
}

impl<'a> Tracing<'a> {
    /// Starts, and waits until packets are traced. `None` when it is told to stop meanwhile, and for nothing.
    pub(super) fn start(way: Way, world: &'a World, stop: &AtomicBool) -> Result<Option<Self>, Obstacle> {
        match way {
            Way::Nothing => Ok(None),
            Way::Nftracer(matching, arguments) => nftracer(matching, arguments, world, stop),
            Way::Monitor => monitor(world, stop),
            Way::Rule { table, rule, logger, .. } => {
                // Before the rule is there: nothing is to be missed.
                let (reader, log) = match logger {
                    Logger::Netlink => (Some(Reader::start(&world.receiver)?), None),
                    Logger::KernelLog => (None, Some(Log::open(None).map_err(obstacle)?)),
                };
                let name = match logger {
                    Logger::Netlink => netlink::LOGGER,
                    Logger::KernelLog => log::logger(Family::Ipv4),
                };
                sysctl::write(&world.receiver, SETTING, name).map_err(obstacle)?;
                let text = |what: &str| format!("*{table}\n{what} {rule}\nCOMMIT\n");
                let rules = Rules::load(world, &text("-I"), text("-D"))?;
                Ok(Some(Self::Rules { _rules: rules, reader, log }))
            }
        }
    }

    /// How long whoever reads has run, if somebody does and the kernel tells.
    pub(super) fn run_time(&self) -> Option<Duration> {
        match self {
            Self::Nftracer { running, .. } | Self::Monitor { running, .. } => running.run_time(),
            Self::Rules { reader, .. } => reader.as_ref()?.run_time(),
        }
    }

    /// Ends it; how many events found no room. An error when it did not see these packets: its figures would be those of
    /// something else.
    pub(super) fn end(self, packets: u64) -> Result<u64, Obstacle> {
        match self {
            Self::Nftracer { mut running, said, matching } => {
                let status = running.end().map_err(obstacle)?;
                let said: Vec<String> = said.iter().collect();
                if !status.success() {
                    return Err(failed(&said));
                }
                let totals = said.last().map(String::as_str).unwrap_or_default();
                let count =
                    |word| number_before(totals, word).ok_or_else(|| because(format!("no totals: {totals}")));
                let (shown, lost, missed) = (count("packets")?, count("lost")?, count("missed")?);
                if matching == Matching::Yes {
                    check(shown, lost + missed, packets)?;
                }
                Ok(lost)
            }
            Self::Rules { reader, log, .. } => {
                if let Some(log) = log {
                    // What was overwritten was so because nobody read it in time, and nobody had to.
                    let (shown, overwritten) = of_log(log)?;
                    return check(shown, overwritten, packets).map(|()| 0);
                }
                let (shown, lost) = reader.map(Reader::end).unwrap_or_default();
                check(shown, lost, packets).map(|()| lost)
            }
            Self::Monitor { mut running, .. } => {
                let lost = listening(running.child().id()).map_or(0, |(_, drops)| drops);
                running.end().map_err(obstacle)?;
                Ok(lost)
            }
        }
    }
}

/// Nothing that was sent may be neither seen nor lost.
fn check(shown: u64, lost: u64, packets: u64) -> Result<(), Obstacle> {
    if shown < packets && lost == 0 {
        return Err(because(format!("it told of {shown} of {packets} packets, and of no loss")));
    }
    Ok(())
}

/// Lines of the log about our packets, and those that were overwritten before they could be counted.
fn of_log(mut log: Log) -> Result<(u64, u64), Obstacle> {
    let (sender, mut shown) = (format!("SRC={FROM} "), 0);
    let count = |record: crate::kernel_log::Record<'_>| shown += u64::from(record.text.contains(&sender));
    log.drain(usize::MAX, count).map_err(obstacle)?;
    Ok((shown, log.lost()))
}

fn nftracer<'a>(
    matching: Matching,
    arguments: &[&str],
    world: &World,
    stop: &AtomicBool,
) -> Result<Option<Tracing<'a>>, Obstacle> {
    let port = match matching {
        Matching::Yes => PORT,
        Matching::No => PORT + 1,
    };
    let namespace = format!("/proc/{}/fd/{}", std::process::id(), world.receiver.as_raw_fd());
    let mut command = Command::new("/proc/self/exe");
    command.arg("trace").args(arguments).args(["--netns", &namespace, "-o", "trace"]);
    command.arg(format!("udp dst port {port}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command, None).map_err(obstacle)?;
    let Some(errors) = running.child().stderr.take() else { return Err(because("it has no standard error")) };
    let (sender, said) = channel();
    // Ends with the program.
    thread::spawn(move || {
        let lines = BufReader::new(errors).lines().map_while(Result::ok);
        for line in lines {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let (deadline, mut before) = (Instant::now() + READY_WITHIN, Vec::new());
    while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
        match said.recv_timeout(Duration::from_millis(50)) {
            Ok(line) if line.starts_with("tracing ") => {
                return Ok(Some(Tracing::Nftracer { running, said, matching }));
            }
            Ok(line) => before.push(line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(failed(&before)),
        }
    }
    if stop.load(Ordering::Relaxed) { Ok(None) } else { Err(not_ready("nftracer")) }
}

fn not_ready(name: &str) -> Obstacle {
    because(format!("{name} was not ready within {} seconds", READY_WITHIN.as_secs()))
}

/// What a run of this program said about its failure.
fn failed(said: &[String]) -> Obstacle {
    let find = |prefix: &str| said.iter().rev().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
    let reason = find("nftracer: ").unwrap_or_else(|| "it ended without a reason".to_owned());
    Obstacle { reason, remedy: find("remedy: ") }
}

/// The number in `17 lost`.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|other| *other == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

fn monitor<'a>(world: &'a World, stop: &AtomicBool) -> Result<Option<Tracing<'a>>, Obstacle> {
    let nft = program::find("nft").ok_or_else(|| because("nft is not installed"))?;
    let mut command = Command::new(nft);
    command.args(["monitor", "trace"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running::start(&mut command, Some(&world.receiver)).map_err(obstacle)?;
    let deadline = Instant::now() + READY_WITHIN;
    while !stop.load(Ordering::Relaxed) {
        if listening(running.child().id()).is_some_and(|(listens, _)| listens) {
            let rules = Rules::load(world, MARK, UNMARK.to_owned())?;
            return Ok(Some(Tracing::Monitor { running, _rules: rules }));
        }
        if Instant::now() > deadline || running.child().try_wait().map_err(obstacle)?.is_some() {
            return Err(not_ready("nft monitor trace"));
        }
        thread::sleep(PAUSE);
    }
    Ok(None)
}

/// Whether a process listens to nftables' trace messages in its namespace, and how many messages found no room there.
fn listening(pid: u32) -> Option<(bool, u64)> {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/netlink")).ok()?;
    let (mut listens, mut drops) = (false, 0);
    for line in sockets.lines() {
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let groups = words.get(3).and_then(|groups| u32::from_str_radix(groups, 16).ok()).unwrap_or(0);
        if groups & (1 << (trace::GROUP - 1)) != 0 {
            listens = true;
            drops += words.get(8).and_then(|drops| drops.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Some((listens, drops))
}

/// Rules that are there until this is dropped.
pub(super) struct Rules<'a> {
    world: &'a World,
    undo: String,
}

impl<'a> Rules<'a> {
    fn load(world: &'a World, rules: &str, undo: String) -> Result<Self, Obstacle> {
        world.load(rules)?;
        Ok(Self { world, undo })
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        // Where that fails the next row tells of packets twice, which it notices; the rules go with their namespace.
        let _ = self.world.load(&self.undo);
    }
}

/// A thread that takes rows of nfnetlink_log and counts them.
pub(super) struct Reader {
    thread: Option<JoinHandle<(u64, u64)>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    run_time_ns: AtomicU64,
}

impl Reader {
    fn start(namespace: &File) -> Result<Self, Obstacle> {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let namespace = namespace.try_clone().map_err(obstacle)?;
        let (ready, opened) = channel();
        let thread = thread::spawn(move || {
            let mut netlink = match Netlink::open(&namespace, BUFFER_BYTES) {
                Ok(netlink) => netlink,
                Err(error) => {
                    // Whoever started this waits for it.
                    let _ = ready.send(Err(obstacle(error)));
                    return (0, 0);
                }
            };
            let _ = ready.send(Ok(()));
            let (mut shown, mut told) = (0, None);
            loop {
                if ours.end.load(Ordering::Relaxed) {
                    told = told.or_else(|| Some(Instant::now()));
                }
                // What came before the end is counted, too.
                let end = told.is_some_and(|told| told.elapsed() > LAST_WITHIN);
                let taken = netlink.drain(usize::MAX, |_| ());
                shown += taken.as_ref().map_or(0, |taken| *taken as u64);
                if end || taken.is_err() {
                    return (shown, netlink.lost());
                }
                if let Some(time) = child::own_run_time() {
                    ours.run_time_ns.store(time.as_nanos() as u64, Ordering::Relaxed);
                }
                thread::sleep(PAUSE);
            }
        });
        opened.recv().map_err(obstacle)??;
        Ok(Self { thread: Some(thread), shared })
    }

    fn run_time(&self) -> Option<Duration> {
        let time = self.shared.run_time_ns.load(Ordering::Relaxed);
        (time > 0).then_some(Duration::from_nanos(time))
    }

    fn end(mut self) -> (u64, u64) {
        self.shared.end.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
