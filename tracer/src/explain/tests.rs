//! Rules, packets and what one says to the other.

use super::{Answer, Known, Leads, explain, leads, may_change};
use crate::netfilter::Family;
use crate::packet::{Link, PacketView};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// What a packet is made of.
#[derive(Clone, Debug)]
struct Made {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    /// Ports, or type and code.
    numbers: [u16; 2],
    flags: u8,
    /// In units of eight bytes.
    fragment: u16,
    indev: &'static str,
    mark: u32,
}

const SYN: Made = Made {
    src: Ipv4Addr::new(10, 0, 1, 2),
    dst: Ipv4Addr::new(10, 0, 2, 2),
    protocol: 6,
    numbers: [4242, 80],
    flags: 2,
    fragment: 0,
    indev: "eth0",
    mark: 0x11,
};

impl Made {
    fn bytes(&self) -> Vec<u8> {
        let [high, low] = self.fragment.to_be_bytes();
        let mut bytes = vec![0x45, 0, 0, 40, 0, 1, high, low, 64, self.protocol, 0, 0];
        bytes.extend(self.src.octets());
        bytes.extend(self.dst.octets());
        let [first, second] = self.numbers;
        match self.protocol {
            1 => bytes.extend([first as u8, second as u8, 0, 0, 0, 1, 0, 1]),
            _ => bytes.extend([first.to_be_bytes(), second.to_be_bytes()].concat()),
        }
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, self.flags, 0, 0, 0, 0, 0, 0]);
        bytes.resize(40, 0);
        bytes
    }

    fn view<'a>(&self, bytes: &'a [u8]) -> PacketView<'a> {
        PacketView {
            family: Family::Ipv4,
            indev: Some(self.indev.as_bytes()),
            outdev: None,
            link: Link::default(),
            len: bytes.len() as u32,
            bytes,
            mark: self.mark,
            owner: None,
        }
    }
}

fn said(rule: &str, packet: &Made, known: Known) -> String {
    let bytes = packet.bytes();
    let mut out = String::new();
    for checked in explain(rule, &packet.view(&bytes), known) {
        let answer = match checked.answer {
            Answer::Holds => "holds".to_owned(),
            Answer::Fails { value } => format!("fails: {value}"),
            Answer::Unknown => "unknown".to_owned(),
        };
        let _ = write!(out, "{} = {answer}; ", checked.text);
    }
    out.trim_end().to_owned()
}

#[track_caller]
fn check(rule: &str, packet: &Made, expected: Expect) {
    expected.assert_eq(&said(rule, packet, Known::All));
}

#[test]
fn rules_as_iptables_save_prints_them() {
    check(
        "-A FORWARD -s 10.0.1.0/24 -i eth0 -p tcp -m tcp --dport 443 -m comment --comment \"the -j web\" -j ACCEPT",
        &SYN,
        expect!["-s 10.0.1.0/24 = holds; -i eth0 = holds; -p tcp = holds; --dport 443 = fails: 80;"],
    );
    check(
        "-A INPUT ! -s 10.0.0.0/8 -d 10.0.2.3/32 -i wlan+ -j ACCEPT",
        &SYN,
        expect![
            "! -s 10.0.0.0/8 = fails: 10.0.1.2; -d 10.0.2.3/32 = fails: 10.0.2.2; -i wlan+ = fails: eth0;"
        ],
    );
    check(
        "-A INPUT -i eth+ -p udp -m multiport --dports 53,5000:5100 -m conntrack ! --ctstate INVALID,NEW -j ACCEPT",
        &SYN,
        expect![
            "-i eth+ = holds; -p udp = fails: tcp; --dports 53,5000:5100 = fails: 80; -m conntrack ! --ctstate INVALID,NEW = unknown;"
        ],
    );
    check(
        "-A x -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m mark --mark 0x1/0xf -m connmark --mark 0x1 -g y",
        &SYN,
        expect![
            "-p tcp = holds; --tcp-flags FIN,SYN,RST,ACK SYN = holds; --mark 0x1/0xf = holds; -m connmark --mark 0x1 = unknown;"
        ],
    );
    check(
        "-A x -p tcp -m tcp ! --tcp-flags SYN NONE -m mark ! --mark 0x11 -m rpfilter -j DROP",
        &SYN,
        expect![
            "-p tcp = holds; ! --tcp-flags SYN NONE = holds; ! --mark 0x11 = fails: 0x11; -m rpfilter = unknown;"
        ],
    );
    check(
        "-A x -m iprange --src-range 10.0.1.1-10.0.1.9 -m set --match-set bad src -f -o eth1",
        &SYN,
        expect![
            "--src-range 10.0.1.1-10.0.1.9 = holds; -m set --match-set bad src = unknown; -f = fails: no later fragment; -o eth1 = unknown;"
        ],
    );
    let ping = Made { protocol: 1, numbers: [8, 0], ..SYN };
    check(
        "-A x -p icmp -m icmp --icmp-type 3/4 -j ACCEPT",
        &ping,
        expect!["-p icmp = holds; --icmp-type 3/4 = fails: type 8 code 0;"],
    );
    check(
        "-A x -p udp -m udp ! --dport 53",
        &ping,
        expect!["-p udp = fails: icmp; ! --dport 53 = fails: icmp, without ports;"],
    );
    let later = Made { fragment: 3, ..SYN };
    check(
        "-A x -p tcp -m tcp ! --dport 22 -m icmp --icmp-type any",
        &later,
        expect![
            "-p tcp = holds; ! --dport 22 = fails: a later fragment, without ports; --icmp-type any = unknown;"
        ],
    );
}

