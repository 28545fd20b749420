//! Packets put together by hand, and bytes that are none.

use super::*;
use proptest::prelude::*;

fn view(family: Family, bytes: &[u8]) -> PacketView<'_> {
    PacketView {
        family,
        indev: None,
        outdev: None,
        link: Link::default(),
        len: bytes.len() as u32,
        bytes,
        mark: 0,
        owner: None,
    }
}

fn ipv4(protocol: u8, frag_off: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = frag_off.to_be_bytes();
    let mut packet = vec![0x46, 0, 0x12, 0x34, 0, 0, high, low, 64, protocol, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    packet.extend([1, 1, 1, 0]);
    packet.extend(payload);
    packet
}

fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 100, next_header, 64];
    for last in [2, 1] {
        packet.extend([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend(payload);
    packet
}

/// `src:sport > dst:dport protocol length`, with `-` for what is not known.
#[track_caller]
fn check(view: PacketView<'_>, expected: &str) {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or("-".to_owned(), |value| value.to_string())
    }
    let Headers { src, dst, protocol, sport, dport, length, .. } = headers(&view);
    let found = format!(
        "{} {} > {} {} {} {}",
        text(src),
        text(sport),
        text(dst),
        text(dport),
        text(protocol.map(protocol_name)),
        text(length)
    );
    assert_eq!(found, expected);
}

const PORTS: [u8; 8] = [0x82, 0x35, 0, 53, 0, 8, 0, 0];

#[test]
fn ipv4_headers() {
    let check4 = |bytes: &[u8], expected| check(view(Family::Ipv4, bytes), expected);
    check4(&ipv4(17, 0x4000, &PORTS), "10.9.0.2 33333 > 10.9.0.1 53 udp 4660");
    check4(&ipv4(6, 0x2000, &PORTS), "10.9.0.2 33333 > 10.9.0.1 53 tcp 4660");
    check4(&ipv4(6, 0x2001, &PORTS), "10.9.0.2 - > 10.9.0.1 - tcp 4660");
    check4(&ipv4(132, 0, &PORTS), "10.9.0.2 33333 > 10.9.0.1 53 sctp 4660");
    check4(&ipv4(1, 0, &PORTS), "10.9.0.2 - > 10.9.0.1 - icmp 4660");
    check4(&ipv4(200, 0, &PORTS), "10.9.0.2 - > 10.9.0.1 - 200 4660");
    check4(&ipv4(17, 0, &PORTS[..3]), "10.9.0.2 - > 10.9.0.1 - udp 4660");
    check4(&ipv4(17, 0, &PORTS)[..19], "- - > - - - -");
    check4(&[], "- - > - - - -");
}

#[test]
fn ipv6_headers() {
    let check6 = |bytes: &[u8], expected| check(view(Family::Ipv6, bytes), expected);
    let [options, fragment] = [[17, 0, 1, 4, 0, 0, 0, 0], [17, 0, 0, 1, 0, 0, 0, 1]];
    let to = |next: u8, mut header: [u8; 8]| {
        header[0] = next;
        header
    };
    check6(&ipv6(17, &PORTS), "fd09::2 33333 > fd09::1 53 udp 140");
    check6(&ipv6(58, &PORTS), "fd09::2 - > fd09::1 - icmpv6 140");
    check6(
        &ipv6(0, &[to(60, options), to(43, options), options, PORTS].concat()),
        "fd09::2 33333 > fd09::1 53 udp 140",
    );
    check6(
        &ipv6(51, &[&[17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], &PORTS].concat()),
        "fd09::2 33333 > fd09::1 53 udp 140",
    );
    check6(&ipv6(44, &[fragment, PORTS].concat()), "fd09::2 33333 > fd09::1 53 udp 140");
    check6(&ipv6(44, &[[17, 0, 0, 8, 0, 0, 0, 1], PORTS].concat()), "fd09::2 - > fd09::1 - udp 140");
    check6(&ipv6(0, &[to(50, options), PORTS].concat()), "fd09::2 - > fd09::1 - esp 140");
    check6(&ipv6(0, &[17]), "fd09::2 - > fd09::1 - - 140");
    check6(&ipv6(59, &[]), "fd09::2 - > fd09::1 - 59 140");
}

#[test]
fn what_is_not_copied_is_not_known() {
    let bytes = ipv4(17, 0, &PORTS);
    check(
        PacketView { bytes: &bytes[..24], ..view(Family::Ipv4, &bytes) },
        "10.9.0.2 - > 10.9.0.1 - udp 4660",
    );
    // The packet is shorter than the buffer.
    check(PacketView { len: 26, ..view(Family::Ipv4, &bytes) }, "10.9.0.2 - > 10.9.0.1 - udp 4660");
}

proptest! {
    #[test]
    fn any_packet_can_be_decoded(
        ipv6: bool,
        bytes in prop::collection::vec(prop_oneof![0_u8..64, any::<u8>()], 0..300),
        len: u32,
    ) {
        let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
        _ = headers(&view(family, &bytes));
        _ = headers(&PacketView { len, ..view(family, &bytes) });
    }
}
