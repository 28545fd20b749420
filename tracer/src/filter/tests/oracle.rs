//! Both forms of a filter against libpcap's own interpreter.

use super::machine;
use crate::filter::classic::Instruction;
use crate::filter::translate::{TranslateError, translate};
use crate::filter::{FilterErrorKind, LibpcapError, LinkType, REJECTS_ALL};
use crate::sys::pcap;
use proptest::prelude::*;
use std::io::Write as _;
use tracer_common::filter::Key;

/// False, and loudly so, in a build without libpcap; `cargo xtask` makes none.
fn linked() -> bool {
    if !pcap::LINKED {
        assert!(std::env::var_os("NFTRACER_LIBPCAP").is_none(), "libpcap was to be linked");
        let _ =
            std::io::stderr().write_all(b"NOT TESTED: this build has no libpcap to compare filters with\n");
    }
    pcap::LINKED
}

/// Captured bytes, and the packet's length.
type Packet = (Vec<u8>, u32);

fn interpreted(program: &[Instruction], (packet, length): &Packet) -> bool {
    pcap::matches(program, packet, *length).expect("libpcap is linked")
}

fn check_pairs(link: LinkType, text: &str, packets: &[Packet]) -> Result<(), TestCaseError> {
    let program = match pcap::compile(link, text) {
        Ok(program) => program,
        Err(LibpcapError::Refused(_)) => return Ok(()),
        Err(LibpcapError::Absent) => unreachable!("libpcap is linked"),
    };
    let translated = match translate(&program) {
        Ok(translated) => translated,
        // libpcap's answer is by chance.
        Err(TranslateError::Unset) if text.contains("geneve") => return Ok(()),
        Err(error) => return Err(TestCaseError::fail(format!("{text}: {error}"))),
    };
    for packet in packets {
        let expected = interpreted(&program, packet);
        let found = machine::matches(&translated, &packet.0, packet.1);
        prop_assert_eq!(found, expected, "{} {:02x?}", text, packet);
    }
    Ok(())
}

fn any_address() -> impl Strategy<Value = [u8; 4]> {
    prop::sample::select(vec![[10, 0, 0, 1], [10, 0, 0, 2], [192, 168, 7, 9], [224, 0, 0, 1]])
}

fn any_address6() -> impl Strategy<Value = [u8; 16]> {
    let parse = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    prop::sample::select(vec![parse("fd00::1"), parse("fd00::2"), parse("ff02::1")])
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![6 => prop::sample::select(vec![22u16, 53, 80, 443, 4789, 6081]), 1 => any::<u16>()]
}

fn any_ip_protocol() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => prop::sample::select(vec![6u8, 17, 132, 1, 58, 47, 50, 51, 4, 41, 89]),
        2 => prop::sample::select(vec![0u8, 43, 44, 60]),
        1 => any::<u8>()
    ]
}

/// What stands behind an IP header: ports, flags, and whatever else.
fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    (any_port(), any_port(), prop::collection::vec(any::<u8>(), 0..60), any::<bool>()).prop_map(
        |(source, destination, rest, vxlan)| {
            let mut payload = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            if vxlan {
                payload.extend([0, 50, 0, 0, 8, 0, 0, 0, 0, 0, 42, 0]);
            }
            payload.extend(rest);
            payload
        },
    )
}

fn ipv4() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![5 => Just(0x4000u16), 1 => Just(0x2000), 1 => Just(185), 1 => any::<u16>()];
    let options = prop_oneof![4 => Just(0u8), 1 => 0u8..=10];
    (any_ip_protocol(), any_address(), any_address(), fragment, options, any_payload(), any::<[u8; 4]>())
        .prop_map(|(protocol, source, destination, fragment, options, payload, noise)| {
            let mut packet = vec![0x45 + options, noise[0], 0, 60, noise[1], noise[2]];
            packet.extend(fragment.to_be_bytes());
            packet.extend([noise[3], protocol, 0, 0]);
            packet.extend(source);
            packet.extend(destination);
            packet.extend(vec![1; usize::from(options) * 4]);
            packet.extend(payload);
            packet
        })
}

fn ipv6() -> impl Strategy<Value = Vec<u8>> {
    let behind = prop::option::of(any_ip_protocol());
    (any_ip_protocol(), behind, any_address6(), any_address6(), any_payload(), any::<[u8; 3]>()).prop_map(
        |(next, behind, source, destination, payload, noise)| {
            let first = if behind.is_some() { 44 } else { next };
            let mut packet = vec![0x60, noise[0], noise[1], noise[2], 0, 40, first, 64];
            packet.extend(source);
            packet.extend(destination);
            if let Some(behind) = behind {
                packet.extend([behind, 0, 0, noise[0] & 9, 0, 0, 0, 1]);
            }
            packet.extend(payload);
            packet
        },
    )
}

