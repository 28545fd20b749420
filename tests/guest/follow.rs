//! Connections through a small cluster, each from end to end as one story.
//!
//! ```text
//!   client ══ cl ┌ node ┐ br ══ pod one
//!                │      │    ══ pod two
//!   server ══ sv └──────┘
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::lab::Family;
use nftracer_tests::netns::Netns;
use nftracer_tests::ruleset;
use nftracer_tests::tracer::{Ended, Tracer};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Options, Outcome, Test, check, load_modules};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "follow_cluster", run: cluster },
    Test { name: "follow_cluster_nft", run: cluster_nft },
    Test { name: "follow_chosen", run: chosen },
];

const STORIES: &str = include_str!("../data/follow/cluster.txt");
const FILTER: &str = "udp dst port 80 or udp dst port 53";
const CGROUPS: &str = "/sys/fs/cgroup";
/// For the node, instead of its legacy rules.
const NFT: &str = "\
table ip here {
  chain pre { type nat hook prerouting priority -100; iifname cl ip daddr 10.1.0.1 udp dport 80 dnat to 10.2.0.2:8080; }
  chain post { type nat hook postrouting priority 100; oifname br0 masquerade; oifname sv masquerade; }
}
table ip6 here {
  chain pre { type nat hook prerouting priority -100; iifname cl ip6 daddr fd00:1::1 udp dport 80 dnat to [fd00:2::2]:8080; }
  chain post { type nat hook postrouting priority 100; oifname br0 masquerade; oifname sv masquerade; }
}
table inet filter {
  chain pass { type filter hook forward priority 10; ct state established accept; }
}
";
const SOON: Duration = Duration::from_secs(60);
/// Packets of all stories. Where a namespace has no conntrack, an answer is seen from the next one on.
const PACKETS: usize = 20;

struct Cluster {
    client: Netns,
    node: Netns,
    one: Netns,
    two: Netns,
    server: Netns,
}

/// Address and prefix of a family.
struct At {
    client: IpAddr,
    node: IpAddr,
    gateway: IpAddr,
    one: IpAddr,
    server: IpAddr,
}

fn at(family: Family) -> At {
    let of = |net: u8, host: u8| -> IpAddr {
        match family {
            Family::Ipv4 => [10, net, 0, host].into(),
            Family::Ipv6 => [0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)].into(),
        }
    };
    At { client: of(1, 2), node: of(1, 1), gateway: of(2, 1), one: of(2, 2), server: of(3, 2) }
}

impl Cluster {
    fn build() -> Result<Self> {
        let make = |name: &str| -> Result<Netns> {
            let netns = Netns::create(&format!("nftf{name}"))?;
            for (name, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
                let _ = netns.sysctl(&format!("net/ipv6/conf/default/{name}"), value);
            }
            Ok(netns)
        };
        let cluster = Self {
            client: make("client")?,
            node: make("node")?,
            one: make("one")?,
            two: make("two")?,
            server: make("server")?,
        };
        cluster.node.sysctl("net/ipv4/ip_forward", "1")?;
        cluster.node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let ends = [
            (&cluster.client, "cl", 1, 2),
            (&cluster.server, "sv", 3, 2),
            (&cluster.one, "p1", 2, 2),
            (&cluster.two, "p2", 2, 3),
        ];
        let node = cluster.node.name();
        cluster.node.script("ip link add name br0 type bridge forward_delay 0 && ip link set dev br0 up")?;
        for (netns, port, net, host) in ends {
            netns.script(&format!(
                "ip link add name e0 type veth peer name {port} netns {node} && ip link set e0 up && \
                 ip addr add 10.{net}.0.{host}/24 dev e0 && ip addr add fd00:{net}::{host}/64 dev e0 nodad"
            ))?;
            let place = match net {
                2 => format!("ip link set {port} master br0 up"),
                _ => format!("ip link set {port} up && {}", addresses(net, port)),
            };
            cluster.node.script(&place)?;
            netns.script(&format!(
                "ip route add default via 10.{net}.0.1 && ip -6 route add default via fd00:{net}::1"
            ))?;
        }
        cluster.node.script(&addresses(2, "br0"))?;
        Ok(cluster)
    }

    fn clear(&self) -> Result<()> {
        [&self.client, &self.node, &self.one, &self.two, &self.server]
            .into_iter()
            .try_for_each(Netns::clear_rules)
    }

    fn load(&self) -> Result<()> {
        self.clear()?;
        for family in Family::ALL {
            let (at, to) = (at(family), SocketAddr::new(at(family).one, 8080));
            let node = format!(
                "*nat\n-A PREROUTING -d {} -i cl -p udp -m udp --dport 80 -j DNAT --to-destination {to}\n\
                 -A POSTROUTING -o br0 -j MASQUERADE\n-A POSTROUTING -o sv -j MASQUERADE\nCOMMIT\n\
                 *filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n",
                at.node
            );
            ruleset::load(&self.node, family, &node)?;
            let pod = "*filter\n-A INPUT -p udp -m udp --dport 8080 -j ACCEPT\nCOMMIT\n";
            ruleset::load(&self.one, family, pod)?;
        }
        Ok(())
    }

