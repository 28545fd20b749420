//! The kernel's trace messages, `NFT_MSG_TRACE` on the multicast group `NFNLGRP_NFTRACE`
//! (`nft_trace_notify` in `net/netfilter/nf_tables_trace.c`).

use super::RuleVerdict;
use super::decode::{self, SUBSYSTEM};
use crate::netfilter::{Family, TableFamily, Verdict};
use crate::netlink::{Attribute, Netfilter};
use std::borrow::Cow;

/// `NFNLGRP_NFTRACE`: the multicast group of trace messages.
pub const GROUP: u32 = 9;
/// `NFT_MSG_TRACE`
const MESSAGE: u8 = 17;

/// `enum nft_trace_attributes`
mod nfta_trace {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const TYPE: u16 = 4;
    pub(super) const VERDICT: u16 = 5;
    pub(super) const ID: u16 = 6;
    pub(super) const LL_HEADER: u16 = 7;
    pub(super) const NETWORK_HEADER: u16 = 8;
    pub(super) const TRANSPORT_HEADER: u16 = 9;
    pub(super) const IIF: u16 = 10;
    pub(super) const IIFTYPE: u16 = 11;
    pub(super) const OIF: u16 = 12;
    pub(super) const OIFTYPE: u16 = 13;
    pub(super) const MARK: u16 = 14;
    pub(super) const NFPROTO: u16 = 15;
    pub(super) const POLICY: u16 = 16;
    pub(super) const CT_ID: u16 = 18;
    pub(super) const CT_DIRECTION: u16 = 19;
    pub(super) const CT_STATUS: u16 = 20;
    pub(super) const CT_STATE: u16 = 21;
}

/// What one trace message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEvent<'a> {
    /// The same for all messages of a packet while the kernel keeps it in the same `sk_buff`; used again later.
    pub id: u32,
    /// The family of the table.
    pub family: TableFamily,
    /// The table's name.
    pub table: Cow<'a, str>,
    /// The name of the chain that the rule is in, or whose end or policy this is.
    pub chain: Cow<'a, str>,
    /// What happened.
    pub kind: TraceKind,
    /// The rule's handle; ends of chains and policies have none.
    pub handle: Option<u64>,
    /// What was decided: by the rule, or by the policy.
    pub verdict: Option<RuleVerdict<'a>>,
    /// `skb->mark` after the rule. The kernel leaves it out when it is 0, and when the packet is not the kernel's any
    /// more.
    pub mark: u32,
    /// The family of the packet; `None` for what is no IP packet.
    pub packet_family: Option<Family>,
    /// Devices and headers, in the first message of a packet in each base chain.
    pub packet: Option<TracedPacket<'a>>,
    /// The packet's connection; kernels before 6.18 do not tell it.
    pub conntrack: Option<Conntrack>,
}

/// Which of its ends a message reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// A rule whose conditions all held. One that says `return` is among them, although the kernel has another word
    /// for it.
    Rule,
    /// The end of a chain.
    Return,
    /// The policy of a base chain.
    Policy,
}

/// A packet as a base chain got it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TracedPacket<'a> {
    /// Where it came in.
    pub indev: Option<Device>,
    /// Where it will go out.
    pub outdev: Option<Device>,
    /// Up to 20 bytes of the link-layer header, a VLAN tag in it.
    pub link: Option<&'a [u8]>,
    /// Up to 40 bytes of the network header.
    pub network: Option<&'a [u8]>,
    /// Up to 20 bytes from the transport header on; `None` in later fragments.
    pub transport: Option<&'a [u8]>,
}

/// A network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index in the namespace.
    pub index: u32,
    /// `net_device.type`, an ARPHRD value.
    pub dev_type: u16,
}

/// What conntrack knew about the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// `nf_ct_get_id`; `None` where only the state is known.
    pub id: Option<u32>,
    /// Whether the packet goes the way of the reply.
    pub reply: bool,
    /// `IPS_…` bits.
    pub status: u32,
    /// `NFT_CT_STATE` bits: invalid 1, established 2, related 4, new 8, untracked 64.
    pub state: u32,
}