#[test]
fn rules_as_nft_prints_them() {
    check(
        "iifname \"eth*\" ip saddr { 10.0.9.0/24, 10.0.1.3-10.0.1.9 } tcp dport { 22, 8000-8080 } counter packets 0 bytes 0 accept",
        &SYN,
        expect![
            "iifname \"eth*\" = holds; ip saddr { 10.0.9.0/24, 10.0.1.3-10.0.1.9 } = fails: 10.0.1.2; tcp = holds; tcp dport { 22, 8000-8080 } = fails: 80;"
        ],
    );
    check(
        "ct state established,related counter packets 1 bytes 2 udp dport != 53 accept comment \"drop\"",
        &SYN,
        expect!["ct state established,related = unknown; udp = fails: tcp; udp dport != 53 = holds;"],
    );
    check(
        "meta l4proto { tcp, udp } th dport 53 meta mark & 0x000000ff == 0x00000011 ip6 saddr fd00::/8 accept",
        &SYN,
        expect![
            "meta l4proto { tcp, udp } = holds; th dport 53 = fails: 80; meta mark & 0x000000ff == 0x00000011 = holds; ip6 saddr fd00::/8 = fails: ip;"
        ],
    );
    check(
        "iifname { \"lo\", \"wg0\" } tcp flags & (fin | syn | rst | ack) == syn log prefix \"x \" level info tcp dport 81 drop",
        &SYN,
        expect![
            "iifname { \"lo\", \"wg0\" } = fails: eth0; tcp flags & (fin | syn | rst | ack) == syn = holds; tcp = holds; tcp dport 81 = fails: 80;"
        ],
    );
    check("ip saddr @bad tcp dport 22 drop", &SYN, expect!["ip saddr @bad tcp dport 22 drop = unknown;"]);
    check(
        "ip daddr . tcp dport { 10.0.2.2 . 80 } accept",
        &SYN,
        expect!["ip daddr . tcp dport { 10.0.2.2 . 80 } accept = unknown;"],
    );
    check("tcp dport vmap { 80 : accept }", &SYN, expect!["tcp dport vmap { 80 : accept } = unknown;"]);
    check(
        "iifname vmap { \"eth0\" : accept }",
        &SYN,
        expect!["iifname vmap { \"eth0\" : accept } = unknown;"],
    );
    check(
        "icmp type { echo-request, time-exceeded } accept",
        &Made { protocol: 1, numbers: [3, 1], ..SYN },
        expect!["icmp type { echo-request, time-exceeded } = fails: type 3 code 1;"],
    );
    check("meta nfproto ipv6 meta mark set 0x1 accept", &SYN, expect!["meta nfproto ipv6 = fails: ip;"]);
    check(
        "meta mark set 0x00000001 tcp dport 22 accept",
        &SYN,
        expect!["meta mark set 0x00000001 tcp dport 22 accept = unknown;"],
    );
}

#[test]
fn a_packet_that_may_have_changed_is_not_asked() {
    let rule = "-A x -s 10.9.9.9/32 -i eth1 -m mark --mark 0x5";
    expect!["-s 10.9.9.9/32 = unknown; -i eth1 = fails: eth0; --mark 0x5 = unknown;"].assert_eq(&said(
        rule,
        &SYN,
        Known::Devices,
    ));
    assert!(may_change("meta mark set 0x1 tcp dport 22"));
    assert!(!may_change("tcp dport 22 comment \"set\""));
    assert!(may_change("-A x -p tcp -j MARK --set-xmark 0x1/0xffffffff"));
    assert!(!may_change("-A x -m mark --mark 0x1 -j ACCEPT"));
    assert!(!may_change("-A x -g web"));
}

#[test]
fn what_was_not_copied_is_not_known() {
    let bytes = SYN.bytes();
    let view = PacketView { bytes: &bytes[..20], ..SYN.view(&bytes) };
    let answers = explain("-A x -s 10.0.1.2/32 -p tcp -m tcp --dport 81", &view, Known::All);
    let answers: Vec<Answer> = answers.into_iter().map(|checked| checked.answer).collect();
    assert_eq!(answers, [Answer::Holds, Answer::Holds, Answer::Unknown]);
}