    /// Bridge and neighbours know each other before anything is traced.
    fn warm_up(&self) -> Result<()> {
        for family in Family::ALL {
            let at = at(family);
            exchange(&self.client, at.client, 20_001, &self.one, SocketAddr::new(at.one, 9000), at.one)?;
            exchange(&self.one, at.one, 20_001, &self.server, SocketAddr::new(at.server, 9000), at.server)?;
            exchange(&self.one, at.one, 20_002, &self.node, SocketAddr::new(at.gateway, 9000), at.gateway)?;
        }
        Ok(())
    }
}

/// Gives the node its addresses.
fn addresses(net: u8, device: &str) -> String {
    format!("ip addr add 10.{net}.0.1/24 dev {device} && ip addr add fd00:{net}::1/64 dev {device} nodad")
}

/// Sends a datagram and waits for the answer. `listens` is where the other side takes it.
fn exchange(
    from: &Netns,
    src: IpAddr,
    sport: u16,
    there: &Netns,
    to: SocketAddr,
    listens: IpAddr,
) -> Result<()> {
    let port = if to.port() == 80 { 8080 } else { to.port() };
    let other = there.enter(|| Ok(UdpSocket::bind(SocketAddr::new(listens, port))?))?;
    let socket = from.enter(|| Ok(UdpSocket::bind(SocketAddr::new(src, sport))?))?;
    other.set_read_timeout(Some(SOON))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.send_to(b"there", to)?;
    let mut bytes = [0; 16];
    let (length, back) = other.recv_from(&mut bytes).context("the request does not come")?;
    check(&bytes[..length] == b"there", "another datagram came")?;
    other.send_to(b"back!", back)?;
    let (length, _) = socket.recv_from(&mut bytes).context("the answer does not come")?;
    check(&bytes[..length] == b"back!", "another answer came")
}

/// One connection from the client to a pod, and one from the pod to the server, for each family.
fn talk(cluster: &Cluster) -> Result<()> {
    Family::ALL.into_iter().try_for_each(|family| {
        let at = at(family);
        exchange(&cluster.client, at.client, 20_000, &cluster.one, SocketAddr::new(at.node, 80), at.one)?;
        exchange(&cluster.one, at.one, 20_000, &cluster.server, SocketAddr::new(at.server, 53), at.server)
    })
}

/// Traces what is said meanwhile, until so many packets have ended; what was shown, and the tracer's last words.
fn told(
    cluster: &Cluster,
    words: &[&str],
    packets: usize,
    talk: impl FnOnce() -> Result<()>,
) -> Result<(String, Vec<String>)> {
    let tracer = Tracer::start(&[&["-v", "--backend", "ebpf", "-o", "pretty"], words].concat(), &[])?;
    talk()?;
    let mut told = Vec::new();
    wait::until(SOON, || {
        told.extend(tracer.take_lines());
        let ends = told.iter().filter(|line| line.starts_with("  = ")).count();
        (ends >= packets).then_some(())
    });
    let Ended { lines, errors, .. } = tracer.stop(Signal::INT)?;
    told.extend(lines);
    Ok((stories(cluster, &told), errors))
}

/// Where probes need no kprobes, following connections does not either.
fn check_method(errors: &[String]) -> Result<()> {
    let is_kprobes = |line: &String| line.contains("probes: kprobes");
    let typed = Path::new("/sys/kernel/btf/nf_conntrack").exists();
    check(!typed || !errors.iter().any(is_kprobes), errors.join("\n"))
}

/// A client's datagram to a pod by way of the node's address, and a pod's to a server outside, with their answers: each
/// is one connection from end to end, though what its packets are changes on their way.
fn cluster(_: &Options) -> Result<Outcome> {
    load_modules();
    let cluster = Cluster::build()?;
    cluster.load()?;
    cluster.warm_up()?;
    let words = ["--all-netns", "--follow", "--conntrack", FILTER];
    let (told, errors) = told(&cluster, &words, PACKETS, || talk(&cluster))?;
    check(told == STORIES, format!("told was\n{told}\n{}", errors.join("\n")))?;
    check_method(&errors)?;
    Ok(Outcome::Passed(errors.last().cloned().unwrap_or_default()))
}

