//! Filters against packets, filters that are refused, and what holds for any filter.

mod machine;
mod oracle;

use super::compile::program;
use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};
use tracer_common::filter::{ACCEPT, Key, MAX_NODES, REJECT};

/// The first form.
fn compile(text: &str) -> Result<Filter, FilterError> {
    super::compile(text, &|_, _| Err(LibpcapError::Absent))
}

impl Filter {
    fn program(&self) -> &Program {
        match &self.form {
            Form::Program(program) => program,
            Form::Translated { .. } => panic!("{self} was compiled by libpcap"),
        }
    }

    fn matches(&self, key: &Key) -> bool {
        self.program().matches(key)
    }
}

#[track_caller]
fn check_filter(text: &str, packet: &[u8], expected: bool) {
    let filter = compile(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(filter.matches(&Key::from_packet(packet)), expected, "{text}");
}

#[track_caller]
fn check_error(text: &str, expected: Expect) {
    let error = compile(text).expect_err(text);
    expected.assert_eq(&error.to_string());
}

#[track_caller]
fn check_parsed(text: &str, expected: &str) {
    let expr = parse::parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(expr.unwrap().to_string(), expected, "{text}");
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const FRAGMENT: u8 = 44;

/// From 10.0.0.1 port 1000 to 192.168.7.9 port 80.
fn ipv4(protocol: u8) -> Vec<u8> {
    ipv4_with(protocol, [10, 0, 0, 1], [192, 168, 7, 9], (1000, 80))
}

fn ipv4_with(protocol: u8, source: [u8; 4], destination: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(transport(ports));
    packet
}

/// From fd00::1 port 1000 to fd00:7::9 port 80.
fn ipv6(next_header: u8) -> Vec<u8> {
    ipv6_with(next_header, addr("fd00::1"), addr("fd00:7::9"), &transport((1000, 80)))
}

fn ipv6_with(next_header: u8, source: u128, destination: u128, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, next_header, 64];
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(payload);
    packet
}

fn transport((source, destination): (u16, u16)) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes(), [0; 2], [0; 2]].concat()
}

fn ipv6_fragment(protocol: u8) -> Vec<u8> {
    let payload = [&[protocol, 0, 0, 1, 0, 0, 0, 0][..], &transport((1000, 80))].concat();
    ipv6_with(FRAGMENT, addr("fd00::1"), addr("fd00:7::9"), &payload)
}

fn later_fragment(mut packet: Vec<u8>) -> Vec<u8> {
    packet[7] = 185;
    packet
}

fn with_options(mut packet: Vec<u8>, words: u8) -> Vec<u8> {
    packet[0] += words;
    packet.splice(20..20, vec![1; usize::from(words) * 4]);
    packet
}

fn addr(text: &str) -> u128 {
    text.parse::<Ipv6Addr>().unwrap().to_bits()
}

#[test]
fn nothing_is_everything() {
    for text in ["", " \n"] {
        check_filter(text, &ipv4(TCP), true);
        check_filter(text, &[], true);
        assert_eq!(compile(text).unwrap().to_string(), "every packet");
    }
}

#[test]
fn protocols() {
    let packets = [
        ("ip tcp", ipv4(TCP)),
        ("ip udp", ipv4(UDP)),
        ("ip sctp", ipv4(SCTP)),
        ("ip icmp", ipv4(ICMP)),
        ("ip6 tcp", ipv6(TCP)),
        ("ip6 udp", ipv6(UDP)),
        ("ip6 sctp", ipv6(SCTP)),
        ("ip6 icmp6", ipv6(ICMP6)),
    ];
    for word in ["ip", "ip6", "tcp", "udp", "sctp", "icmp", "icmp6"] {
        for (words, packet) in &packets {
            check_filter(word, packet, words.split(' ').any(|w| w == word));
            check_filter(&format!("not {word}"), packet, !words.split(' ').any(|w| w == word));
        }
    }
    check_filter("icmp", &ipv6(ICMP), false);
    check_filter("icmp6", &ipv4(ICMP6), false);
}