#[test]
fn where_rules_lead() {
    for (text, expected) in [
        ("-A x -p tcp -j ACCEPT", Leads::Accept),
        (
            "-A x -m comment --comment \"-j ACCEPT\" -j REJECT --reject-with icmp-port-unreachable",
            Leads::Reject,
        ),
        ("-A x -g y", Leads::To("y".to_owned())),
        ("-A x -p tcp", Leads::On),
        ("tcp dport 22 accept", Leads::Accept),
        ("tcp dport 22 jump in comment \"drop\"", Leads::To("in".to_owned())),
        ("reject with tcp reset", Leads::Reject),
        ("tcp dport vmap { 22 : drop }", Leads::On),
        ("counter packets 0 bytes 0 comment \"drop\"", Leads::On),
        ("drop", Leads::Drop),
    ] {
        assert_eq!(leads(text), expected, "{text}");
    }
}

/// One condition in both languages, and whether a packet meets it, by what the packet was made of.
#[derive(Clone, Debug)]
enum Asked {
    Src(u8, u32, bool),
    Port { destination: bool, from: u16, count: u16, not: bool },
    Protocol(u8, bool),
    Device(&'static str, bool),
    Mark(u32, u32, bool),
    Flags(u8, u8),
    Icmp(u8),
}

const FLAGS: [(&str, u8); 4] = [("SYN", 2), ("ACK", 0x10), ("RST", 4), ("FIN", 1)];

fn flag_names(bits: u8, none: &str) -> String {
    let names: Vec<&str> = FLAGS.iter().filter(|(_, bit)| bits & bit != 0).map(|(name, _)| *name).collect();
    if names.is_empty() { none.to_owned() } else { names.join(",") }
}

impl Asked {
    fn net(bits: u8, address: u32) -> (Ipv4Addr, u32) {
        let mask = if bits == 0 { 0 } else { u32::MAX << (32 - u32::from(bits)) };
        (Ipv4Addr::from_bits(address & mask), mask)
    }

    /// As iptables-save prints it.
    fn save(&self) -> String {
        let not = |not: &bool| if *not { "! " } else { "" };
        match self {
            Self::Src(bits, address, n) => format!("{}-s {}/{bits}", not(n), Self::net(*bits, *address).0),
            Self::Port { destination, from, count, not: n } => {
                let side = if *destination { "d" } else { "s" };
                format!("-m tcp {}--{side}port {from}:{}", not(n), from + count)
            }
            Self::Protocol(number, n) => format!("{}-p {number}", not(n)),
            Self::Device(name, n) => format!("{}-i {name}", not(n)),
            Self::Mark(value, mask, n) => format!("-m mark {}--mark {value:#x}/{mask:#x}", not(n)),
            Self::Flags(among, set) => {
                format!("-m tcp --tcp-flags {} {}", flag_names(*among, "NONE"), flag_names(*set, "NONE"))
            }
            Self::Icmp(kind) => format!("-m icmp --icmp-type {kind}"),
        }
    }

    /// As nft prints it.
    fn nft(&self) -> Option<String> {
        let not = |not: &bool| if *not { "!= " } else { "" };
        Some(match self {
            Self::Src(bits, address, n) => {
                format!("ip saddr {}{}/{bits}", not(n), Self::net(*bits, *address).0)
            }
            Self::Port { destination, from, count, not: n } => {
                let side = if *destination { "d" } else { "s" };
                format!("tcp {side}port {}{from}-{}", not(n), from + count)
            }
            Self::Protocol(number, n) => format!("meta l4proto {}{number}", not(n)),
            Self::Device(name, n) => format!("iifname {}\"{}\"", not(n), name.replace('+', "*")),
            Self::Mark(value, mask, n) => {
                format!("meta mark & {mask:#010x} {} {value:#010x}", if *n { "!=" } else { "==" })
            }
            Self::Flags(among, set) if *among != 0 && *set != 0 => {
                let words = |bits| flag_names(bits, "").to_lowercase();
                format!("tcp flags {} / {}", words(*set), words(*among))
            }
            Self::Flags(..) => return None,
            Self::Icmp(kind) => format!("icmp type {kind}"),
        })
    }

