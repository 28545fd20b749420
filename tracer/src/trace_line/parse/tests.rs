//! A line gives a packet that gives the line again: for lines of every kind, and for lines that are none.

use super::super::tests::{STEP, line_in, packets};
use super::super::write;
use super::*;
use crate::packet::{Link, PacketView, Vlan};
use proptest::prelude::*;

/// Writes what was read.
fn written(line: &str, style: &mut LogStyle) -> Result<String, Unreadable> {
    let line = trace_line(line).expect("a line of TRACE");
    let packet = packet(line.content, style)?;
    let mut out = Vec::new();
    write(&mut out, line.name, &packet.view(), *style);
    Ok(String::from_utf8(out).unwrap())
}

#[track_caller]
fn check_round_trip(line: &str) {
    let mut style = LogStyle::default();
    assert_eq!(written(line, &mut style).as_deref(), Ok(line));
    // Some logs cut off the blank at the end.
    assert_eq!(written(line.trim_end_matches(' '), &mut style).as_deref(), Ok(line));
}

const HEAD: &str = "TRACE: raw:PREROUTING:policy:2 IN=br0 OUT=";
const UDP: &str =
    "SRC=10.9.0.2 DST=10.9.0.1 LEN=32 TOS=0x00 PREC=0x00 TTL=64 ID=12345 PROTO=UDP SPT=53 DPT=53 LEN=12 ";

#[test]
fn link_layer_of_every_kind() {
    for link in [
        "MAC= ",
        "",
        "MAC=00:01:02:03:04:05:06:07:08:09:0a:0b:08:00 ",
        "PHYSIN=v0 MAC= ",
        "PHYSIN=v0 PHYSOUT=v1 MAC= ",
        "MACSRC=06:07:08:09:0a:0b MACDST=00:01:02:03:04:05 MACPROTO=0800 ",
        "MACSRC=06:07:08:09:0a:0b MACDST=00:01:02:03:04:05 VPROTO=8100 VID=8197 MACPROTO=0800 ",
        "TUNNEL=192.0.2.1->192.0.2.2 ",
        "MAC=00:01:02:03:04:05:06:07:08:09:0a:0b:08:00:45:00:01:02:03:04 TUNNEL=192.0.2.1->192.0.2.2 ",
    ] {
        check_round_trip(&format!("{HEAD} {link}{UDP}UID=0 GID=100 MARK=0x64 "));
    }
}

#[test]
fn fields_of_the_link_layer() {
    let line = format!(
        "IN=br0 OUT= PHYSIN=v0 MACSRC=06:07:08:09:0a:0b MACDST=00:01:02:03:04:05 VPROTO=88a8 VID=5 MACPROTO=0800 {UDP}"
    );
    let mut style = LogStyle::default();
    let packet = packet(&line, &mut style).unwrap();
    let link = packet.view().link;
    assert_eq!(link.header, Some(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 8, 0][..]));
    assert_eq!((link.vlan, link.physin), (Some(Vlan { protocol: 0x88a8, tci: 5 }), Some(&b"v0"[..])));
    assert!(style.mac_decoded);
}

#[test]
fn reserved_bits_tell_the_kernels_style() {
    let tcp = |flags: &str| {
        format!(
            "{HEAD} MAC= SRC=10.9.0.2 DST=10.9.0.1 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=1 DPT=2 \
             SEQ=3 ACK=4 WINDOW=5 {flags} URGP=0 "
        )
    };
    let mut style = LogStyle::default();
    for (flags, ae_flag) in [("RES=0x3c ACK", false), ("RES=0x38 ACK", false), ("RES=0x00 AE CWR SYN", true)]
    {
        let line = tcp(flags);
        assert_eq!(written(&line, &mut style).as_deref(), Ok(&*line));
        assert_eq!(style.ae_flag, ae_flag);
    }
}

