//! Steps from trace messages against what `nft monitor trace` makes of the same messages, over generated rules.

use super::tests::{received, run};
use super::*;
use crate::fetch::tests::Throwaway;
use crate::netfilter::StepKind;
use crate::netlink::messages;
use crate::nftables::trace;
use crate::nftables::traversal::Assembler;
use crate::sys::netlink::Received;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Rulesets to try.
const SEEDS: u64 = 20;
/// Chains besides base chains; each leads only to later ones.
const CHAINS: usize = 4;
const PORTS: [u16; 3] = [5000, 5001, 5002];

/// A small generator, the same everywhere (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Rules of a chain that may lead to the chains from `next` on.
fn rules(random: &mut Random, out: &mut String, name: &str, next: usize) {
    for number in 0..random.below(6) {
        let condition = random.pick(&[
            "",
            "udp dport 5000",
            "udp dport { 5001, 5002 }",
            "meta l4proto udp",
            "meta length > 20",
            "meta mark 3",
            "iif lo",
            "oif lo",
        ]);
        let to = format!("c{}", next + random.below(CHAINS.max(next + 1) - next));
        let leads = next < CHAINS;
        let statement = match random.below(9) {
            0 | 1 if leads => format!("jump {to}"),
            2 if leads => format!("goto {to}"),
            3 if leads => format!("udp dport vmap {{ 5000 : jump {to}, 5001 : return, 5002 : accept }}"),
            4 => "accept".to_owned(),
            5 => "return".to_owned(),
            6 if random.below(4) == 0 => "drop".to_owned(),
            7 => "meta mark set 3".to_owned(),
            _ => "meta priority set 1:2".to_owned(),
        };
        writeln!(out, "{condition} {statement} comment \"{name}.{number}\"").unwrap();
    }
}

fn ruleset(seed: u64) -> String {
    let mut random = Random(seed);
    let mut out = String::new();
    for family in ["ip", "ip6", "inet"] {
        writeln!(out, "table {family} t {{").unwrap();
        for chain in (0..CHAINS).rev() {
            writeln!(out, "chain c{chain} {{").unwrap();
            rules(&mut random, &mut out, &format!("c{chain}"), chain + 1);
            writeln!(out, "}}").unwrap();
        }
        for (base, hook) in [("first", "output"), ("second", "postrouting"), ("third", "input")] {
            let (priority, policy) =
                (random.below(100), if random.below(5) == 0 { "drop" } else { "accept" });
            writeln!(out, "chain {base} {{").unwrap();
            writeln!(out, "type filter hook {hook} priority {priority}; policy {policy};").unwrap();
            rules(&mut random, &mut out, base, 0);
            writeln!(out, "}}").unwrap();
        }
        writeln!(out, "}}").unwrap();
    }
    // Marks all packets, before everything else.
    out += "table inet before {\nchain every {\ntype filter hook output priority -500;\nmeta nftrace set 1\n}\n}\n";
    out
}

