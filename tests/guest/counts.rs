//! Where not every packet is shown: samples, limits, counts.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::{self, Certainty, Ended, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::{Options, Outcome, Test, check, load_modules};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "sample_and_limit", run: sample_and_limit },
    Test { name: "limit_per_rule", run: limit_per_rule },
    Test { name: "max_cost", run: max_cost },
    Test { name: "counts_by_rule", run: counts_by_rule },
    Test { name: "counts_by_packet", run: counts_by_packet },
];

const SETTLES_WITHIN: Duration = Duration::from_secs(120);
/// Looks without a change, after which nothing more will come.
const SILENCE: u32 = 100;
/// The port of most packets.
const PORT: u16 = 4001;

/// What packets meet in all tests: each sees eight tables, twice one with rules.
const RULES: &str = "\
*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:ours -
-A INPUT -p udp -j ours
-A INPUT -s 192.0.2.0/24 -j DROP
-A OUTPUT -p udp --dport 4002 -m comment --comment second
-A ours -p udp --dport 4002 -j ACCEPT
-A ours -p tcp -j DROP
COMMIT
";

/// A namespace of its own, with rules in its legacy tables.
fn netns() -> Result<Netns> {
    load_modules();
    let netns = Netns::create("counts")?;
    netns.command("iptables-legacy-restore", &[], RULES)?;
    Ok(netns)
}

/// Datagrams over loopback, each received before the next one is sent.
fn send(netns: &Netns, port: u16, count: usize) -> Result<()> {
    netns.enter(|| {
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        to.set_read_timeout(Some(Duration::from_secs(30)))?;
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut buffer = [0; 64];
        for _ in 0..count {
            from.send_to(b"counted", (Ipv4Addr::LOCALHOST, port))?;
            to.recv(&mut buffer).context("a datagram did not come")?;
        }
        Ok(())
    })
}

/// Traces while datagrams are sent, until nothing more is shown.
fn trace(netns: &Netns, options: &[&str], count: usize) -> Result<Ended> {
    let arguments = [&["--netns", netns.name(), "-o", "json"], options, &["udp"]].concat();
    let tracer = Tracer::start(&arguments, &[])?;
    send(netns, PORT, count)?;
    wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.seen());
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{arguments:?}: {}: {:?}", ended.status, ended.errors))?;
    Ok(ended)
}

/// Each packet is shown all its way or counted as left out.
fn sample_and_limit(_: &Options) -> Result<Outcome> {
    const PACKETS: usize = 1_000;
    let netns = netns()?;
    let mut figures = Vec::new();
    for options in [
        &["--sample", "1/4"][..],
        &["--limit", "20/s"],
        &["--sample", "1/2", "--limit", "20/s"],
        &["--sample", "1/4", "--attach", "kprobe"],
    ] {
        let ended = trace(&netns, options, PACKETS)?;
        let totals = ended.trace.end.context("the last row is missing")?;
        let said = format!("{options:?}: {totals:?}");
        let is_asked = |option: &str| options.contains(&option);
        check(totals.sampled_out.is_some() == is_asked("--sample"), &said)?;
        check(totals.limited_out.is_some() == is_asked("--limit"), &said)?;
        let left_out = totals.sampled_out.unwrap_or(0) + totals.limited_out.unwrap_or(0);
        check(totals.packets + left_out == PACKETS as u64, &said)?;
        check(totals.lost + totals.missed > 0 || totals.inexact == 0, &said)?;
        let complete =
            ended.trace.packets.values().filter(|packet| packet.certainty == Certainty::Complete).count();
        check(complete as u64 == totals.packets - totals.inexact, &said)?;
        if is_asked("--limit") {
            check((1..PACKETS as u64 / 2).contains(&totals.packets), &said)?;
        } else {
            // Seven standard deviations.
            check((155..=345).contains(&totals.packets), &said)?;
        }
        figures.push(format!("{} {}", options.join(" "), totals.packets));
    }
    Ok(Outcome::Passed(format!("of {PACKETS} packets shown: {}", figures.join(", "))))
}