#[test]
fn protocols_by_number_and_name() {
    for text in ["proto 6", "proto tcp", r"proto \tcp", "ip proto 6", "ip proto tcp", "proto 17 or 6"] {
        check_filter(text, &ipv4(TCP), true);
        check_filter(text, &ipv4(ICMP), false);
    }
    check_filter("ip6 proto tcp", &ipv4(TCP), false);
    check_filter("ip6 proto tcp", &ipv6(TCP), true);
    check_filter("proto ipv6-icmp", &ipv6(ICMP6), true);
}

#[test]
fn behind_an_ipv6_fragment_header_protocols_match_and_ports_do_not() {
    check_filter("tcp", &ipv6_fragment(TCP), true);
    check_filter("udp", &ipv6_fragment(TCP), false);
    check_filter("tcp port 80", &ipv6_fragment(TCP), false);
    check_filter("ip6 proto 44", &ipv6_fragment(TCP), true);
    check_filter("proto 44", &ipv6_fragment(TCP), true);
    check_filter("proto 44", &ipv6(TCP), false);
    check_filter("ip proto 44", &ipv6_fragment(TCP), false);
}

#[test]
fn addresses() {
    for (text, expected) in [
        ("host 10.0.0.1", true),
        ("host 192.168.7.9", true),
        ("src host 10.0.0.1", true),
        ("src 10.0.0.1", true),
        ("dst 10.0.0.1", false),
        ("src or dst host 10.0.0.1", true),
        ("src and dst host 10.0.0.1", false),
        ("src and dst net 0.0.0.0/0", true),
        ("ip host 10.0.0.1", true),
        ("ip src 192.168.7.9", false),
        ("host 10.0.0.2 or 10.0.0.1", true),
        ("host (10.0.0.2 or 10.0.0.1)", true),
        ("net 192.168", true),
        ("dst net 192.168.7", true),
        ("src net 192.168", false),
        ("net 10", true),
        ("net 11", false),
        ("net 192.168.0.0/16", true),
        ("net 192.168/16", true),
        ("net 192.168.0.0/21", true),
        ("net 192.168.0.0/22", false),
        ("net 192.168.0.0 mask 255.255.0.0", true),
        ("net 0.0.0.9 mask 0.0.0.255", true),
        ("net 192.168.7.0", false),
        ("host fd00::1", false),
        ("net ::/0", false),
    ] {
        check_filter(text, &ipv4(TCP), expected);
    }
    for (text, expected) in [
        ("host fd00::1", true),
        ("ip6 host fd00:7::9", true),
        ("ip6 net fd00::/8", true),
        ("dst net fd00:7::/32", true),
        ("src net fd00:7::/32", false),
        ("net fd00::/127", true),
        ("net fd00::2/127", false),
        ("src fd00::2", false),
        ("net ::/0", true),
        ("net 0.0.0.0/0", false),
    ] {
        check_filter(text, &ipv6(TCP), expected);
    }
}

#[test]
fn ports() {
    for (text, expected) in [
        ("port 80", true),
        ("port 81", false),
        ("src port 80", false),
        ("dst port 80", true),
        ("src and dst port 80", false),
        ("tcp port 80", true),
        ("udp port 80", false),
        ("tcp src or dst port 1000", true),
        ("port 22 or 80", true),
        ("port (22 or 80)", true),
        ("port 0x50", true),
        ("port 0120", true),
        ("portrange 70-80", true),
        ("portrange 80-70", true),
        ("portrange 80", true),
        ("portrange 81-999", false),
        ("src portrange 999-1000", true),
        ("portrange 0-65535", true),
    ] {
        check_filter(text, &ipv4(TCP), expected);
        check_filter(text, &with_options(ipv4(TCP), 10), expected);
        check_filter(text, &ipv6(TCP), expected);
        check_filter(text, &later_fragment(ipv4(TCP)), false);
        check_filter(text, &ipv4(ICMP), false);
        check_filter(text, &ipv4(TCP)[..22], false);
    }
}

