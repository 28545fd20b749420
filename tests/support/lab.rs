//! The topology of all tests: a client, a router, a server.
//!
//! ```text
//!   A ── a0 ═══════ ra ── R ── rb ═══════ b0 ── B
//!     10.0.1.2   10.0.1.1   10.0.2.1   10.0.2.2
//!     fd00:1::2  fd00:1::1  fd00:2::1  fd00:2::2
//! ```
//!
//! A has 10.0.1.3 and fd00:1::3 besides. 10.0.1.100 and fd00:1::100 are R's, for DNAT. Every loopback has its usual
//! addresses. Neighbours are static and nothing configures itself, so no packet flies but ours.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// `iptables-legacy` or its sibling.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Ipv4 => "iptables-legacy",
            Self::Ipv6 => "ip6tables-legacy",
        }
    }
}

/// The three places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The client.
    A,
    /// The router.
    R,
    /// The server.
    B,
}

/// Where packets that arrive are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// On the CPU that sent them: a single flow.
    SameCpu,
    /// On both CPUs, by a hash of their addresses and ports.
    TwoCpus,
}

/// One side of a link, its peer, and what lies behind.
struct Side {
    device: &'static str,
    mac: &'static str,
    peer_mac: &'static str,
    addresses: &'static [&'static str],
    peers: &'static [&'static str],
}

const A0: Side = Side {
    device: "a0",
    mac: "02:00:00:00:01:02",
    peer_mac: "02:00:00:00:01:01",
    addresses: &["10.0.1.2/24", "10.0.1.3/24", "fd00:1::2/64", "fd00:1::3/64"],
    peers: &["10.0.1.1", "10.0.1.100", "fd00:1::1", "fd00:1::100"],
};
const RA: Side = Side {
    device: "ra",
    mac: "02:00:00:00:01:01",
    peer_mac: "02:00:00:00:01:02",
    addresses: &["10.0.1.1/24", "10.0.1.100/24", "fd00:1::1/64", "fd00:1::100/64"],
    peers: &["10.0.1.2", "10.0.1.3", "fd00:1::2", "fd00:1::3"],
};
const RB: Side = Side {
    device: "rb",
    mac: "02:00:00:00:02:01",
    peer_mac: "02:00:00:00:02:02",
    addresses: &["10.0.2.1/24", "fd00:2::1/64"],
    peers: &["10.0.2.2", "fd00:2::2"],
};
const B0: Side = Side {
    device: "b0",
    mac: "02:00:00:00:02:02",
    peer_mac: "02:00:00:00:02:01",
    addresses: &["10.0.2.2/24", "fd00:2::2/64"],
    peers: &["10.0.2.1", "fd00:2::1"],
};

/// What the namespaces are told before they get a device. Some kernels lack some of these.
const QUIET: &[(&str, &str)] = &[
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv4/tcp_synack_retries", "0"),
    ("net/ipv4/tcp_syn_retries", "1"),
];

/// Client, router, server.
#[derive(Debug)]
pub struct Lab {
    /// The client.
    pub a: Netns,
    /// The router.
    pub r: Netns,
    /// The server.
    pub b: Netns,
}

impl Lab {
    /// Builds it; `prefix` begins the namespaces' names.
    pub fn build(prefix: &str, spread: Spread) -> Result<Self> {
        let make = |place: &str| -> Result<Netns> {
            let netns = Netns::create(&format!("{prefix}{place}"))?;
            for (name, value) in QUIET {
                let _ = netns.sysctl(name, value);
            }
            Ok(netns)
        };
        let lab = Self { a: make("a")?, r: make("r")?, b: make("b")? };
        let pair = |one: &str, other: &str, netns: &Netns| {
            format!("link add {one} type veth peer name {other} netns {}\n", netns.name())
        };
        batch(&lab.r, &pair("ra", "a0", &lab.a))?;
        batch(&lab.r, &pair("rb", "b0", &lab.b))?;
        batch(&lab.a, &(configure(&A0) + &default_route("10.0.1.1", "fd00:1::1")))?;
        batch(&lab.r, &(configure(&RA) + &configure(&RB)))?;
        batch(&lab.b, &(configure(&B0) + &default_route("10.0.2.1", "fd00:2::1")))?;
        lab.r.sysctl("net/ipv4/ip_forward", "1")?;
        lab.r.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for netns in lab.all().into_iter().filter(|_| spread == Spread::TwoCpus) {
            netns.script("for q in /sys/class/net/*/queues/rx-0/rps_cpus; do echo 3 > $q; done")?;
        }
        Ok(lab)
    }

