//! Lines of a real kernel, from packets put together out of their own fields, and lines of every kind of packet.

use super::*;
use crate::packet::Owner;
use proptest::prelude::*;

pub(super) const STEP: StepName<'_> =
    StepName { table: "raw", chain: "PREROUTING", kind: StepKind::Policy, number: 2 };

/// A locally made packet without owner, wholly copied.
fn local(family: Family, bytes: &[u8]) -> PacketView<'_> {
    PacketView {
        family,
        indev: None,
        outdev: Some(b"v0"),
        link: Link::default(),
        len: bytes.len() as u32,
        bytes,
        mark: 0,
        owner: None,
    }
}

pub(super) fn line_in(style: LogStyle, step: StepName<'_>, packet: &PacketView<'_>) -> String {
    let mut out = b"before ".to_vec();
    let name = step.to_string();
    write(&mut out, &name, packet, style);
    check_writer(style, &name, packet, &out["before ".len()..]);
    String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
}

/// A writer makes the same, whatever it wrote before.
#[track_caller]
fn check_writer(style: LogStyle, name: &str, packet: &PacketView<'_>, expected: &[u8]) {
    let mut writer = Writer::new(style);
    let others = [
        PacketView { mark: packet.mark ^ 1, ..*packet },
        PacketView { len: packet.len + 1, ..*packet },
        PacketView { outdev: Some(b"other"), ..*packet },
        PacketView { bytes: packet.bytes.get(1..).unwrap_or_default(), ..*packet },
        PacketView { owner: Some(Owner { uid: 7, gid: 7 }), ..*packet },
        *packet,
    ];
    for other in others {
        writer.write(&mut Vec::new(), "raw:OUTPUT:rule:1", &other);
        let mut out = Vec::new();
        writer.write(&mut out, name, packet);
        assert_eq!(out, expected);
    }
}

fn line(packet: &PacketView<'_>) -> String {
    line_in(LogStyle::default(), STEP, packet)
}

/// What follows the devices.
#[track_caller]
fn check(packet: PacketView<'_>, expected: &str) {
    let line = line(&packet);
    assert_eq!(line.strip_prefix("TRACE: raw:PREROUTING:policy:2 IN= OUT=v0 "), Some(expected), "{line}");
}

#[track_caller]
fn check4(bytes: &[u8], expected: &str) {
    check(local(Family::Ipv4, bytes), expected);
}

#[track_caller]
fn check6(bytes: &[u8], expected: &str) {
    check(local(Family::Ipv6, bytes), expected);
}