#[test]
fn and_and_or_bind_equally() {
    check_parsed("ip or ip6 and proto 6", "ip or ip6 and proto 6");
    check_parsed("(ip or ip6) and proto 6", "ip or ip6 and proto 6");
    check_parsed("ip or (ip6 and proto 6)", "ip or (ip6 and proto 6)");
    check_parsed("! ip && ip6 || ip", "not ip and ip6 or ip");
    check_parsed("not (ip and ip6)", "not (ip and ip6)");
    check_filter("udp and ip6 or ip", &ipv4(TCP), true);
    check_filter("ip or udp and ip6", &ipv4(TCP), false);
}

#[test]
fn values_inherit_the_keywords_before_them() {
    check_parsed("tcp src port 80 or 443", "tcp src port 80 or tcp src port 443");
    check_parsed("not host 10.0.0.1 and 10.0.0.2", "not host 10.0.0.1 and host 10.0.0.2");
    check_parsed("host 10.0.0.1 and (port 80) or 10.0.0.2", "host 10.0.0.1 and port 80 or host 10.0.0.2");
    check_parsed("port 80 or (90 or not 100)", "port 80 or (port 90 or not port 100)");
    check_parsed(
        "port 1 or (host 1.2.3.4 or 2.2.2.2) or 3",
        "port 1 or (host 1.2.3.4 or host 2.2.2.2) or port 3",
    );
    check_parsed("ip and tcp port 1 or 2", "ip and tcp port 1 or tcp port 2");
    check_parsed("port not 80", "not port 80");
    check_parsed("src and dst 10.0.0.1", "src and dst host 10.0.0.1");
}