/// The same where nftables translates and filters: other rules, and the same stories.
fn cluster_nft(_: &Options) -> Result<Outcome> {
    load_modules();
    let cluster = Cluster::build()?;
    cluster.clear()?;
    cluster.node.command("nft", &["-f", "-"], NFT)?;
    cluster.warm_up()?;
    let words = ["--all-netns", "--follow", "--conntrack", FILTER];
    let (told, errors) = told(&cluster, &words, PACKETS, || talk(&cluster))?;
    let (is, expected) = (without_steps(&told), without_steps(STORIES));
    check(is == expected, format!("told was\n{told}\n{}", errors.join("\n")))?;
    for (rule, times) in [("pre:rule:1 ", 2), ("post:rule:1 ", 2), ("post:rule:2 ", 2), ("pass:rule:1 ", 4)] {
        let met = told.lines().filter(|line| line.contains(rule)).count();
        check(met == times, format!("{rule}was met {met} times:\n{told}"))?;
    }
    check_method(&errors)?;
    Ok(Outcome::Passed(errors.last().cloned().unwrap_or_default()))
}

/// Connections are chosen by the device of their first packet, and packets by the cgroup that sends them.
fn chosen(_: &Options) -> Result<Outcome> {
    load_modules();
    let cluster = Cluster::build()?;
    cluster.load()?;
    cluster.warm_up()?;
    let headers = |told: &str| -> Vec<String> {
        let headers = told.lines().filter(|line| !line.starts_with(' '));
        headers.map(|line| line.split(" length").next().unwrap_or(line).to_owned()).collect()
    };
    let words = ["--netns", cluster.node.name(), "--follow", "--in", "cl", FILTER];
    let (by_device, errors) = told(&cluster, &words, 4, || talk(&cluster))?;
    let expected = [
        "ip in cl 10.1.0.2:20000 > 10.1.0.1:80 udp",
        "ip in br0 10.2.0.2:8080 > 10.2.0.1:20000 udp",
        "ip6 in cl [fd00:1::2]:20000 > [fd00:1::1]:80 udp",
        "ip6 in br0 [fd00:2::2]:8080 > [fd00:2::1]:20000 udp",
    ];
    check(headers(&by_device) == expected, format!("{by_device}\n{}", errors.join("\n")))?;
    let cgroup = Path::new(CGROUPS).join("nftracer-test/inner");
    fs::create_dir_all(&cgroup)?;
    let enter = |cgroup: &Path| fs::write(cgroup.join("cgroup.procs"), process::id().to_string());
    let words = ["--all-netns", "--cgroup", "nftracer-test", "udp"];
    let talk_once = |port| {
        let at = at(Family::Ipv4);
        exchange(&cluster.client, at.client, port, &cluster.one, SocketAddr::new(at.node, 80), at.one)
    };
    let talk = || {
        talk_once(20_010)?;
        enter(&cgroup)?;
        let talked = talk_once(20_011);
        enter(Path::new(CGROUPS))?;
        talked?;
        talk_once(20_012)
    };
    let (by_cgroup, errors) = told(&cluster, &words, 2, talk)?;
    fs::remove_dir(&cgroup)?;
    fs::remove_dir(cgroup.parent().context("no parent")?)?;
    let expected =
        ["ip out e0 10.1.0.2:20011 > 10.1.0.1:80 udp", "ip out e0 10.2.0.2:8080 > 10.2.0.1:20011 udp"];
    check(headers(&by_cgroup) == expected, format!("{by_cgroup}\n{}", errors.join("\n")))?;
    Ok(Outcome::Passed("by device and by cgroup".to_owned()))
}

/// What is said of packets, but for the steps.
fn without_steps(told: &str) -> String {
    let hooks = ["prerouting ", "input ", "forward ", "output ", "postrouting "];
    let is_step = |line: &str| hooks.iter().any(|hook| line.trim_start().starts_with(hook));
    told.lines().filter(|line| !is_step(line)).map(|line| format!("{line}\n")).collect()
}

/// The blocks in the order of their packets, without their times, with the names of namespaces.
fn stories(cluster: &Cluster, lines: &[String]) -> String {
    let mut blocks: BTreeMap<u64, String> = BTreeMap::new();
    let mut number = 0;
    for line in lines {
        let mut line = line.clone();
        if !line.starts_with(' ') {
            number = line.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            line = line.split_once(' ').map_or(String::new(), |(_, rest)| rest.to_owned());
            let names = ["client", "node", "one", "two", "server"];
            let all = [&cluster.client, &cluster.node, &cluster.one, &cluster.two, &cluster.server];
            for (name, netns) in names.into_iter().zip(all) {
                let shown = format!("netns {} ({})", netns.inode(), netns.name());
                line = line.replace(&shown, &format!("netns {name}"));
            }
        }
        let block = blocks.entry(number).or_default();
        block.push_str(line.trim_end());
        block.push('\n');
    }
    blocks.into_values().collect()
}
