//! What stays the same of a packet on its way, and what may change.

use super::Row;
use super::place::Place;
use crate::netfilter::Family;
use crate::packet::data::Data;
use crate::packet::ip::{Ipv4, Ipv6, protocol};
use crate::packet::{Headers, PacketView, headers, upper};

/// What no rule and no router changes: neither NAT nor the targets TTL, TOS, ECN, TCPMSS and MARK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    netns: Option<u32>,
    family: Family,
    protocol: Option<u8>,
    /// Identification and fragment offset, or flow label.
    network: u32,
    /// Numbers of the transport header.
    transport: [u32; 3],
}

/// What is compared of a row's packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) identity: Identity,
    /// Addresses, ports, echo identifier: what NAT may change.
    pub(super) headers: Headers,
}

impl Facts {
    pub(super) fn of(row: &Row) -> Self {
        Self::of_view(row.netns, &row.packet.view())
    }

    pub(super) fn of_view(netns: Option<u32>, view: &PacketView<'_>) -> Self {
        let data = Data::of(view);
        let headers = headers(view);
        let network = match view.family {
            Family::Ipv4 => data.header(0).map_or(0, |header| {
                let ip = Ipv4(header);
                u32::from(ip.id()) << 16 | u32::from(ip.fragment())
            }),
            Family::Ipv6 => data.header(0).map_or(0, |header| Ipv6(header).flow_label()),
            Family::Arp => headers.arp.map_or(0, u32::from),
        };
        let protocol = headers.protocol;
        let transport = transport(view, &headers);
        Self { identity: Identity { netns, family: view.family, protocol, network, transport }, headers }
    }

    /// Whether nothing that NAT may change has changed.
    pub(super) fn same_ends(&self, earlier: &Self) -> bool {
        self.follow(earlier, None)
    }

    /// Whether the kernel can have made these headers of those of `earlier` on the way between two places; within one
    /// table nothing changes.
    pub(super) fn follow(&self, earlier: &Self, way: Option<(Place, Place)>) -> bool {
        let (new, old) = (&self.headers, &earlier.headers);
        let destination = way.is_some_and(|(from, to)| from.crosses_destination_nat(to));
        let source = way.is_some_and(|(from, to)| from.crosses_source_nat(to));
        let id = |headers: &Headers| headers.echo.map(|[id, _]| id);
        (destination || (new.dst, new.dport) == (old.dst, old.dport))
            && (source || (new.src, new.sport) == (old.src, old.sport))
            && (destination || source || id(new) == id(old))
    }
}

fn transport(view: &PacketView<'_>, headers: &Headers) -> [u32; 3] {
    let length = headers.length.unwrap_or(view.len);
    let Some((number, Some(offset))) = upper(view) else { return [length, 0, 0] };
    let data = Data::of(view);
    match number {
        protocol::TCP => match data.header::<20>(offset) {
            Ok(&[_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, _, flags, ..]) => {
                // Not CWR and ECE: the target ECN takes them away.
                [
                    u32::from_be_bytes([s0, s1, s2, s3]),
                    u32::from_be_bytes([a0, a1, a2, a3]),
                    u32::from(flags & 0x3f),
                ]
            }
            Err(_) => [length, 0, 0],
        },
        protocol::ICMP | protocol::ICMPV6 => match data.header(offset) {
            Ok(&[kind, code]) => {
                let sequence = headers.echo.map_or(0, |[_, sequence]| u32::from(sequence));
                [length, u32::from(kind) << 8 | u32::from(code), sequence]
            }
            Err(_) => [length, 0, 0],
        },
        _ => [length, 0, 0],
    }
}