/// 10.9.0.2 → 10.9.0.1, with a length that fits.
fn ipv4(protocol: u8, frag_off: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
    packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
    packet.extend([0x30, 0x39]);
    packet.extend(frag_off.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// fd09::2 → fd09::1
fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    for last in [2, 1] {
        packet.extend([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend(payload);
    packet
}

fn tcp(reserved: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0xab, 0xa8, 0x1f, 0x90];
    tcp.extend(2005631117_u32.to_be_bytes());
    tcp.extend(375565317_u32.to_be_bytes());
    tcp.extend([((5 + options.len() / 4) as u8) << 4 | reserved, flags, 0x72, 0x10, 0, 0, 0, 0]);
    tcp.extend(options);
    tcp
}

const UDP: [u8; 12] = [0x82, 0x35, 0, 53, 0, 12, 0, 0, b'd', b'a', b't', b'a'];
const ECHO: [u8; 12] = [8, 0, 0, 0, 0x16, 0x2d, 0, 1, 0, 0, 0, 0];
const ECHO6: [u8; 8] = [128, 0, 0, 0, 0x16, 0x2d, 0, 1];

const NET4: &str = "SRC=10.9.0.2 DST=10.9.0.1";
const NET6: &str = "SRC=fd09:0000:0000:0000:0000:0000:0000:0002 DST=fd09:0000:0000:0000:0000:0000:0000:0001";

#[test]
fn numbers_as_the_kernel_prints_them() {
    for value in [0, 9, 10, 99, 100, 255, 256, 999, 1000, 65535, 99999, 100000, 4294967295] {
        let mut line = Line::default();
        line.decimal(value);
        line.text(b" ");
        line.short_hex(value);
        line.text(b" ");
        line.hex32(value);
        assert_eq!(str::from_utf8(line.as_bytes()), Ok(&*format!("{value} {value:x} {value:08x}")));
    }
}

#[test]
fn all_but_printable_ascii_is_escaped() {
    for before in 0..16 {
        for byte in 0..=u8::MAX {
            let mut line = Line::default();
            line.raw(&b"a name with blanks"[..before]);
            line.raw(&[byte, b'~', b' ']);
            line.escape();
            let expected = match byte {
                b' '..=b'~' => (byte as char).to_string(),
                _ => format!("\\x{byte:02x}"),
            };
            let expected = format!("{}{expected}~ ", &"a name with blanks"[..before]);
            assert_eq!(str::from_utf8(line.as_bytes()), Ok(&*expected));
        }
    }
}

#[test]
fn devices_and_link_layer() {
    let bytes = ipv4(253, 0, &[], &[]);
    let tail = format!("{NET4} LEN=20 TOS=0x00 PREC=0x00 TTL=64 ID=12345 PROTO=253 ");
    let header: Vec<u8> = (0xf8..=0xff).chain(0..12).collect();
    let ethernet = Link { dev_type: 1, hard_header_len: 14, header: Some(&header), ..Link::default() };
    let arriving =
        PacketView { indev: Some(b"eth0"), outdev: None, link: ethernet, ..local(Family::Ipv4, &bytes) };
    let check = |packet: PacketView<'_>, devices: &str| {
        assert_eq!(line(&packet), format!("TRACE: raw:PREROUTING:policy:2 {devices} {tail}"));
    };
    check(arriving, "IN=eth0 OUT= MAC=f8:f9:fa:fb:fc:fd:fe:ff:00:01:02:03:04:05");
    check(PacketView { outdev: Some(b"v0"), link: Link::default(), ..arriving }, "IN=eth0 OUT=v0 MAC=");
    check(PacketView { link: Link { hard_header_len: 0, ..ethernet }, ..arriving }, "IN=eth0 OUT= MAC=");
    check(PacketView { link: Link { header: None, ..ethernet }, ..arriving }, "IN=eth0 OUT= MAC=");
    // The bytes are not known: the field is left out.
    check(PacketView { link: Link { header: Some(&header[..13]), ..ethernet }, ..arriving }, "IN=eth0 OUT=");
    let sit = Link { dev_type: ARPHRD_SIT, hard_header_len: 20, header: Some(&header), ..Link::default() };
    check(PacketView { link: sit, ..arriving }, "IN=eth0 OUT= TUNNEL=4.5.6.7->8.9.10.11");
    // No input device: nothing of the link layer.
    check(PacketView { indev: None, outdev: Some(b"w0"), ..arriving }, "IN= OUT=w0");
    check(
        PacketView { indev: Some(b"a\x1b[2J\xc2\x9b\\"), ..arriving },
        r"IN=a\x1b[2J\xc2\x9b\ OUT= MAC=f8:f9:fa:fb:fc:fd:fe:ff:00:01:02:03:04:05",
    );
}

#[test]
fn names_are_escaped() {
    let step = StepName { table: "filter", chain: "a\n\x7fb", kind: StepKind::Return, number: 70000 };
    let bytes = ipv4(253, 0, &[], &[]);
    let line = line_in(LogStyle::default(), step, &local(Family::Ipv4, &bytes));
    assert!(line.starts_with(r"TRACE: filter:a\x0a\x7fb:return:70000 IN= OUT=v0 SRC="), "{line}");
}

#[test]
fn no_longer_than_the_kernels_buffer() {
    let (bytes, header) = (ipv4(253, 0, &[], &[]), [0xee; 500]);
    let link = Link { dev_type: 1, hard_header_len: 500, header: Some(&header), ..Link::default() };
    let line = line_in(
        LogStyle::default(),
        STEP,
        &PacketView { indev: Some(b"x"), link, ..local(Family::Ipv4, &bytes) },
    );
    assert_eq!(line.len(), 1016);
    assert!(line.ends_with(":ee:ee:"), "{line}");
    let chain = "c".repeat(2000);
    let line = line_in(LogStyle::default(), StepName { chain: &chain, ..STEP }, &local(Family::Ipv4, &bytes));
    assert_eq!(line.len(), 1016);
    assert!(line.ends_with("ccc"), "{line}");
}

#[test]
fn owner_and_mark() {
    let bytes = ipv4(17, 0x4000, &[], &UDP);
    let owner = Some(Owner { uid: 4294967294, gid: 0 });
    let fields =
        format!("{NET4} LEN=32 TOS=0x00 PREC=0x00 TTL=64 ID=12345 DF PROTO=UDP SPT=33333 DPT=53 LEN=12 ");
    let packet = local(Family::Ipv4, &bytes);
    check(PacketView { owner, ..packet }, &format!("{fields}UID=4294967294 GID=0 "));
    check(PacketView { mark: 0xd4, ..packet }, &format!("{fields}MARK=0xd4 "));
    check(
        PacketView { mark: u32::MAX, owner, ..packet },
        &format!("{fields}UID=4294967294 GID=0 MARK=0xffffffff "),
    );
}

#[test]
fn ipv4_header() {
    let mut bytes = ipv4(253, 0xe000 | 185, &[7, 3, 4, 0], &[]);
    bytes[1] = 0xff;
    bytes[2..4].copy_from_slice(&[0xff, 0xff]);
    check4(
        &bytes,
        &format!(
            "{NET4} LEN=65535 TOS=0x1E PREC=0xE0 TTL=64 ID=12345 CE DF MF FRAG:185 OPT (07030400) PROTO=253 "
        ),
    );
    check4(
        &bytes[..23],
        &format!("{NET4} LEN=65535 TOS=0x1E PREC=0xE0 TTL=64 ID=12345 CE DF MF FRAG:185 TRUNCATED"),
    );
    check4(&bytes[..19], "TRUNCATED");
    check4(&[], "TRUNCATED");
}

#[test]
fn fragments_of_ipv4() {
    let net = |len: u16, flags: &str| format!("{NET4} LEN={len} TOS=0x00 PREC=0x00 TTL=64 ID=12345 {flags} ");
    let first = |protocol, payload: &[u8]| ipv4(protocol, 0x2000, &[], payload);
    let later = |protocol, payload: &[u8]| ipv4(protocol, 0x2000 | 185, &[], payload);
    check4(&first(17, &UDP), &(net(32, "MF") + "PROTO=UDP SPT=33333 DPT=53 LEN=12 "));
    check4(&later(17, &UDP), &(net(32, "MF FRAG:185") + "PROTO=UDP "));
    check4(&later(136, &UDP), &(net(32, "MF FRAG:185") + "PROTO=UDPLITE "));
    check4(&later(6, &UDP), &(net(32, "MF FRAG:185") + "PROTO=TCP "));
    check4(&later(1, &ECHO), &(net(32, "MF FRAG:185") + "PROTO=ICMP "));
    check4(&later(50, &UDP), &(net(32, "MF FRAG:185") + "PROTO=ESP "));
    check4(&later(51, &UDP), &net(32, "MF FRAG:185"));
    check4(&later(89, &UDP), &(net(32, "MF FRAG:185") + "PROTO=89 "));
}

#[test]
fn tcp_fields() {
    const PORTS: &str = "PROTO=TCP SPT=43944 DPT=8080 SEQ=2005631117 ACK=375565317 WINDOW=29200";
    let net = |len: u16| format!("{NET4} LEN={len} TOS=0x00 PREC=0x00 TTL=64 ID=12345 ");
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 0x0a, 0xff, 0xfb, 0x7a, 0xdd, 0, 0, 0, 0, 1, 3, 3, 7];
    let syn = ipv4(6, 0, &[], &tcp(0, 0x02, &options));
    let syn_line = net(60) + PORTS + " RES=0x00 SYN URGP=0 OPT (020405B40402080AFFFB7ADD0000000001030307) ";
    check4(&syn, &syn_line);
    let all = ipv4(6, 0, &[], &tcp(0x0f, 0xff, &[]));
    check4(&all, &(net(40) + PORTS + " RES=0x38 AE CWR ECE URG ACK PSH RST SYN FIN URGP=0 "));
    let before = line_in(LogStyle::of_tcp_header(false), STEP, &local(Family::Ipv4, &all));
    assert!(before.ends_with(" RES=0x3c CWR ECE URG ACK PSH RST SYN FIN URGP=0 "), "{before}");
    let null = ipv4(6, 0, &[], &tcp(0, 0, &[]));
    check4(&null, &(net(40) + PORTS + " RES=0x00 URGP=0 "));

    // The packet ends early: no owner and no mark then.
    let marked = |bytes| PacketView { mark: 1, ..local(Family::Ipv4, bytes) };
    check(marked(&syn[..39]), &(net(60) + "PROTO=TCP INCOMPLETE [19 bytes] "));
    check(marked(&syn[..20]), &(net(60) + "PROTO=TCP INCOMPLETE [0 bytes] "));
    check(marked(&syn[..59]), &(net(60) + PORTS + " RES=0x00 SYN URGP=0 OPT (TRUNCATED)"));
    // The copy ends early: nothing is invented, and owner and mark are known.
    let cut = |copied: usize| PacketView { bytes: &syn[..copied], ..marked(&syn) };
    check(cut(60), &(syn_line + "MARK=0x1 "));
    check(cut(59), &(net(60) + PORTS + " RES=0x00 SYN URGP=0 MARK=0x1 "));
    check(cut(39), &(net(60) + "PROTO=TCP MARK=0x1 "));
    check(cut(19), "MARK=0x1 ");
}

#[test]
fn udp_fields() {
    let net = format!("{NET4} LEN=32 TOS=0x00 PREC=0x00 TTL=64 ID=12345 ");
    let udp = ipv4(17, 0, &[], &UDP);
    check4(&udp, &(net.clone() + "PROTO=UDP SPT=33333 DPT=53 LEN=12 "));
    check4(&ipv4(136, 0, &[], &UDP), &(net.clone() + "PROTO=UDPLITE SPT=33333 DPT=53 LEN=12 "));
    let packet = PacketView { mark: 1, ..local(Family::Ipv4, &udp) };
    check(PacketView { len: 27, ..packet }, &(net.clone() + "PROTO=UDP INCOMPLETE [7 bytes] "));
    check(PacketView { bytes: &udp[..27], ..packet }, &(net + "PROTO=UDP MARK=0x1 "));
}

#[test]
fn ipsec_over_ipv4() {
    let net = format!("{NET4} LEN=32 TOS=0x00 PREC=0x00 TTL=64 ID=12345 ");
    let (esp, ah) =
        ([0, 0, 0x10, 1, 0, 0, 0, 1, 9, 9, 9, 9], [6, 4, 0, 0, 0xf1, 0x23, 0x45, 0x67, 0, 0, 0, 1]);
    let (esp, ah) = (ipv4(50, 0, &[], &esp), ipv4(51, 0, &[], &ah));
    let marked = |bytes| PacketView { mark: 1, ..local(Family::Ipv4, bytes) };
    check(marked(&esp), &(net.clone() + "PROTO=ESP SPI=0x1001 MARK=0x1 "));
    check(marked(&ah), &(net.clone() + "PROTO=AH SPI=0xf1234567 MARK=0x1 "));
    check(marked(&esp[..27]), &(net.clone() + "PROTO=ESP INCOMPLETE [7 bytes] MARK=0x1 "));
    check(marked(&ah[..31]), &(net + "PROTO=AH INCOMPLETE [11 bytes] MARK=0x1 "));
}

#[test]
fn icmp_messages() {
    let check_message = |message: &[u8], expected: &str| {
        let len = 20 + message.len();
        let net = format!("{NET4} LEN={len} TOS=0x00 PREC=0x00 TTL=64 ID=12345 PROTO=ICMP ");
        check(
            PacketView { mark: 7, ..local(Family::Ipv4, &ipv4(1, 0, &[], message)) },
            &(net + expected + "MARK=0x7 "),
        );
    };
    check_message(&ECHO, "TYPE=8 CODE=0 ID=5677 SEQ=1 ");
    check_message(&[&[0, 0, 0, 0], &ECHO[4..]].concat(), "TYPE=0 CODE=0 ID=5677 SEQ=1 ");
    check_message(&ECHO[..7], "INCOMPLETE [7 bytes] ");
    check_message(&[13, 0, 0, 0, 0, 1, 0, 2], "TYPE=13 CODE=0 INCOMPLETE [8 bytes] ");
    check_message(&[[14, 0, 0, 0], [0; 4], [0; 4], [0; 4], [0; 4]].concat(), "TYPE=14 CODE=0 ");
    check_message(&[17, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0], "TYPE=17 CODE=0 INCOMPLETE [11 bytes] ");
    check_message(&[19, 1, 0, 0, 0, 1, 0, 2], "TYPE=19 CODE=1 ");
    check_message(&[3, 1, 0, 0, 0, 0, 0, 0, 0x45], "TYPE=3 CODE=1 INCOMPLETE [9 bytes] ");
}

#[test]
fn icmp_errors_quote_a_packet() {
    const UDP_QUOTE: &str = "[SRC=10.9.0.2 DST=10.9.0.1 LEN=32 TOS=0x00 PREC=0x00 TTL=64 ID=12345 PROTO=UDP SPT=33333 DPT=53 LEN=12 ] ";
    let error = |head: [u8; 8], quoted: &[u8]| ipv4(1, 0, &[], &[&head, quoted].concat());
    let udp = ipv4(17, 0, &[], &UDP);
    let net = |len: usize| format!("{NET4} LEN={len} TOS=0x00 PREC=0x00 TTL=64 ID=12345 PROTO=ICMP ");
    check4(&error([3, 3, 0, 0, 0, 0, 0, 0], &udp), &(net(60) + "TYPE=3 CODE=3 " + UDP_QUOTE));
    check4(
        &error([3, 4, 0, 0, 0, 0, 0x05, 0xdc], &udp),
        &(net(60) + "TYPE=3 CODE=4 " + UDP_QUOTE + "MTU=1500 "),
    );
    check4(
        &error([5, 1, 0, 0, 10, 9, 0, 254], &udp),
        &(net(60) + "TYPE=5 CODE=1 GATEWAY=10.9.0.254 " + UDP_QUOTE),
    );
    check4(&error([4, 0, 0, 0, 0, 0, 0, 0], &udp), &(net(60) + "TYPE=4 CODE=0 " + UDP_QUOTE));
    check4(&error([11, 0, 0, 0, 0, 0, 0, 0], &udp), &(net(60) + "TYPE=11 CODE=0 " + UDP_QUOTE));
    check4(&error([12, 0, 0, 0, 20, 0, 0, 0], &udp), &(net(60) + "TYPE=12 CODE=0 PARAMETER=20 "));
    // A quoted packet is often cut: the line of the quoting packet goes on, mark and all.
    let cut = error([3, 3, 0, 0, 0, 0, 0, 0], &ipv4(6, 0, &[], &tcp(0, 2, &[]))[..28]);
    check(
        PacketView { mark: 2, ..local(Family::Ipv4, &cut) },
        &(net(56)
            + "TYPE=3 CODE=3 \
        [SRC=10.9.0.2 DST=10.9.0.1 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=12345 PROTO=TCP INCOMPLETE [8 bytes] ] MARK=0x2 "),
    );
    // An error in an error quotes nothing, but still has its MTU.
    let twice = error([3, 1, 0, 0, 0, 0, 0, 0], &error([3, 4, 0, 0, 0, 0, 2, 0x40], &udp));
    check4(
        &twice,
        &(net(88)
            + "TYPE=3 CODE=1 [SRC=10.9.0.2 DST=10.9.0.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=12345 \
        PROTO=ICMP TYPE=3 CODE=4 MTU=576 ] "),
    );
    // The copy ends before the quoted header.
    let whole = error([3, 4, 0, 0, 0, 0, 0x05, 0xdc], &udp);
    check(
        PacketView { bytes: &whole[..47], ..local(Family::Ipv4, &whole) },
        &(net(60) + "TYPE=3 CODE=4 MTU=1500 "),
    );
}

#[test]
fn ipv6_header() {
    let mut bytes = ipv6(6, &tcp(0, 0x12, &[]));
    bytes[..4].copy_from_slice(&[0x6a, 0xbc, 0xde, 0xf1]);
    check6(
        &bytes,
        &format!(
            "{NET6} LEN=60 TC=171 HOPLIMIT=64 FLOWLBL=843505 \
         PROTO=TCP SPT=43944 DPT=8080 SEQ=2005631117 ACK=375565317 WINDOW=29200 RES=0x00 ACK SYN URGP=0 "
        ),
    );
    check6(&bytes[..39], "TRUNCATED");
    check6(
        &bytes[..59],
        &format!("{NET6} LEN=60 TC=171 HOPLIMIT=64 FLOWLBL=843505 PROTO=TCP INCOMPLETE [19 bytes] "),
    );
    check6(&ipv6(59, &[]), &format!("{NET6} LEN=40 TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=59 "));
    check6(
        &ipv6(17, &UDP),
        &format!("{NET6} LEN=52 TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=UDP SPT=33333 DPT=53 LEN=12 "),
    );
}

/// A hop-by-hop, routing or destination options header of eight bytes.
fn options6(next: u8) -> [u8; 8] {
    [next, 0, 5, 2, 0, 0, 1, 0]
}

fn fragment6(next: u8, frag_off: u16) -> [u8; 8] {
    let [high, low] = frag_off.to_be_bytes();
    [next, 0, high, low, 0, 0xbc, 0x61, 0x4e]
}

#[test]
fn ipv6_extension_headers() {
    let net = |len: usize| format!("{NET6} LEN={len} TC=0 HOPLIMIT=64 FLOWLBL=0 ");
    let marked = |first: u8, payload: &[u8], expected: &str| {
        let bytes = ipv6(first, payload);
        check(PacketView { mark: 0xd4, ..local(Family::Ipv6, &bytes) }, &(net(bytes.len()) + expected));
    };
    let mld = [143, 0, 0, 0, 0, 0, 0, 1];
    marked(0, &[options6(58), mld].concat(), "OPT ( ) PROTO=ICMPv6 TYPE=143 CODE=0 MARK=0xd4 ");
    marked(
        0,
        &[options6(43), options6(60), options6(58), ECHO6].concat(),
        "OPT ( ) OPT ( ) OPT ( ) PROTO=ICMPv6 TYPE=128 CODE=0 ID=5677 SEQ=1 MARK=0xd4 ",
    );
    marked(0, &[60], "TRUNCATED");
    marked(0, &[[17, 1, 0, 0, 0, 0, 0, 0], [0; 8]].concat(), "OPT ( ) PROTO=UDP INCOMPLETE [0 bytes] ");
    // The length of an option header may point past the end; the kernel's subtraction wraps.
    marked(0, &[17, 1, 0, 0, 0, 0, 0, 0], "OPT ( ) PROTO=UDP INCOMPLETE [4294967288 bytes] ");

    marked(
        44,
        &[fragment6(58, 1), ECHO6].concat(),
        "OPT ( FRAG:0 INCOMPLETE ID:00bc614e ) PROTO=ICMPv6 TYPE=128 CODE=0 ID=5677 SEQ=1 MARK=0xd4 ",
    );
    marked(
        44,
        &[fragment6(58, 1448), ECHO6].concat(),
        "OPT ( FRAG:1448 ID:00bc614e ) PROTO=ICMPv6 MARK=0xd4 ",
    );
    marked(44, &[fragment6(17, 1448), ECHO6].concat(), "OPT ( FRAG:1448 ID:00bc614e ) PROTO=UDP MARK=0xd4 ");
    marked(44, &[fragment6(60, 1448), ECHO6].concat(), "OPT ( FRAG:1448 ID:00bc614e ) OPT ( )");
    marked(44, &[fragment6(51, 1448), ECHO6].concat(), "OPT ( FRAG:1448 ID:00bc614e ) OPT ( AH )");
    marked(44, &[fragment6(50, 1448), ECHO6].concat(), "OPT ( FRAG:1448 ID:00bc614e ) OPT ( ESP )");
    marked(44, &fragment6(17, 0)[..7], "OPT ( FRAG:TRUNCATED ");

    let ah = [17, 1, 0, 0, 0xf1, 0x23, 0x45, 0x67, 0, 0, 0, 1];
    marked(
        51,
        &[&ah[..], &UDP].concat(),
        "OPT ( AH SPI=0xf1234567 ) PROTO=UDP SPT=33333 DPT=53 LEN=12 MARK=0xd4 ",
    );
    marked(51, &ah[..11], "OPT ( AH INCOMPLETE [11 bytes] )");
    marked(50, &[0, 0, 0x10, 1, 0, 0, 0, 1], "OPT ( ESP SPI=0x1001 )");
    marked(50, &[0, 0, 0x10, 1], "OPT ( ESP INCOMPLETE [4 bytes] )");
}

#[test]
fn ipv6_copy_ends_early() {
    let net = format!("{NET6} LEN=64 TC=0 HOPLIMIT=64 FLOWLBL=0 ");
    let bytes = ipv6(0, &[options6(44), fragment6(58, 0), ECHO6].concat());
    let cut = |copied: usize, expected: &str| {
        check(
            PacketView { bytes: &bytes[..copied], ..local(Family::Ipv6, &bytes) },
            &(net.clone() + expected),
        );
    };
    cut(64, "OPT ( ) OPT ( FRAG:0 ID:00bc614e ) PROTO=ICMPv6 TYPE=128 CODE=0 ID=5677 SEQ=1 ");
    cut(63, "OPT ( ) OPT ( FRAG:0 ID:00bc614e ) PROTO=ICMPv6 ");
    cut(55, "OPT ( ) ");
    cut(49, "OPT ( ) ");
    cut(41, "");
}

#[test]
fn icmpv6_messages() {
    let udp_quote = format!("[{NET6} LEN=52 TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=UDP SPT=33333 DPT=53 LEN=12 ] ");
    let check_message = |message: &[u8], expected: &str| {
        let len = 40 + message.len();
        check6(
            &ipv6(58, message),
            &format!("{NET6} LEN={len} TC=0 HOPLIMIT=64 FLOWLBL=0 PROTO=ICMPv6 {expected}"),
        );
    };
    let error = |head: [u8; 8]| [&head[..], &ipv6(17, &UDP)].concat();
    check_message(&ECHO6, "TYPE=128 CODE=0 ID=5677 SEQ=1 ");
    check_message(&[129, 0, 0, 0, 0xff, 0xff, 1, 0], "TYPE=129 CODE=0 ID=65535 SEQ=256 ");
    check_message(&[135, 0, 0, 0, 0, 0, 0, 0], "TYPE=135 CODE=0 ");
    check_message(&[130, 0, 0, 0, 0, 0, 0, 0], "TYPE=130 CODE=0 ");
    check_message(&ECHO6[..7], "INCOMPLETE [7 bytes] ");
    check_message(&error([1, 4, 0, 0, 0, 0, 0, 0]), &format!("TYPE=1 CODE=4 {udp_quote}"));
    check_message(&error([3, 0, 0, 0, 0, 0, 0, 0]), &format!("TYPE=3 CODE=0 {udp_quote}"));
    check_message(&error([2, 0, 0, 0, 0, 1, 0x11, 0x70]), &format!("TYPE=2 CODE=0 {udp_quote}MTU=70000 "));
    check_message(
        &error([4, 1, 0, 0, 0, 0, 0, 0x28]),
        &format!("TYPE=4 CODE=1 POINTER=00000028 {udp_quote}"),
    );
    check_message(&error([1, 4, 0, 0, 0, 0, 0, 0])[..47], "TYPE=1 CODE=4 [TRUNCATED] ");
}

#[test]
fn lengths_beyond_16_bits() {
    let mut four = ipv4(6, 0, &[], &tcp(0, 0x10, &[]));
    four[2..4].fill(0);
    let packet = PacketView { len: 180_040, ..local(Family::Ipv4, &four) };
    assert!(line(&packet).contains(" LEN=180040 "));
    assert!(line(&PacketView { len: 65_535, ..packet }).contains(" LEN=0 "));
    let mut six = ipv6(6, &tcp(0, 0x10, &[]));
    six[4..6].fill(0);
    assert!(line(&PacketView { len: 180_060, ..local(Family::Ipv6, &six) }).contains(" LEN=180060 "));
    // Kernels before 7.0 add a hop-by-hop header, and print what the IPv6 header states.
    let mut jumbo = ipv6(0, &[&[6, 0, 0xc2, 4, 0, 2, 0xbf, 0x3c][..], &tcp(0, 0x10, &[])].concat());
    jumbo[4..6].fill(0);
    assert!(line(&PacketView { len: 180_068, ..local(Family::Ipv6, &jumbo) }).contains(" LEN=40 "));
}

/// Lines of a real kernel; the packets are made from what the lines say of them.
mod captured {
    use super::*;

    const KMSG: &str = include_str!("../../../tests/data/kmsg/el7.txt");

    fn lines() -> impl Iterator<Item = &'static str> {
        KMSG.lines().filter_map(|record| record.split_once(';')).map(|(_, text)| text)
    }

    #[test]
    fn give_packets_that_give_the_lines() {
        let mut style = LogStyle::default();
        let mut count = 0;
        for expected in lines() {
            let (prefix, text) = match trace_line(expected) {
                Some(TraceLine { name, content, .. }) => (format!("TRACE: {name} "), content),
                None => {
                    log_line(expected).map(|line| (line.prefix.to_owned(), line.content)).expect(expected)
                }
            };
            let packet = packet(text, &mut style).expect(expected);
            style.ae_flag = false;
            let mut written = Vec::new();
            whole_line(&mut written, |line| {
                line.raw(prefix.as_bytes());
                after_name(line, &packet.view(), style);
            });
            assert_eq!(str::from_utf8(&written), Ok(expected));
            count += 1;
        }
        assert_eq!(count, 300);
    }

    #[test]
    fn prefix_reads_and_writes() {
        for text in lines() {
            match parse_prefix(text) {
                Some((step, rest)) => assert_eq!(format!("TRACE: {step} {rest}"), text),
                None => assert_eq!(log_line(text).map(|line| line.prefix), Some("FWD: ")),
            }
        }
    }
}