/// Of many packets that one rule decided about so many are shown, and all of the few of another; the same of a recording.
fn limit_per_rule(_: &Options) -> Result<Outcome> {
    const MANY: usize = 600;
    const FEW: usize = 3;
    const LIMIT: usize = 5;
    let netns = netns()?;
    let recording = std::env::temp_dir().join("limit_per_rule.rec");
    let recording = recording.to_str().context("a path that is text")?;
    let mut figures = Vec::new();
    for (options, records) in [
        (&["--limit", "5/s/rule"][..], false),
        (&["--limit", "5/s/rule", "--limit", "100000/s", "--attach", "kprobe"], false),
        (&["-w", recording], true),
    ] {
        let arguments = [&["--netns", netns.name(), "-o", "json"], options, &["udp"]].concat();
        let tracer = Tracer::start(&arguments, &[])?;
        let begun = Instant::now();
        send(&netns, PORT, MANY)?;
        send(&netns, PORT + 1, FEW)?;
        // As many seconds may have begun.
        let seconds = begun.elapsed().as_secs() as usize + 2;
        wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.seen());
        let mut ended = tracer.stop(Signal::TERM)?;
        if records {
            let all = ended.trace.end.context("the last row is missing")?;
            check(all.packets == (MANY + FEW) as u64 && all.limited_out.is_none(), format!("{all:?}"))?;
            ended = tracer::run(&["read", recording, "-o", "json", "--limit", "5/s/rule"], &[])?;
            std::fs::remove_file(recording)?;
        }
        check(ended.status.success(), format!("{arguments:?}: {}: {:?}", ended.status, ended.errors))?;
        let totals = ended.trace.end.context("the last row is missing")?;
        let said = format!("{arguments:?}: {totals:?}, {seconds} seconds: {:?}", ended.errors);
        check(totals.packets + totals.limited_out.unwrap_or(0) == (MANY + FEW) as u64, &said)?;
        check(ended.trace.packets.len() as u64 == totals.packets, &said)?;
        let second = |path: &[String]| path.iter().any(|step| step == "filter:ours:rule:1");
        let few = ended.trace.packets.values().filter(|packet| second(&packet.path)).count();
        let many = ended.trace.packets.len() - few;
        check(few == FEW && (LIMIT..=LIMIT * seconds).contains(&many), format!("{few} and {many}: {said}"))?;
        figures.push(format!("{} {many} and {few}", options.join(" ")));
    }
    Ok(Outcome::Passed(format!("of {MANY} and {FEW} packets shown: {}", figures.join(", "))))
}

/// What costs too much is sampled, and at last ended; what does not is left alone.
fn max_cost(_: &Options) -> Result<Outcome> {
    const PACKETS: usize = 200;
    let netns = netns()?;
    let ended = trace(&netns, &["--max-cost", "100%"], PACKETS)?;
    let totals = ended.trace.end.context("the last row is missing")?;
    check(
        totals.packets == PACKETS as u64 && totals.sampled_out == Some(0),
        format!("--max-cost 100%: {totals:?}: {:?}", ended.errors),
    )?;
    // Looking whether something waits is more than that.
    let arguments = ["--netns", netns.name(), "-o", "json", "--max-cost", "0.0001%", "udp"];
    let mut tracer = Tracer::start(&arguments, &[])?;
    let has_ended = wait::until(Duration::from_secs(60), || tracer.has_ended().then_some(()));
    let errors = tracer.errors();
    check(has_ended.is_some(), format!("it did not end: {errors:?}"))?;
    let ended = tracer.finish(Duration::from_secs(10))?;
    let says =
        |word: &str| ended.errors.iter().find(|line| line.contains("--max-cost") && line.contains(word));
    let (Some(sampled), Some(last)) = (says("one in 1024 packets"), says("the trace ends")) else {
        anyhow::bail!("{:?}", ended.errors);
    };
    check(ended.status.success(), format!("{}: {:?}", ended.status, ended.errors))?;
    Ok(Outcome::Passed(format!("{sampled}; {last}")))
}

/// The same for nftables; each rule counts.
const NFT_RULES: &str = "\
table ip counted {
    chain first {
        type filter hook input priority 10; policy accept;
        udp dport 4001 counter
        ip saddr 192.0.2.0/24 counter drop
        jump second
        udp dport 4002 counter accept
    }
    chain second {
        udp dport 4001-4002 counter return
        counter drop
    }
}
";

/// What a run of `--count-by` counted, and what it missed.
struct Counted {
    rows: Vec<Value>,
    sum: u64,
    missed: u64,
}

impl Counted {
    fn count(&self, wanted: impl Fn(&Value) -> bool) -> u64 {
        self.rows.iter().filter(|row| wanted(row)).filter_map(|row| row["count"].as_u64()).sum()
    }
}

/// Counts while datagrams are sent to two ports.
fn count(netns: &Netns, options: &[&str], [first, second]: [usize; 2]) -> Result<Counted> {
    let fixed = ["--netns", netns.name(), "-o", "json", "--top", "1000", "--interval", "200ms"];
    let arguments = [&fixed[..], options].concat();
    let tracer = Tracer::start(&arguments, &[])?;
    send(netns, PORT, first)?;
    send(netns, PORT + 1, second)?;
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.success(), format!("{arguments:?}: {}: {:?}", ended.status, ended.errors))?;
    let rows =
        ended.lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<Vec<Value>, _>>()?;
    let [.., last, totals] = &rows[..] else { anyhow::bail!("{arguments:?} said {:?}", ended.lines) };
    check(last["last"] == true && totals["type"] == "counted", format!("{last} {totals}"))?;
    let missed = ["lost", "missed", "uncounted", "doubtful"].map(|name| totals[name].as_u64());
    Ok(Counted {
        rows: last["rows"].as_array().context("no rows")?.clone(),
        sum: last["sum"]["count"].as_u64().context("no sum")?,
        missed: missed.into_iter().map(|count| count.context("no total")).sum::<Result<u64>>()?,
    })
}

