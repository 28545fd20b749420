//! Filters of the whole language: exactly those packets are traced that libpcap's own interpreter picks.
//!
//! Every packet of a batch has another length, by which its trace is recognised. The router drops them all at its first
//! table, so nothing answers them and each is judged once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nftracer::filter::LinkType;
use nftracer::sys::pcap;
use nftracer_tests::lab::{Family, Lab, Place, Spread, addresses};
use nftracer_tests::netns::Netns;
use nftracer_tests::packet::{checksum, protocol};
use nftracer_tests::random::Random;
use nftracer_tests::ruleset;
use nftracer_tests::tracer::Tracer;
use nftracer_tests::traffic::Senders;
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "filters", run: filters }];

const ARRIVE_WITHIN: Duration = Duration::from_secs(60);
/// Packets for each filter.
const BATCH: u16 = 160;
/// All in the router's first table, which ends the way of every packet from the client.
const RULES: &str = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -i ra -j DROP\nCOMMIT\n";

/// Asked about the IP packet.
const IP: &[&str] = &[
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src 10.0.1.2",
    "ip[6:2] & 0x1fff = 0 and (udp or icmp)",
    "udp[4:2] % 3 = 1 or icmp[icmptype] = icmp-echo",
    "udp dst port 4789 and udp[28:2] & 0x0fff = 0x0800",
    "not port 53 and not port 80 and not (portrange 6000-6100 or 4789)",
    "ip[ip[2:2] - 1] & 1 = 1",
    "udp[udp[4:2] - 1] & 3 = 2 or tcp[0:2] + tcp[2:2] > 9000",
    "src 10.0.1.2 and port 53 or src 10.0.1.3 and port 80 or src fd00:1::2 and port 443 or sctp or ip proto 47 or \
     tcp port 6001 and ip[8] < 60 or icmp6 or udp src port 2 or tcp src port 3 or len = 777",
    "ip[1000:2] & 0xf = 1 or ip6[900] < 100",
    "-ip[8] > 4294967230 and ip[4:2] << 3 >> 5 & 1 = 1",
];

/// Asked about the frame.
const FRAMES: &[&str] = &[
    "ether dst 02:00:00:00:01:02 or tcp and ether[5] = 1",
    "not ether multicast and len > 500",
    "vlan or ip proto 47",
];
/// From the client's to the router's device.
const MACS: [u8; 12] = [2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2];

fn filters(options: &Options) -> Result<Outcome> {
    if !pcap::LINKED {
        bail!("this build has no libpcap");
    }
    crate::load_modules();
    // Nothing else has touched these namespaces: where connections are tracked, fragments are put together.
    let lab = Lab::build("flt", Spread::SameCpu)?;
    let senders = Senders::open(&lab)?;
    for family in Family::ALL {
        ruleset::load(&lab.r, family, RULES)?;
    }
    let mut random = Random::new(options.seed);
    let (mut pairs, mut matching, mut unseen) = (0, 0, 0);
    let links = [(LinkType::Raw, IP), (LinkType::Ethernet, FRAMES)];
    for (link, filter) in
        links.iter().flat_map(|(link, filters)| filters.iter().map(|filter| (*link, *filter)))
    {
        let packets: Vec<_> = (0..BATCH).map(|number| packet(&mut random, number)).collect();
        let expected = picked(link, filter, &packets)?;
        let (found, missed) = traced(&lab.r, &senders, filter, &packets)?;
        let stray: Vec<_> = found.difference(&expected).collect();
        check(stray.is_empty(), format!("\"{filter}\" let packets of these lengths through: {stray:?}"))?;
        let without = expected.difference(&found).count() as u64;
        check(
            without <= missed,
            format!("\"{filter}\" left out {without} packets, and {missed} were missed"),
        )?;
        println!("filters: {} of {} packets match \"{filter}\"", expected.len(), packets.len());
        pairs += packets.len();
        matching += expected.len();
        unseen += without;
    }
    check(matching * 10 > pairs && matching * 10 < pairs * 9, "the filters are too alike")?;
    check(unseen * 100 <= matching as u64, format!("{unseen} of {matching} packets were not seen"))?;
    Ok(Outcome::Passed(format!("{pairs} filters and packets, {matching} of them match, {unseen} missed")))
}

/// The lengths of the packets that libpcap picks.
fn picked(link: LinkType, filter: &str, packets: &[Vec<u8>]) -> Result<BTreeSet<u32>> {
    // A filter that needs no frame is compiled for the packet alone.
    let by_packet = pcap::compile(LinkType::Raw, filter).is_ok();
    check(by_packet == (link == LinkType::Raw), format!("\"{filter}\" is no filter of {link:?}"))?;
    let program = match pcap::compile(link, filter) {
        Ok(program) => program,
        Err(error) => bail!("\"{filter}\": {error:?}"),
    };
    let mut lengths = BTreeSet::new();
    for packet in packets {
        let bytes = match link {
            LinkType::Raw => packet.clone(),
            LinkType::Ethernet => {
                let kind: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0] } else { [0x86, 0xdd] };
                [&MACS[..], &kind, packet].concat()
            }
        };
        let length = u32::try_from(bytes.len())?;
        if pcap::matches(&program, &bytes, length).context("libpcap is linked")? {
            lengths.insert(u32::try_from(packet.len())?);
        }
    }
    Ok(lengths)
}

