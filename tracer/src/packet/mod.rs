//! A packet as one rule saw it: device names, link-layer header, first bytes, mark and owner.

#![forbid(unsafe_code)]

pub mod change;
pub(crate) mod data;
mod headers;
pub(crate) mod ip;
mod owned;
pub(crate) mod recent;
mod sender;
mod tcp;
#[cfg(test)]
mod tests;

pub(crate) use headers::upper;
pub use headers::{Fragment, Headers, headers, protocol_name, quoted};
pub use owned::{OwnedLink, Packet};
pub use sender::Sender;
pub use tcp::{Tcp, TcpOption, tcp};

use crate::netfilter::Family;

/// What is known of a packet at one moment. Borrowed, so that showing a packet copies nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketView<'a> {
    /// Address family of the hook.
    pub family: Family,
    /// Name of the input device; `None` where the hook has none.
    pub indev: Option<&'a [u8]>,
    /// Name of the output device; `None` where the hook has none.
    pub outdev: Option<&'a [u8]>,
    /// The link layer of `skb->dev`.
    pub link: Link<'a>,
    /// `skb->len`, from the network header on.
    pub len: u32,
    /// The first bytes, from the network header on; fewer than `len` where not all were copied.
    pub bytes: &'a [u8],
    /// `skb->mark`.
    pub mark: u32,
    /// Who opened the sending socket, where the kernel would print it.
    pub owner: Option<Owner>,
}

/// Link-layer facts that the kernel's logger looks at (`dump_mac_header` in `net/netfilter/nf_log_syslog.c`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link<'a> {
    /// `skb->dev->type`, an ARPHRD value.
    pub dev_type: u16,
    /// `skb->dev->hard_header_len`.
    pub hard_header_len: u16,
    /// Bytes from `skb->mac_header` on; `None` when it equals `skb->network_header`.
    pub header: Option<&'a [u8]>,
    /// The 14 bytes before `header`, which the kernel prints of packets from a SIT tunnel; empty where not known.
    pub before: &'a [u8],
    /// The VLAN tag that the device took off.
    pub vlan: Option<Vlan>,
    /// Name of the bridge port that the packet came in by, where that is not the input device itself.
    pub physin: Option<&'a [u8]>,
    /// Name of the bridge port that the packet leaves by, where that is not the output device itself.
    pub physout: Option<&'a [u8]>,
}

impl<'a> Link<'a> {
    /// Destination, source and type of a header like Ethernet's.
    pub fn ethernet(&self) -> Option<(&'a [u8; 6], &'a [u8; 6], u16)> {
        const ETH_HLEN: u16 = 14;
        const LIKE_ETHERNET: [u16; 3] = [0, 1, 772];
        let header = self.header.filter(|_| self.hard_header_len == ETH_HLEN);
        let (destination, rest) =
            header.filter(|_| LIKE_ETHERNET.contains(&self.dev_type))?.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        Some((destination, source, u16::from_be_bytes(*rest.first_chunk()?)))
    }
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vlan {
    /// `skb->vlan_proto`: 0x8100, or 0x88a8 for the outer tag of two.
    pub protocol: u16,
    /// `skb->vlan_tci`: priority and number.
    pub tci: u16,
}

/// What conntrack says of a packet: where in its connection it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tracked {
    /// `new`, `established`, `related`, `untracked`
    pub state: &'static str,
    /// Whether it goes the way of the answers; `None` where it has no connection.
    pub is_reply: Option<bool>,
}

impl Tracked {
    /// From the low three bits of `skb->_nfct`, `enum ip_conntrack_info`, and whether there is a connection.
    pub fn of(info: u8, has_connection: bool) -> Option<Self> {
        let (state, is_reply) = match (info, has_connection) {
            (0, true) => ("established", Some(false)),
            (1, true) => ("related", Some(false)),
            (2, true) => ("new", Some(false)),
            (3, true) => ("established", Some(true)),
            (4, true) => ("related", Some(true)),
            (7, _) => ("untracked", None),
            _ => return None,
        };
        Some(Self { state, is_reply })
    }
}

/// Owner of a locally generated packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// `fsuid` of the opener.
    pub uid: u32,
    /// `fsgid` of the opener.
    pub gid: u32,
}
