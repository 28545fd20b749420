//! What marks packets leaves alone those that do not match: the kernel's own counters say so.

use std::env;
use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::lab::Family;
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::{Ended, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "rules_ask_the_filter", run: rules_ask_the_filter },
    Test { name: "tables_ask_the_filter", run: tables_ask_the_filter },
];

/// Asks for a byte of the payload, which no match but bpf does.
const FILTER: &str = "udp and (ip[28] = 0x6d or ip6[48] = 0x6d)";
const MATCHING: u64 = 5;
const OTHERS: u64 = 7;
const SOON: Duration = Duration::from_secs(10);

/// Rules that ask the whole filter are met by packets that match, and by no others. Where there is no such match, they
/// are met by more, and no more is shown.
fn rules_ask_the_filter() -> Result<String> {
    let netns = crate::netns("m")?;
    let (whole, said) = marked(&netns, &[])?;
    check(
        whole == [MATCHING, MATCHING],
        format!("rules of iptables and ip6tables were met {whole:?} times"),
    )?;
    check(!said.contains("more packets are marked"), said)?;
    let programs = without_bpf()?;
    let path = format!("{}:{}", programs.display(), env::var("PATH").unwrap_or_default());
    let result = marked(&netns, &[("PATH", &path)]);
    fs::remove_dir_all(&programs)?;
    let (more, said) = result?;
    let all = MATCHING + OTHERS;
    check(more[0] == all && more[1] >= all, format!("without bpf they were met {more:?} times"))?;
    check(said.contains("more packets are marked"), said)?;
    Ok(format!("{whole:?} packets marked with bpf, {more:?} without"))
}

/// Traces what is sent meanwhile. How often the rules at OUTPUT were met, and what was said.
fn marked(netns: &Netns, environment: &[(&str, &str)]) -> Result<([u64; 2], String)> {
    let arguments = ["--backend", "netlink", "--mark", "rule", "--netns", netns.name(), "-v", "-o", "json"];
    let words: Vec<&str> = arguments.into_iter().chain([FILTER]).collect();
    let tracer = Tracer::start(&words, environment)?;
    netns.enter(send)?;
    let met = [counter(netns, Family::Ipv4)?, counter(netns, Family::Ipv6)?];
    let expected = usize::try_from(2 * MATCHING)?;
    // Sent and taken in: two paths.
    wait::until(SOON, || (tracer.look(|trace| trace.packets.len()) >= expected).then_some(()));
    let Ended { trace, errors, .. } = tracer.stop(Signal::INT)?;
    let said = errors.join("\n");
    check(trace.packets.len() == expected, format!("{} packets are shown: {said}", trace.packets.len()))?;
    Ok((met, said))
}

fn send() -> Result<()> {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (socket, receiver) = (UdpSocket::bind(address)?, UdpSocket::bind(address)?);
        let to = receiver.local_addr()?;
        for number in 0..MATCHING + OTHERS {
            socket.send_to(if number < MATCHING { b"mine" } else { b"other" }, to)?;
        }
    }
    Ok(())
}

/// How often packets met the run's rules at OUTPUT.
fn counter(netns: &Netns, family: Family) -> Result<u64> {
    let saved = netns.command(&format!("{}-save", family.tool()), &["-c", "-t", "raw"], "")?;
    let ours = |line: &&str| line.contains("-A OUTPUT") && line.contains("nftracer:");
    let count = |line: &str| line.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok();
    saved.lines().filter(ours).map(|line| count(line).context("a counter")).sum()
}

/// A folder with programs of iptables that know no match bpf.
fn without_bpf() -> Result<std::path::PathBuf> {
    let folder = env::temp_dir().join(format!("nftracer-native-bpf-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    for tool in ["iptables", "ip6tables"] {
        let name = format!("{tool}-legacy-restore");
        let real = ["/usr/sbin", "/sbin"].map(|place| Path::new(place).join(&name));
        let real = real.iter().find(|path| path.exists()).context("iptables is installed")?;
        let text = format!(
            "#!/bin/sh\nrules=$(cat)\ncase $rules in *--bytecode*) echo 'no match bpf' >&2; exit 2;; esac\n\
             printf '%s\\n' \"$rules\" | {} \"$@\"\n",
            real.display()
        );
        fs::write(folder.join(&name), text)?;
        fs::set_permissions(folder.join(&name), Permissions::from_mode(0o755))?;
    }
    Ok(folder)
}

/// What nftables can be told of a filter, it is told.
fn tables_ask_the_filter() -> Result<String> {
    let netns = crate::netns("n")?;
    let filter = "(tcp and dst port 443 and src net 10.1.0.0/16) or (ip6 and udp src portrange 5000-5009)";
    let arguments = ["--backend", "netlink", "--mark", "nft", "--netns", netns.name()];
    let words: Vec<&str> = arguments.into_iter().chain(filter.split(' ')).collect();
    let tracer = Tracer::start(&words, &[])?;
    let listed = netns.command("nft", &["list", "ruleset"], "")?;
    tracer.stop(Signal::INT)?;
    let rules: Vec<&str> =
        listed.lines().map(str::trim).filter(|line| line.ends_with("nftrace set 1")).collect();
    for word in ["10.1.0.0/16", "443", "5000", "5009", "tcp", "udp"] {
        check(rules.iter().any(|rule| rule.contains(word)), format!("no rule asks for {word}: {listed}"))?;
    }
    let conditions =
        |rule: &&str| rule.trim_end_matches("meta nftrace set 1").len() > "meta nfproto ipv4 ".len();
    check(rules.iter().all(conditions), format!("a rule marks everything: {listed}"))?;
    Ok(rules.join(" / "))
}
