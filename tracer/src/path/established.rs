//! What conntrack tells of a packet whose connection has its translation already, so that no nat table is consulted.
//!
//! Linux from 5.10 on: there all that translates addresses stands at the same two priorities.
#![forbid(unsafe_code)]

use crate::netfilter::Hook;
use crate::packet::{PacketView, headers};
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use tracer_common::place::nat_priority;

/// `enum ip_conntrack_info`.
mod info {
    pub(super) const ESTABLISHED: u8 = 0;
    pub(super) const ESTABLISHED_REPLY: u8 = 3;
}
/// `enum ip_conntrack_status`.
mod status {
    pub(super) const SRC_NAT: u32 = 1 << 4;
    pub(super) const DST_NAT: u32 = 1 << 5;
    pub(super) const TEMPLATE: u32 = 1 << 11;
    pub(super) const OFFLOAD: u32 = 1 << 14;
}

/// The connection of a packet, as it was at one place of the packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Established {
    status: u32,
    /// The address that destination translation chose, where the packet shows it.
    destination: Option<End>,
    /// Likewise for the source.
    source: Option<End>,
}

/// An address, with a port where the protocol has some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    address: IpAddr,
    port: Option<u16>,
}

impl Established {
    /// `None` where the connection is not established. `view` is asked only where addresses were translated.
    pub(super) fn of<'a>(
        (info, status): (u8, u32),
        (hook, priority): (u8, i32),
        view: impl FnOnce() -> PacketView<'a>,
    ) -> Option<Self> {
        let is_reply = info == info::ESTABLISHED_REPLY;
        if !(is_reply || info == info::ESTABLISHED) || status & status::TEMPLATE != 0 {
            return None;
        }
        let mut established = Self { status, destination: None, source: None };
        if status & (status::SRC_NAT | status::DST_NAT) != 0 {
            let view = view();
            let headers = headers(&view);
            let end = |address: Option<IpAddr>, port| Some(End { address: address?, port });
            let (src, dst) = (end(headers.src, headers.sport), end(headers.dst, headers.dport));
            // What a loopback device brings in has been translated on its way out already.
            let hides = view.indev == Some(b"lo") || priority == nat_priority(hook);
            let is_destination = hook == Hook::Prerouting as u8 || hook == Hook::Output as u8;
            let is_source = hook == Hook::Input as u8 || hook == Hook::Postrouting as u8;
            let is_later = priority > nat_priority(hook);
            let (destination_done, source_done) = (!is_destination || is_later, is_source && is_later);
            if !hides {
                // A reply comes from where the first packet was sent to, and goes to where that one seemed to be from.
                (established.destination, established.source) = match is_reply {
                    true => (src.filter(|_| !source_done), dst.filter(|_| !destination_done)),
                    false => (dst.filter(|_| destination_done), src.filter(|_| source_done)),
                };
            }
        }
        Some(established)
    }

    /// The same connection, later on the packet's way: what was shown first counts.
    pub(super) fn then(self, later: Self) -> Self {
        Self {
            status: later.status,
            destination: self.destination.or(later.destination),
            source: self.source.or(later.source),
        }
    }

    /// In words, what is worth saying. `has_nat` says whether a nat table stands on the packet's way.
    pub(super) fn text(self, has_nat: bool) -> Option<Cow<'static, str>> {
        const NOT_CONSULTED: &str = "nat: established, not consulted";
        const OFFLOADED: &str = "a flowtable forwards its connection, past all hooks";
        let chosen = [
            self.chosen("DNAT", status::DST_NAT, self.destination),
            self.chosen("SNAT", status::SRC_NAT, self.source),
        ];
        let chosen: Vec<String> = chosen.into_iter().flatten().collect();
        let nat: Option<Cow<'static, str>> = match (has_nat, chosen.as_slice()) {
            (false, []) => None,
            (true, []) => Some(NOT_CONSULTED.into()),
            (has_nat, chosen) => {
                let begin =
                    if has_nat { format!("{NOT_CONSULTED};") } else { "nat: established;".to_owned() };
                let were = if chosen.len() == 1 { "was" } else { "were" };
                Some(format!("{begin} {} {were} chosen at its first packet", chosen.join(" and ")).into())
            }
        };
        match (nat, self.status & status::OFFLOAD != 0) {
            (Some(nat), true) => Some(format!("{nat}; {OFFLOADED}").into()),
            (None, true) => Some(OFFLOADED.into()),
            (nat, false) => nat,
        }
    }

    fn chosen(self, what: &str, bit: u32, end: Option<End>) -> Option<String> {
        let to = |End { address, port }: End| match port {
            Some(port) => format!("{what} to {}", SocketAddr::new(address, port)),
            None => format!("{what} to {address}"),
        };
        (self.status & bit != 0).then(|| end.map_or_else(|| what.to_owned(), to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::Family;
    use crate::packet::Link;

    const DNAT: u32 = status::DST_NAT;
    const SNAT: u32 = status::SRC_NAT;

    /// A UDP packet 10.0.0.1:1000 > 10.0.0.2:2000 at one place after the other.
    #[track_caller]
    fn check(conntrack: (u8, u32), indev: &'static str, places: &[(Hook, i32)], expected: &str) {
        let mut bytes = [0; 28];
        (bytes[0], bytes[3], bytes[9], bytes[12], bytes[15], bytes[16], bytes[19]) =
            (0x45, 28, 17, 10, 1, 10, 2);
        (bytes[20], bytes[21], bytes[22], bytes[23]) = (3, 232, 7, 208);
        let view = PacketView {
            family: Family::Ipv4,
            indev: Some(indev.as_bytes()),
            outdev: None,
            link: Link::default(),
            len: 28,
            bytes: &bytes,
            mark: 0,
            owner: None,
        };
        let seen = places
            .iter()
            .filter_map(|(hook, priority)| Established::of(conntrack, (*hook as u8, *priority), || view));
        let text = seen.reduce(Established::then).and_then(|established| established.text(true));
        assert_eq!(text.as_deref().unwrap_or("nothing"), expected);
    }

    #[test]
    fn what_was_chosen_is_told_by_the_packet() {
        use Hook::{Forward, Input, Postrouting, Prerouting};
        let quiet = "nat: established, not consulted";
        let said = |what: &str| format!("{quiet}; {what} chosen at its first packet");
        let there = &[(Prerouting, -150), (Forward, 0), (Postrouting, -150)];
        check((0, 0), "eth0", there, quiet);
        check((0, DNAT), "eth0", there, &said("DNAT to 10.0.0.2:2000 was"));
        check((0, DNAT), "eth0", &there[..1], &said("DNAT was"));
        check((0, DNAT), "eth0", &[(Prerouting, -100)], &said("DNAT was"));
        check((0, SNAT), "eth0", there, &said("SNAT was"));
        check((0, SNAT), "eth0", &[(Forward, 200)], &said("SNAT was"));
        check((0, SNAT), "eth0", &[(Postrouting, 200)], &said("SNAT to 10.0.0.1:1000 was"));
        check((3, DNAT), "eth0", there, &said("DNAT to 10.0.0.1:1000 was"));
        check((3, SNAT), "eth0", there, &said("SNAT to 10.0.0.2:2000 was"));
        check((3, SNAT), "eth0", &there[1..], &said("SNAT was"));
        let both = "DNAT to 10.0.0.1:1000 and SNAT to 10.0.0.2:2000 were";
        check((3, DNAT | SNAT), "eth0", there, &said(both));
        check((3, DNAT), "lo", &[(Prerouting, -150), (Input, 0)], &said("DNAT was"));
        let offloaded = format!("{quiet}; a flowtable forwards its connection, past all hooks");
        check((0, status::OFFLOAD), "eth0", there, &offloaded);
    }

    #[test]
    fn nothing_is_said_of_other_packets() {
        let place = &[(Hook::Input, 0)];
        for info in [1, 2, 4] {
            check((info, DNAT), "eth0", place, "nothing");
        }
        check((0, status::TEMPLATE), "eth0", place, "nothing");
        let quiet = Established { status: 0, destination: None, source: None };
        assert_eq!(quiet.text(false), None);
    }
}