/// What the kernel's own counters say of each rule: of legacy tables by table and rule or policy, of nftables by the text
/// before the counter.
fn counters(netns: &Netns) -> Result<BTreeMap<String, u64>> {
    let mut counters = BTreeMap::new();
    let mut table = String::new();
    for line in netns.command("iptables-legacy-save", &["-c"], "")?.lines() {
        // `[1:2] -A INPUT -j x`, `:INPUT ACCEPT [1:2]`
        let counted = |text: &str| text.trim_matches(['[', ']']).split(':').next()?.parse::<u64>().ok();
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some((numbers, rule)) = line.split_once(" -A ") {
            counters.insert(format!("{table} -A {rule}"), counted(numbers).context("no counter")?);
        } else if let Some(rest) = line.strip_prefix(':')
            && let Some((chain, numbers)) = rest.split_once(" ACCEPT ")
        {
            counters.insert(format!("{table}:{chain}:policy"), counted(numbers).context("no counter")?);
        }
    }
    for line in netns.command("nft", &["list", "table", "ip", "counted"], "").unwrap_or_default().lines() {
        if let Some((rule, rest)) = line.trim().split_once("counter packets ") {
            let count = rest.split(' ').next().and_then(|count| count.parse().ok()).context("no counter")?;
            counters.insert(format!("nft {rule}"), count);
        }
    }
    Ok(counters)
}

/// The key of a row in [`counters`]; `None` for what the kernel does not count.
fn key(row: &Value) -> Option<String> {
    let (what, text) = (row["what"].as_str()?, row["text"].as_str());
    let (table, chain) = (what.split(':').next()?, what.split(':').nth(1)?);
    match text {
        Some(text) if table == "counted" => Some(format!("nft {}", text.split_once("counter packets ")?.0)),
        Some(text) => Some(format!("{table} {text}")),
        None if table != "counted" && what.contains(":policy:") => Some(format!("{table}:{chain}:policy")),
        None => None,
    }
}

/// Each count is how far the kernel's own counter has moved.
fn counts_by_rule(options: &Options) -> Result<Outcome> {
    let netns = netns()?;
    let sent = [options.packets, options.packets / 8];
    let mut figures = Vec::new();
    let mut compare = |arguments: &[&str]| -> Result<()> {
        let before = counters(&netns)?;
        let counted = count(&netns, arguments, sent)?;
        let after = counters(&netns)?;
        let mut sum = 0;
        for (rule, count) in &after {
            let moved = count - before.get(rule).copied().unwrap_or(0);
            let told = counted.count(|row| key(row).as_ref() == Some(rule));
            let right = told == moved || (counted.missed > 0 && told < moved);
            check(
                right,
                format!("{arguments:?}: {rule}: {told} instead of {moved}, {} missed", counted.missed),
            )?;
            sum += told;
        }
        let others = counted.count(|row| key(row).is_none());
        check(sum > 0 && sum + others == counted.sum, format!("{sum} + {others} of {}", counted.sum))?;
        let unknown = counted.count(|row| row["what"] == "a rule that is not known");
        check(unknown == 0, format!("{arguments:?}: {unknown} of rules that are not known"))?;
        figures.push(format!("{} {sum} and {} missed", arguments.join(" "), counted.missed));
        Ok(())
    };
    compare(&["--count-by", "rule"])?;
    compare(&["--count-by", "rule", "--backend", "ebpf"])?;
    netns.command("nft", &["-f", "-"], NFT_RULES)?;
    compare(&["--count-by", "rule", "udp"])?;
    compare(&["--count-by", "rule", "--attach", "kprobe", "udp"])?;
    Ok(Outcome::Passed(figures.join(", ")))
}

/// Each packet is counted once, whatever it meets.
fn counts_by_packet(_: &Options) -> Result<Outcome> {
    const SENT: [usize; 2] = [1_000, 200];
    let netns = netns()?;
    netns.command("nft", &["-f", "-"], NFT_RULES)?;
    let mut figures = Vec::new();
    for (arguments, expected) in [
        (&["--count-by", "src"][..], &[("127.0.0.1", 1_200)][..]),
        (&["--count-by", "verdict", "udp dst port 4002"], &[("accept", 200)]),
        (&["--count-by", "flow", "udp"], &[("> 127.0.0.1:4001", 1_000), ("> 127.0.0.1:4002", 200)]),
        (&["--count-by", "chain", "udp"], &[("filter:ours", 1_200), ("counted:second", 1_200)]),
    ] {
        let counted = count(&netns, arguments, SENT)?;
        for &(name, expected) in expected {
            let told = counted.count(|row| row["what"].as_str().is_some_and(|what| what.ends_with(name)));
            let right = told == expected || (counted.missed > 0 && told < expected);
            let rows = &counted.rows;
            check(right, format!("{arguments:?}: {told} of {name}, {} missed: {rows:?}", counted.missed))?;
        }
        figures.push(format!("{} {} and {} missed", arguments[1], counted.sum, counted.missed));
    }
    Ok(Outcome::Passed(figures.join(", ")))
}