/// An IP packet, sometimes within GRE, IP or UDP, sometimes nothing of the kind.
fn any_ip() -> impl Strategy<Value = Vec<u8>> {
    let plain = || prop_oneof![ipv4(), ipv6()];
    let within = (any_address(), any_address(), prop::sample::select(vec![4u8, 41, 47]), plain()).prop_map(
        |(source, destination, protocol, inner)| {
            let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            packet.extend(source);
            packet.extend(destination);
            if protocol == 47 {
                packet.extend([
                    0,
                    0,
                    if inner[0] >> 4 == 4 { 0x08 } else { 0x86 },
                    if inner[0] >> 4 == 4 { 0 } else { 0xdd },
                ]);
            }
            packet.extend(inner);
            packet
        },
    );
    prop_oneof![6 => plain(), 1 => within, 1 => prop::collection::vec(any::<u8>(), 0..100)]
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tags = prop_oneof![
        4 => Just(vec![]),
        1 => (0u16..4).prop_map(|id| vec![(0x8100u16, id)]),
        1 => (0u16..4, 0u16..4).prop_map(|(outer, inner)| vec![(0x88a8, outer), (0x8100, inner)]),
        1 => (0u16..4).prop_map(|label| vec![(0x8847, label)]),
        1 => (0u16..4).prop_map(|session| vec![(0x8864, session)]),
    ];
    let last = prop::option::weighted(0.2, prop::sample::select(vec![0x0806u16, 0x8035, 0x0800, 100]));
    (0u8..3, 0u8..3, tags, last, any_ip()).prop_map(|(to, from, tags, last, packet)| {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        for (kind, value) in tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(value.to_be_bytes());
        }
        let own = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
        frame.extend(last.unwrap_or(own).to_be_bytes());
        frame.extend(packet);
        frame
    })
}

/// A packet, cut short now and then.
fn captured(packet: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Packet> {
    (packet, prop::option::weighted(0.15, any::<prop::sample::Index>()), 0u32..3000).prop_map(
        |(mut packet, cut, more)| {
            let length = packet.len() as u32 + if more > 2000 { more } else { 0 };
            if let Some(cut) = cut {
                packet.truncate(cut.index(packet.len() + 1));
            }
            (packet, length)
        },
    )
}

const ADDRESSES: &str = "host 10.0.0.1;src host 10.0.0.2;dst net 192.168.0.0/16;net 10.0.0.0/8;src and dst net \
                         10.0.0.0/30;host fd00::1;dst host fd00::2;ip6 net fd00::/16;src 10.0.0.1;ip \
                         multicast;ip6 multicast";
const TRANSPORTS: &str = "tcp;udp;sctp;icmp;icmp6;ip;ip6;port 80;tcp port 443;udp src port 53;dst port 22;portrange \
                          50-90;udp portrange 4000-7000;ip proto 47;ip6 proto 44;proto 50;ip proto \\tcp;igmp;esp;ah;pim;vrrp";
const FIRST_FORM: &str = "host 10.0.0.1;src host 10.0.0.2;dst net 192.168.0.0/16;net 10.0.0.0/8;src and dst net \
                          10.0.0.0/30;host fd00::1;dst host fd00::2;ip6 net fd00::/16;src 10.0.0.1;tcp;udp;sctp;icmp;\
                          icmp6;ip;ip6;port 80;tcp port 443;udp src port 53;dst port 22;portrange 50-90;udp portrange \
                          4000-7000;ip proto 47;ip6 proto 44;proto 50;igmp;esp;ah;pim;vrrp;src or dst port 53;ip6 proto \
                          17;proto 0;tcp portrange 0-65535;net 0.0.0.0/0;ip6 host fd00::2";
const BYTES: &str = "ip[0] & 0xf != 5;ip[6:2] & 0x1fff = 0;tcp[tcpflags] & (tcp-syn|tcp-fin) != 0;tcp[13] = 2;udp[4:2] \
                     > 20;icmp[icmptype] = icmp-echo;ip[8] < 64;ip6[6] = 44;ip[20:4] & 0xffff0000 = 0x350000;tcp[0:2] \
                     + tcp[2:2] > 500;ip[2:2] - ((ip[0]&0xf)<<2) != 40;len > 60;len <= 40;greater 50;less 70;tcp[100] \
                     = 0;ip[len - 1] = 0;udp[udp[4] & 7] != 3;ip[ip[0] & 3] % 7 = 1;1000 / ip[1] > 5;ip[130:2] \
                     != 1;ip[9] << 2 >> ip[1] = 4;-ip[8] > 100;ip[12] ^ ip[16] = 0;ip[8] * 3 = 192;ip[3] | ip[1] = \
                     60;udp[8] = 8 and udp[14:2] = 0";
const LINKS: &str = "ether host 02:00:00:00:00:01;ether src 02:00:00:00:00:02;ether multicast;ether broadcast;vlan;vlan \
                     1;vlan 2 and vlan 3;mpls;mpls 1;pppoes;pppoes 2 and ip;arp;rarp;ether proto 0x88a8;ether[0] & 1 \
                     = 0;llc;vlan and tcp port 80;mpls and ip;geneve;geneve 42 and ip;stp;iso;ipx;link[12:2] = \
                     0x806;vlan and vlan and host 10.0.0.1";

fn any_text(terms: &[&'static str]) -> impl Strategy<Value = String> + use<> {
    let terms: Vec<&str> = terms.iter().flat_map(|terms| terms.split(';')).collect();
    let term = prop::sample::select(terms).prop_map(str::to_owned);
    term.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            1 => inner.clone().prop_map(|inner| format!("not ({inner})")),
            3 => (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) and ({right})")),
            3 => (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) or ({right})")),
            1 => (inner.clone(), inner).prop_map(|(left, right)| format!("{left} and not {right}")),
        ]
    })
}