/// The lengths of the packets that are traced, and how many traversals were missed.
fn traced(
    router: &Netns,
    senders: &Senders,
    filter: &str,
    packets: &[Vec<u8>],
) -> Result<(BTreeSet<u32>, u64)> {
    // Where the kernel describes its modules, no filter may need kprobes.
    let described = std::path::Path::new("/sys/kernel/btf/ip_tables").exists();
    let method = if described { "fentry" } else { "auto" };
    let netns = router.name();
    let tracer = Tracer::start(&["--netns", netns, "-o", "json", "--attach", method, "--", filter], &[])?;
    let before = dropped(router)?;
    for packet in packets {
        senders.at(Place::A).send_bytes(destination(packet), packet);
    }
    let sent = packets.len() as u64;
    let arrived =
        wait::until(ARRIVE_WITHIN, || dropped(router).ok().filter(|dropped| dropped - before >= sent));
    arrived.with_context(|| {
        format!("{:?} of {sent} packets arrived", dropped(router).map(|now| now - before))
    })?;
    let ended = tracer.stop(Signal::TERM)?;
    check(ended.status.code() == Some(0), format!("\"{filter}\": {}: {:?}", ended.status, ended.errors))?;
    let totals = ended.trace.end.context("the last row is missing")?;
    let odd = &ended.trace.odd;
    check(totals.lost == 0 && odd.is_empty(), format!("\"{filter}\": {totals:?}, {odd:?}"))?;
    Ok((ended.trace.steps.iter().map(|step| step.identity.length).collect(), totals.missed))
}

/// Packets that the router dropped so far.
fn dropped(router: &Netns) -> Result<u64> {
    let mut sum = 0;
    for family in Family::ALL {
        let saved = router.command(&format!("{}-save", family.tool()), &["-c", "-t", "raw"], "")?;
        let line = saved.lines().find(|line| line.ends_with("-j DROP")).context("the rule is there")?;
        let count = line.trim_start_matches('[').split(':').next().context("it has counters")?;
        sum += count.parse::<u64>()?;
    }
    Ok(sum)
}

fn destination(packet: &[u8]) -> IpAddr {
    let at = |family| addresses(family).b;
    if packet[0] >> 4 == 4 { at(Family::Ipv4) } else { at(Family::Ipv6) }
}

/// The `number`-th packet of a batch, longer than those before.
fn packet(random: &mut Random, number: u16) -> Vec<u8> {
    let length = 160 + 8 * usize::from(number);
    let family = *random.pick(&Family::ALL);
    let (kind, mut payload) = payload(random, family, number);
    let at = addresses(family);
    let source = *random.pick(&[at.a, at.a_other]);
    match (source, at.b) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let options = *random.pick(&[0u8, 0, 0, 1, 3, 10]);
            let fragment = *random.pick(&[0u16, 0, 0x4000, 0x4000, 0x2000, 0x00b9]);
            let header = 20 + 4 * usize::from(options);
            fill(random, &mut payload, length - header);
            let mut packet = vec![0x45 + options, *random.pick(&[0, 0x10, 0xb8])];
            packet.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
            packet.extend((1 + number).to_be_bytes());
            packet.extend(fragment.to_be_bytes());
            packet.extend([*random.pick(&[30, 61, 64]), kind, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.resize(header, 1);
            let sum = checksum(packet.iter().copied());
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend(payload);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let fragment = random.percent(20);
            fill(random, &mut payload, length - if fragment { 48 } else { 40 });
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(u16::try_from(length - 40).unwrap_or(0).to_be_bytes());
            packet.extend([if fragment { protocol::FRAGMENT } else { kind }, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            if fragment {
                packet.extend([kind, 0, 0, *random.pick(&[1, 9]), 0, 0, 0, 7]);
            }
            packet.extend(payload);
            packet
        }
        _ => unreachable!("all addresses of a family are of one version"),
    }
}

/// Protocol and first bytes of what is above IP.
fn payload(random: &mut Random, family: Family, number: u16) -> (u8, Vec<u8>) {
    let ports = |random: &mut Random| {
        let ports =
            [*random.pick(&[1, 2, 3, 53, 5000 + number]), *random.pick(&[22, 53, 80, 443, 4789, 6001])];
        ports.map(u16::to_be_bytes).concat()
    };
    let inner =
        [&[0x45, 0, 0, 60, 0, 1, 0, 0, 64, protocol::UDP, 0, 0, 10, 0, 0, 1, 10][..], &[0, 0, 2]].concat();
    match random.below(100) {
        0..35 => {
            let flags = *random.pick(&[0x02, 0x10, 0x11, 0x12, 0x18, 0x04]);
            (protocol::TCP, [ports(random), vec![0, number as u8, 3, 4, 0, 0, 0, 0, 0x50, flags]].concat())
        }
        35..70 => {
            let vxlan = [0, 0, 8, 0, 0, 0, 0, 0, 42, 0, 2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0];
            (
                protocol::UDP,
                [ports(random), (200 + number).to_be_bytes().to_vec(), vxlan.to_vec(), inner].concat(),
            )
        }
        70..80 => (132, ports(random)),
        80..90 => match family {
            Family::Ipv4 => (protocol::ICMP, vec![*random.pick(&[8, 13]), 0, 0, 0]),
            Family::Ipv6 => (protocol::ICMPV6, vec![128, 0, 0, 0]),
        },
        _ => (47, [&[0, 0, 8, 0][..], &inner].concat()),
    }
}

fn fill(random: &mut Random, payload: &mut Vec<u8>, length: usize) {
    while payload.len() < length {
        payload.push(u8::try_from(random.below(256)).unwrap_or(0));
    }
    payload.truncate(length);
}
