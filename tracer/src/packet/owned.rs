//! A packet that outlives what it was read from.

use super::{Link, Owner, PacketView, Vlan};
use crate::netfilter::Family;

/// What [`PacketView`] borrows, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Address family of the hook.
    pub family: Family,
    /// Name of the input device; `None` where the hook has none.
    pub indev: Option<Vec<u8>>,
    /// Name of the output device; `None` where the hook has none.
    pub outdev: Option<Vec<u8>>,
    /// The link layer.
    pub link: OwnedLink,
    /// `skb->len`, from the network header on.
    pub len: u32,
    /// The first bytes, from the network header on.
    pub bytes: Vec<u8>,
    /// `skb->mark`.
    pub mark: u32,
    /// Who opened the sending socket, where that is known.
    pub owner: Option<Owner>,
}

impl Packet {
    /// The packet as everything else takes it.
    pub fn view(&self) -> PacketView<'_> {
        PacketView {
            family: self.family,
            indev: self.indev.as_deref(),
            outdev: self.outdev.as_deref(),
            link: self.link.link(),
            len: self.len,
            bytes: &self.bytes,
            mark: self.mark,
            owner: self.owner,
        }
    }
}

/// What [`Link`] borrows, owned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedLink {
    /// `skb->dev->type`, an ARPHRD value; 0 where not known.
    pub dev_type: u16,
    /// `skb->dev->hard_header_len`.
    pub hard_header_len: u16,
    /// Bytes from `skb->mac_header` on.
    pub header: Option<Vec<u8>>,
    /// The 14 bytes before `header`, for packets from a SIT tunnel.
    pub before: Vec<u8>,
    /// The VLAN tag that the device took off.
    pub vlan: Option<Vlan>,
    /// Name of the bridge port that the packet came in by.
    pub physin: Option<Vec<u8>>,
    /// Name of the bridge port that the packet leaves by.
    pub physout: Option<Vec<u8>>,
}

impl From<PacketView<'_>> for Packet {
    fn from(view: PacketView<'_>) -> Self {
        Self {
            family: view.family,
            indev: view.indev.map(<[u8]>::to_vec),
            outdev: view.outdev.map(<[u8]>::to_vec),
            link: view.link.into(),
            len: view.len,
            bytes: view.bytes.to_vec(),
            mark: view.mark,
            owner: view.owner,
        }
    }
}

impl OwnedLink {
    /// Borrows all of it.
    pub fn link(&self) -> Link<'_> {
        Link {
            dev_type: self.dev_type,
            hard_header_len: self.hard_header_len,
            header: self.header.as_deref(),
            before: &self.before,
            vlan: self.vlan,
            physin: self.physin.as_deref(),
            physout: self.physout.as_deref(),
        }
    }
}

impl From<Link<'_>> for OwnedLink {
    fn from(link: Link<'_>) -> Self {
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        Self {
            dev_type: link.dev_type,
            hard_header_len: link.hard_header_len,
            header: owned(link.header),
            before: link.before.to_vec(),
            vlan: link.vlan,
            physin: owned(link.physin),
            physout: owned(link.physout),
        }
    }
}
