//! Rules as programs make them: each is shown as its owner's tool prints it, under the number that steps give it.

use std::collections::HashMap;

use anyhow::{Context as _, Result};

use crate::netns::Netns;
use crate::{check, tracer};

/// A file of the corpus: its name, and what it holds.
macro_rules! file {
    ($name:literal) => {
        ($name, include_str!(concat!("../data/nftables/corpus/", $name)))
    };
}

/// All of them.
const FILES: &[(&str, &str)] = &[
    file!("calico.save"),
    file!("docker.save"),
    file!("fail2ban.nft"),
    file!("fail2ban.save"),
    file!("firewalld.nft"),
    file!("kube-proxy.nft"),
    file!("kube-proxy.save"),
    file!("libvirt.save"),
    file!("netavark.nft"),
    file!("people.nft"),
    file!("people.save"),
    file!("ufw.save"),
    file!("ufw.save6"),
];

/// What there are at least of each kind, so that no file is left out unseen.
const RULES: usize = 500;

/// `FAMILY TABLE CHAIN NUMBER` and the text.
type Texts = HashMap<String, String>;

/// Loads each into a namespace, and compares.
pub fn corpus(netns: &Netns) -> Result<String> {
    let (mut of_iptables, mut of_nft) = (0, 0);
    for (name, rules) in FILES {
        let extension = name.rsplit('.').next().unwrap_or_default();
        netns.command("nft", &["flush", "ruleset"], "")?;
        let compared = match extension {
            "save" => saved(netns, ("ip", "iptables-nft"), rules),
            "save6" => saved(netns, ("ip6", "ip6tables-nft"), rules),
            _ => listed(netns, rules),
        };
        let compared = compared.with_context(|| (*name).to_owned())?;
        *(if extension == "nft" { &mut of_nft } else { &mut of_iptables }) += compared;
    }
    let said = format!("{} files, {of_iptables} rules of iptables-nft, {of_nft} of nft", FILES.len());
    check(of_iptables >= RULES && of_nft >= RULES / 2, said.clone())?;
    Ok(said)
}

fn saved(netns: &Netns, (family, program): (&str, &str), rules: &str) -> Result<usize> {
    netns.command(&format!("{program}-restore"), &[], rules)?;
    let saved = netns.command(&format!("{program}-save"), &[], "")?;
    let (mut table, mut expected, mut numbers) = ("", Texts::new(), HashMap::new());
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let chain = rest.split(' ').next().context("a chain")?;
            let number: &mut u32 = numbers.entry((table, chain)).or_default();
            *number += 1;
            expected.insert(format!("{family} {table} {chain} {number}"), line.to_owned());
        }
    }
    // What was loaded has come out again, or the file is not what it seems.
    let loaded = rules.lines().filter(|line| line.starts_with("-A ")).count();
    check(loaded == expected.len(), format!("{loaded} rules were loaded, {} are there", expected.len()))?;
    compare(netns, &expected)
}

fn listed(netns: &Netns, rules: &str) -> Result<usize> {
    load_what_can_be(netns, rules)?;
    let listing = netns.command("nft", &["-a", "list", "ruleset"], "")?;
    let (mut table, mut chain, mut number, mut expected) = (String::new(), None, 0, Texts::new());
    for line in listing.lines() {
        let name = |prefix: &str| Some(line.strip_prefix(prefix)?.split(" {").next()?.to_owned());
        if let Some(name) = name("table ") {
            table = name;
        } else if line.starts_with('\t') && !line.starts_with("\t\t") {
            chain = name("\tchain ");
            number = 0;
        } else if let (Some(chain), Some(text), true) =
            (&chain, line.strip_prefix("\t\t"), line.contains(" # handle "))
        {
            number += 1;
            expected.insert(format!("{table} {chain} {number}"), text.to_owned());
        }
    }
    compare(netns, &expected)
}

/// Lines that a kernel may not know: Linux 5.10 knows no `socket cgroupv2`.
const UNKNOWN: usize = 3;

/// Loads rules, without the lines that this kernel does not know.
fn load_what_can_be(netns: &Netns, rules: &str) -> Result<()> {
    let mut lines: Vec<&str> = rules.lines().collect();
    for _ in 0..UNKNOWN {
        let Err(error) = netns.command("nft", &["-f", "-"], &lines.join("\n")) else { return Ok(()) };
        // `/dev/stdin:95:3-25: Error: Could not process rule: Operation not supported`
        let said = format!("{error:#}");
        let line = said.lines().find(|line| line.contains("Operation not supported"));
        let number = line.and_then(|line| line.split("stdin:").nth(1)?.split(':').next()?.parse().ok());
        let number: usize = number.ok_or(error)?;
        check((1..=lines.len()).contains(&number), said)?;
        lines[number - 1] = "";
    }
    netns.command("nft", &["-f", "-"], &(lines.join("\n") + "\n")).map(drop)
}

/// Holds what nftracer shows against what is expected.
fn compare(netns: &Netns, expected: &Texts) -> Result<usize> {
    let ended = tracer::run(&["rules", "--netns", netns.name()], &[])?;
    check(ended.status.code() == Some(0) && ended.errors.is_empty(), format!("{:?}", ended.errors))?;
    let (mut family, mut shown) = (String::new(), Texts::new());
    for line in &ended.lines {
        if let Some(rule) = line.strip_prefix("    ") {
            let (name, text) = rule.split_once("  ").context("a name and a text")?;
            let (place, number) = name.rsplit_once(':').context("a number")?;
            let Some((table, chain)) = place.strip_suffix(":rule").and_then(|place| place.split_once(':'))
            else {
                continue;
            };
            shown.insert(format!("{family} {table} {chain} {number}"), text.trim_start().to_owned());
        } else if !line.starts_with(' ') {
            family = line.split(' ').next().unwrap_or_default().to_owned();
        }
    }
    for (place, text) in expected {
        let other = shown.get(place);
        check(other == Some(text), format!("{place} is shown as {other:?} instead of {text:?}"))?;
    }
    check(shown.len() == expected.len(), format!("{} rules are shown of {}", shown.len(), expected.len()))?;
    Ok(expected.len())
}