#[track_caller]
fn check_prefix(line: &str, expected: Option<(&str, &str, StepKind, u32, &str)>) {
    let found = parse_prefix(line).map(|(step, rest)| (step.table, step.chain, step.kind, step.number, rest));
    assert_eq!(found, expected);
}

#[test]
fn prefixes() {
    use StepKind::*;
    check_prefix(
        "TRACE: raw:OUTPUT:policy:2 IN= OUT=lo SRC=",
        Some(("raw", "OUTPUT", Policy, 2, "IN= OUT=lo SRC=")),
    );
    check_prefix(
        "TRACE: filter:a:rule:1:b:return:12 IN=x ",
        Some(("filter", "a:rule:1:b", Return, 12, "IN=x ")),
    );
    check_prefix("TRACE: filter:a IN=b:rule:3 IN=x ", Some(("filter", "a IN=b", Rule, 3, "IN=x ")));
    check_prefix("TRACE: filter:INPUT:rule:3 ", Some(("filter", "INPUT", Rule, 3, "")));
    check_prefix("TRACE: filter:INPUT:rule:3", Some(("filter", "INPUT", Rule, 3, "")));
    check_prefix("TRACE: filter:INPUT:rules:3 IN=", None);
    check_prefix("TRACE: filter:INPUT:rule:-3 IN=", None);
    check_prefix("TRACE: filter:rule:3 IN=", None);
    check_prefix("TRACE: ", None);
    check_prefix("FWD: IN=v0 OUT=w0 ", None);
}

