//! Rulesets of nftables: some written by hand, any number made up.
//!
//! nft 1.0.6 wants an end of line or a semicolon before a closing brace.

use std::fmt::Write as _;

use crate::random::Random;

/// A ruleset written by hand.
#[derive(Clone, Copy, Debug)]
pub struct Handwritten {
    /// What it is about.
    pub name: &'static str,
    /// What `nft -f` reads.
    pub text: &'static str,
}

/// Each holds something that has misled tracers, or could. None rejects with TCP resets: those have no device yet when
/// they are sent, and Linux 5.10 complains in its log when it has to tell of such a packet.
pub const HANDWRITTEN: &[Handwritten] = &[
    Handwritten {
        name: "jumps, gotos and returns",
        text: "
table inet t {
    chain in { type filter hook input priority 0; policy accept; jump one; goto two; drop; }
    chain pass { type filter hook forward priority 0; policy accept; jump three; meta l4proto udp return; counter; }
    chain one { meta l4proto icmp return; meta l4proto tcp jump deep; counter; }
    chain two { meta l4proto udp goto deep; counter; }
    chain three { goto four; }
    chain four { meta l4proto tcp goto deep; meta l4proto udp jump deep; counter; }
    chain deep { jump deeper; return; drop; }
    chain deeper { }
}",
    },
    Handwritten {
        name: "verdict maps",
        text: "
table inet t {
    map ports { type inet_service : verdict; elements = { 53 : drop, 80 : accept, 443 : jump web, 4000 : goto open }; }
    chain in { type filter hook input priority 0; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop };
        meta l4proto vmap { icmp : accept, ipv6-icmp : accept, udp : jump udp_in, tcp : jump tcp_in };
        counter; }
    chain pass { type filter hook forward priority 0; policy accept;
        meta l4proto . th dport vmap { udp . 53 : jump web, tcp . 443 : goto web, udp . 4000 : return };
        counter; }
    chain udp_in { udp dport vmap @ports; counter; }
    chain tcp_in { tcp dport vmap @ports; return; }
    chain web { ip saddr 10.0.1.3 drop; ip6 saddr fd00:1::3 drop; }
    chain open { accept; }
}",
    },
    Handwritten {
        name: "several base chains at a hook",
        text: "
table ip first {
    chain in { type filter hook input priority -10; policy accept; counter; }
    chain pass { type filter hook forward priority 0; policy accept; udp dport 53 accept; }
    chain pre { type filter hook prerouting priority -150; policy accept; meta mark set 7; }
}
table ip6 first {
    chain in { type filter hook input priority -10; policy accept; counter; }
    chain pass { type filter hook forward priority 0; policy accept; udp dport 53 accept; }
}
table inet second {
    chain in { type filter hook input priority 0; policy accept; meta l4proto tcp counter; }
    chain in2 { type filter hook input priority 0; policy accept; th dport 53 drop; }
    chain pass { type filter hook forward priority 0; policy accept; udp dport 443 drop; }
    chain pass2 { type filter hook forward priority 5; policy accept; }
    chain pre { type filter hook prerouting priority -150; policy accept; mark 7 counter; }
    chain post { type filter hook postrouting priority 300; policy accept; mark 7 counter; }
    chain out { type filter hook output priority 0; policy accept; }
    chain out2 { type route hook output priority -150; policy accept; th dport 80 meta mark set 9; }
}",
    },
    Handwritten {
        name: "nat",
        text: "
table ip n {
    chain pre { type nat hook prerouting priority -100; policy accept; ip daddr 10.0.1.100 tcp dport 80 dnat to 10.0.2.2:4000; ip daddr 10.0.1.100 dnat to 10.0.2.2; }
    chain pre2 { type nat hook prerouting priority -90; policy accept; counter; }
    chain post { type nat hook postrouting priority 100; policy accept; oifname rb masquerade; }
    chain in { type nat hook input priority 100; policy accept; counter; }
    chain out { type nat hook output priority -100; policy accept; counter; }
}
table ip6 n {
    chain pre { type nat hook prerouting priority -100; policy accept; ip6 daddr fd00:1::100 dnat to fd00:2::2; }
    chain post { type nat hook postrouting priority 100; policy accept; oifname rb masquerade; }
}
table inet f {
    chain pass { type filter hook forward priority 0; policy accept; ct status dnat counter; ct state new counter; }
    chain pre { type filter hook prerouting priority -150; policy accept; }
    chain post { type filter hook postrouting priority 0; policy accept; }
}",
    },
    Handwritten {
        name: "statements",
        text: "
table inet t {
    counter c { }
    set odd { type ipv4_addr; flags dynamic,timeout; timeout 60s; }
    chain raw { type filter hook prerouting priority -300; policy accept; udp dport 7001 notrack; }
    chain in { type filter hook input priority 0; policy accept;
        meta mark set 3 counter name c;
        ip saddr 10.0.1.3 add @odd { ip saddr };
        limit rate 5/second counter;
        numgen random mod 3 0 counter;
        udp dport 4001 reject;
        meta mark set mark or 8;
        meta mark 11 th dport 53 drop;
        th dport { 80, 443, 5000-6000 } accept;
        ct mark set mark; }
    chain pass { type filter hook forward priority 0; policy drop;
        ip ttl < 3 drop;
        th dport != 53 accept;
        udp length > 100 accept; }
}",
    },
];