#[test]
fn errors_point_at_the_place() {
    check_error(
        "tcp and vlan 5",
        expect![[r#"
            filter: not supported without libpcap: `vlan` at column 9
                tcp and vlan 5
                        ^^^^
            hint: packets are looked at from their IP header on; `cargo xtask build` makes a build with libpcap"#]],
    );
    check_error(
        "tcp and foo",
        expect![[r#"
        filter: unknown word `foo` at column 9
            tcp and foo
                    ^^^
        hint: this form of the filter knows ip, ip6, icmp, icmp6, tcp, udp, sctp, igmp, esp, ah, pim, host, net, port, portrange, proto, src, dst, and, or, not"#]],
    );
    check_error(
        "TCP port 80",
        expect![[r#"
        filter: unknown word `TCP` at column 1
            TCP port 80
            ^^^
        hint: words are in lower case: `tcp`"#]],
    );
    check_error(
        "host 10.0.0.1 or or tcp",
        expect![[r#"
        filter: expected a condition such as `tcp` or `host 10.0.0.1`, found `or` at column 18
            host 10.0.0.1 or or tcp
                             ^^"#]],
    );
    check_error(
        "(tcp or udp",
        expect![[r#"
        filter: expected `)`, `and` or `or`, found the end at column 12
            (tcp or udp
                       ^"#]],
    );
    check_error(
        "tcp udp",
        expect![[r#"
        filter: expected `and`, `or` or the end, found `udp` at column 5
            tcp udp
                ^^^"#]],
    );
    check_error(
        "tcp and",
        expect![[r#"
        filter: expected a condition such as `tcp` or `host 10.0.0.1`, found the end at column 8
            tcp and
                   ^"#]],
    );
    check_error(
        "töcp\tand \x1b[31m",
        expect![[r#"
        filter: unknown word `töcp` at column 1
            töcp and  [31m
            ^^^^
        hint: this form of the filter knows ip, ip6, icmp, icmp6, tcp, udp, sctp, igmp, esp, ah, pim, host, net, port, portrange, proto, src, dst, and, or, not"#]],
    );
    check_error(
        "tcp or 10.0.0.1",
        expect![[r#"
        filter: no keyword in front of `10.0.0.1` at column 8
            tcp or 10.0.0.1
                   ^^^^^^^^
        hint: write what it is, such as `host 10.0.0.1`"#]],
    );
    check_error(
        "tcp or 80",
        expect![[r#"
            filter: no keyword in front of `80` at column 8
                tcp or 80
                       ^^
            hint: if this is a port, write `port 80`"#]],
    );
    check_error(
        "tcp & udp",
        expect![[r#"
            filter: not supported without libpcap: `&` at column 5
                tcp & udp
                    ^
            hint: packets are chosen by version, protocol, addresses and ports; `cargo xtask build` makes a build with libpcap"#]],
    );
    check_error(
        "tcp and tcp[13] & 2 != 0",
        expect![[r#"
            filter: not supported without libpcap: `tcp[13]` at column 9
                tcp and tcp[13] & 2 != 0
                        ^^^^^^^
            hint: packets are chosen by version, protocol, addresses and ports; `cargo xtask build` makes a build with libpcap"#]],
    );
    check_error(
        "less 100",
        expect![[r#"
            filter: not supported without libpcap: `less` at column 1
                less 100
                ^^^^
            hint: packets are chosen by version, protocol, addresses and ports; `cargo xtask build` makes a build with libpcap"#]],
    );
    check_error(
        "src gateway",
        expect![[r#"
            filter: not supported without libpcap: `gateway` at column 5
                src gateway
                    ^^^^^^^
            hint: use `host` and `not host`; `cargo xtask build` makes a build with libpcap"#]],
    );
}

#[test]
fn errors_name_the_value() {
    check_error(
        "port http",
        expect![[r#"
        filter: service names are not looked up: `http` at column 6
            port http
                 ^^^^
        hint: write the port number"#]],
    );
    check_error(
        "port 65536",
        expect![[r#"
        filter: out of range: `65536` at column 6
            port 65536
                 ^^^^^
        hint: the largest is 65535"#]],
    );
    check_error(
        "portrange 80-",
        expect![[r#"
        filter: expected a port range such as 1000-2000, found `80-` at column 11
            portrange 80-
                      ^^^"#]],
    );
    check_error(
        "portrange 1-70000",
        expect![[r#"
        filter: out of range: `70000` at column 11
            portrange 1-70000
                      ^^^^^^^
        hint: the largest is 65535"#]],
    );
    check_error(
        "port tcp",
        expect![[r#"
        filter: expected a port number, found `tcp` at column 6
            port tcp
                 ^^^"#]],
    );
    check_error(
        "host example.com",
        expect![[r#"
        filter: host names are not looked up: `example.com` at column 6
            host example.com
                 ^^^^^^^^^^^
        hint: write the address"#]],
    );
    check_error(
        "host 10.0.0.256",
        expect![[r#"
        filter: not an address: `10.0.0.256` at column 6
            host 10.0.0.256
                 ^^^^^^^^^^
        hint: addresses look like 10.0.0.1 or fd00::1, networks like 10.0.0.0/8"#]],
    );
    check_error(
        "host 10",
        expect![[r#"
            filter: not an address: `10` at column 6
                host 10
                     ^^
            hint: if this is a port, write `port 10`"#]],
    );
    check_error(
        "src 10.0.0.0/8",
        expect![[r#"
        filter: mask without `net`: `10.0.0.0/8` at column 5
            src 10.0.0.0/8
                ^^^^^^^^^^
        hint: write `net`, `src net` or `dst net` in front"#]],
    );
    check_error(
        "net 10.1.2.0/16",
        expect![[r#"
        filter: bits set outside of the mask: `10.1.2.0/16` at column 5
            net 10.1.2.0/16
                ^^^^^^^^^^^
        hint: write `net 10.1.0.0/16`"#]],
    );
    check_error(
        "net fd00::1/64",
        expect![[r#"
        filter: bits set outside of the mask: `fd00::1/64` at column 5
            net fd00::1/64
                ^^^^^^^^^^
        hint: write `net fd00::/64`"#]],
    );
    check_error(
        "net 10.0.0.0/33",
        expect![[r#"
        filter: out of range: `33` at column 14
            net 10.0.0.0/33
                         ^^
        hint: the largest is 32"#]],
    );
    check_error(
        "ip6 host 10.0.0.1",
        expect![[r#"
        filter: `ip6` does not go with `10.0.0.1` at column 10
            ip6 host 10.0.0.1
                     ^^^^^^^^
        hint: this is an IPv4 address: write `ip` or nothing"#]],
    );
    check_error(
        "tcp host 10.0.0.1",
        expect![[r#"
        filter: `tcp` does not go with `host` at column 1
            tcp host 10.0.0.1
            ^^^
        hint: put `and` between them"#]],
    );
    check_error(
        "ip port 80",
        expect![[r#"
        filter: `ip` does not go with `port` at column 1
            ip port 80
            ^^
        hint: put `and` between them"#]],
    );
    check_error(
        "icmp src port 80",
        expect![[r#"
        filter: `icmp` does not go with `port` at column 1
            icmp src port 80
            ^^^^
        hint: ports belong to `tcp`, `udp` and `sctp`"#]],
    );
    check_error(
        "proto 256",
        expect![[r#"
        filter: out of range: `256` at column 7
            proto 256
                  ^^^
        hint: the largest is 255"#]],
    );
    check_error(
        "src proto 6",
        expect![[r#"
        filter: expected an address, found `proto` at column 5
            src proto 6
                ^^^^^"#]],
    );
}

#[test]
fn errors_about_the_whole() {
    check_error(
        "tcp and udp",
        expect![[r#"
        filter: no packet can match this
        hint: `and` where `or` is meant is a common reason"#]],
    );
    let hosts = |count: u8| {
        let hosts: Vec<_> =
            (0..count).map(|last| format!("src host 10.0.{last}.1 or dst port {last}")).collect();
        hosts.join(" or ")
    };
    assert!(compile(&hosts(30)).is_ok());
    check_error(
        &hosts(50),
        expect![[r#"
        filter: needs 200 tests of a packet, and there is room for 128
        hint: use networks and port ranges instead of lists"#]],
    );
    let ports: Vec<_> = (0..200).map(|port| port.to_string()).collect();
    let error = compile(&format!("port {}", ports.join(" or "))).unwrap_err();
    assert_eq!(*error.kind(), FilterErrorKind::TooLong);
    let error = compile(&format!("{}tcp", "(".repeat(100_000))).unwrap_err();
    assert_eq!((error.kind(), error.column()), (&FilterErrorKind::TooDeep, 66));
}

#[test]
fn repeated_questions_are_asked_once() {
    for (text, nodes) in [
        ("tcp", 1),
        ("tcp and tcp", 1),
        ("tcp or not tcp", 0),
        ("host 10.0.0.1", 3),
        ("host 10.0.0.1 or 10.0.0.2 or 10.0.0.3", 7),
        ("tcp port 80 or 443 or 8080", 8),
        ("src net fd00::/16", 2),
        ("portrange 0-65535", 1),
        ("dst portrange 1-10 and dst port 5", 3),
    ] {
        assert_eq!(compile(text).unwrap().program().len, nodes, "{text}");
    }
}

#[test]
fn the_longest_filters_compile_quickly() {
    let hosts: Vec<_> = (0..parse::MAX_TERMS).map(|last| format!("fd00:{last:x}::{last:x}")).collect();
    for join in [" or ", " and ", " and not "] {
        let started = std::time::Instant::now();
        let _ = compile(&format!("not host {}", hosts.join(join)));
        assert!(started.elapsed().as_secs() < 5, "{join} took {:?}", started.elapsed());
    }
}

/// What a filter means, said without keys or programs.
fn matches(expr: &Expr, packet: &[u8]) -> bool {
    match expr {
        Expr::Not(inner) => !matches(inner, packet),
        Expr::And(left, right) => matches(left, packet) && matches(right, packet),
        Expr::Or(left, right) => matches(left, packet) || matches(right, packet),
        Expr::Primitive(primitive) => primitive_matches(primitive, packet),
    }
}

fn primitive_matches(primitive: &Primitive, packet: &[u8]) -> bool {
    let version = if packet[0] >> 4 == 4 { Version::V4 } else { Version::V6 };
    let first = if version == Version::V4 { packet[9] } else { packet[6] };
    let behind = if version == Version::V6 && first == FRAGMENT { packet[40] } else { first };
    let pair = |direction, holds: &dyn Fn(usize) -> bool| match direction {
        Direction::Source => holds(0),
        Direction::Destination => holds(1),
        Direction::Either => holds(0) || holds(1),
        Direction::Both => holds(0) && holds(1),
    };
    match *primitive {
        Primitive::Version(wanted) => wanted == version,
        Primitive::Protocol { version: wanted, number } => {
            wanted.is_none_or(|wanted| wanted == version) && (number == first || number == behind)
        }
        Primitive::Address { addresses: Addresses::V4 { address, mask }, direction } => {
            let field = |at: usize| u32::from_be_bytes(packet[12 + 4 * at..][..4].try_into().unwrap());
            version == Version::V4 && pair(direction, &|at| field(at) & mask == address)
        }
        Primitive::Address { addresses: Addresses::V6 { address, mask }, direction } => {
            let field = |at: usize| u128::from_be_bytes(packet[8 + 16 * at..][..16].try_into().unwrap());
            version == Version::V6 && pair(direction, &|at| field(at) & mask == address)
        }
        Primitive::Port { transport, direction, low, high } => {
            let start = if version == Version::V4 { usize::from(packet[0] & 15) * 4 } else { 40 };
            let field = |at: usize| u16::from_be_bytes(packet[start + 2 * at..][..2].try_into().unwrap());
            let later = version == Version::V4 && (packet[6] & 0x1f, packet[7]) != (0, 0);
            transport.is_none_or(|transport| transport.number() == first)
                && [TCP, UDP, SCTP].contains(&first)
                && !later
                && pair(direction, &|at| (low..=high).contains(&field(at)))
        }
    }
}

fn any_direction() -> impl Strategy<Value = Direction> {
    use Direction::{Both, Destination, Either, Source};
    prop::sample::select(vec![Source, Destination, Either, Both])
}

fn any_version() -> impl Strategy<Value = Version> {
    prop::sample::select(vec![Version::V4, Version::V6])
}

fn any_protocol() -> impl Strategy<Value = u8> {
    prop_oneof![4 => prop::sample::select(vec![TCP, UDP, SCTP, ICMP, ICMP6, FRAGMENT]), 1 => any::<u8>()]
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![9 => 0u16..4, 1 => any::<u16>(), 1 => Just(u16::MAX)]
}

fn any_v4() -> impl Strategy<Value = u32> {
    (0u32..3, 0u32..3).prop_map(|(high, low)| high << 24 | low)
}

fn any_v6() -> impl Strategy<Value = u128> {
    (0u128..3, 0u128..3, 0u128..3).prop_map(|(high, middle, low)| high << 120 | middle << 63 | low)
}

fn any_addresses() -> impl Strategy<Value = Addresses> {
    let mask = prop_oneof![3 => Just(128), 1 => 0u32..=128]
        .prop_map(|bits| u128::MAX.checked_shl(128 - bits).unwrap_or(0));
    let v4 = (any_v4(), mask.clone(), any::<bool>()).prop_map(|(address, mask, odd)| {
        let mask = if odd { 0x0100_0003 } else { (mask >> 96) as u32 };
        Addresses::V4 { address: address & mask, mask }
    });
    let v6 = (any_v6(), mask).prop_map(|(address, mask)| Addresses::V6 { address: address & mask, mask });
    prop_oneof![v4, v6]
}

fn any_primitive() -> impl Strategy<Value = Primitive> {
    let transport = prop::sample::select(vec![Transport::Tcp, Transport::Udp, Transport::Sctp]);
    prop_oneof![
        any_version().prop_map(Primitive::Version),
        (prop::option::of(any_version()), any_protocol())
            .prop_map(|(version, number)| Primitive::Protocol { version, number }),
        (any_direction(), any_addresses())
            .prop_map(|(direction, addresses)| Primitive::Address { direction, addresses }),
        (prop::option::of(transport), any_direction(), any_port(), any_port()).prop_map(
            |(transport, direction, a, b)| {
                Primitive::Port { transport, direction, low: a.min(b), high: a.max(b) }
            }
        ),
    ]
}

fn any_expr() -> impl Strategy<Value = Expr> {
    any_primitive().prop_map(Expr::Primitive).prop_recursive(6, 24, 2, |inner| {
        let pair =
            || (inner.clone(), inner.clone()).prop_map(|(left, right)| (Box::new(left), Box::new(right)));
        prop_oneof![
            1 => inner.clone().prop_map(|inner| Expr::Not(Box::new(inner))),
            2 => pair().prop_map(|(left, right)| Expr::And(left, right)),
            3 => pair().prop_map(|(left, right)| Expr::Or(left, right)),
        ]
    })
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let v4 = (any_protocol(), any_v4(), any_v4(), (any_port(), any_port()), 0u8..=10, 0u8..8).prop_map(
        |(protocol, source, destination, ports, options, later)| {
            let [source, destination] = [source, destination].map(|address| Ipv4Addr::from(address).octets());
            let packet = with_options(ipv4_with(protocol, source, destination, ports), options);
            if later == 0 { later_fragment(packet) } else { packet }
        },
    );
    let v6 = (any_protocol(), any_v6(), any_v6(), (any_port(), any_port()), any_protocol()).prop_map(
        |(next_header, source, destination, ports, behind)| {
            let mut payload = transport(ports);
            if next_header == FRAGMENT {
                payload[0] = behind;
            }
            ipv6_with(next_header, source, destination, &payload)
        },
    );
    prop_oneof![v4, v6]
}

fn any_words() -> impl Strategy<Value = String> {
    let words = "ip ip6 tcp udp icmp src dst host net port portrange proto mask and or not ( ) ! && / [ ] 80 1-2 10 \
                 1.2.3.4 10.0 fd00::1 32 255.255.0.0 vlan len foo é = &";
    let words: Vec<&str> = words.split(' ').collect();
    prop::collection::vec(prop::sample::select(words), 0..12).prop_map(|words| words.join(" "))
}

fn check_any_text(text: &str) {
    match compile(text) {
        Ok(filter) => _ = filter.matches(&Key::default()),
        Err(error) => {
            assert!(text.get(error.span()).is_some());
            assert!(!error.to_string().contains('\x1b'));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_printed_reads_the_same(expr in any_expr()) {
        let text = expr.to_string();
        prop_assert_eq!(parse::parse(&text).map_err(|error| TestCaseError::fail(error.to_string()))?, Some(expr));
    }

    #[test]
    fn a_program_does_what_its_filter_says(expr in any_expr(), packets in prop::collection::vec(any_packet(), 40)) {
        let program = match program(&expr) {
            Ok(program) => Some(program),
            Err(FilterErrorKind::NeverMatches) => None,
            Err(_) => return Ok(()),
        };
        for packet in packets {
            let found = program.is_some_and(|program| program.matches(&Key::from_packet(&packet)));
            prop_assert_eq!(found, matches(&expr, &packet), "{} {:02x?}", expr, packet);
        }
    }

    #[test]
    fn programs_only_go_forward(expr in any_expr()) {
        let Ok(program) = program(&expr) else { return Ok(()) };
        let len = program.len as usize;
        prop_assert!(len <= MAX_NODES);
        for (index, node) in program.nodes[..len].iter().enumerate() {
            for next in [node.yes, node.no] {
                let forward = usize::from(next) > index && usize::from(next) < len;
                prop_assert!(forward || next == ACCEPT || next == REJECT, "{} {:?}", expr, node);
            }
            prop_assert!(usize::from(node.word) < tracer_common::filter::word::COUNT);
        }
    }

    #[test]
    fn any_text_is_compiled_or_refused(text in any::<String>()) {
        check_any_text(&text);
    }

    #[test]
    fn any_words_are_compiled_or_refused(text in any_words()) {
        check_any_text(&text);
    }
}

/// As if libpcap said these words about any text.
fn compile_refused(text: &str, words: &str) -> Result<Filter, FilterError> {
    super::compile(text, &|_, _| Err(LibpcapError::Refused(words.to_owned())))
}

#[track_caller]
fn check_refused(text: &str, words: &str, expected: Expect) {
    expected.assert_eq(&compile_refused(text, words).expect_err(text).to_string());
}

#[test]
fn errors_of_the_whole_language() {
    let syntax_error = "can't parse filter expression: syntax error";
    check_refused(
        "vlan foo",
        syntax_error,
        expect![[r#"
            filter: libpcap says: syntax error
            hint: see pcap-filter(7)"#]],
    );
    check_refused(
        "tcp and inbond",
        syntax_error,
        expect![[r#"
            filter: libpcap says: syntax error at column 9
                tcp and inbond
                        ^^^^^^
            hint: see pcap-filter(7)"#]],
    );
    check_refused(
        "port htp",
        "unknown port 'htp'",
        expect![[r#"
            filter: libpcap says: unknown port 'htp' at column 6
                port htp
                     ^^^
            hint: see pcap-filter(7)"#]],
    );
    check_refused(
        "arp",
        REJECTS_ALL,
        expect![[r#"
        filter: no packet can match this
        hint: `and` where `or` is meant is a common reason"#]],
    );
    // What the first form understands well it says better.
    check_refused(
        "port 65536",
        "illegal port number 65536 > 65535",
        expect![[r#"
        filter: out of range: `65536` at column 6
            port 65536
                 ^^^^^
        hint: the largest is 65535"#]],
    );
    check_refused(
        "host example.com",
        "unknown host 'example.com'",
        expect![[r#"
        filter: host names are not looked up: `example.com` at column 6
            host example.com
                 ^^^^^^^^^^^
        hint: write the address"#]],
    );
}

#[test]
fn what_only_the_first_form_understands_it_compiles() {
    let filter = compile_refused("proto tcp", "can't parse filter expression: syntax error").unwrap();
    assert!(filter.matches(&Key::from_packet(&ipv4(TCP))));
}

#[test]
fn errors_of_translation() {
    let check = |code, k, expected: Expect| {
        let ends = classic::Instruction { code: 0x06, jt: 0, jf: 0, k: 1 };
        let program = vec![classic::Instruction { code, jt: 0, jf: 0, k }, ends];
        let error = super::compile("tcp", &|_, _| Ok(program.clone())).unwrap_err();
        expected.assert_eq(&error.to_string());
    };
    check(
        0x30,
        -0x1000_i32 as u32,
        expect![[r#"
        filter: cannot run in the kernel: it asks for what stands in no packet
        hint: packets are chosen by their own bytes, not by device or direction"#]],
    );
    check(
        0x05,
        -1_i32 as u32,
        expect![[r#"
        filter: cannot run in the kernel: it needs a loop
        hint: `protochain` looks for a header as long as there is another: ask for the headers one by one"#]],
    );
    check(
        0x60,
        3,
        expect![[r#"
        filter: cannot run in the kernel: a part of it has no meaning where `geneve` does not match
        hint: what stands behind `geneve` is asked about the inner packet: join it with `and`"#]],
    );
}

#[test]
fn ethernet_is_asked_for_where_ip_does_not_do() {
    let accept = || vec![classic::Instruction { code: 0x06, jt: 0, jf: 0, k: 1 }];
    let only = |wanted| {
        move |link, _: &str| match link == wanted {
            true => Ok(accept()),
            false => Err(LibpcapError::Refused("not for this link type".to_owned())),
        }
    };
    for wanted in [LinkType::Raw, LinkType::Ethernet] {
        let filter = super::compile("vlan", &only(wanted)).unwrap();
        assert!(matches!(filter.form, Form::Translated { link, .. } if link == wanted), "{wanted:?}");
    }
}
