//! Packets as records of the kernel show them.
#![forbid(unsafe_code)]

use crate::netfilter::Family;
use crate::packet::{Link, Owner, PacketView};
use crate::path::attribute::State;
use tracer_common::legacy::{SkbState, Traversal, fact};
use tracer_common::nft::Run;

/// What the kernel said of a packet's buffer, with the bytes that it copied.
pub(super) fn state<'a>(skb: &SkbState, bytes: &'a [u8]) -> State<'a> {
    State { mark: skb.mark, len: skb.len, bytes }
}

/// The packet of a traversal in one of its states.
pub(super) fn view<'a>(traversal: &'a Traversal, state: State<'a>) -> PacketView<'a> {
    let has = |bit| traversal.facts & bit != 0;
    PacketView {
        family: Family::from_nfproto(traversal.family).unwrap_or(Family::Ipv4),
        indev: has(fact::IN).then(|| trimmed(&traversal.indev)),
        outdev: has(fact::OUT).then(|| trimmed(&traversal.outdev)),
        link: if has(fact::IN) {
            Link {
                dev_type: traversal.dev_type,
                hard_header_len: traversal.hard_header_len,
                header: has(fact::MAC)
                    .then(|| &traversal.mac[..usize::from(traversal.mac_len).min(traversal.mac.len())]),
                ..Link::default()
            }
        } else {
            Link::default()
        },
        len: state.len,
        bytes: state.bytes,
        mark: state.mark,
        owner: has(fact::OWNER).then_some(Owner { uid: traversal.uid, gid: traversal.gid }),
    }
}

/// Length of an ARP packet for Ethernet and IPv4.
const ARP_BYTES: u32 = 28;

/// The packet as it entered the base chain, with the mark as it was later.
pub(super) fn view_of_run(run: &Run, family: Family, mark: u32) -> PacketView<'_> {
    use tracer_common::nft::fact;
    let has = |bit| run.facts & bit != 0;
    let copied = usize::try_from(run.copied).unwrap_or(0).min(run.bytes.len());
    PacketView {
        family,
        indev: has(fact::IN).then(|| trimmed(&run.indev)),
        outdev: has(fact::OUT).then(|| trimmed(&run.outdev)),
        link: Link {
            dev_type: run.dev_type,
            hard_header_len: run.hard_header_len,
            header: has(fact::MAC).then(|| &run.mac[..usize::from(run.mac_len).min(run.mac.len())]),
            ..Link::default()
        },
        // Before an ARP packet is sent, its length counts the frame as well.
        len: if family == Family::Arp { run.len.min(ARP_BYTES) } else { run.len },
        bytes: if family == Family::Arp {
            &run.bytes[..copied.min(ARP_BYTES as usize)]
        } else {
            &run.bytes[..copied]
        },
        mark,
        owner: has(fact::OWNER).then_some(Owner { uid: run.uid, gid: run.gid }),
    }
}

/// A name without the zeros behind it.
pub(super) fn trimmed(name: &[u8]) -> &[u8] {
    name.iter().position(|byte| *byte == 0).map_or(name, |end| &name[..end])
}