/// Statements that take packets out of the way of the others, and those that not every kernel has.
pub const STATEMENTS: &[Handwritten] = &[
    Handwritten {
        name: "queues, logs and translations",
        text: "
table inet t {
    chain raw { type filter hook prerouting priority -300; policy accept; udp dport 7001 notrack; }
    chain in { type filter hook input priority 0; policy accept; udp dport 53 log prefix \"in \" counter; udp dport 443 queue num 77 bypass; counter; }
    chain in2 { type filter hook input priority 10; policy accept; ct state untracked counter; udp dport 5001 queue num 78; }
    chain pass { type filter hook forward priority 0; policy accept; udp dport 443 queue num 77; th dport 80 reject; quota over 1 bytes counter; }
}
table ip n {
    chain pre { type nat hook prerouting priority -100; policy accept; udp dport 6001 redirect to :4000; ip daddr 10.0.1.100 dnat to 10.0.2.2; }
    chain post { type nat hook postrouting priority 100; policy accept; oifname rb ip saddr 10.0.1.3 snat to 10.0.2.1; oifname rb masquerade; }
}
table ip6 n {
    chain pre { type nat hook prerouting priority -100; policy accept; udp dport 6001 redirect to :4000; }
    chain post { type nat hook postrouting priority 100; policy accept; oifname rb masquerade; }
}",
    },
    Handwritten {
        name: "synproxy",
        text: "
table inet t {
    chain raw { type filter hook prerouting priority -300; policy accept; tcp dport 80 tcp flags syn notrack; }
    chain in { type filter hook input priority 0; policy accept; tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm; counter; }
    chain pass { type filter hook forward priority 0; policy accept; tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm; ct state invalid drop; }
}",
    },
];

/// Connections that are forwarded go past all hooks after their first packets.
pub const FLOWTABLE: Handwritten = Handwritten {
    name: "a flowtable",
    text: "
table inet t {
    flowtable f { hook ingress priority 0; devices = { ra, rb }; }
    chain pass { type filter hook forward priority 0; policy accept; meta l4proto { tcp, udp } flow add @f; counter; }
    chain post { type filter hook postrouting priority 0; policy accept; counter; }
}",
};

/// The same, with chains at devices of the router. The last ones have chains at egress, which kernels before 5.16 do not
/// know.
pub const DEVICES: &[Handwritten] = &[
    Handwritten {
        name: "ingress of one device",
        text: "
table netdev d {
    chain in { type filter hook ingress device ra priority 0; policy accept; meta protocol ip jump four; ip6 nexthdr udp counter; }
    chain four { udp dport 53 drop; udp dport { 443, 5001 } return; meta mark set 5; }
}
table inet d {
    chain in { type filter hook ingress device ra priority 10; policy accept; th dport 80 drop; mark 5 counter accept; }
    chain early { type filter hook ingress device ra priority -10; policy accept; th dport vmap { 53 : jump more, 4000 : goto more }; counter; }
    chain more { ip saddr 10.0.1.3 drop; return; counter; }
}
table inet t {
    chain pre { type filter hook prerouting priority -150; policy accept; mark 5 counter; }
    chain in { type filter hook input priority 0; policy accept; mark 5 counter; }
    chain pass { type filter hook forward priority 0; policy accept; counter; }
}",
    },
    Handwritten {
        name: "ingress of several devices, policies",
        text: "
table netdev d {
    chain in { type filter hook ingress devices = { ra, rb, lo } priority 0; policy accept; counter; }
    chain strict { type filter hook ingress device ra priority 20; policy drop; meta l4proto tcp accept; th dport != 53 accept; }
    chain own { type filter hook ingress device lo priority 10; policy accept; meta l4proto udp counter; }
}
table inet t {
    chain out { type filter hook output priority 0; policy accept; counter; }
    chain in { type filter hook input priority 0; policy accept; counter; }
}",
    },
    Handwritten {
        name: "egress",
        text: "
table netdev d {
    chain in { type filter hook ingress device ra priority 0; policy accept; counter; }
    chain out { type filter hook egress devices = { rb, lo } priority 0; policy accept; th dport 443 drop; counter; }
    chain late { type filter hook egress device rb priority 10; policy drop; meta l4proto udp accept; meta l4proto tcp accept; }
}
table inet t {
    chain pass { type filter hook forward priority 0; policy accept; counter; }
    chain post { type filter hook postrouting priority 0; policy accept; counter; }
}",
    },
    Handwritten {
        name: "egress alone",
        text: "
table netdev d {
    chain out { type filter hook egress device ra priority 0; policy accept; th sport 53 drop; counter; }
}
table ip t {
    chain out { type filter hook output priority 0; policy accept; counter; }
}",
    },
];

/// The same for a router whose devices are ports of its bridge `br0`.
pub const BRIDGES: &[Handwritten] = &[
    Handwritten {
        name: "a bridge alone",
        text: "
table bridge b {
    chain pre { type filter hook prerouting priority -200; policy accept; meta protocol ip jump four; counter; }
    chain early { type filter hook prerouting priority -300; policy accept; counter; }
    chain pass { type filter hook forward priority -200; policy accept; th dport 53 drop; udp dport vmap { 443 : jump four, 80 : accept }; counter; }
    chain in { type filter hook input priority 0; policy accept; counter; }
    chain out { type filter hook output priority 0; policy accept; counter; }
    chain post { type filter hook postrouting priority 300; policy accept; th sport 53 drop; counter; }
    chain late { type filter hook prerouting priority 200; policy accept; counter; }
    chain four { udp dport 5001 return; meta mark set 3; }
}",
    },
    Handwritten {
        name: "a bridge, its ports and IP",
        text: "
table netdev d {
    chain in { type filter hook ingress devices = { ra, rb } priority 0; policy accept; counter; }
    chain up { type filter hook ingress device br0 priority 0; policy accept; counter; }
}
table bridge b {
    chain pre { type filter hook prerouting priority -200; policy accept; counter; }
    chain late { type filter hook prerouting priority 100; policy accept; meta mark set 7; }
    chain pass { type filter hook forward priority -100; policy accept; counter; }
    chain after { type filter hook forward priority 100; policy accept; counter; }
    chain post { type filter hook postrouting priority 0; policy accept; counter; }
}
table inet t {
    chain pre { type filter hook prerouting priority 0; policy accept; counter; }
    chain in { type filter hook input priority 0; policy accept; counter; }
    chain pass { type filter hook forward priority 0; policy accept; th dport 80 drop; counter; }
    chain post { type filter hook postrouting priority 0; policy accept; counter; }
}",
    },
];

/// Chains of ARP, and those that see it besides. The last one is for a router whose devices are ports of `br0`.
pub const ARP: &[Handwritten] = &[
    Handwritten {
        name: "asked and answered",
        text: "
table arp a {
    chain in { type filter hook input priority 0; policy accept; arp operation vmap { request : jump asked, reply : goto told }; counter; }
    chain late { type filter hook input priority 10; policy accept; arp operation request return; meta mark set 4; }
    chain out { type filter hook output priority 0; policy accept; arp operation request counter; meta mark set 3; }
    chain asked { arp saddr ip 10.0.1.2 counter; return; counter; }
    chain told { meta mark set 5; }
}",
    },
    Handwritten {
        name: "dropped",
        text: "
table arp a {
    chain in { type filter hook input priority 0; policy drop; arp operation reply accept; counter; }
    chain out { type filter hook output priority -5; policy accept; arp operation request arp daddr ip 10.0.1.3 drop; }
}
table netdev d {
    chain in { type filter hook ingress device ra priority 0; policy accept; meta protocol arp counter; }
}",
    },
    Handwritten {
        name: "through a bridge",
        text: "
table arp a {
    chain in { type filter hook input priority 0; policy accept; counter; }
    chain out { type filter hook output priority 0; policy accept; counter; }
}
table bridge b {
    chain pre { type filter hook prerouting priority 0; policy accept; meta protocol arp counter; }
    chain in { type filter hook input priority 0; policy accept; ether type arp counter; }
    chain pass { type filter hook forward priority 0; policy accept; counter; }
    chain out { type filter hook output priority 0; policy accept; counter; }
    chain post { type filter hook postrouting priority 0; policy accept; counter; }
}
table netdev d {
    chain in { type filter hook ingress devices = { ra, br0 } priority 0; policy accept; counter; }
}",
    },
];

/// What a rule asks, of IPv4, IPv6 or both.
const CONDITIONS: &[&str] = &[
    "meta l4proto udp",
    "meta l4proto tcp",
    "meta l4proto != tcp",
    "th dport 53",
    "th dport { 80, 443, 5001 }",
    "th dport 4000-6000",
    "th sport >= 30000",
    "meta length > 200",
    "ip saddr 10.0.1.3",
    "ip saddr @some4",
    "ip6 saddr fd00:1::3",
    "ip daddr != 10.0.2.2",
    "meta nfproto ipv6",
    "ct state new",
    "ct state { established, related }",
    "mark 0",
    "mark and 3 != 0",
    "numgen random mod 2 0",
    "limit rate 10/second",
    "ip dscp cs1",
    "iifname ra",
    "",
    "",
];

const VERDICTS: [&str; 6] = ["accept", "drop", "return", "continue", "accept", "return"];

/// A ruleset that may contain anything that nft takes. Chains lead to later ones only.
pub fn generate(seed: u64) -> String {
    let mut random = Random::new(seed);
    let mut text = String::new();
    let tables = 1 + random.below(3);
    for table in 0..tables {
        let family = *random.pick(&["inet", "inet", "ip", "ip6"]);
        let chains = 2 + random.below(6);
        let _ = writeln!(text, "table {family} t{table} {{");
        if family != "ip6" {
            text += "    set some4 { type ipv4_addr; flags interval; elements = { 10.0.1.2-10.0.1.3 }; }\n";
        }
        for chain in (0..chains).rev() {
            let _ = writeln!(text, "    chain c{chain} {{");
            rules(&mut random, &mut text, family, chain + 1..chains);
            text += "    }\n";
        }
        let hooks = [("prerouting", -150), ("input", 0), ("forward", 0), ("output", 0), ("postrouting", 0)];
        for (hook, usual) in hooks {
            for number in 0..random.below(3) {
                let priority = usual + *random.pick(&[0, 0, 0, 10, -10]);
                // What begins with drop leaves nothing to see.
                let policy = if random.percent(15) { "drop" } else { "accept" };
                let _ = writeln!(text, "    chain {hook}{number} {{");
                let _ =
                    writeln!(text, "        type filter hook {hook} priority {priority}; policy {policy};");
                rules(&mut random, &mut text, family, 0..chains);
                text += "    }\n";
            }
        }
        text += "}\n";
    }
    text
}

/// The same, with chains of devices; at egress where `egress` says so.
pub fn generate_with_devices(seed: u64, egress: bool) -> String {
    let mut random = Random::new(seed ^ 0xde71ce);
    let mut text = generate(seed);
    for family in ["netdev", "inet"] {
        let chains = 1 + random.below(4);
        let _ = writeln!(text, "table {family} d {{");
        text += "    set some4 { type ipv4_addr; flags interval; elements = { 10.0.1.2-10.0.1.3 }; }\n";
        for chain in (0..chains).rev() {
            let _ = writeln!(text, "    chain c{chain} {{");
            rules(&mut random, &mut text, family, chain + 1..chains);
            text += "    }\n";
        }
        let hooks: &[&str] = if egress && family == "netdev" { &["ingress", "egress"] } else { &["ingress"] };
        for hook in hooks {
            for number in 0..1 + random.below(2) {
                let devices = *random.pick(&["ra", "rb", "lo", "ra, rb", "ra, lo", "ra, rb, lo"]);
                let priority = *random.pick(&[-300, -5, 0, 0, 10]);
                let policy = if random.percent(10) { "drop" } else { "accept" };
                let _ = writeln!(
                    text,
                    "    chain {hook}{number} {{ type filter hook {hook} devices = {{ {devices} }} priority \
                     {priority}; policy {policy};"
                );
                rules(&mut random, &mut text, family, 0..chains);
                text += "    }\n";
            }
        }
        text += "}\n";
    }
    text
}

/// The same, with chains of a bridge as well.
pub fn generate_with_bridges(seed: u64) -> String {
    let mut random = Random::new(seed ^ 0xb71d6e);
    let mut text = generate(seed);
    let chains = 1 + random.below(4);
    text += "table bridge b {\n    set some4 { type ipv4_addr; flags interval; elements = { 10.0.1.2-10.0.1.3 }; }\n";
    for chain in (0..chains).rev() {
        let _ = writeln!(text, "    chain c{chain} {{");
        rules(&mut random, &mut text, "bridge", chain + 1..chains);
        text += "    }\n";
    }
    for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
        for number in 0..random.below(3) {
            let priority = *random.pick(&[-300, -200, -200, 0, 100, 300]);
            let _ = writeln!(
                text,
                "    chain {hook}{number} {{ type filter hook {hook} priority {priority}; policy accept;"
            );
            rules(&mut random, &mut text, "bridge", 0..chains);
            text += "    }\n";
        }
    }
    text + "}\n"
}