    fn is_met_by(&self, packet: &Made) -> bool {
        let has_ports = matches!(packet.protocol, 6 | 17) && packet.fragment == 0;
        match self {
            Self::Src(bits, address, not) => {
                let (net, mask) = Self::net(*bits, *address);
                (packet.src.to_bits() & mask == net.to_bits()) != *not
            }
            Self::Port { destination, from, count, not } => {
                let port = packet.numbers[usize::from(*destination)];
                has_ports && (port >= *from && port - from <= *count) != *not
            }
            Self::Protocol(number, not) => (packet.protocol == *number) != *not,
            Self::Device(name, not) => {
                let is = match name.split_once('+') {
                    Some((beginning, _)) => packet.indev.starts_with(beginning),
                    None => packet.indev == *name,
                };
                is != *not
            }
            Self::Mark(value, mask, not) => (packet.mark & mask == *value) != *not,
            Self::Flags(among, set) => {
                packet.protocol == 6 && packet.fragment == 0 && packet.flags & among == *set
            }
            Self::Icmp(kind) => {
                packet.protocol == 1 && packet.fragment == 0 && packet.numbers[0] as u8 == *kind
            }
        }
    }
}

fn packets() -> impl Strategy<Value = Made> {
    let protocol = prop_oneof![4 => Just(6_u8), 2 => Just(17), 2 => Just(1), 1 => Just(47)];
    let fragment = prop_oneof![9 => Just(0_u16), 1 => 1_u16..8];
    let device = prop::sample::select(vec!["eth0", "eth1", "lo", "wg0"]);
    let address = prop_oneof![Just(0x0a00_0102_u32), any::<u32>()];
    (address, protocol, [0_u16..40, 0_u16..40], any::<u8>(), fragment, device, 0_u32..8).prop_map(
        |(src, protocol, numbers, flags, fragment, indev, mark)| Made {
            src: Ipv4Addr::from_bits(src),
            protocol,
            numbers,
            flags: flags & 0x17,
            fragment,
            indev,
            mark,
            ..SYN
        },
    )
}

fn questions() -> impl Strategy<Value = Asked> {
    let flags = || prop::sample::select(vec![0_u8, 1, 2, 4, 0x10, 0x12, 0x17]);
    prop_oneof![
        (0_u8..=32, prop_oneof![Just(0x0a00_0102), any::<u32>()], any::<bool>())
            .prop_map(|(bits, address, not)| Asked::Src(bits, address, not)),
        (any::<bool>(), 0_u16..40, 0_u16..10, any::<bool>())
            .prop_map(|(destination, from, count, not)| Asked::Port { destination, from, count, not }),
        (prop::sample::select(vec![1_u8, 6, 17, 47]), any::<bool>())
            .prop_map(|(number, not)| Asked::Protocol(number, not)),
        (prop::sample::select(vec!["eth0", "eth+", "lo", "w+", "eth"]), any::<bool>())
            .prop_map(|(name, not)| Asked::Device(name, not)),
        (0_u32..8, 0_u32..8, any::<bool>()).prop_map(|(value, mask, not)| Asked::Mark(value, mask, not)),
        (flags(), flags()).prop_map(|(among, set)| Asked::Flags(among, set)),
        (0_u8..12).prop_map(Asked::Icmp),
    ]
}

/// What is said of each condition of a rule agrees with what its packet was made of. A condition of nft may be preceded
/// by what it takes for granted.
fn agrees(text: &str, asked: &[Asked], packet: &Made) -> Result<(), TestCaseError> {
    let bytes = packet.bytes();
    let checked = explain(text, &packet.view(&bytes), Known::All);
    let mut told = checked.iter();
    for question in asked {
        let (mut fails, mut unknown) = (false, false);
        for one in told.by_ref() {
            if one.text == "tcp" {
                prop_assert_eq!(one.answer == Answer::Holds, packet.protocol == 6);
                continue;
            }
            fails |= matches!(one.answer, Answer::Fails { .. });
            unknown |= one.answer == Answer::Unknown;
            break;
        }
        let met = question.is_met_by(packet);
        prop_assert!(!(fails && met), "{question:?} is met, but is said to fail: {checked:?}");
        // Ports of another protocol are ports, too.
        let of_tcp = !matches!(question, Asked::Port { .. }) || packet.protocol == 6;
        prop_assert!(fails || unknown || met || !of_tcp, "{question:?} is not met: {checked:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn nothing_wrong_is_said(packet in packets(), asked in prop::collection::vec(questions(), 1..6)) {
        let words: Vec<String> = asked.iter().map(Asked::save).collect();
        agrees(&format!("-A chain {} -j ACCEPT", words.join(" ")), &asked, &packet)?;
        let asked: Vec<Asked> = asked.into_iter().filter(|question| question.nft().is_some()).collect();
        let words: Vec<String> = asked.iter().filter_map(Asked::nft).collect();
        agrees(&format!("{} counter packets 0 bytes 0 accept", words.join(" ")), &asked, &packet)?;
    }

    #[test]
    fn any_text_is_taken(text in "(-A )?[-a-z0-9!{}@.:,/\"& ]{0,80}", known in any::<bool>()) {
        let bytes = SYN.bytes();
        explain(&text, &SYN.view(&bytes), if known { Known::All } else { Known::Devices });
        leads(&text);
    }
}
