//! What rules compare packets with, read from their text.

use super::condition::number;
use crate::netfilter::Family;
use std::net::IpAddr;

/// Addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    /// Those that are the same under a mask.
    Net { address: u128, mask: u128, is_ipv4: bool },
    /// From the first to the last.
    Range { first: u128, last: u128, is_ipv4: bool },
}

impl Addresses {
    /// `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1/255.0.0.255`, `10.0.0.1-10.0.0.9`, and the same of IPv6.
    pub(super) fn read(text: &str) -> Option<Self> {
        let address = |text: &str| text.parse::<IpAddr>().ok().map(number);
        if let Some((first, last)) = text.split_once('-') {
            let ((first, is_ipv4), (last, same)) = (address(first)?, address(last)?);
            return (is_ipv4 == same).then_some(Self::Range { first, last, is_ipv4 });
        }
        let (text, mask) = text.split_once('/').unwrap_or((text, ""));
        let (address_number, is_ipv4) = address(text)?;
        let width = if is_ipv4 { 32 } else { 128 };
        let all = u128::MAX >> (128 - width);
        let mask = match (mask, mask.parse::<u32>()) {
            ("", _) => all,
            (_, Ok(bits)) if bits <= width => all & !all.checked_shr(bits).unwrap_or(0),
            (_, Ok(_)) => return None,
            (mask, Err(_)) => address(mask).filter(|(_, same)| *same == is_ipv4)?.0,
        };
        Some(Self::Net { address: address_number & mask, mask, is_ipv4 })
    }

    pub(super) fn is_ipv4(&self) -> bool {
        match self {
            Self::Net { is_ipv4, .. } | Self::Range { is_ipv4, .. } => *is_ipv4,
        }
    }

    /// Whether an address of the same family is one of them.
    pub(super) fn have(&self, wanted: IpAddr) -> bool {
        let (wanted, _) = number(wanted);
        match self {
            Self::Net { address, mask, .. } => wanted & mask == *address,
            Self::Range { first, last, .. } => (first..=last).contains(&&wanted),
        }
    }
}

/// Ports, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// `80`, or `80:90` with `:` between the two.
    pub(super) fn read(text: &str, between: char) -> Option<Self> {
        let (first, last) = text.split_once(between).unwrap_or((text, text));
        Some(Self { first: first.parse().ok()?, last: last.parse().ok()? })
    }

    pub(super) fn have(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// A device by its name, or many by how their names begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    name: String,
    is_beginning: bool,
}

impl Device {
    /// `eth0`, or `eth+` with `+` as the sign for any end.
    pub(super) fn read(text: &str, any: char) -> Self {
        match text.strip_suffix(any) {
            Some(beginning) => Self { name: beginning.to_owned(), is_beginning: true },
            None => Self { name: text.to_owned(), is_beginning: false },
        }
    }

    pub(super) fn is(&self, name: &[u8]) -> bool {
        let wanted = self.name.as_bytes();
        if self.is_beginning { name.starts_with(wanted) } else { name == wanted }
    }
}

/// A type of ICMP messages, with one code or with all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IcmpType {
    kind: u8,
    code: Option<u8>,
}

impl IcmpType {
    /// `8`, `3/1`, and the names that nft has.
    pub(super) fn read(text: &str, family: Family) -> Option<Self> {
        let (kind, code) = match text.split_once('/') {
            Some((kind, code)) => (kind, Some(code.parse().ok()?)),
            None => (text, None),
        };
        let names: &[(&str, u8)] = if family == Family::Ipv4 { &ICMP } else { &ICMPV6 };
        let named = || names.iter().find(|(name, _)| *name == kind).map(|(_, number)| *number);
        Some(Self { kind: kind.parse().ok().or_else(named)?, code })
    }

    pub(super) fn is(self, kind: u8, code: u8) -> bool {
        self.kind == kind && self.code.is_none_or(|wanted| wanted == code)
    }
}

/// `icmp_type_tbl` in nftables' `src/proto.c`.
const ICMP: [(&str, u8); 15] = [
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
    ("info-request", 15),
    ("info-reply", 16),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
];

/// `icmp6_type_tbl` there.
const ICMPV6: [(&str, u8); 16] = [
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("mld-listener-query", 130),
    ("mld-listener-report", 131),
    ("mld-listener-done", 132),
    ("nd-router-solicit", 133),
    ("nd-router-advert", 134),
    ("nd-neighbor-solicit", 135),
    ("nd-neighbor-advert", 136),
    ("nd-redirect", 137),
    ("router-renumbering", 138),
    ("mld2-listener-report", 143),
];

/// The number of a protocol, by it or by a name that is the same everywhere.
pub(super) fn protocol(text: &str) -> Option<u8> {
    const NAMES: [(&str, u8); 12] = [
        ("icmp", 1),
        ("igmp", 2),
        ("tcp", 6),
        ("udp", 17),
        ("dccp", 33),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("ipv6-icmp", 58),
        ("icmpv6", 58),
        ("sctp", 132),
        ("udplite", 136),
    ];
    let named = || NAMES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    text.parse().ok().or_else(named)
}

/// A number as rules have marks: `0x1f`, `31`.
pub(super) fn mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Reads all of a list, or nothing.
pub(super) fn all<'a, T>(
    items: impl IntoIterator<Item = &'a str>,
    read: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let read: Option<Vec<T>> = items.into_iter().map(read).collect();
    read.filter(|read| !read.is_empty())
}