/// Most are no program at all; those that are exercise every instruction.
fn any_instruction() -> impl Strategy<Value = Instruction> {
    let codes: Vec<u16> = vec![
        0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x60, 0x80, 0x01, 0x61, 0x81, 0xb1, 0x02, 0x03, 0x04, 0x0c,
        0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0x94, 0x9c,
        0xa4, 0xac, 0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d, 0x06, 0x16, 0x07, 0x87,
    ];
    let code = prop_oneof![40 => prop::sample::select(codes), 1 => any::<u16>()];
    let constant = prop_oneof![8 => 0u32..70, 1 => 100u32..200, 1 => any::<u32>()];
    (code, 0u8..3, 0u8..3, constant).prop_map(|(code, jt, jf, k)| Instruction { code, jt, jf, k })
}

/// With the faults taken out that nearly every such program has.
fn any_program() -> impl Strategy<Value = Vec<Instruction>> {
    prop::collection::vec(any_instruction(), 1..40).prop_map(|mut program| {
        let returns = |k| Instruction { code: 0x06, jt: 0, jf: 0, k };
        let mut stores: Vec<_> = (0..4).map(|k| Instruction { code: 0x02, jt: 0, jf: 0, k }).collect();
        for instruction in &mut program {
            match instruction.code {
                0x02 | 0x03 | 0x60 | 0x61 => instruction.k %= 4,
                0x05 => instruction.k %= 3,
                0x34 | 0x94 => instruction.k = instruction.k.max(1),
                0x64 | 0x74 => instruction.k %= 32,
                _ => {}
            }
        }
        stores.append(&mut program);
        stores.extend([returns(1), returns(0), returns(7)]);
        stores
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2500, ..ProptestConfig::default() })]

    #[test]
    fn translated_filters_of_ip_packets_agree_with_libpcap(
        text in any_text(&[ADDRESSES, TRANSPORTS, BYTES]),
        packets in prop::collection::vec(captured(any_ip()), 40),
    ) {
        if linked() {
            check_pairs(LinkType::Raw, &text, &packets)?;
        }
    }

    #[test]
    fn translated_filters_of_frames_agree_with_libpcap(
        text in any_text(&[ADDRESSES, TRANSPORTS, BYTES, LINKS]),
        packets in prop::collection::vec(captured(any_frame()), 40),
    ) {
        if linked() {
            check_pairs(LinkType::Ethernet, &text, &packets)?;
        }
    }

    #[test]
    fn translated_programs_of_any_kind_agree_with_libpcap(
        program in any_program(),
        packets in prop::collection::vec(captured(any_ip()), 20),
    ) {
        let Ok(translated) = translate(&program) else { return Ok(()) };
        for packet in &packets {
            let found = machine::matches(&translated, &packet.0, packet.1);
            if linked() {
                prop_assert_eq!(found, interpreted(&program, packet), "{:02x?}", packet);
            }
        }
    }

    #[test]
    fn any_text_is_compiled_or_refused(text in prop_oneof![super::any_words(), any::<String>()]) {
        if linked() && let Err(error) = crate::filter::compile(&text, &pcap::compile) {
            prop_assert!(!error.to_string().contains('\x1b'));
        }
    }

    #[test]
    fn any_classic_program_is_translated_or_refused(
        program in prop::collection::vec(any_instruction(), 0..40),
        packet in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        if let Ok(translated) = translate(&program) {
            machine::matches(&translated, &packet, packet.len() as u32);
        }
    }
}

