//! Where a packet was seen, and what a record tells of it there.
#![forbid(unsafe_code)]

use super::header::{Header, IPPROTO_ICMP, IPPROTO_ICMPV6, token};
use crate::netfilter::{Family, Hook};
use crate::packet::{Link, PacketView};
use crate::path::established::Established;
use crate::path::stands::Key;
use tracer_common::legacy::{Traversal, fact, rank, table_class};
use tracer_common::nft::Run;
use tracer_common::place::legacy_priority;

/// The loopback device of every namespace.
const LOOPBACK: &[u8] = b"lo\0";

/// `enum ip_conntrack_info`.
mod info {
    /// Begins an expected connection, or is an ICMP error about another.
    pub(super) const RELATED: u8 = 1;
    /// Of a connection that has had no reply.
    pub(super) const NEW: u8 = 2;
    pub(super) const RELATED_REPLY: u8 = 4;
}
/// `enum ip_conntrack_status`.
mod status {
    pub(super) const CONFIRMED: u32 = 1 << 3;
    pub(super) const SEQ_ADJUST: u32 = 1 << 6;
    pub(super) const SRC_NAT_DONE: u32 = 1 << 7;
    pub(super) const DST_NAT_DONE: u32 = 1 << 8;
    pub(super) const TEMPLATE: u32 = 1 << 11;
}

/// What a record tells of its packet, whichever engine had it.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Which packet, by the kernel program's number.
    pub packet: u64,
    /// Address of its skb.
    pub(super) skb: u64,
    /// Nothing earlier of it was seen.
    pub(in crate::path) first: bool,
    pub(super) netns: u32,
    pub(super) entry_ns: u64,
    pub(super) place: Place,
    /// Where it came from and where it goes: names with zeros behind; nothing but zeros for none.
    pub(super) devices: [[u8; 16]; 2],
    pub(super) family: Family,
    pub(super) entry: Option<Header>,
    pub(super) exit: Option<Header>,
    pub(super) established: Option<Established>,
    /// Of what follows its header; 0 where there is nothing, or it was not asked for.
    pub(super) token: u64,
}

/// Where a packet was, and what conntrack said then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) hook: u8,
    pub(super) key: Key,
    pub(super) priority: i32,
    /// `None` without a conntrack entry.
    pub(super) connection: Option<Connection>,
    pub(super) loopback: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    info: u8,
    status: u32,
    /// The packet is an ICMP error about the connection: what happens to its addresses follows from that.
    is_error: bool,
}

impl Visit {
    /// Of a legacy table.
    pub fn of_traversal(traversal: &Traversal, family: Family) -> Self {
        let has = |bit| traversal.facts & bit != 0;
        let hook = traversal.hook.min(4);
        let name = [0, 1, 2, 3].map(|index| traversal.table_name[index]);
        let class = table_class(u32::from_ne_bytes(name));
        let entry = Header::of(family, traversal.entry.copied, &traversal.entry_bytes);
        let priority = legacy_priority(hook, class);
        let conntrack = (traversal.ctinfo, traversal.ct_status);
        let view = || first_view(family, &traversal.indev, (traversal.entry.copied, &traversal.entry_bytes));
        Self {
            packet: traversal.packet,
            skb: traversal.skb,
            first: has(fact::FIRST),
            netns: traversal.netns,
            entry_ns: traversal.entry_ns,
            place: Place {
                hook,
                key: Key::Legacy { rank: rank(hook, class) },
                priority,
                connection: has(fact::CONNTRACK).then(|| Connection::of(family, conntrack, entry)),
                loopback: has(fact::OUT) && traversal.outdev.starts_with(LOOPBACK),
            },
            devices: [traversal.indev, traversal.outdev],
            family,
            entry,
            exit: if has(fact::EXIT) { Header::at_exit(family, entry, traversal) } else { None },
            established: has(fact::CONNTRACK)
                .then(|| Established::of(conntrack, (hook, priority), view))
                .flatten(),
            token: 0,
        }
    }

