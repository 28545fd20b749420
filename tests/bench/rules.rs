//! The rulesets that the packets meet. No rule but TRACE matches them, so the policies decide.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Tables that only have policies.
const LEGACY: &str = "\
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
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
";

/// Seven rules.
const FILTER: &str = "\
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A INPUT -p tcp --dport 22 -j ACCEPT
-A INPUT -s 192.0.2.0/24 -j DROP
-A INPUT -p udp --dport 53 -j ACCEPT
-A INPUT -i eth0 -j DROP
-A OUTPUT -d 192.0.2.0/24 -j DROP
-A OUTPUT -p tcp --sport 22 -j ACCEPT
-A OUTPUT -o eth0 -j DROP
COMMIT
";

/// The same for nftables.
const NFT: &str = "
table ip raw {
    chain prerouting { type filter hook prerouting priority raw; policy accept; }
    chain output { type filter hook output priority raw; policy accept; }
}
table ip mangle {
    chain prerouting { type filter hook prerouting priority mangle; policy accept; }
    chain input { type filter hook input priority mangle; policy accept; }
    chain forward { type filter hook forward priority mangle; policy accept; }
    chain output { type route hook output priority mangle; policy accept; }
    chain postrouting { type filter hook postrouting priority mangle; policy accept; }
}
table ip nat {
    chain prerouting { type nat hook prerouting priority dstnat; policy accept; }
    chain input { type nat hook input priority 100; policy accept; }
    chain output { type nat hook output priority -100; policy accept; }
    chain postrouting { type nat hook postrouting priority srcnat; policy accept; }
}
table ip filter {
    chain input {
        type filter hook input priority filter; policy accept;
        tcp dport 22 accept
        ip saddr 192.0.2.0/24 drop
        udp dport 53 accept
        iifname eth0 drop
    }
    chain forward { type filter hook forward priority filter; policy accept; }
    chain output {
        type filter hook output priority filter; policy accept;
        ip daddr 192.0.2.0/24 drop
        tcp sport 22 accept
        oifname eth0 drop
    }
}
";

/// Loads the legacy tables, with seven rules in `filter`.
pub(crate) fn legacy() -> Result<()> {
    fed("iptables-legacy-restore", &[], &(LEGACY.to_owned() + FILTER))
}

/// Loads the legacy tables, with as many rules in the chain INPUT of `filter`.
pub(crate) fn legacy_with(rules: u32) -> Result<()> {
    let mut text = LEGACY.to_owned() + "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n";
    for rule in 0..rules {
        writeln!(text, "-A INPUT -s 198.18.{}.{}/32 -j DROP", rule / 256, rule % 256)?;
    }
    fed("iptables-legacy-restore", &[], &(text + "COMMIT\n"))
}

/// Loads the nftables ruleset.
pub(crate) fn nft() -> Result<()> {
    fed("nft", &["-f", "-"], NFT)
}

/// Something that is there until it is dropped.
pub(crate) struct Undo(fn() -> Result<()>);

impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(error) = (self.0)() {
            println!("undoing: {error:#}");
        }
    }
}

/// The classic TRACE rules; `logger` gets what they say.
pub(crate) fn trace(logger: &str) -> Result<Undo> {
    bind(logger)?;
    let undo = Undo(|| {
        fed("iptables-legacy-restore", &["--noflush"], "*raw\n-F PREROUTING\n-F OUTPUT\nCOMMIT\n")?;
        bind("NONE")
    });
    let rules = "*raw\n-A PREROUTING -p udp -j TRACE\n-A OUTPUT -p udp -j TRACE\nCOMMIT\n";
    fed("iptables-legacy-restore", &["--noflush"], rules)?;
    // Extensions may have bound the logger they like.
    bind(logger)?;
    Ok(undo)
}

/// Has the kernel tell of every verdict, and marks no packet.
pub(crate) fn key() -> Result<Undo> {
    let undo = Undo(|| fed("nft", &["-f", "-"], "delete table ip key\n"));
    fed("nft", &["-f", "-"], "table ip key {\n chain key { meta nftrace set 1; }\n}\n")?;
    Ok(undo)
}

/// Makes nftables trace every packet.
pub(crate) fn nftrace() -> Result<Undo> {
    let undo =
        Undo(|| fed("nft", &["-f", "-"], "flush chain ip raw prerouting\nflush chain ip raw output\n"));
    let rules = "add rule ip raw prerouting meta nftrace set 1\nadd rule ip raw output meta nftrace set 1\n";
    fed("nft", &["-f", "-"], rules)?;
    Ok(undo)
}

fn bind(logger: &str) -> Result<()> {
    let file = "/proc/sys/net/netfilter/nf_log/2";
    fs::write(file, logger).with_context(|| format!("cannot write {logger} to {file}"))
}

/// Runs a program that reads its input.
fn fed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    child.stdin.take().context("its input is piped")?.write_all(input.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}
