//! Which process sends a packet.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::netns::{Netns, run};
use nftracer_tests::nfqueue::Queue;
use nftracer_tests::tracer::{Trace, Tracer, program};
use nftracer_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::{Options, Outcome, Test, check, load_modules};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "senders_are_told", run: senders_are_told },
    Test { name: "why_tells_the_sender", run: why_tells_the_sender },
];

const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Looks without a change, after which nothing more will come.
const SILENCE: u32 = 100;
const UID: u32 = 1234;
/// Where somebody listens, where nobody does, where the answer is a reset, what goes through the queue of this number.
const OPEN: u16 = 4001;
const CLOSED: u16 = 4002;
const REFUSED: u16 = 4003;
const QUEUED: u16 = 4004;

/// A queue before the last table, and an answer that the kernel makes while the task of the sender runs.
const LEGACY: &str = "*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
    -A OUTPUT -p udp -m udp --dport 4004 -j NFQUEUE --queue-num 4004\nCOMMIT\n\
    *filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
const NFT: &str = "table ip answers { chain output { type filter hook output priority 10; policy accept;\n\
    tcp dport 4003 reject with tcp reset\n}\n}\n";
const CGROUP: &str = "/sys/fs/cgroup/sender-of-test";

/// A process of another user, in a cgroup of its own, sends a datagram. Gives its number.
fn send(netns: &Netns, port: u16) -> Result<u32> {
    netns.enter(|| {
        let script = format!("read go; exec /bin/guest-tests send-datagram 127.0.0.1:{port}");
        let mut child = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).uid(UID).spawn()?;
        fs::write(format!("{CGROUP}/cgroup.procs"), child.id().to_string())?;
        child.stdin.take().context("piped")?.write_all(b"go\n")?;
        check(child.wait()?.success(), "a sender failed")?;
        Ok(child.id())
    })
}

/// What was said about the packets of a trace while something happened.
fn said(netns: &Netns, tracer: &Tracer, happens: impl FnOnce(&Netns) -> Result<()>) -> Result<Said> {
    happens(netns)?;
    wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.seen());
    let rows = tracer.take_lines();
    let senders = rows.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(Said { senders: senders.filter(|row| row["type"] == "sender").collect(), trace: tracer.take() })
}

struct Said {
    senders: Vec<Value>,
    trace: Trace,
}

impl Said {
    /// Checks that the senders are those of these packets: the first one's is this process, and no other has one.
    fn check(&self, what: &str, pid: Option<u32>, packets: usize) -> Result<()> {
        let said = || format!("{what}: {:?}, packets {:?}", self.senders, self.trace.packets);
        check(self.trace.packets.len() >= packets, said())?;
        let Some(pid) = pid else { return check(self.senders.is_empty(), said()) };
        let first = self.trace.steps.first().map(|step| step.packet);
        let [sender] = &self.senders[..] else { anyhow::bail!(said()) };
        check(sender["packet"].as_u64() == first && sender["pid"] == pid, said())
    }
}

fn senders_are_told(_: &Options) -> Result<Outcome> {
    load_modules();
    for module in ["xt_NFQUEUE", "nfnetlink_queue", "nft_reject", "nft_reject_ipv4"] {
        let _ = run("modprobe", &["-q", module], "");
    }
    let netns = Netns::create("senders")?;
    netns.command("iptables-legacy-restore", &[], LEGACY)?;
    netns.command("nft", &["-f", "-"], NFT)?;
    fs::create_dir_all(CGROUP)?;
    let _open = netns.enter(|| Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, OPEN))?))?;
    let queue = netns.enter(|| Queue::open(QUEUED))?;
    // It waits in the queue before the trace begins: whoever lets it go on is not told to be the sender.
    let _early = netns.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.send_to(b"early", (Ipv4Addr::LOCALHOST, QUEUED))?;
        Ok(socket)
    })?;
    let tracer = Tracer::start(&["--netns", netns.name(), "-o", "json", "--who", "ip"], &[])?;
    said(&netns, &tracer, |_| queue.decide(1))?.check("let go from a queue", None, 1)?;
    let mut pids = Vec::new();
    let mut datagram = |port| {
        said(&netns, &tracer, |netns| {
            pids.push(send(netns, port)?);
            Ok(())
        })
    };
    let (taken, answered) = (datagram(OPEN)?, datagram(CLOSED)?);
    taken.check("a datagram", pids.first().copied(), 1)?;
    answered.check("a datagram that nobody takes", pids.get(1).copied(), 2)?;
    let first = taken.senders.first().context("told")?;
    let right =
        first["process"] == "guest-tests" && first["uid"] == UID && first["cgroup"] == "/sender-of-test";
    check(right, format!("{first}"))?;
    let connect = |netns: &Netns| {
        netns.enter(|| {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, REFUSED));
            let refused = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            check(refused.is_err(), "a connection that is refused was made")
        })
    };
    said(&netns, &tracer, connect)?.check("a connection that is reset", Some(std::process::id()), 2)?;
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{}: {:?}", ended.status, ended.errors))?;
    fs::remove_dir(CGROUP)?;
    Ok(Outcome::Passed(format!("{first}")))
}

/// A datagram that is dropped where it arrives, over loopback.
fn why_tells_the_sender(_: &Options) -> Result<Outcome> {
    load_modules();
    let netns = Netns::create("dropped")?;
    let rules = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
        -A INPUT -p udp -m udp --dport 4001 -j DROP\nCOMMIT\n";
    netns.command("iptables-legacy-restore", &[], rules)?;
    fs::create_dir_all(CGROUP)?;
    let mut command = Command::new(program());
    command.args(["why", "--netns", netns.name(), "--for", "60s", "-o", "json", "--backend", "ebpf", "udp"]);
    let tracer = Tracer::start_command(command)?;
    let pid = send(&netns, OPEN)?;
    let ended = tracer.finish(Duration::from_secs(120))?;
    check(ended.status.success(), format!("{}: {:?}", ended.status, ended.errors))?;
    let [why] = &ended.lines[..] else { anyhow::bail!("{:?}, {:?}", ended.lines, ended.errors) };
    let why: Value = serde_json::from_str(why)?;
    check(why["fate"] == "dropped" && why["at"]["step"] == "filter:INPUT:rule:1", why.to_string())?;
    let sender = &why["sender"];
    let right = sender["pid"] == pid
        && sender["process"] == "guest-tests"
        && sender["uid"] == UID
        && sender["cgroup"] == "/sender-of-test";
    check(right, why.to_string())?;
    fs::remove_dir(CGROUP)?;
    Ok(Outcome::Passed(sender.to_string()))
}