#[test]
fn lines_of_log_rules() {
    for (line, prefix, content) in [
        ("FWD: IN=v0 OUT=w0 SRC=", "FWD: ", "IN=v0 OUT=w0 SRC="),
        ("DROPIN=v0 OUT= MAC=", "DROP", "IN=v0 OUT= MAC="),
        ("IN= OUT=lo SRC=", "", "IN= OUT=lo SRC="),
        (
            "a IN=b OUT=c IN=br0 OUT=br0 PHYSIN=v0 PHYSOUT=v1 MAC=",
            "a IN=b OUT=c ",
            "IN=br0 OUT=br0 PHYSIN=v0 PHYSOUT=v1 MAC=",
        ),
    ] {
        let found = log_line(line).expect(line);
        assert_eq!((found.prefix, found.content), (prefix, content));
    }
    for line in ["", "eth0: link up", "FWD: OUT=", "IN=a b OUT=c "] {
        assert!(log_line(line).is_none(), "{line}");
    }
    // Without --log-tcp-sequence and the other options of LOG.
    let line = "IN=v0 OUT= MAC= SRC=10.9.0.2 DST=10.9.0.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=1 DPT=2 \
                WINDOW=5 RES=0x00 SYN URGP=0";
    assert!(packet(line, &mut LogStyle::default()).is_ok());
}

#[test]
fn what_is_wrong_and_where() {
    for (content, message) in [
        ("OUT=lo", "column 1: expected IN="),
        ("IN= OUT=lo ", "column 12: expected SRC="),
        ("IN= OUT=lo TRUNCATED", "column 12: expected SRC="),
        ("IN= OUT=lo MAC=00:00 SRC=10.9.0.2", "column 12: expected SRC="),
        ("IN= OUT=lo SRC=10.9.0.256 DST=", "column 23: expected a number in range"),
        ("IN= OUT=lo SRC=10.9.0.02 DST=", "column 23: expected a number in range"),
        (
            &format!("IN= OUT=lo {}", UDP.replace("UDP", "17")),
            "column 89: expected a protocol of IPv4 before this",
        ),
        (&format!("IN= OUT=lo {UDP}MARK=0x1 and more"), "column 120: expected the end of the line"),
        (
            &format!("IN= OUT=lo {}", UDP.replace("LEN=32", "LEN=70000")),
            "column 93: expected a length in range before this",
        ),
        (&format!("IN= OUT=lo {}", &UDP[..86]), "column 97: expected DPT="),
    ] {
        let error = packet(content, &mut LogStyle::default()).expect_err(content);
        assert_eq!(error.to_string(), message, "{content}");
    }
}

fn styles() -> impl Strategy<Value = LogStyle> {
    (any::<bool>(), any::<bool>()).prop_map(|(ae_flag, mac_decoded)| LogStyle { ae_flag, mac_decoded })
}

/// Names that a device may have (`dev_valid_name` in `net/core/dev.c`).
fn device() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of("[!-.0-9;-~]{1,15}".prop_map(String::into_bytes))
}