    /// Of a base chain of nftables. The packet is not looked at again when it leaves.
    pub fn of_run(run: &Run, family: Family) -> Self {
        use tracer_common::nft::fact;
        let has = |bit| run.facts & bit != 0;
        let header = Header::of(family, run.copied, &run.bytes);
        let conntrack = (run.ctinfo, run.ct_status);
        let view = || first_view(family, &run.indev, (run.copied, &run.bytes));
        Self {
            packet: run.packet,
            skb: run.skb,
            first: has(fact::FIRST),
            netns: run.netns,
            entry_ns: run.entry_ns,
            place: Place {
                hook: hook_of(run.hook) as u8,
                key: Key::Nft { table: run.table, chain: run.chain },
                priority: run.priority,
                connection: has(fact::CONNTRACK).then(|| Connection::of(family, conntrack, header)),
                loopback: has(fact::OUT) && run.outdev.starts_with(LOOPBACK),
            },
            devices: [run.indev, run.outdev],
            family,
            entry: header,
            exit: header,
            established: (has(fact::CONNTRACK) && run.hook < Hook::Ingress as u8)
                .then(|| Established::of(conntrack, (run.hook, run.priority), view))
                .flatten(),
            token: 0,
        }
    }

    /// With what tells its packet from others where it is freed, from the bytes of the same record.
    pub fn with_token(self, copied: u32, bytes: &[u8]) -> Self {
        Self { token: token(self.family, copied, bytes), ..self }
    }

    /// Whether it comes in by loopback.
    pub(super) fn is_looped(&self) -> bool {
        self.place.hook == Hook::Prerouting as u8 && self.devices[0].starts_with(LOOPBACK)
    }

    /// The device whose chains stand at a hook that the packet passes here, or has passed before.
    pub(super) fn device(&self, hook: u8) -> &[u8] {
        device(&self.devices, hook)
    }
}

/// Which of the devices has the chains at a hook; nothing at the hooks of IP.
#[inline]
pub(super) fn device(devices: &[[u8; 16]; 2], hook: u8) -> &[u8] {
    const INGRESS: u8 = Hook::Ingress as u8;
    const EGRESS: u8 = Hook::Egress as u8;
    match hook {
        INGRESS => trimmed(&devices[0]),
        EGRESS => trimmed(&devices[1]),
        _ => &[],
    }
}

/// The hook of a place.
pub(super) fn hook_of(number: u8) -> Hook {
    Hook::from_record(number).unwrap_or(Hook::Postrouting)
}

/// A device's name without the zeros behind it.
pub(super) fn trimmed(name: &[u8]) -> &[u8] {
    name.iter().position(|byte| *byte == 0).map_or(name, |end| &name[..end])
}

/// A packet as far as it tells its addresses and ports, and the device that it came from.
fn first_view<'a>(family: Family, indev: &'a [u8], (copied, bytes): (u32, &'a [u8])) -> PacketView<'a> {
    let copied = usize::try_from(copied).unwrap_or(0).min(bytes.len());
    PacketView {
        family,
        indev: Some(trimmed(indev)),
        outdev: None,
        link: Link::default(),
        len: copied as u32,
        bytes: &bytes[..copied],
        mark: 0,
        owner: None,
    }
}

impl Connection {
    fn of(family: Family, (info, status): (u8, u32), header: Option<Header>) -> Self {
        let icmp = if family == Family::Ipv4 { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
        let is_error = [info::RELATED, info::RELATED_REPLY].contains(&info)
            && header.is_some_and(|header| header.protocol == icmp);
        Self { info, status, is_error }
    }

    /// Whether the packet is the first of a connection that nothing has confirmed, so that the nat table decides.
    pub(super) fn is_first(self) -> bool {
        self.may_be_first() && self.status & (status::CONFIRMED | status::TEMPLATE) == 0
    }

    /// As the kernel's `nf_nat_inet_fn` asks; `nf_nat_ipv4_fn` and its sibling do not come there with ICMP errors.
    pub(super) fn may_be_first(self) -> bool {
        !self.is_error && [info::NEW, info::RELATED, info::RELATED_REPLY].contains(&self.info)
    }

    /// Whether its packets have become longer or shorter, and what counts their bytes is changed accordingly.
    pub(super) fn shifts_numbers(self) -> bool {
        self.status & status::SEQ_ADJUST != 0
    }

    pub(super) fn is_done(self, hook: u8) -> bool {
        let done = if is_destination(hook) { status::DST_NAT_DONE } else { status::SRC_NAT_DONE };
        self.status & done != 0
    }

    /// Whether the nat table at this hook must decide.
    pub(super) fn undecided(self, hook: u8) -> bool {
        self.is_first() && !self.is_done(hook)
    }
}

/// Whether nat at this hook translates destinations.
pub(super) fn is_destination(hook: u8) -> bool {
    hook == Hook::Prerouting as u8 || hook == Hook::Output as u8
}