fn rules(random: &mut Random, text: &mut String, family: &str, targets: std::ops::Range<usize>) {
    for _ in 0..random.below(6) {
        let mut conditions: Vec<&str> = (0..1 + random.below(2))
            .map(|_| *random.pick(CONDITIONS))
            .filter(|condition| match family {
                "bridge" | "netdev" => !condition.starts_with("ct ") && !condition.contains("nfproto"),
                "inet" => true,
                _ if condition.contains("nfproto") => false,
                "ip" => !condition.contains("ip6"),
                _ => !condition.starts_with("ip "),
            })
            .collect();
        // Two may ask for different families.
        let of_family = |condition: &&&str| condition.starts_with("ip") || condition.contains("nfproto");
        if conditions.iter().filter(of_family).count() > 1 {
            conditions.truncate(1);
        }
        let target = |random: &mut Random| match targets.len() {
            0 => (*random.pick(&VERDICTS)).to_owned(),
            count => {
                let word = *random.pick(&["jump", "jump", "goto"]);
                format!("{word} c{}", targets.start + random.below(count))
            }
        };
        let action = match random.below(10) {
            0..4 => target(random),
            4..6 => (*random.pick(&VERDICTS)).to_owned(),
            6 => "counter".to_owned(),
            7 => format!("meta mark set {}", random.below(8)),
            8 => {
                let (one, other) = (target(random), target(random));
                format!("meta l4proto vmap {{ udp : {one}, tcp : {other}, icmp : continue }}")
            }
            _ => {
                let (one, other) = (target(random), target(random));
                format!("th dport vmap {{ 53 : {one}, 4000 : {other}, 80-443 : return }}")
            }
        };
        let _ = writeln!(text, "        {} {action}", conditions.join(" "));
    }
}