fn vlan() -> impl Strategy<Value = Option<Vlan>> {
    prop::option::of((any::<u16>(), any::<u16>()).prop_map(|(protocol, tci)| Vlan { protocol, tci }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any packet gives a line that gives a packet that gives the line.
    #[test]
    fn round_trip(
        ipv6: bool,
        bytes in packets(),
        beyond in prop_oneof![3 => Just(0), 2 => -300_i64..300, 1 => any::<u32>().prop_map(i64::from)],
        devices in (device(), device(), device(), device()),
        vlan in vlan(),
        link in (0_usize..4, prop::collection::vec(any::<u8>(), 14..40)),
        owner in prop::option::of(any::<(u32, u32)>()),
        mark in prop_oneof![Just(0), any::<u32>()],
        style in styles(),
    ) {
        let (kind, header) = link;
        let packet = PacketView {
            family: if ipv6 { Family::Ipv6 } else { Family::Ipv4 },
            indev: devices.0.as_deref(),
            outdev: devices.1.as_deref(),
            link: Link {
                dev_type: [0, 1, 776, 776][kind],
                hard_header_len: [header.len(), 14, 20, header.len()][kind] as u16,
                header: Some(&header),
                before: if kind == 3 { &header[..14] } else { &[] },
                vlan,
                physin: devices.2.as_deref(),
                physout: devices.3.as_deref(),
            },
            len: (bytes.len() as i64 + beyond).clamp(0, u32::MAX.into()) as u32,
            bytes: &bytes,
            mark,
            owner: owner.map(|(uid, gid)| Owner { uid, gid }),
        };
        let line = line_in(style, STEP, &packet);
        let mut style = style;
        match written(&line, &mut style) {
            Ok(again) => prop_assert_eq!(again, line),
            // What is not copied is not in the line; without addresses there is nothing to read.
            Err(error) => prop_assert!(!line.contains(" SRC="), "{error}: {line}"),
        }
    }

    /// Whatever can be read is written as it was.
    #[test]
    fn nothing_else_is_read(edit in edits(), blank: bool) {
        let line = format!("{HEAD} {edit}{}", if blank { " " } else { "" });
        let mut style = LogStyle::default();
        if let Ok(again) = written(&line, &mut style) {
            let logged_without_numbers = line.contains("PROTO=TCP SPT") && !line.contains("SEQ=");
            prop_assert!(logged_without_numbers || again.trim_end() == line.trim_end(), "{again:?} {line:?}");
        }
    }

    #[test]
    fn any_text_can_be_read(text: String, start in 0_usize..3) {
        let text = format!("{}{text}", ["", "IN= OUT=lo ", "IN= OUT=lo SRC=10.9.0.2 "][start]);
        _ = packet(&text, &mut LogStyle::default());
        _ = trace_line(&text);
        _ = log_line(&text);
    }
}

/// Fields of lines, some of them replaced, doubled or left out.
fn edits() -> impl Strategy<Value = String> {
    const LINES: [&str; 5] = [
        "MAC= SRC=10.9.0.2 DST=10.9.0.1 LEN=60 TOS=0x02 PREC=0xC0 TTL=64 ID=5 DF OPT (07030400) PROTO=TCP SPT=22 DPT=1 \
         SEQ=7 ACK=0 WINDOW=29200 RES=0x00 ACK SYN URGP=0 OPT (020405B4) UID=0 GID=0 MARK=0x64",
        "MAC= SRC=10.9.0.1 DST=10.9.0.2 LEN=88 TOS=0x00 PREC=0xC0 TTL=64 ID=1 PROTO=ICMP TYPE=3 CODE=4 [SRC=10.9.0.2 \
         DST=10.9.0.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 MF FRAG:64 PROTO=UDP ] MTU=1500",
        "MAC= SRC=fe80:0000:0000:0000:0000:0000:0000:0001 DST=ff02:0000:0000:0000:0000:0000:0000:0016 LEN=96 TC=0 \
         HOPLIMIT=1 FLOWLBL=0 OPT ( ) OPT ( FRAG:0 INCOMPLETE ID:00bc614e ) OPT ( AH SPI=0xf1 ) PROTO=ICMPv6 TYPE=2 \
         CODE=0 MTU=1280",
        "MAC= SRC=10.9.0.2 DST=10.9.0.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=5 PROTO=ESP SPI=0x1001 MARK=0x1",
        "MAC= SRC=10.9.0.2 DST=10.9.0.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=5 PROTO=AH INCOMPLETE [11 bytes] MARK=0x1",
    ];
    let words = || prop::sample::select(LINES.iter().flat_map(|line| line.split(' ')).collect::<Vec<_>>());
    (
        prop::sample::select(&LINES[..]),
        prop::collection::vec((any::<prop::sample::Index>(), 0..3, words()), 0..3),
    )
        .prop_map(|(line, edits)| {
            let mut fields: Vec<&str> = line.split(' ').collect();
            for (index, kind, word) in edits {
                let at = index.index(fields.len());
                match kind {
                    0 => fields[at] = word,
                    1 => fields.insert(at, word),
                    _ => _ = fields.remove(at),
                }
            }
            fields.join(" ")
        })
}