/// Reads a trace message; `None` for other messages, and for one that does not say which chain it is about.
pub fn decode<'a>(message: &Netfilter<'a>) -> Option<TraceEvent<'a>> {
    if (message.subsystem, message.message) != (SUBSYSTEM, MESSAGE) {
        return None;
    }
    let attributes = Attributes::of(message.attributes);
    let handle = attributes.get(nfta_trace::RULE_HANDLE).and_then(|handle| handle.be64());
    let verdict = attributes.get(nfta_trace::VERDICT).and_then(|verdict| decode::verdict(verdict.value));
    // `enum nft_trace_types`. At the end of a chain some kernels say `RULE`, without a handle, and some say `RETURN`,
    // with the handle of the last rule.
    let (kind, verdict) = match (attributes.be32(nfta_trace::TYPE)?, verdict, handle) {
        (1, ..) => (TraceKind::Policy, attributes.be32(nfta_trace::POLICY).map(policy)),
        (2, Some(RuleVerdict::Continue) | None, _) | (3, Some(RuleVerdict::Continue), None) => {
            (TraceKind::Return, Some(RuleVerdict::Return))
        }
        (2 | 3, verdict, _) => (TraceKind::Rule, verdict),
        _ => return None,
    };
    let packet = attributes.packet();
    let nfproto = attributes.be32(nfta_trace::NFPROTO).unwrap_or(message.family.into());
    Some(TraceEvent {
        id: attributes.be32(nfta_trace::ID)?,
        family: decode::family(message.family)?,
        table: attributes.get(nfta_trace::TABLE)?.text(),
        chain: attributes.get(nfta_trace::CHAIN)?.text(),
        kind,
        handle: handle.filter(|_| kind == TraceKind::Rule),
        verdict,
        mark: attributes.be32(nfta_trace::MARK).unwrap_or(0),
        packet_family: packet_family(nfproto, packet.as_ref()),
        packet,
        conntrack: attributes.conntrack(),
    })
}

fn policy(code: u32) -> RuleVerdict<'static> {
    RuleVerdict::Final(Verdict::from_return(code))
}

/// A hook of a bridge or of a device does not tell the family, but the Ethernet header does. At egress there is none, and
/// the kernel shows what follows the network header of IP alone, after it has looked at it.
fn packet_family(nfproto: u32, packet: Option<&TracedPacket<'_>>) -> Option<Family> {
    /// `ETH_P_8021Q` and `ETH_P_8021AD`
    const VLAN: [[u8; 2]; 2] = [[0x81, 0], [0x88, 0xa8]];
    /// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK`
    const ETHERNET: [u16; 2] = [1, 772];
    if !matches!(decode::family(u8::try_from(nfproto).ok()?)?, TableFamily::Bridge | TableFamily::Netdev) {
        return Family::of_packets(u8::try_from(nfproto).ok()?);
    }
    let packet = packet?;
    match (packet.network.and_then(<[u8]>::first), packet.transport) {
        (Some(0x40..=0x4f), Some(_)) => return Some(Family::Ipv4),
        (Some(0x60..=0x6f), Some(_)) => return Some(Family::Ipv6),
        _ => {}
    }
    packet.indev.or(packet.outdev).filter(|device| ETHERNET.contains(&device.dev_type))?;
    let mut types = packet.link?.get(12..)?.chunks_exact(2);
    let mut ethertype = types.next()?;
    if VLAN.iter().any(|vlan| vlan == ethertype) {
        ethertype = types.nth(1)?;
    }
    match ethertype {
        [0x08, 0x00] => Some(Family::Ipv4),
        [0x86, 0xdd] => Some(Family::Ipv6),
        [0x08, 0x06] => Some(Family::Arp),
        _ => None,
    }
}

/// The attributes of a message, by kind.
struct Attributes<'a>([Option<Attribute<'a>>; 22]);

impl<'a> Attributes<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let mut known = [None; 22];
        for attribute in crate::netlink::attributes(bytes) {
            if let Some(place) = known.get_mut(usize::from(attribute.kind)) {
                *place = Some(attribute);
            }
        }
        Self(known)
    }

    fn get(&self, kind: u16) -> Option<Attribute<'a>> {
        *self.0.get(usize::from(kind))?
    }

    fn be32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.be32()
    }

    fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        Some(self.get(kind)?.value)
    }

    fn device(&self, index: u16, dev_type: u16) -> Option<Device> {
        Some(Device { index: self.be32(index)?, dev_type: self.get(dev_type)?.be16()? })
    }

    fn packet(&self) -> Option<TracedPacket<'a>> {
        let packet = TracedPacket {
            indev: self.device(nfta_trace::IIF, nfta_trace::IIFTYPE),
            outdev: self.device(nfta_trace::OIF, nfta_trace::OIFTYPE),
            link: self.bytes(nfta_trace::LL_HEADER),
            network: self.bytes(nfta_trace::NETWORK_HEADER),
            transport: self.bytes(nfta_trace::TRANSPORT_HEADER),
        };
        (packet != TracedPacket::default()).then_some(packet)
    }

    fn conntrack(&self) -> Option<Conntrack> {
        Some(Conntrack {
            id: self.be32(nfta_trace::CT_ID),
            reply: self.get(nfta_trace::CT_DIRECTION).and_then(|direction| direction.u8()) == Some(1),
            status: self.be32(nfta_trace::CT_STATUS).unwrap_or(0),
            state: self.be32(nfta_trace::CT_STATE)?,
        })
    }
}