/// `nft monitor trace` that listens.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Monitor {
    fn start(throwaway: &Throwaway) -> Self {
        let program = crate::sys::program::find("nft").unwrap();
        let start = || {
            let mut command = Command::new(program);
            command.args(["monitor", "trace"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        };
        let monitor = Self(netns::inside(&throwaway.namespace, start).unwrap().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let path = format!("/proc/{}/net/netlink", monitor.0.id());
        // Its socket and ours have bit 8 set, for group 9.
        while fs::read_to_string(&path).unwrap().matches(" 00000100 ").count() < 2 {
            assert!(Instant::now() < deadline, "nft monitor does not listen");
            std::thread::yield_now();
        }
        monitor
    }

    /// Its next lines about rules and policies: `ID FAMILY TABLE CHAIN WHAT`; `None` when it lost messages.
    fn lines(&mut self, count: usize) -> Option<Vec<String>> {
        let output = BufReader::new(self.0.stdout.as_mut().unwrap());
        let lines = output.lines().map(Result::unwrap).filter(|line| !line.contains(" packet: "));
        let lines = lines.map(|line| match line.strip_prefix("trace id ") {
            Some(line) => Some(line.trim_end().to_owned()),
            None if line.contains("lost some netlink events") => None,
            None => panic!("nft monitor printed {line:?}"),
        });
        lines.take(count).collect()
    }
}

/// What `nft monitor trace` has to print for the messages that are there, and paths that are not complete.
fn expected(socket: &Socket, ruleset: &Ruleset) -> (Vec<String>, Vec<String>) {
    let (mut buffer, mut assembler) = (Vec::new(), Assembler::default());
    let (mut lines, mut incomplete) = (Vec::new(), Vec::new());
    let mut done = |path: crate::path::Path| {
        if !path.why.is_empty() {
            incomplete.push(format!("{path:?}"));
        }
    };
    let mut datagram = received(socket, &mut buffer).to_vec();
    loop {
        for message in messages(&datagram) {
            let event = trace::decode(&message.netfilter().unwrap()).unwrap();
            let added = assembler.add(&event, ruleset.locate(&event), (1, None), &mut |_| None, &mut done);
            let Some(step) = added.step else { continue };
            let (rule, action) = (step.rule, step.action.unwrap());
            let what = match rule.kind {
                StepKind::Rule => format!("rule {} (verdict {action})", rule.text.unwrap()),
                StepKind::Policy => format!("policy {action}"),
                // nft does not show the end of a chain.
                StepKind::Return => continue,
            };
            let mark = match (rule.kind, step.view.mark) {
                (StepKind::Policy, mark @ 1..) => format!(" meta mark {mark:#010x}"),
                _ => String::new(),
            };
            let (family, table, chain) = (rule.family.name(), rule.table, rule.chain);
            lines.push(format!("{:08x} {family} {table} {chain} {what}{mark}", event.id));
        }
        match socket.recv(&mut buffer).unwrap() {
            Received::Datagram(bytes) => datagram = bytes.to_vec(),
            Received::Empty => break,
            Received::Overrun => panic!("messages were lost"),
        }
    }
    assembler.expire(2, &mut done);
    (lines, incomplete)
}

/// Sends some packets over the loopback device.
fn send() {
    for (from, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        for port in PORTS {
            // Whether a packet is dropped is for the rules to say.
            let _ = UdpSocket::bind(from).unwrap().send_to(b"x", format!("{to}:{port}"));
        }
    }
}

#[test]
fn nft_shows_the_same_steps() {
    let Some(throwaway) = Throwaway::new() else { return };
    let Some(()) = run(&throwaway, "ip link set lo up && nft add table ip t") else { return };
    let mut steps = 0;
    let mut seeds = 0..SEEDS;
    let mut next = seeds.next();
    while let Some(seed) = next {
        let rules = format!("nft -f - <<'X'\nflush ruleset\n{}\nX", ruleset(seed));
        run(&throwaway, &rules).unwrap();
        let loaded = Nftables::open(&throwaway.namespace).unwrap().unwrap().fetch().unwrap();
        assert_eq!(loaded.text_reasons, [""; 0]);
        let socket = Socket::open(Some(&throwaway.namespace), NETFILTER).unwrap();
        socket.join_group(trace::GROUP).unwrap();
        socket.set_receive_buffer(1 << 22).unwrap();
        let mut monitor = Monitor::start(&throwaway);
        netns::inside(&throwaway.namespace, send).unwrap();
        let (lines, incomplete) = expected(&socket, &loaded.ruleset);
        assert_eq!(incomplete, [""; 0]);
        // Its buffer is small: what it lost is sent again.
        let Some(printed) = monitor.lines(lines.len()) else { continue };
        assert_eq!(printed, lines, "seed {seed}");
        steps += lines.len();
        next = seeds.next();
    }
    println!("{steps} steps");
    assert!(steps > 500);
}