fn kinds() -> impl Strategy<Value = StepKind> {
    prop::sample::select(vec![StepKind::Rule, StepKind::Return, StepKind::Policy])
}

/// Bytes with numbers of known protocols and messages where a walk through the headers looks for them.
pub(super) fn packets() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop::sample::select(vec![0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 136, 200_u8]);
    let small = || prop::sample::select(vec![0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 128, 143_u8]);
    let fixed = (number(), number(), number(), small(), small(), any::<bool>(), any::<bool>());
    (prop::collection::vec(any::<u8>(), 0..300), fixed).prop_map(|(mut bytes, fixed)| {
        let (a, b, c, kind4, kind6, short_header, unfragmented) = fixed;
        let mut set = |at: usize, value| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        };
        if short_header {
            set(0, 0x45);
        }
        if unfragmented {
            set(6, 0);
            set(7, 0);
        }
        set(9, a);
        set(20, kind4);
        set(37, b);
        set(6, a);
        set(40, if short_header { kind6 } else { b });
        set(41, 0);
        set(48, c);
        set(54, a);
        bytes
    })
}

proptest! {
    #[test]
    fn any_packet_gives_one_clean_line(
        ipv6: bool,
        bytes in packets(),
        beyond in prop_oneof![Just(0), -300_i64..300, any::<u32>().prop_map(i64::from)],
        devices in any::<(Option<Vec<u8>>, Option<Vec<u8>>)>(),
        link in any::<(bool, u16, Option<Vec<u8>>)>(),
        mark: u32,
        chain: String,
        kind in kinds(),
    ) {
        let packet = PacketView {
            family: if ipv6 { Family::Ipv6 } else { Family::Ipv4 },
            indev: devices.0.as_deref(),
            outdev: devices.1.as_deref(),
            link: Link {
                dev_type: if link.0 { ARPHRD_SIT } else { 1 },
                hard_header_len: link.1 % 32,
                header: link.2.as_deref(),
                ..Link::default()
            },
            len: (bytes.len() as i64 + beyond).clamp(0, u32::MAX.into()) as u32,
            bytes: &bytes,
            mark,
            owner: Some(Owner { uid: mark, gid: mark }),
        };
        let step = StepName { chain: &chain, kind, ..STEP };
        let line = line_in(LogStyle::default(), step, &packet);
        prop_assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
        prop_assert!(line.len() <= text::LINE_MAX);
    }

    /// A shorter copy of the same packet gives the same fields or fewer, in the same order.
    #[test]
    fn nothing_is_invented(ipv6: bool, bytes in packets(), copied in 0_usize..300) {
        let whole = local(if ipv6 { Family::Ipv6 } else { Family::Ipv4 }, &bytes);
        let cut = PacketView { bytes: &bytes[..copied.min(bytes.len())], ..whole };
        let (whole, cut) = (line(&whole), line(&cut));
        let mut fields = whole.split_whitespace();
        for field in cut.split_whitespace() {
            prop_assert!(fields.any(|known| known == field), "{field:?} of {cut:?} is not in {whole:?}");
        }
    }

    #[test]
    fn prefix_round_trip(table in "[a-z]{1,9}", chain in "[ -~]{0,28}", kind in kinds(), number: u32) {
        let step = StepName { table: &table, chain: &chain, kind, number };
        let bytes = ipv4(17, 0, &[], &UDP);
        let line = line_in(LogStyle::default(), step, &local(Family::Ipv4, &bytes));
        let (parsed, rest) = parse_prefix(&line).unwrap();
        prop_assert_eq!(parsed, step);
        prop_assert!(rest.starts_with("IN= OUT=v0 SRC=10.9.0.2 "));
    }

    #[test]
    fn any_text_can_be_parsed(text: String) {
        _ = parse_prefix(&text);
        _ = parse_prefix(&format!("TRACE: {text}"));
    }
}
