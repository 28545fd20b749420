//! What `nft monitor trace` and `xtables-monitor --trace` say of the same packets.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::{Netns, move_here};
use crate::packet::{Identity, identity};
use crate::tracer::Trace;
use crate::wait;

const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// One packet's way through one base chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Traversal {
    /// Addresses, ports, length, identification.
    pub packet: String,
    /// Family and name of the table.
    pub table: String,
    /// Chain and what was said of each rule, and of the end.
    pub steps: Vec<String>,
}

/// What nft says of a rule that returns, where the kernel tells of it as of the end of a chain: older ones do.
const RETURN: &str = "verdict return";

/// Which of the two programs, as they differ in what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Text and verdict of each rule.
    Nft,
    /// Handle and verdict of each rule; ends where a table of IP has a rule that iptables would not make.
    Xtables,
}

/// What a program told.
pub enum Told {
    /// All that there was.
    All(Vec<Traversal>),
    /// Some came faster than it reads. One of them ends then.
    Lost,
    /// It ended at a rule.
    GaveUp,
}

/// A program that listens.
pub struct Monitor {
    program: Program,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Monitor {
    /// Starts it in a namespace, and waits until it listens.
    pub fn start(program: Program, netns: &Netns) -> Result<Self> {
        let words: &[&str] = match program {
            Program::Nft => &["nft", "monitor", "trace"],
            Program::Xtables => &["xtables-monitor", "--trace"],
        };
        let before = listeners(netns)?;
        let start = || {
            let (name, arguments) = words.split_first().context("a program")?;
            let mut command = Command::new(name);
            Ok(command
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?)
        };
        let mut child = netns.enter(start)?;
        let output = child.stdout.take().context("piped")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                theirs.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let listens = || listeners(netns).is_ok_and(|now| now > before).then_some(());
        wait::until(LISTENS_WITHIN, listens).context("it does not listen")?;
        Ok(Self { program, child, lines })
    }

    /// How many lines have come.
    pub fn count(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What came since the last call.
    pub fn take(&mut self) -> Told {
        match self.child.try_wait().ok().flatten().map(|status| status.code()) {
            // `PARAMETER_PROBLEM` of `enum xtables_exittype`: it met a rule that it has no words for.
            Some(Some(3)) if self.program == Program::Xtables => return Told::GaveUp,
            Some(_) => return Told::Lost,
            None => {}
        }
        let lines = std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner));
        match self.program {
            Program::Nft => of_nft(&lines).map_or(Told::Lost, Told::All),
            Program::Xtables => Told::All(of_xtables(&lines)),
        }
    }
}

/// How many sockets of a namespace have joined the group of trace messages.
fn listeners(netns: &Netns) -> Result<usize> {
    Ok(waiting(netns)?.len())
}

/// Whether all who have joined the group of trace messages in a namespace have read what there was.
pub fn is_read(netns: &Netns) -> Result<bool> {
    Ok(waiting(netns)?.iter().all(|bytes| *bytes == 0))
}

/// Bytes that wait in each socket of a namespace that has joined the group of trace messages, number 9.
fn waiting(netns: &Netns) -> Result<Vec<u64>> {
    let name = netns.name().to_owned();
    let sockets = thread::spawn(move || -> Result<String> {
        move_here(&name)?;
        Ok(fs::read_to_string("/proc/thread-self/net/netlink")?)
    });
    let sockets = sockets.join().map_err(|_| anyhow::anyhow!("the thread failed"))??;
    // `sk Eth Pid Groups Rmem …`
    let of_group = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let groups = u32::from_str_radix(words.get(3)?, 16).ok()?;
        (words[1] == "12" && groups & 1 << 8 != 0).then(|| words.get(4)?.parse().ok())?
    };
    Ok(sockets.lines().skip(1).filter_map(of_group).collect())
}

/// Whether a table is one that a run marks packets with.
fn is_marker(table: &str) -> bool {
    table.starts_with("nftracer_")
}