#[track_caller]
fn check_refused(program: &[(u16, u8, u8, u32)], expected: TranslateError) {
    let program: Vec<_> = program.iter().map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect();
    assert_eq!(translate(&program), Err(expected));
}

#[test]
fn invalid_programs_are_refused() {
    use TranslateError::{Invalid, Loop, Special, TooLong, Unset};
    check_refused(&[], Invalid(0));
    // Does not end.
    check_refused(&[(0x00, 0, 0, 1)], Invalid(1));
    // No such instruction, division by zero, a shift by all bits, no such word.
    for wrong in [(0x2f, 0, 0, 0), (0x34, 0, 0, 0), (0x64, 0, 0, 32), (0x02, 0, 0, 16), (0x105, 0, 0, 0)] {
        check_refused(&[wrong, (0x06, 0, 0, 0)], Invalid(0));
    }
    // Jumps to behind the end, also by overflow.
    check_refused(&[(0x05, 0, 0, 1), (0x06, 0, 0, 0)], Invalid(0));
    check_refused(&[(0x15, 0, 1, 0), (0x06, 0, 0, 0)], Invalid(0));
    // Put into on one way only.
    let stored_on_one_way = [(0x15, 0, 1, 5), (0x02, 0, 0, 3), (0x60, 0, 0, 3), (0x16, 0, 0, 0)];
    check_refused(&stored_on_one_way, Unset);
    check_refused(&[(0x05, 0, 0, -1_i32 as u32), (0x06, 0, 0, 0)], Loop);
    check_refused(&[(0x30, 0, 0, -0x1000_i32 as u32), (0x06, 0, 0, 0)], Special);
    let long: Vec<_> = (0..4000).map(|_| (0x20, 0, 0, 1 << 20)).chain([(0x06, 0, 0, 0)]).collect();
    let program: Vec<_> = long.iter().map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect();
    assert!(matches!(translate(&program), Err(TooLong { needed }) if needed > 4096));
}

/// Every packet is long enough for what the first form asks: there the forms differ, and `filter` says how.
fn complete_ip() -> impl Strategy<Value = Packet> {
    prop_oneof![ipv4(), ipv6()].prop_map(|packet| {
        let length = packet.len() as u32;
        (packet, length)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn the_first_form_agrees_with_libpcap(
        text in any_text(&[FIRST_FORM]),
        packets in prop::collection::vec(complete_ip(), 40),
    ) {
        let own = super::compile(&text);
        let theirs = pcap::compile(LinkType::Raw, &text);
        match (own, theirs) {
            _ if !linked() => {}
            (Ok(own), Ok(theirs)) => {
                for packet in &packets {
                    let found = own.matches(&Key::from_packet(&packet.0));
                    prop_assert_eq!(found, interpreted(&theirs, packet), "{} {:02x?}", text, packet);
                }
            }
            (Err(own), Err(_)) => prop_assert_eq!(own.kind(), &FilterErrorKind::NeverMatches, "{}", text),
            // What no packet matches, libpcap does not always see.
            (Err(own), Ok(theirs)) => {
                prop_assert_eq!(own.kind(), &FilterErrorKind::NeverMatches, "{}", text);
                prop_assert!(packets.iter().all(|packet| !interpreted(&theirs, packet)), "{}", text);
            }
            // Nor does the first form.
            (Ok(own), Err(theirs)) => {
                prop_assert_eq!(theirs, LibpcapError::Refused(REJECTS_ALL.to_owned()), "{}", text);
                prop_assert!(packets.iter().all(|(packet, _)| !own.matches(&Key::from_packet(packet))), "{}", text);
            }
        }
    }
}

/// Or else the comparisons would be of nothing.
#[test]
fn the_terms_are_filters() {
    if !linked() {
        return;
    }
    for (link, terms) in [
        (LinkType::Raw, ADDRESSES),
        (LinkType::Raw, TRANSPORTS),
        (LinkType::Raw, BYTES),
        (LinkType::Raw, FIRST_FORM),
        (LinkType::Ethernet, LINKS),
    ] {
        let refused = terms.split(';').filter_map(|term| Some((term, pcap::compile(link, term).err()?)));
        assert_eq!(refused.collect::<Vec<_>>(), []);
    }
}