    /// Makes the router's devices ports of its bridge `br0`, which has their addresses. Client and server reach one another
    /// through the bridge, not through the router.
    pub fn bridge(&self) -> Result<()> {
        let mut router = String::from("link add br0 type bridge forward_delay 0 mcast_snooping 0\n");
        for Side { device, .. } in [&RA, &RB] {
            let _ = writeln!(router, "addr flush dev {device}\nlink set {device} master br0");
        }
        router += &configure(&Side { device: "br0", ..RA });
        for address in RB.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            let _ = writeln!(router, "addr add {address} dev br0{nodad}");
        }
        for peer in RB.peers {
            let _ = writeln!(router, "neigh replace {peer} lladdr {} dev br0 nud permanent", RB.peer_mac);
        }
        batch(&self.r, &router)?;
        // The gateways have the other end's hardware address.
        let beyond = |device: &str, mac: &str, nets: [&str; 2], gateways: [&str; 2]| {
            let rows = nets.iter().zip(gateways).map(|(net, gateway)| {
                format!(
                    "neigh replace {gateway} lladdr {mac} dev {device} nud permanent\n\
                     route replace {net} via {gateway} dev {device}\n"
                )
            });
            rows.collect::<String>()
        };
        batch(
            &self.a,
            &beyond("a0", B0.mac, ["10.0.2.2/32", "fd00:2::2/128"], ["10.0.1.100", "fd00:1::100"]),
        )?;
        batch(&self.b, &beyond("b0", A0.mac, ["10.0.1.2/31", "fd00:1::2/127"], ["10.0.2.99", "fd00:2::99"]))
    }

    /// All of them.
    pub fn all(&self) -> [&Netns; 3] {
        [&self.a, &self.r, &self.b]
    }

    /// The namespace of a place.
    pub fn netns(&self, place: Place) -> &Netns {
        match place {
            Place::A => &self.a,
            Place::R => &self.r,
            Place::B => &self.b,
        }
    }
}

/// The addresses of a family.
pub struct Addresses {
    /// The client.
    pub a: IpAddr,
    /// The client, too.
    pub a_other: IpAddr,
    /// The router, towards the client.
    pub r: IpAddr,
    /// The router, towards the server.
    pub r_far: IpAddr,
    /// The router's address that rulesets translate to the server's.
    pub r_dnat: IpAddr,
    /// The server.
    pub b: IpAddr,
    /// The loopback.
    pub lo: IpAddr,
}

/// The addresses of a family.
pub fn addresses(family: Family) -> Addresses {
    let of = |net: u8, host: u8| -> IpAddr {
        match family {
            Family::Ipv4 => Ipv4Addr::new(10, 0, net, host).into(),
            Family::Ipv6 => {
                let host = if host == 100 { 0x100 } else { u16::from(host) };
                Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, 0, host).into()
            }
        }
    };
    let lo: IpAddr = match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    };
    Addresses {
        a: of(1, 2),
        a_other: of(1, 3),
        r: of(1, 1),
        r_far: of(2, 1),
        r_dnat: of(1, 100),
        b: of(2, 2),
        lo,
    }
}

fn configure(side: &Side) -> String {
    let Side { device, mac, peer_mac, .. } = side;
    let mut text = format!("link set {device} address {mac} up\n");
    for address in side.addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        let _ = writeln!(text, "addr add {address} dev {device}{nodad}");
    }
    for peer in side.peers {
        let _ = writeln!(text, "neigh replace {peer} lladdr {peer_mac} dev {device} nud permanent");
    }
    text
}

fn default_route(v4: &str, v6: &str) -> String {
    format!("route add default via {v4}\nroute add default via {v6}\n")
}

fn batch(netns: &Netns, commands: &str) -> Result<()> {
    netns.command("ip", &["-batch", "-"], commands).with_context(|| format!("ip -batch:\n{commands}"))?;
    Ok(())
}