/// `trace id ID FAMILY TABLE CHAIN WHAT`
fn of_nft(lines: &[String]) -> Option<Vec<Traversal>> {
    let mut open: HashMap<&str, usize> = HashMap::new();
    let mut all: Vec<Traversal> = Vec::new();
    for line in lines {
        if line.contains("lost some netlink events") {
            return None;
        }
        let words: Vec<&str> = line.splitn(7, ' ').collect();
        let ["trace", "id", id, family, table, chain, what] = words[..] else { continue };
        let what = what.trim_end();
        if is_marker(table) {
            continue;
        }
        if let Some(packet) = what.strip_prefix("packet: ") {
            open.insert(id, all.len());
            let table = format!("{family} {table}");
            all.push(Traversal { packet: packet_of_nft(packet), table, steps: Vec::new() });
            continue;
        }
        // After the end of a chain the mark may follow.
        let is_end = what.starts_with("policy ") || what.starts_with("verdict ");
        let what = what.split(" meta mark ").next().filter(|_| is_end).unwrap_or(what);
        let says_nothing = what.starts_with("verdict ") && what != RETURN;
        if let Some(at) = open.get(id).filter(|_| !says_nothing) {
            all[*at].steps.push(format!("{chain} {}", without_counts(what)));
        }
    }
    Some(all)
}

/// What is asked for by a packet of ARP.
fn arp_of_nft(packet: &str) -> Option<u16> {
    let (_, operation) = packet.split_once("arp operation ")?;
    match operation.split(' ').next()? {
        "request" => Some(1),
        "reply" => Some(2),
        other => other.parse().ok(),
    }
}

