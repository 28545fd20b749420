//! Rulesets that keep a packet from getting through, as people make them, and what `nftracer why` has to say of each.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::check;
use crate::lab::{Family, Lab, Place};
use crate::packet::{Packet, RST, SYN, Transport};
use crate::ruleset;
use crate::tracer::{Tracer, program};
use crate::traffic::{Senders, Shot};

/// Emulated machines are slow.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Something is wrong with the way of a packet.
pub struct Fault {
    /// What is wrong.
    pub name: &'static str,
    /// Where it is traced.
    at: Place,
    /// Rules of iptables-legacy, by family.
    legacy: &'static [(Family, &'static str)],
    /// Rules of nft.
    nft: &'static str,
    /// What else makes the fault, in the namespace's shell; and what undoes it.
    script: [&'static str; 2],
    /// The packet, with a source port or identifier of its own.
    packet: (Place, &'static str, &'static str, Kind),
    filter: &'static str,
    /// `dropped`, `rejected`, `last seen`
    fate: &'static str,
    /// The engine, and the step that did it.
    step: (&'static str, &'static str),
    /// A rule that came close, the condition that the packet did not meet, and what it had.
    close: Option<(&'static str, &'static str, &'static str)>,
    /// How the command begins that shows more, without the namespace.
    look: &'static str,
    /// Reasons of which the kernel gives one, where it throws the packet away and has reasons.
    reasons: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Kind {
    Udp(u16),
    /// With so much payload.
    Large(u16, u16),
    Syn(u16),
    Rst(u16),
    Echo,
}
use Kind::{Echo, Large, Rst, Syn, Udp};

const A: &str = "10.0.1.2";
const R: &str = "10.0.1.1";
const B: &str = "10.0.2.2";
const TO_B: (Place, &str, &str, Kind) = (Place::A, A, B, Udp(80));

/// What most faults have in common: a datagram from A to B, port 80, is dropped by a legacy table of the router.
const USUAL: Fault = Fault {
    name: "",
    at: Place::R,
    legacy: &[],
    nft: "",
    script: ["", ""],
    packet: TO_B,
    filter: "udp dst port 80",
    fate: "dropped",
    step: ("legacy", ""),
    close: None,
    look: "iptables-legacy -t filter -nvL FORWARD --line-numbers",
    reasons: &[],
};

/// All of them.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the policy drops",
        legacy: &[(Family::Ipv4, "*filter\n:FORWARD DROP\nCOMMIT\n")],
        step: ("legacy", "filter:FORWARD:policy:1"),
        ..USUAL
    },
    Fault {
        name: "a rule is missing",
        legacy: &[(
            Family::Ipv4,
            "*filter\n:FORWARD DROP\n-A FORWARD -i ra -p udp -m udp --dport 443 -j ACCEPT\nCOMMIT\n",
        )],
        step: ("legacy", "filter:FORWARD:policy:2"),
        close: Some(("filter:FORWARD:rule:1", "--dport 443", "80")),
        ..USUAL
    },
    Fault {
        name: "the order is wrong",
        legacy: &[(
            Family::Ipv4,
            "*filter\n-A FORWARD -p udp -j DROP\n-A FORWARD -p udp -m udp --dport 80 -j ACCEPT\nCOMMIT\n",
        )],
        step: ("legacy", "filter:FORWARD:rule:1"),
        close: Some(("filter:FORWARD:rule:2", "", "")),
        ..USUAL
    },
    Fault {
        name: "the answer is dropped",
        legacy: &[(
            Family::Ipv4,
            "*filter\n-A FORWARD -i ra -p icmp -j ACCEPT\n-A FORWARD -i rb -j DROP\nCOMMIT\n",
        )],
        packet: (Place::A, A, B, Echo),
        filter: "icmp and src host 10.0.2.2",
        step: ("legacy", "filter:FORWARD:rule:2"),
        close: Some(("filter:FORWARD:rule:1", "-i ra", "rb")),
        ..USUAL
    },
    Fault {
        name: "conntrack finds it invalid",
        legacy: &[(Family::Ipv4, "*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")],
        packet: (Place::A, A, B, Rst(80)),
        filter: "tcp dst port 80",
        step: ("legacy", "filter:FORWARD:rule:1"),
        ..USUAL
    },
    Fault {
        name: "the reverse path filter drops",
        script: [
            "echo 1 > /proc/sys/net/ipv4/conf/ra/rp_filter",
            "echo 0 > /proc/sys/net/ipv4/conf/ra/rp_filter",
        ],
        packet: (Place::A, "10.0.9.9", B, Udp(80)),
        fate: "last seen",
        step: ("legacy", "mangle:PREROUTING:policy:1"),
        look: "ip route get 10.0.2.2 from 10.0.9.9 iif ra",
        reasons: &["IP_RPFILTER"],
        ..USUAL
    },
    Fault {
        name: "there is no route",
        packet: (Place::A, A, "10.99.0.1", Udp(80)),
        fate: "last seen",
        step: ("legacy", "mangle:PREROUTING:policy:1"),
        look: "ip route get 10.99.0.1 from 10.0.1.2 iif ra",
        reasons: &["IP_INNOROUTES", "NOT_SPECIFIED"],
        ..USUAL
    },
    Fault {
        name: "forwarding is off",
        script: ["echo 0 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
        fate: "last seen",
        step: ("legacy", "mangle:PREROUTING:policy:1"),
        look: "ip route get 10.0.2.2 from 10.0.1.2 iif ra",
        reasons: &["IP_INNOROUTES", "IP_INADDRERRORS", "NOT_SPECIFIED"],
        ..USUAL
    },
    Fault {
        name: "translated to a dead port",
        legacy: &[(
            Family::Ipv4,
            "*nat\n-A PREROUTING -d 10.0.1.100/32 -p udp -m udp --dport 80 -j DNAT --to-destination 10.0.2.2:4001\n\
             COMMIT\n*filter\n-A FORWARD -p udp -m udp --dport 4000 -j ACCEPT\n\
             -A FORWARD -p udp -m udp --dport 4001 -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
        )],
        packet: (Place::A, A, "10.0.1.100", Udp(80)),
        fate: "rejected",
        step: ("legacy", "filter:FORWARD:rule:2"),
        close: Some(("filter:FORWARD:rule:1", "--dport 4000", "4001")),
        ..USUAL
    },
    Fault {
        name: "asked for the address before translation",
        legacy: &[(
            Family::Ipv4,
            "*nat\n-A PREROUTING -d 10.0.1.100/32 -p udp -j DNAT --to-destination 10.0.2.2\nCOMMIT\n\
             *filter\n:FORWARD DROP\n-A FORWARD -d 10.0.1.100/32 -p udp -j ACCEPT\nCOMMIT\n",
        )],
        packet: (Place::A, A, "10.0.1.100", Udp(80)),
        step: ("legacy", "filter:FORWARD:policy:2"),
        close: Some(("filter:FORWARD:rule:1", "-d 10.0.1.100/32", B)),
        ..USUAL
    },
    Fault {
        name: "the word that a packet is too big is dropped",
        legacy: &[(
            Family::Ipv6,
            "*filter\n-A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 1 -j ACCEPT\n\
             -A OUTPUT -p ipv6-icmp -m icmp6 --icmpv6-type 2 -j DROP\nCOMMIT\n",
        )],
        script: ["ip link set rb mtu 1280", "ip link set rb mtu 1500"],
        packet: (Place::A, "fd00:1::2", "fd00:2::2", Large(80, 1400)),
        filter: "icmp6 and ip6[40] = 2",
        step: ("legacy", "filter:OUTPUT:rule:2"),
        close: Some(("filter:OUTPUT:rule:1", "--icmpv6-type 1", "type 2 code 0")),
        look: "ip6tables-legacy -t filter -nvL OUTPUT --line-numbers",
        ..USUAL
    },
    Fault {
        name: "the device is in the wrong zone",
        legacy: &[(
            Family::Ipv4,
            "*filter\n:FWD_public -\n:FWD_trusted -\n-A FORWARD -i rb -j FWD_trusted\n-A FORWARD -i ra -j FWD_public\n\
             -A FWD_trusted -j ACCEPT\n-A FWD_public -p udp -j DROP\nCOMMIT\n",
        )],
        step: ("legacy", "filter:FWD_public:rule:1"),
        close: Some(("filter:FORWARD:rule:1", "-i rb", "ra")),
        look: "iptables-legacy -t filter -nvL FWD_public --line-numbers",
        ..USUAL
    },
    Fault {
        name: "it was not masqueraded",
        at: Place::B,
        legacy: &[(Family::Ipv4, "*filter\n:INPUT DROP\n-A INPUT -s 10.0.2.0/24 -j ACCEPT\nCOMMIT\n")],
        step: ("legacy", "filter:INPUT:policy:2"),
        close: Some(("filter:INPUT:rule:1", "-s 10.0.2.0/24", A)),
        look: "iptables-legacy -t filter -nvL INPUT --line-numbers",
        ..USUAL
    },
    Fault {
        name: "legacy tables accept and nftables drops",
        legacy: &[(Family::Ipv4, "*filter\n-A FORWARD -p udp -m udp --dport 80 -j ACCEPT\nCOMMIT\n")],
        nft: "table inet fw { chain forward { type filter hook forward priority 10; policy accept; \
              tcp dport 80 accept; udp dport 80 drop; }\n}",
        step: ("nft", "fw:forward:rule:2"),
        close: Some(("fw:forward:rule:1", "tcp", "udp")),
        look: "nft -a list chain inet fw forward",
        ..USUAL
    },
    Fault {
        name: "the policy of nftables drops",
        nft: "table inet fw { chain input { type filter hook input priority 0; policy drop; \
              iifname \"lo\" accept; tcp dport { 22, 443 } accept; }\n}",
        packet: (Place::A, A, R, Syn(80)),
        filter: "tcp dst port 80",
        step: ("nft", "fw:input:policy:3"),
        close: Some(("fw:input:rule:2", "tcp dport { 22, 443 }", "80")),
        look: "nft -a list chain inet fw input",
        ..USUAL
    },
    Fault {
        name: "its address is in a set",
        nft: "table ip fw { set bad { type ipv4_addr; elements = { 10.0.1.2, 10.0.1.9 } }\n\
              chain pre { type filter hook prerouting priority 0; policy accept; ip saddr @bad drop; }\n}",
        step: ("nft", "fw:pre:rule:1"),
        look: "nft -a list chain ip fw pre",
        ..USUAL
    },
    Fault {
        name: "iptables-nft drops as well",
        legacy: &[(Family::Ipv4, "*filter\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n")],
        script: ["iptables-nft -A FORWARD -i ra -p udp --dport 80 -j DROP", ""],
        step: ("nft", "filter:FORWARD:rule:1"),
        look: "iptables-nft -t filter -nvL FORWARD --line-numbers",
        ..USUAL
    },
    Fault {
        name: "it falls through a chain",
        legacy: &[(
            Family::Ipv4,
            "*filter\n:FORWARD DROP\n:web -\n-A FORWARD -i ra -j web\n-A web -p tcp -j ACCEPT\nCOMMIT\n",
        )],
        step: ("legacy", "filter:FORWARD:policy:2"),
        close: Some(("filter:web:rule:1", "-p tcp", "udp")),
        ..USUAL
    },
    Fault {
        name: "it has another mark",
        legacy: &[(
            Family::Ipv4,
            "*mangle\n-A PREROUTING -p udp -j MARK --set-xmark 0x2/0xffffffff\nCOMMIT\n\
             *filter\n-A FORWARD -m mark --mark 0x1 -j ACCEPT\n-A FORWARD -p udp -j DROP\nCOMMIT\n",
        )],
        step: ("legacy", "filter:FORWARD:rule:2"),
        close: Some(("filter:FORWARD:rule:1", "--mark 0x1", "0x2")),
        ..USUAL
    },
    Fault {
        name: "it is dropped before conntrack",
        legacy: &[(Family::Ipv4, "*raw\n-A PREROUTING -s 10.0.1.2/32 -p udp -j DROP\nCOMMIT\n")],
        step: ("legacy", "raw:PREROUTING:rule:1"),
        look: "iptables-legacy -t raw -nvL PREROUTING --line-numbers",
        ..USUAL
    },
    Fault {
        name: "the router may not send",
        legacy: &[(
            Family::Ipv4,
            "*filter\n-A OUTPUT -d 10.0.2.0/24 -p udp -j REJECT --reject-with icmp-admin-prohibited\nCOMMIT\n",
        )],
        packet: (Place::R, "10.0.2.1", B, Udp(80)),
        fate: "rejected",
        step: ("legacy", "filter:OUTPUT:rule:1"),
        look: "iptables-legacy -t filter -nvL OUTPUT --line-numbers",
        ..USUAL
    },
    Fault {
        name: "nobody thought of IPv6",
        legacy: &[
            (Family::Ipv4, "*filter\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n"),
            (
                Family::Ipv6,
                "*filter\n:FORWARD DROP\n-A FORWARD -p udp -m multiport --dports 53,443 -j ACCEPT\nCOMMIT\n",
            ),
        ],
        packet: (Place::A, "fd00:1::2", "fd00:2::2", Udp(80)),
        step: ("legacy", "filter:FORWARD:policy:2"),
        close: Some(("filter:FORWARD:rule:1", "--dports 53,443", "80")),
        look: "ip6tables-legacy -t filter -nvL FORWARD --line-numbers",
        ..USUAL
    },
];

/// Whether the kernel says why it throws a packet away: since 5.17.
pub fn kernel_has_reasons() -> Result<bool> {
    let format = "/sys/kernel/tracing/events/skb/kfree_skb/format";
    let format = fs::read_to_string(format).with_context(|| format.to_owned())?;
    Ok(format.contains("reason"))
}

impl Fault {
    /// In a lab without rules: makes the fault, has `nftracer why` watch with these arguments while the packet
    /// comes, undoes it, and holds what was said against what is wrong.
    pub fn examine(&self, lab: &Lab, senders: &Senders, number: u16, arguments: &[&str]) -> Result<()> {
        let netns = lab.netns(self.at);
        let shell = |script: &str| if script.is_empty() { Ok(String::new()) } else { netns.script(script) };
        for (family, text) in self.legacy {
            ruleset::load(netns, *family, text)?;
        }
        if !self.nft.is_empty() {
            netns.command("nft", &["-f", "-"], self.nft)?;
        }
        shell(self.script[0])?;
        let said = self.watch(lab, senders, number, arguments);
        shell(self.script[1])?;
        if !self.nft.is_empty() || self.step.0 == "nft" {
            netns.command("nft", &["flush", "ruleset"], "")?;
        }
        netns.clear_rules()?;
        let probes = arguments.contains(&"ebpf");
        said.and_then(|row| {
            let checked = self.check(&row, netns.name());
            let checked = checked.and_then(|()| if probes { self.check_reason(&row) } else { Ok(()) });
            checked.with_context(|| row.to_string())
        })
        .with_context(|| self.name)
    }

    /// Whether it is no rule that drops the packet.
    pub fn is_last_seen(&self) -> bool {
        self.fate == "last seen"
    }

    /// The kernel threw it away: where it has reasons for that, one has to be said.
    fn check_reason(&self, row: &Value) -> Result<()> {
        let ending = &row["ending"];
        let reason = ending["reason"].as_str();
        if ending["kind"] != "freed" {
            return check(self.fate != "last seen", "it was freed");
        }
        check(reason.is_some() == kernel_has_reasons()?, "the kernel has reasons, or it has none")?;
        let fits = reason.is_none_or(|reason| self.reasons.is_empty() || self.reasons.contains(&reason));
        check(fits, format!("the reason is one of {:?}", self.reasons))
    }

    fn watch(&self, lab: &Lab, senders: &Senders, number: u16, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(program());
        // A machine whose host has much to do stands still now and then.
        command.env("NFTRACER_PATIENCE_MS", "1500");
        command.args(["why", "--netns", lab.netns(self.at).name(), "--for", "60s", "-o", "json"]);
        command.args(arguments).arg(self.filter);
        let tracer = Tracer::start_command(command)?;
        senders.fire(&self.shot(number)?);
        let ended = tracer.finish(ENDS_WITHIN)?;
        let errors = ended.errors.join("\n");
        check(ended.status.code() == Some(0), format!("{}: {errors}", ended.status))?;
        check(ended.trace.started && ended.trace.end.is_some(), "the first row or the last is missing")?;
        check(ended.trace.odd.is_empty(), format!("rows that cannot be read: {:?}", ended.trace.odd))?;
        check(ended.lines.len() == 1, format!("{} rows say why: {errors}", ended.lines.len()))?;
        Ok(serde_json::from_str(&ended.lines[0])?)
    }

    fn shot(&self, number: u16) -> Result<Shot> {
        let (from, src, dst, kind) = self.packet;
        let (src, dst): (IpAddr, IpAddr) = (src.parse()?, dst.parse()?);
        let sport = 30_000 + number;
        let (transport, payload) = match kind {
            Udp(dport) => (Transport::Udp { sport, dport }, 8),
            Large(dport, payload) => (Transport::Udp { sport, dport }, payload),
            Syn(dport) => (Transport::Tcp { sport, dport, flags: SYN }, 0),
            Rst(dport) => (Transport::Tcp { sport, dport, flags: RST }, 0),
            Echo => (Transport::Echo { id: sport, sequence: 1 }, 8),
        };
        Ok(Shot { from, packet: Packet { src, dst, transport, payload, id: sport, tos: 0, fragment: None } })
    }

    fn check(&self, row: &Value, netns: &str) -> Result<()> {
        let at = &row["at"];
        let (engine, step) = self.step;
        check(row["fate"] == self.fate, format!("it was {}", self.fate))?;
        check(at["step"] == step && at["engine"] == engine, format!("it was {engine} {step}"))?;
        check(at["certain"] == (self.fate != "last seen"), "this is what ended it")?;
        let look = format!("ip netns exec {netns} {}", self.look);
        check(row["look"] == *look, format!("look with {look}"))?;
        let rows = row["close"].as_array().context("what came close")?;
        let Some((name, condition, value)) = self.close else { return Ok(()) };
        let close = rows.iter().find(|close| close["step"] == name);
        let close = close.with_context(|| format!("{name} came close"))?;
        let failed = close["failed"].as_array().context("what failed")?;
        if condition.is_empty() {
            return check(close["behind"] == true && failed.is_empty(), format!("{name} is behind it"));
        }
        let is_expected = |one: &&Value| one["condition"] == condition && one["value"] == value;
        check(
            failed.iter().any(|one| is_expected(&one)) && close["behind"] == false,
            format!("{name} fails in {condition}, because the packet has {value}"),
        )
    }
}
