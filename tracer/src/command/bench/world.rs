//! Two namespaces that are joined, with rules in the one that receives. They go when this is dropped, and when this
//! process ends in whatever way: nothing else has them open.

use super::traffic::{FROM, TO, Traffic};
use crate::doctor::Obstacle;
use crate::netfilter::{Engine, Family};
use crate::sys::iptables::{Program, Tool};
use crate::sys::kernel::has_nftables;
use crate::sys::link::{self, End};
use crate::sys::{module, netns, program};
use std::fs::File;
use std::path::PathBuf;

/// The device in either namespace.
const DEVICE: &str = "bench";

/// Tables that only have policies, with the modules that bring them.
const LEGACY: [(&str, &str); 2] = [
    ("iptable_raw", "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"),
    (
        "iptable_mangle",
        "*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n",
    ),
];
/// What brings the table with rules.
const FILTER_MODULE: &str = "iptable_filter";
/// Seven rules that no packet of ours matches.
const FILTER: &str = "\
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -s 198.51.100.0/24 -j DROP
-A INPUT -p udp -m udp --dport 53 -j ACCEPT
-A INPUT -i eth0 -j DROP
-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
-A INPUT -s 203.0.113.0/24 -j DROP
-A INPUT -p icmp -j ACCEPT
COMMIT
";

/// The same for nftables.
const NFT: &str = "
table ip raw {
    chain prerouting { type filter hook prerouting priority -300; policy accept; }
}
table ip mangle {
    chain prerouting { type filter hook prerouting priority -150; policy accept; }
    chain input { type filter hook input priority -150; policy accept; }
}
table ip filter {
    chain input {
        type filter hook input priority 0; policy accept;
        tcp dport 22 accept
        ip saddr 198.51.100.0/24 drop
        udp dport 53 accept
        iifname eth0 drop
        tcp dport 80 accept
        ip saddr 203.0.113.0/24 drop
        ip protocol icmp accept
    }
}
";

/// The namespaces, and who loads rules there.
pub(super) struct World {
    pub(super) receiver: File,
    pub(super) traffic: Traffic,
    restore: PathBuf,
    arguments: &'static [&'static str],
    _sender: File,
}

impl World {
    /// Makes it.
    pub(super) fn new(engine: Engine) -> Result<Self, Obstacle> {
        let (restore, arguments, rules) = match engine {
            Engine::Legacy => (iptables()?, ["--noflush"].as_slice(), legacy_rules()),
            Engine::Nft => (nft()?, ["-f", "-"].as_slice(), NFT.to_owned()),
        };
        let (sender, receiver) = (netns::scratch().map_err(obstacle)?, netns::scratch().map_err(obstacle)?);
        let ends = [(&sender, FROM), (&receiver, TO)].map(|(namespace, address)| End { namespace, address });
        link::join(ends, DEVICE).map_err(obstacle)?;
        let traffic = Traffic::new(&sender, &receiver).map_err(obstacle)?;
        let world = Self { receiver, traffic, restore, arguments, _sender: sender };
        world.load(&rules)?;
        Ok(world)
    }

    /// Loads rules beside those that are there, in the form of `iptables-save` or of `nft`.
    pub(super) fn load(&self, rules: &str) -> Result<(), Obstacle> {
        let load = || program::feed(&self.restore, self.arguments, rules, None);
        netns::inside(&self.receiver, load).map_err(obstacle)?.map_err(because)
    }
}

/// Where `iptables-restore` is. No table is brought along that the host does not use: it would stay.
fn iptables() -> Result<PathBuf, Obstacle> {
    if !module::is_there(FILTER_MODULE) {
        return Err(Obstacle {
            reason: "this kernel has no legacy tables loaded".to_owned(),
            remedy: Some("`modprobe -a iptable_raw iptable_mangle iptable_filter`".to_owned()),
        });
    }
    let program = Program::find(Family::Ipv4, Tool::Restore).map_err(obstacle)?;
    Ok(program.path().to_owned())
}

fn legacy_rules() -> String {
    let there = LEGACY.iter().filter(|(module, _)| module::is_there(module));
    there.map(|(_, rules)| *rules).chain([FILTER]).collect()
}

fn nft() -> Result<PathBuf, Obstacle> {
    if !has_nftables() {
        return Err(Obstacle {
            reason: "this kernel has no nftables loaded".to_owned(),
            remedy: Some("`modprobe nf_tables`".to_owned()),
        });
    }
    program::find("nft").ok_or_else(|| Obstacle {
        reason: "nft is not installed".to_owned(),
        remedy: Some("install nftables".to_owned()),
    })
}

/// A reason with its causes.
pub(super) fn obstacle(error: impl Into<anyhow::Error>) -> Obstacle {
    because(format!("{:#}", error.into()))
}

pub(super) fn because(reason: impl Into<String>) -> Obstacle {
    Obstacle { reason: reason.into(), remedy: None }
}