/// Where nft does not know what a packet is, at egress and on a loopback device, it prints headers as numbers.
fn unknown_to_nft(packet: &str) -> Option<Identity> {
    // `@nh,0,160 0x4500…`, `@th,0,64 0x…`, without zeros at the beginning.
    let header = |name: &str| {
        let mut words = packet.split_once(name)?.1.split(' ');
        let width = words.next()?.parse::<usize>().ok()? / 4;
        let digits = format!("{:0>width$}", words.next()?.strip_prefix("0x")?);
        let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        (0..digits.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>()
    };
    let mut bytes = header("@nh,0,")?;
    bytes.extend(header("@th,0,").unwrap_or_default());
    identity(&bytes)
}

fn key_of(identity: &Identity) -> String {
    let (src, dst) = (identity.src.to_string(), identity.dst.to_string());
    let [sport, dport] = identity.ports.map(|port| Some(u32::from(port)));
    match identity.ports {
        [operation, 0] if identity.protocol == 0 && operation > 0 => arp_key(operation),
        _ => key((Some(&src), Some(&dst)), identity.length, identity.id.map(u32::from), (sport, dport)),
    }
}

fn arp_key(operation: u16) -> String {
    format!("arp {operation}")
}

/// The values after these words, of those that come first: what follows may be the packet that an error quotes.
fn packet_of_nft(packet: &str) -> String {
    if let Some(operation) = arp_of_nft(packet) {
        return arp_key(operation);
    }
    if let Some(identity) = unknown_to_nft(packet) {
        return key_of(&identity);
    }
    let value = |names: &[&str]| {
        let found = names.iter().filter_map(|name| Some((packet.find(name)?, name)));
        let (at, name) = found.min()?;
        packet[at + name.len()..].split(' ').next()
    };
    let number = |names: &[&str]| value(names).and_then(|value| value.parse::<u32>().ok());
    let length = match (number(&["ip length "]), number(&["ip6 length "])) {
        (Some(length), _) => length,
        (None, Some(payload)) => payload + 40,
        (None, None) => 0,
    };
    key(
        (value(&["ip saddr ", "ip6 saddr "]), value(&["ip daddr ", "ip6 daddr "])),
        length,
        number(&[" ip id "]),
        (number(&["udp sport ", "tcp sport "]), number(&["udp dport ", "tcp dport "])),
    )
}

fn key(
    (src, dst): (Option<&str>, Option<&str>),
    length: u32,
    id: Option<u32>,
    (sport, dport): (Option<u32>, Option<u32>),
) -> String {
    let address = |text: Option<&str>| text.unwrap_or("?").to_owned();
    let number = |number: Option<u32>| number.unwrap_or_default();
    format!(
        "{}:{} > {}:{} length {length} id {}",
        address(src),
        number(sport),
        address(dst),
        number(dport),
        number(id)
    )
}

/// The program prints counters as they were when it read the rules.
pub fn without_counts(text: &str) -> String {
    let mut words = text.split(' ').peekable();
    let mut out = Vec::new();
    while let Some(word) = words.next() {
        out.push(word);
        if matches!(out[..], [.., "counter", "packets" | "bytes"] | [.., "counter", "packets", "bytes"]) {
            let _ = words.next();
        }
    }
    out.join(" ")
}

/// `PACKET: FAMILY ID KEY=VALUE…`, then ` TRACE: FAMILY ID TABLE:CHAIN:rule:HANDLE:VERDICT` and so on. With older
/// kernels the first line comes only where a rule holds.
fn of_xtables(lines: &[String]) -> Vec<Traversal> {
    let mut open: HashMap<(String, String), usize> = HashMap::new();
    let mut ended: HashSet<usize> = HashSet::new();
    let mut all: Vec<Traversal> = Vec::new();
    for line in lines {
        let mut words = line.split_ascii_whitespace();
        let (Some(kind), Some(family), Some(id)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let place = (family.to_owned(), id.to_owned());
        if kind == "PACKET:" {
            let fields: HashMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
            let number = |name: &str| fields.get(name).and_then(|value| value.parse().ok());
            let src = fields.get("SRC").copied();
            // It counts no more than 20 bytes of header.
            let header = if src.is_some_and(|src| src.contains(':')) { 20 } else { 0 };
            let packet = key(
                (src, fields.get("DST").copied()),
                number("LEN").unwrap_or_default() + header,
                number("ID"),
                (number("SPORT"), number("DPORT")),
            );
            open.insert(place, all.len());
            all.push(Traversal { packet, table: String::new(), steps: Vec::new() });
            continue;
        }
        let (Some(at), Some(what)) = (open.get_mut(&place), words.next()) else { continue };
        let mut parts = what.splitn(5, ':');
        let (Some(table), Some(chain), Some(kind)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let rest: Vec<&str> = parts.collect();
        let family = match family {
            "1" => "inet",
            "5" => "netdev",
            "2" => "ip",
            "10" => "ip6",
            other => other,
        };
        let table = format!("{family} {table}");
        // Another base chain.
        if ended.contains(at) || (all[*at].table != table && !all[*at].steps.is_empty()) {
            let packet = all[*at].packet.clone();
            *at = all.len();
            all.push(Traversal { packet, table: String::new(), steps: Vec::new() });
        }
        all[*at].table = table;
        match (kind, &rest[..]) {
            ("rule", [handle, verdict @ ..]) => {
                let handle =
                    handle.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
                all[*at].steps.push(format!("{chain} rule {}", handle.unwrap_or(0)));
                if verdict.iter().any(|verdict| ["ACCEPT", "DROP"].contains(verdict)) {
                    ended.insert(*at);
                }
            }
            ("policy", [verdict, ..]) => {
                all[*at].steps.push(format!("{chain} policy {}", verdict.to_lowercase()));
                ended.insert(*at);
            }
            _ => {}
        }
    }
    all.retain(|traversal| !traversal.steps.is_empty());
    all.retain(|traversal| !traversal.table.split(' ').nth(1).is_some_and(is_marker));
    all
}

impl Traversal {
    /// Whether a rule held.
    pub fn has_rule(&self) -> bool {
        self.steps.iter().any(|step| step.contains(" rule "))
    }
}

/// What nftracer said, as one of the programs would say it, with the number of the packet. `returns` says whether the kernel
/// tells of rules that return as of others.
pub fn of_nftracer(program: Program, trace: &Trace, returns: bool) -> Vec<(u64, Traversal)> {
    let mut open: HashMap<u64, usize> = HashMap::new();
    let mut all: Vec<(u64, Traversal)> = Vec::new();
    for step in &trace.steps {
        let Some(nft) = &step.nft else { continue };
        let parts: Vec<&str> = step.step.split(':').collect();
        let [table, chain, kind, _] = parts[..] else { continue };
        let table = format!("{} {table}", nft.family);
        let at = *open.entry(step.packet).or_insert_with(|| {
            let packet = key_of(&step.identity);
            all.push((step.packet, Traversal { packet, table: table.clone(), steps: Vec::new() }));
            all.len() - 1
        });
        let text = nft.text.as_deref().unwrap_or_default();
        let said = match (kind, program) {
            // Neither shows the end of a chain.
            ("return", _) => None,
            ("rule", _) if !returns && nft.verdict == "return" => {
                (program == Program::Nft).then(|| RETURN.to_owned())
            }
            ("rule", Program::Nft) => {
                Some(format!("rule {} (verdict {})", without_counts(text), nft.verdict))
            }
            ("rule", Program::Xtables) => Some(format!("rule {}", nft.handle.unwrap_or(0))),
            _ => Some(format!("policy {}", nft.verdict)),
        };
        all[at].1.steps.extend(said.map(|said| format!("{chain} {said}")));
        if kind == "policy" || ["accept", "drop", "queue", "stolen"].contains(&nft.verdict.as_str()) {
            open.remove(&step.packet);
        }
    }
    all
}
