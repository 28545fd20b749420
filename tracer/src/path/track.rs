//! Joins what one packet met to a path, legacy tables and base chains of nftables alike, notices what is missing
//! between, and knows when it is done.
#![forbid(unsafe_code)]

use super::ending::{Device, Ending, Waited};
use super::established::Established;
use super::stands::{Key, Stands};
use super::{Certainty, Path};
use crate::hash::KernelMap;
use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::ip::{Ipv4, Ipv6};
use crate::packet::{Link, PacketView};
use std::collections::VecDeque;
use std::rc::Rc;
use tracer_common::ending::{Freed, Reinjected};
use tracer_common::legacy::{ENTRY_BYTES, EXIT_BYTES, Traversal, fact, rank, table_class};
use tracer_common::nft::Run;
use tracer_common::place::legacy_priority;

/// How long a packet may be silent before its path is given out.
const IDLE_NS: u64 = 250_000_000;
/// The same for one that waits in a queue for user space.
const QUEUED_NS: u64 = 30_000_000_000;
/// A missed traversal of a packet happens within this time of its last one that was seen.
const SOON_NS: u64 = 100_000_000;
/// How long the path of a packet is kept that all tables have let go: if the kernel frees it, then mostly at once.
const HOLD_NS: u64 = 20_000_000;
/// Packets that are remembered after they were let go out.
const LEFT: usize = 8192;
/// Steps for which a path has room from the beginning.
const USUAL_STEPS: usize = 16;
/// The loopback device of every namespace.
const LOOPBACK: &[u8] = b"lo\0";

const IP_MORE: u16 = 0x2000;
const IPV6_MORE: u16 = 1;
const IPV6_OFFSET: u16 = 0xfff8;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_ICMPV6: u8 = 58;

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
    pub(super) const CONFIRMED: u64 = 1 << 3;
    pub(super) const SRC_NAT_DONE: u64 = 1 << 7;
    pub(super) const DST_NAT_DONE: u64 = 1 << 8;
    pub(super) const TEMPLATE: u64 = 1 << 11;
}

/// Conntrack comes after what is below this priority.
const CONNTRACK: i32 = -200;

/// Packets whose paths are not complete yet.
#[derive(Debug, Default)]
pub struct Tracker {
    open: KernelMap<u64, Open>,
    /// Packets by the time of their last traversal, oldest first; those seen again since are skipped.
    silent: VecDeque<(u64, u64)>,
    /// The same for packets that wait for a verdict from user space.
    queued: VecDeque<(u64, u64)>,
    /// Packets by the address of their skb.
    by_skb: KernelMap<u64, u64>,
    windows: VecDeque<Window>,
    /// The end of the latest window.
    last_missed_ns: u64,
    packets: u64,
    /// Since when what is added now has been there at the latest: traversals end later than they begin.
    heard_ns: u64,
    /// Whether paths are kept until it is known whether their packets were freed.
    holds: bool,
    /// Packets that nothing more can be seen of, and since when, oldest first.
    held: KernelMap<u64, Held>,
    holding: VecDeque<(u64, u64)>,
    /// Packets that were let go out lately, the oldest first.
    left: KernelMap<u64, Left>,
    leaving: VecDeque<u64>,
}

/// A packet that was let go out, whose path has been given out. It may wait for its neighbour's address, or for its device.
#[derive(Clone, Copy, Debug)]
struct Left {
    number: u64,
    family: Family,
    netns: Option<u32>,
    header: Header,
}

/// A packet that nothing more can be seen of.
#[derive(Debug)]
struct Held {
    path: Path,
    last: Place,
    header: Option<Header>,
}

/// A stretch of time with traversals that no probe saw, or whose records were lost.
#[derive(Clone, Copy, Debug)]
struct Window {
    since_ns: u64,
    until_ns: u64,
}

#[derive(Debug)]
struct Open {
    path: Path,
    last: Place,
    skb: u64,
    entry_ns: u64,
    /// What it met last was over by then.
    exit_ns: u64,
    /// As it was seen last.
    header: Option<Header>,
    /// The hooks where it was, by bits.
    hooks: u16,
    /// The queue that it was sent to.
    queue: Option<u16>,
    /// Its last step decided what became of it.
    is_decided: bool,
    ending: Option<Ending>,
    stands: Rc<Stands>,
    /// Which of them see a packet before what it met last.
    behind: u64,
    /// Which of them it has met at the hook where it was last.
    met: u64,
    established: Option<Established>,
    /// A nat table stands at a hook where it was.
    has_nat: bool,
    /// Where it came from and where it was sent to, as far as it was seen.
    devices: [[u8; 16]; 2],
    /// Something of its way is known, that across bridges aside.
    begun: bool,
    /// Its way across bridges: with br_netfilter it meets the hooks of IP in between.
    bridge: Option<Bridged>,
}

/// Where a packet was last at the hooks of a bridge; as [`Open`] has it for the others.
#[derive(Clone, Copy, Debug)]
struct Bridged {
    last: Place,
    behind: u64,
    met: u64,
}

/// What a packet waits for.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Its path is done.
    Nothing,
    /// A verdict from user space.
    Verdict,
    /// What it meets next.
    Stand,
}

/// What identifies a packet by its header. But for the addresses nothing of it is ever translated: another packet at
/// the same place in memory differs in it.
#[derive(Clone, Copy, Debug)]
struct Header {
    /// Identification, or flow label.
    id: u32,
    len: u32,
    protocol: u8,
    piece: Piece,
    /// Some of what follows that nobody changes on the way; 0 where there is nothing of that kind.
    token: u64,
    /// Source and destination.
    addresses: [u8; 32],
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Whole,
    First,
    Later,
}

impl Header {
    fn of(family: Family, copied: u32, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..usize::try_from(copied).ok()?.min(bytes.len()))?;
        let mut addresses = [0; 32];
        Some(match family {
            Family::Ipv4 => {
                let ip = Ipv4(bytes.first_chunk()?);
                addresses[..4].copy_from_slice(&ip.src());
                addresses[4..8].copy_from_slice(&ip.dst());
                let piece = Piece::of(ip.frag_off() & IP_MORE != 0, ip.fragment());
                let (id, len) = (ip.id().into(), ip.total_len().into());
                let token = token(ip.protocol(), bytes, usize::from(bytes[0] & 15) * 4, len);
                Self { id, len, protocol: ip.protocol(), piece, token, addresses }
            }
            Family::Ipv6 => {
                let ip = Ipv6(bytes.first_chunk()?);
                addresses[..16].copy_from_slice(&ip.src());
                addresses[16..].copy_from_slice(&ip.dst());
                let (protocol, piece) = match ip.next_header() {
                    IPPROTO_FRAGMENT => {
                        let &[protocol, _, high, low] = bytes[40..].first_chunk()?;
                        let field = u16::from_be_bytes([high, low]);
                        (protocol, Piece::of(field & IPV6_MORE != 0, field & IPV6_OFFSET))
                    }
                    protocol => (protocol, Piece::Whole),
                };
                let token = token(ip.next_header(), bytes, 40, ip.total_len());
                Self { id: ip.flow_label(), len: ip.total_len(), protocol, piece, token, addresses }
            }
            // Nothing of it is ever translated.
            Family::Arp => {
                let [_, _, _, _, hardware, network, _, operation, rest @ ..]: &[u8; 28] =
                    bytes.first_chunk()?;
                addresses[..20].copy_from_slice(rest);
                let id = rest.iter().fold(0, |id: u32, byte| id.rotate_left(5) ^ u32::from(*byte));
                let len = u16::from_be_bytes([*hardware, *network]);
                Self { id, len: len.into(), protocol: *operation, piece: Piece::Whole, token: 0, addresses }
            }
        })
    }

    /// As [`of`](Self::of) at the end of a traversal that began with `entry`. Few targets change a header.
    fn at_exit(family: Family, entry: Option<Self>, traversal: &Traversal) -> Option<Self> {
        const FIXED: usize = 48;
        let Traversal { entry: before, exit: after, entry_bytes, exit_bytes, .. } = traversal;
        let same = traversal.facts & fact::SAME_BYTES != 0
            || entry_bytes.first_chunk::<FIXED>() == exit_bytes.first_chunk::<FIXED>()
                && before.copied.min(ENTRY_BYTES as u32) == after.copied.min(EXIT_BYTES as u32);
        if same { entry } else { Self::of(family, after.copied, exit_bytes) }
    }

    /// Whether this can be the same packet some time later.
    fn stays(&self, later: &Self) -> bool {
        let what = |header: &Self| (header.id, header.len, header.protocol, header.piece);
        what(self) == what(later)
    }

    /// Whether this certainly is the same packet some time later, or one that is a copy of it.
    fn is(&self, later: &Self) -> bool {
        self.stays(later) && self.token == later.token
    }
}

/// Eight bytes of what follows the IP header: numbers of TCP, the first bytes of a datagram, what is behind the
/// identifier of an ICMP message. Neither translation nor checksums that devices fill in change them.
fn token(protocol: u8, bytes: &[u8], header: usize, len: u32) -> u64 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let at = header
        + match protocol {
            TCP => 4,
            UDP => 8,
            IPPROTO_ICMP | IPPROTO_ICMPV6 => 6,
            _ => return 0,
        };
    let is_within = usize::try_from(len).is_ok_and(|len| at + 8 <= len);
    let token = bytes.get(at..).and_then(|rest| rest.first_chunk()).filter(|_| is_within);
    token.map_or(0, |token| u64::from_ne_bytes(*token))
}

impl Piece {
    fn of(more: bool, offset: u16) -> Self {
        match (more, offset) {
            (false, 0) => Self::Whole,
            (true, 0) => Self::First,
            _ => Self::Later,
        }
    }
}

/// What a record tells of its packet, whichever engine had it.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Which packet, by the kernel program's number.
    pub packet: u64,
    /// Address of its skb.
    skb: u64,
    /// Nothing earlier of it was seen.
    pub(super) first: bool,
    netns: u32,
    entry_ns: u64,
    place: Place,
    /// Where it came from and where it goes: names with zeros behind; nothing but zeros for none.
    devices: [[u8; 16]; 2],
    family: Family,
    entry: Option<Header>,
    exit: Option<Header>,
    established: Option<Established>,
}

/// Where a packet was, and what conntrack said then.
#[derive(Clone, Copy, Debug)]
struct Place {
    hook: u8,
    key: Key,
    priority: i32,
    /// `None` without a conntrack entry.
    connection: Option<Connection>,
    loopback: bool,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    info: u8,
    status: u64,
    /// The packet is an ICMP error about the connection: what happens to its addresses follows from that.
    is_error: bool,
}

/// What one traversal adds to a path.
#[derive(Debug)]
pub struct Part<'a> {
    /// `table:chain:kind:number` of its steps, to be taken.
    pub steps: &'a mut Vec<Rc<str>>,
    /// How far they can be relied on.
    pub certainty: Certainty,
    /// Why not further.
    pub why: Option<String>,
    /// The version of the table, `table@generation`.
    pub generation: Option<Rc<str>>,
    /// What ended the packet, where no step says it.
    pub outcome: Option<String>,
    /// What the table decided; `None` when its end was not seen.
    pub verdict: Option<Verdict>,
    /// The queue that it chose.
    pub queue: Option<u16>,
}

/// A packet that the kernel freed, as far as it is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Its family.
    pub family: Family,
    /// The namespace where it was seen.
    pub netns: Option<u32>,
    /// Where functions can have seen it since, without a table seeing it: hooks, each with the priorities from and to.
    pub unseen: Vec<(Hook, i32, i32)>,
}

/// Whether this function takes packets in, before this hook sees them: what was seen there or behind it is not freed so.
fn is_receiving(function: &str, hook: Hook) -> bool {
    let name = function.split('.').next().unwrap_or(function);
    BEFORE_INGRESS.contains(&name) || (hook != Hook::Ingress && BEHIND_INGRESS.contains(&name))
}

const BEFORE_INGRESS: [&str; 4] =
    ["enqueue_to_backlog", "netif_rx_internal", "netif_receive_generic_xdp", "do_xdp_generic"];
const BEHIND_INGRESS: [&str; 6] = [
    "__netif_receive_skb_core",
    "__netif_receive_skb_list_core",
    "ip_rcv",
    "ip_rcv_core",
    "ipv6_rcv",
    "ip6_rcv_core",
];

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
        }
    }

    /// The device whose chains stand at a hook that the packet passes here, or has passed before.
    fn device(&self, hook: u8) -> &[u8] {
        device(&self.devices, hook)
    }
}

/// Which of the devices has the chains at a hook; nothing at the hooks of IP.
#[inline]
fn device(devices: &[[u8; 16]; 2], hook: u8) -> &[u8] {
    const INGRESS: u8 = Hook::Ingress as u8;
    const EGRESS: u8 = Hook::Egress as u8;
    match hook {
        INGRESS => trimmed(&devices[0]),
        EGRESS => trimmed(&devices[1]),
        _ => &[],
    }
}

/// The hook of a place.
fn hook_of(number: u8) -> Hook {
    Hook::from_record(number).unwrap_or(Hook::Postrouting)
}

/// A device's name without the zeros behind it.
fn trimmed(name: &[u8]) -> &[u8] {
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

impl Tracker {
    /// The packet's number in this trace, from 1.
    #[inline]
    pub fn number(&mut self, visit: &Visit) -> u64 {
        match self.open.get(&visit.packet) {
            Some(open) if !visit.first && open.becomes(visit).is_none() => open.path.packet,
            _ => self.packets + 1,
        }
    }

    /// Keeps paths until it is known whether their packets were freed.
    pub fn hold(&mut self) {
        self.holds = true;
    }

    /// What is added from now on had been there by this time (CLOCK_MONOTONIC).
    pub fn heard(&mut self, now_ns: u64) {
        self.heard_ns = now_ns;
    }

    /// Takes from a traversal only what it tells about others: how many were missed.
    pub fn notice(&mut self, traversal: &Traversal) {
        if traversal.missed != 0 {
            self.lost(traversal.checkpoint_ns, traversal.entry_ns);
        }
    }

    /// Traversals were missed, or their records were lost, at some time between these two.
    pub fn lost(&mut self, since_ns: u64, until_ns: u64) {
        self.windows.push_back(Window { since_ns, until_ns });
        self.last_missed_ns = self.last_missed_ns.max(until_ns);
    }

    /// Adds what a packet met. Gives out its path when it is done, and the path of an earlier packet when this one
    /// shows that it is.
    pub fn add(&mut self, visit: &Visit, part: Part<'_>, stands: &Rc<Stands>, give: &mut impl FnMut(Path)) {
        let Visit { packet, first, place, .. } = *visit;
        if self.holds {
            self.give_held(packet, give);
            self.left.remove(&packet);
        }
        let heard_ns = self.heard_ns;
        let (mut fate, mut bridge) = (None, None);
        if let Some(open) = self.open.get_mut(&packet).filter(|_| !first) {
            fate = open.becomes(visit);
            if fate.is_none() {
                let next = open.go_on(part, visit, stands, heard_ns);
                self.wait(packet, next, visit.entry_ns.max(heard_ns), give);
                return;
            }
            open.path.outcome = fate.map(str::to_owned);
            bridge = open.bridge.take();
        }
        if first || fate.is_some() {
            self.give(packet, give);
        }
        let earlier = match self.open.get(&packet) {
            Some(_) => None,
            None => self.by_skb.insert(visit.skb, packet),
        };
        let begins = matches!(
            hook_of(place.hook),
            Hook::Ingress | Hook::Prerouting | Hook::Output | Hook::BridgePrerouting | Hook::ArpOutput
        );
        let torn = earlier.filter(|_| first && !begins);
        // The kernel program has forgotten that it had seen it.
        let torn = torn.and_then(|earlier| self.open.get_mut(&earlier)).is_some_and(|earlier| {
            let soon = !earlier.last.loopback && visit.entry_ns <= earlier.exit_ns + SOON_NS;
            if soon {
                earlier.doubt("it may have gone on as the packet after it".to_owned());
            }
            soon
        });
        let packets = &mut self.packets;
        let open = self.open.entry(packet).or_insert_with(|| {
            *packets += 1;
            let mut open = Open::new(*packets, visit, Rc::clone(stands));
            if first {
                open.check_beginning(visit);
            } else if fate.is_none() {
                open.doubt("its earlier tables were not seen, or shown before, as another packet".to_owned());
            }
            // What became another packet on its way across a bridge is still there.
            open.bridge = bridge;
            open
        });
        if torn {
            open.doubt("it may be the rest of a packet that was shown before".to_owned());
        }
        let next = open.go_on(part, visit, stands, heard_ns);
        self.wait(packet, next, visit.entry_ns.max(heard_ns), give);
    }

    /// Gives a packet out, or waits for what comes next of it. What it met last was over at `exit_ns`.
    fn wait(&mut self, packet: u64, next: Next, exit_ns: u64, give: &mut impl FnMut(Path)) {
        match next {
            Next::Nothing => {
                let Some(open) = self.close(packet) else { return };
                let (last, header) = (open.last, open.header);
                let path = open.end(&self.windows, self.last_missed_ns);
                if self.holds && path.verdict == Some(Verdict::Accept) {
                    self.held.insert(packet, Held { path, last, header });
                    self.holding.push_back((exit_ns, packet));
                } else {
                    give(path);
                }
            }
            Next::Verdict => self.queued.push_back((exit_ns, packet)),
            Next::Stand => self.silent.push_back((exit_ns, packet)),
        }
    }

    fn give_held(&mut self, packet: u64, give: &mut impl FnMut(Path)) {
        let Some(Held { path, header, .. }) = self.held.remove(&packet) else { return };
        if let (Some(Ending::Sent(_) | Ending::Forwarded(_)), Some(header)) = (&path.ending, header) {
            if self.leaving.len() == LEFT
                && let Some(oldest) = self.leaving.pop_front()
            {
                self.left.remove(&oldest);
            }
            self.leaving.push_back(packet);
            self.left
                .insert(packet, Left { number: path.packet, family: path.family, netns: path.netns, header });
        }
        give(path);
    }

    /// As [`freed`](Self::freed), for a packet whose path was given out when it was let go out. Gives its number in this
    /// trace, and the namespace where it was seen.
    pub fn freed_later(&mut self, freed: &Freed, function: &str) -> Option<(u64, Option<u32>)> {
        let left = self.left.get(&freed.packet)?;
        let now = Header::of(left.family, freed.copied, &freed.bytes)?;
        if !left.header.is(&now) || is_receiving(function, Hook::Postrouting) {
            return None;
        }
        self.left.remove(&freed.packet).map(|left| (left.number, left.netns))
    }

    /// The kernel freed what is at a packet's place in memory, in this function. Gives what is known of the packet if it
    /// still is that one, so that [`end`](Self::end) can be told how it ended.
    pub fn freed(&self, freed: &Freed, function: &str) -> Option<Released> {
        let open = self.open.get(&freed.packet);
        let (path, last, header) = match (open, self.held.get(&freed.packet)) {
            (Some(open), _) => (&open.path, open.last, open.header?),
            (None, Some(held)) => (&held.path, held.last, held.header?),
            (None, None) => return None,
        };
        let now = Header::of(path.family, freed.copied, &freed.bytes)?;
        // What left may be taken in by another namespace, or come back through loopback.
        let is_outside = last.loopback || (freed.netns != 0 && Some(freed.netns) != path.netns);
        let hook = hook_of(last.hook);
        let has_left = !matches!(hook, Hook::Ingress | Hook::Prerouting | Hook::Input);
        if !header.is(&now) || (is_receiving(function, hook) && !(has_left && is_outside)) {
            return None;
        }
        let unseen = open.map_or_else(|| unseen(last, None, |_| None), Open::unseen);
        Some(Released { family: path.family, netns: path.netns, unseen })
    }

    /// A packet has ended this way. Of one that could still have been seen, traversals may have been missed: its path
    /// waits until that is known.
    pub fn end(&mut self, packet: u64, ending: Ending, give: &mut impl FnMut(Path)) {
        if let Some(open) = self.open.get_mut(&packet) {
            open.ending = Some(ending);
            self.silent.push_back((open.exit_ns, packet));
        } else if let Some(held) = self.held.get_mut(&packet) {
            held.path.ending = Some(ending);
            self.give_held(packet, give);
        }
    }

    /// User space has decided about a packet that waited in a queue.
    pub fn reinjected(&mut self, reinjected: &Reinjected, give: &mut impl FnMut(Path)) {
        let Reinjected { packet, time_ns, verdict, .. } = *reinjected;
        let heard_ns = self.heard_ns;
        let Some(open) = self.open.get_mut(&packet) else { return };
        if open.path.verdict != Some(Verdict::Queue) {
            return;
        }
        let (verdict, queue) = (Verdict::from_return(verdict), open.queue);
        let waited_ns = time_ns.saturating_sub(open.entry_ns);
        open.path.waited.push(Waited { queue, waited_ns, verdict });
        open.exit_ns = time_ns.max(heard_ns);
        match verdict {
            Verdict::Drop => {
                open.ending = Some(Ending::ByUser { queue });
                self.give(packet, give);
            }
            Verdict::Accept => {
                open.path.verdict = Some(verdict);
                open.is_decided = false;
                let (next, exit_ns) = (open.next(), open.exit_ns);
                self.wait(packet, next, exit_ns, give);
            }
            _ => self.silent.push_back((open.exit_ns, packet)),
        }
    }

    /// Gives out the paths of packets that have been silent for long.
    pub fn expire(&mut self, now_ns: u64, give: &mut impl FnMut(Path)) {
        let over = |patience_ns| move |&mut (exit_ns, _): &mut (u64, u64)| exit_ns + patience_ns <= now_ns;
        while let Some((exit_ns, packet)) =
            self.silent.pop_front_if(over(IDLE_NS)).or_else(|| self.queued.pop_front_if(over(QUEUED_NS)))
        {
            if self.open.get(&packet).is_some_and(|open| open.exit_ns == exit_ns) {
                self.give(packet, give);
            }
        }
        while let Some((_, packet)) = self.holding.pop_front_if(over(HOLD_NS)) {
            self.give_held(packet, give);
        }
        while self.windows.front().is_some_and(|window| window.until_ns + 2 * IDLE_NS < now_ns) {
            self.windows.pop_front();
        }
    }

    /// Gives out all that is left, in the order the packets came. Of one that was seen just now, more might have come.
    pub fn finish(&mut self, now_ns: u64, give: &mut impl FnMut(Path)) {
        let open = self.open.iter().map(|(packet, open)| (open.path.packet, *packet));
        let held = self.held.iter().map(|(packet, held)| (held.path.packet, *packet));
        let mut left: Vec<(u64, u64)> = open.chain(held).collect();
        left.sort_unstable();
        for (_, packet) in left {
            self.give_held(packet, give);
            if let Some(open) = self.open.get_mut(&packet)
                && open.is_unfinished()
                && open.ending.is_none()
                && open.exit_ns + SOON_NS > now_ns
            {
                open.doubt("the trace ended while it was on its way".to_owned());
            }
            self.give(packet, give);
        }
        self.silent.clear();
        self.queued.clear();
        self.holding.clear();
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        // What is remembered of packets that left is never more than so much.
        let Self { open, held, silent, queued, holding, by_skb, windows, .. } = self;
        let maps = open.len() + held.len() + by_skb.len();
        maps + silent.len() + queued.len() + holding.len() + windows.len() == 0
    }

    fn give(&mut self, packet: u64, give: &mut impl FnMut(Path)) {
        if let Some(open) = self.close(packet) {
            give(open.end(&self.windows, self.last_missed_ns));
        }
    }

    fn close(&mut self, packet: u64) -> Option<Open> {
        let open = self.open.remove(&packet)?;
        if self.by_skb.get(&open.skb) == Some(&packet) {
            self.by_skb.remove(&open.skb);
        }
        Some(open)
    }
}

impl Connection {
    fn of(family: Family, (info, status): (u8, u32), header: Option<Header>) -> Self {
        let icmp = if family == Family::Ipv4 { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
        let is_error = [info::RELATED, info::RELATED_REPLY].contains(&info)
            && header.is_some_and(|header| header.protocol == icmp);
        Self { info, status: u64::from(status), is_error }
    }

    /// Whether the packet is the first of a connection that nothing has confirmed, so that the nat table decides.
    fn is_first(self) -> bool {
        self.may_be_first() && self.status & (status::CONFIRMED | status::TEMPLATE) == 0
    }

    /// As the kernel's `nf_nat_inet_fn` asks; `nf_nat_ipv4_fn` and its sibling do not come there with ICMP errors.
    fn may_be_first(self) -> bool {
        !self.is_error && [info::NEW, info::RELATED, info::RELATED_REPLY].contains(&self.info)
    }

    fn is_done(self, hook: u8) -> bool {
        let done = if is_destination(hook) { status::DST_NAT_DONE } else { status::SRC_NAT_DONE };
        self.status & done != 0
    }

    /// Whether the nat table at this hook must decide.
    fn undecided(self, hook: u8) -> bool {
        self.is_first() && !self.is_done(hook)
    }
}

/// Whether nat at this hook translates destinations.
fn is_destination(hook: u8) -> bool {
    hook == Hook::Prerouting as u8 || hook == Hook::Output as u8
}

/// Hooks that a packet passes between two others.
fn skipped(from: u8, to: u8) -> &'static [Hook] {
    match (hook_of(from), hook_of(to)) {
        (Hook::Ingress, Hook::Input | Hook::Forward) => &[Hook::Prerouting],
        (Hook::Ingress, Hook::Postrouting) => &[Hook::Prerouting, Hook::Forward],
        (Hook::Prerouting, Hook::Postrouting) => &[Hook::Forward],
        (Hook::Prerouting, Hook::Egress) => &[Hook::Forward, Hook::Postrouting],
        (Hook::Forward | Hook::Output, Hook::Egress) => &[Hook::Postrouting],
        (Hook::Output, Hook::Ingress) => &[Hook::Postrouting, Hook::Egress],
        (Hook::Output, Hook::Prerouting) => &[Hook::Postrouting, Hook::Egress, Hook::Ingress],
        (Hook::Output, Hook::Input) => &[Hook::Postrouting, Hook::Egress, Hook::Ingress, Hook::Prerouting],
        (Hook::Postrouting, Hook::Ingress) => &[Hook::Egress],
        (Hook::Postrouting, Hook::Prerouting) => &[Hook::Egress, Hook::Ingress],
        (Hook::Postrouting, Hook::Input) => &[Hook::Egress, Hook::Ingress, Hook::Prerouting],
        (Hook::Egress, Hook::Prerouting) => &[Hook::Ingress],
        (Hook::Egress, Hook::Input) => &[Hook::Ingress, Hook::Prerouting],
        (Hook::BridgePrerouting, Hook::BridgePostrouting) => &[Hook::BridgeForward],
        _ => &[],
    }
}

/// Where functions can have seen a packet after this place: hooks, each with the priorities from and to. `here` is the
/// priority of what it had to meet there next, and `first` that of what it had to meet first at a later hook.
fn unseen(last: Place, here: Option<i32>, first: impl Fn(Hook) -> Option<i32>) -> Vec<(Hook, i32, i32)> {
    let hook = hook_of(last.hook);
    let mut unseen = vec![(hook, last.priority, here.unwrap_or(i32::MAX))];
    let mut hooks = if here.is_some() { Vec::new() } else { next_hooks(hook, last.loopback).to_vec() };
    while let Some(hook) = hooks.pop() {
        let until = first(hook);
        unseen.push((hook, i32::MIN, until.unwrap_or(i32::MAX)));
        if until.is_none() {
            // Through loopback once: what comes in there does not go out again.
            hooks.extend(next_hooks(hook, false));
        }
    }
    unseen
}

/// Hooks that follow another at once.
fn next_hooks(hook: Hook, loopback: bool) -> &'static [Hook] {
    match hook {
        Hook::Ingress => &[Hook::Prerouting],
        Hook::Prerouting => &[Hook::Input, Hook::Forward],
        Hook::Forward | Hook::Output => &[Hook::Postrouting],
        Hook::Postrouting if loopback => &[Hook::Prerouting],
        _ => &[],
    }
}

impl Open {
    fn new(number: u64, visit: &Visit, stands: Rc<Stands>) -> Self {
        let path = Path {
            packet: number,
            family: visit.family,
            steps: Vec::new(),
            verdict: None,
            certainty: Certainty::Complete,
            why: Vec::new(),
            outcome: None,
            note: None,
            ending: None,
            waited: Vec::new(),
            generation: Vec::new(),
            netns: Some(visit.netns),
        };
        let (last, skb, entry_ns) = (visit.place, visit.skb, visit.entry_ns);
        let (established, has_nat) = (None, false);
        Self {
            path,
            last,
            skb,
            entry_ns,
            exit_ns: entry_ns,
            header: None,
            hooks: 0,
            queue: None,
            is_decided: false,
            ending: None,
            stands,
            behind: 0,
            met: 0,
            established,
            has_nat,
            devices: [[0; 16]; 2],
            begun: false,
            bridge: None,
        }
    }

    fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    fn not_seen(&mut self, hook: u8, missing: u64) {
        if missing == 0 {
            return;
        }
        let stands = Rc::clone(&self.stands);
        for name in stands.names(hook, missing) {
            self.doubt(format!("{name} was not seen"));
        }
    }

    /// Those of `among` that a packet must have met at a hook where it has met `met`, given what conntrack said before
    /// or after.
    fn expected(
        &self,
        hook: u8,
        (among, met): (u64, u64),
        earlier: Option<Connection>,
        later: Option<Connection>,
    ) -> u64 {
        let missing = self.stands.sure(hook) & among & !met;
        let nat = self.stands.nat(hook);
        if missing & nat == 0 || met & nat != 0 {
            return missing & !nat;
        }
        let consulted = match (earlier, later) {
            (Some(earlier), _) => earlier.undecided(hook),
            (None, Some(later)) => later.is_first(),
            (None, None) => false,
        };
        // The first that decides is the last that is asked.
        let first_nat = (missing & nat) & (missing & nat).wrapping_neg();
        let asked = if consulted { first_nat } else { 0 };
        (missing & !nat) | asked
    }

    /// What has become of this packet, if what is seen now is another one in its memory: the whole packet takes the skb
    /// of the fragment that came last, and the first fragment takes that of the packet that is cut.
    #[inline]
    fn becomes(&self, visit: &Visit) -> Option<&'static str> {
        let later = visit.entry?;
        let before = self.header.filter(|it| (it.id, it.protocol) == (later.id, later.protocol))?;
        match (before.piece, later.piece) {
            // Without conntrack between PREROUTING and INPUT: `ip_local_deliver` in `net/ipv4/ip_input.c`. With it before
            // all tables, but behind the chains of devices.
            (Piece::First | Piece::Later, Piece::Whole)
                if self.path.family == Family::Ipv4
                    || self.bridge.is_some()
                    || self.last.hook == Hook::Ingress as u8 =>
            {
                Some("put together with other fragments")
            }
            // After POSTROUTING: `ip_finish_output` and its sibling. Only through loopback, or by a device with chains of
            // its own, is the fragment seen again.
            (Piece::Whole, Piece::First)
                if (self.last.loopback
                    || matches!(hook_of(visit.place.hook), Hook::Egress | Hook::BridgeOutput))
                    && later.len < before.len
                    && later.addresses == before.addresses =>
            {
                Some("cut into fragments")
            }
            _ => None,
        }
    }

    /// A packet begins at a device's chains or at the first table of PREROUTING or OUTPUT, or something was not seen.
    fn check_beginning(&mut self, visit: &Visit) {
        self.check_way(visit);
        self.check_ingress(visit, &[]);
    }

    /// What a packet must have met on its way to a hook, where nothing earlier of that way was seen.
    fn check_way(&mut self, visit: &Visit) {
        let place = visit.place;
        let before = self.stands.before(place.hook, place.priority)
            & self.stands.at_device(place.hook, visit.device(place.hook));
        let missing = self.expected(place.hook, (before, 0), None, place.connection);
        self.not_seen(place.hook, missing);
        // Each way it can have come by is a row of hooks.
        let ways: &[&[Hook]] = match hook_of(place.hook) {
            Hook::Prerouting | Hook::Output | Hook::Ingress => &[],
            Hook::Input | Hook::Forward => &[&[Hook::Prerouting]],
            Hook::Postrouting => &[&[Hook::Output], &[Hook::Forward, Hook::Prerouting]],
            Hook::BridgePrerouting | Hook::ArpInput | Hook::ArpOutput | Hook::ArpForward => &[],
            Hook::BridgeInput | Hook::BridgeForward => &[&[Hook::BridgePrerouting]],
            Hook::BridgePostrouting => {
                &[&[Hook::BridgeOutput], &[Hook::BridgeForward, Hook::BridgePrerouting]]
            }
            // What a bridge forwards need not come to IP, and what IP sends it was seen there.
            Hook::Egress if self.bridge.is_some() => &[],
            Hook::BridgeOutput if self.begun => &[],
            Hook::Egress | Hook::BridgeOutput if self.path.family == Family::Arp => &[&[Hook::ArpOutput]],
            // A packet that was cut after POSTROUTING was seen as a whole.
            Hook::Egress | Hook::BridgeOutput
                if visit.entry.is_some_and(|entry| entry.piece != Piece::Whole) =>
            {
                &[]
            }
            Hook::Egress | Hook::BridgeOutput => {
                &[&[Hook::Postrouting, Hook::Output], &[Hook::Postrouting, Hook::Forward, Hook::Prerouting]]
            }
        };
        let seen_at = |hook: &&Hook| self.expected(**hook as u8, (u64::MAX, 0), None, place.connection) != 0;
        let seen: Option<Vec<Hook>> = ways.iter().map(|way| way.iter().find(seen_at).copied()).collect();
        if let Some(mut seen) = seen.filter(|seen| !seen.is_empty()) {
            seen.dedup();
            let names: Vec<_> = seen.into_iter().map(Hook::chain).collect();
            self.doubt(format!("it was not seen in {}", names.join(" or ")));
        }
    }

    /// What IP takes from a device has passed the device's chains. `seen` is the device at which it has met them.
    fn check_ingress(&mut self, visit: &Visit, seen: &[u8]) {
        const INGRESS: u8 = Hook::Ingress as u8;
        let came_in = match hook_of(visit.place.hook) {
            // They know the bridge's ports.
            Hook::BridgePrerouting | Hook::BridgeInput | Hook::BridgeForward => true,
            // With br_netfilter the bridge is named as the device, and not come by yet.
            Hook::Prerouting | Hook::Input | Hook::Forward | Hook::ArpInput => self.bridge.is_none(),
            _ => false,
        };
        if came_in && self.stands.all(INGRESS) != 0 && visit.device(INGRESS) != seen {
            let missing = self.stands.at_device(INGRESS, visit.device(INGRESS)) & self.stands.sure(INGRESS);
            self.not_seen(INGRESS, missing);
        }
    }

    /// Adds what the packet met while this stood at the hooks. Says what it waits for then.
    fn go_on(&mut self, part: Part<'_>, visit: &Visit, stands: &Rc<Stands>, heard_ns: u64) -> Next {
        if !Rc::ptr_eq(&self.stands, stands) {
            if let Some(Bridged { last, behind, met }) = &mut self.bridge {
                *met = stands.translate(&self.stands, last.hook, *met);
                *behind = stands.before(last.hook, last.priority);
            }
            self.met = stands.translate(&self.stands, self.last.hook, self.met);
            self.behind = stands.before(self.last.hook, self.last.priority);
            self.stands = Rc::clone(stands);
        }
        self.add(part, visit);
        self.exit_ns = visit.entry_ns.max(heard_ns);
        self.next()
    }

    fn add(&mut self, part: Part<'_>, visit: &Visit) {
        let place = visit.place;
        let (before, bit) = self.stands.place(place.hook, place.priority, place.key);
        let before = before & self.stands.at_device(place.hook, visit.device(place.hook));
        let on_bridge = hook_of(place.hook).is_of_bridge();
        if on_bridge {
            self.cross_bridge(visit, before, bit);
        } else if !self.begun && self.bridge.is_some() {
            self.check_way(visit);
        } else if self.begun {
            let last = self.last;
            // What was missing before that has been said.
            let behind = self.behind;
            let devices = self.devices;
            let same_device = || {
                let (before, now) = (device(&devices, last.hook), visit.device(place.hook));
                (before.is_empty() && now.is_empty()) || before == now
            };
            if last.hook == place.hook && same_device() {
                let among = (before & !behind, self.met);
                let missing = self.expected(place.hook, among, last.connection, place.connection);
                self.not_seen(place.hook, missing);
                if place.priority < last.priority || self.met & bit != 0 {
                    self.doubt("it went back, or is two packets".to_owned());
                }
            } else {
                let among = self.stands.at_device(last.hook, device(&devices, last.hook)) & !behind;
                let missing = self.expected(last.hook, (among, self.met), last.connection, place.connection);
                self.not_seen(last.hook, missing);
                // Those of IP can lie within those of a bridge.
                let passed = if self.bridge.is_some() { self.hooks } else { 0 };
                let skipped = skipped(last.hook, place.hook).iter().map(|hook| *hook as u8);
                for hook in skipped {
                    if passed & 1 << hook != 0 || self.stands.sure(hook) == 0 {
                        continue;
                    }
                    // It left by the device that was known then, and came in by the one that is known now.
                    let between = if hook == Hook::Egress as u8 { &devices } else { &visit.devices };
                    let among = self.stands.at_device(hook, device(between, hook));
                    let missing = self.expected(hook, (among, 0), last.connection, place.connection);
                    self.not_seen(hook, missing);
                }
                if last.hook == Hook::Ingress as u8 {
                    self.check_ingress(visit, device(&devices, last.hook));
                }
                // What conntrack said at another hook does not tell about this one, except that it is the first packet.
                let earlier = last.connection.filter(|_| place.connection.is_none());
                let missing = self.expected(place.hook, (before, 0), earlier, place.connection);
                self.not_seen(place.hook, missing);
                self.met = 0;
            }
        }
        if let Some((last, entry)) = self.header.zip(visit.entry)
            && !last.stays(&entry)
        {
            self.doubt("another packet may have come to its place in memory".to_owned());
        }
        if let Some(later) = visit.established {
            self.established = Some(self.established.map_or(later, |earlier| earlier.then(later)));
        }
        self.has_nat |= self.stands.nat(place.hook) & self.stands.sure(place.hook) != 0;
        self.queue = part.queue;
        self.is_decided =
            part.certainty == Certainty::Complete && part.outcome.is_none() && !part.steps.is_empty();
        if self.ending.is_some() {
            // Another packet was freed at its place.
            self.ending = None;
        }
        self.header = visit.exit;
        if !on_bridge {
            self.devices = visit.devices;
            self.hooks |= 1 << place.hook;
            self.begun = true;
            self.last = place;
            self.behind = before;
            self.met |= bit;
        }
        self.entry_ns = visit.entry_ns;
        if !part.steps.is_empty() {
            if self.path.steps.is_empty() {
                self.path.steps.reserve(USUAL_STEPS);
                self.path.generation.reserve(USUAL_STEPS);
            }
            self.path.steps.append(part.steps);
        }
        self.path.verdict = part.verdict.or(self.path.verdict);
        self.path.certainty = self.path.certainty.max(part.certainty);
        self.path.outcome = part.outcome;
        if let Some(why) = part.why
            && !self.path.why.contains(&why)
        {
            self.path.why.push(why);
        }
        if let Some(generation) = part.generation {
            self.path.generation.push(generation);
        }
    }

    /// Checks what the packet meets at a hook of a bridge against what it met there before.
    fn cross_bridge(&mut self, visit: &Visit, before: u64, bit: u64) {
        let place = visit.place;
        let mut here = 0;
        match self.bridge {
            Some(Bridged { last, behind, met }) if last.hook == place.hook => {
                self.not_seen(place.hook, self.stands.sure(place.hook) & before & !behind & !met);
                if place.priority < last.priority || met & bit != 0 {
                    self.doubt("it went back, or is two packets".to_owned());
                }
                here = met;
            }
            Some(Bridged { last, behind, met }) => {
                self.not_seen(last.hook, self.stands.sure(last.hook) & !behind & !met);
                for hook in skipped(last.hook, place.hook).iter().map(|hook| *hook as u8) {
                    self.not_seen(hook, self.stands.sure(hook));
                }
                self.not_seen(place.hook, self.stands.sure(place.hook) & before);
            }
            None if self.begun => {
                self.check_way(visit);
                if self.last.hook == Hook::Ingress as u8 {
                    let devices = self.devices;
                    self.check_ingress(visit, device(&devices, self.last.hook));
                }
            }
            None => {}
        }
        self.bridge = Some(Bridged { last: place, behind: before, met: here | bit });
    }

    /// What a bridge let pass has met all that stands at its hooks.
    fn check_bridge(&mut self) {
        let Some(Bridged { last, behind, met }) = self.bridge else { return };
        // With br_netfilter others are put together with the last one, before the bridge lets that pass.
        if self.header.is_some_and(|header| header.piece != Piece::Whole) {
            return;
        }
        self.not_seen(last.hook, self.stands.sure(last.hook) & !behind & !met);
        let came_up = self.begun && matches!(hook_of(self.last.hook), Hook::Input | Hook::ArpInput);
        if last.hook == Hook::BridgePrerouting as u8 && came_up {
            let hook = Hook::BridgeInput as u8;
            self.not_seen(hook, self.stands.sure(hook));
        }
    }

    /// What can still come at the hook where the packet was last.
    fn ahead(&self) -> u64 {
        if !self.begun {
            return 0;
        }
        let Place { hook, priority, connection, .. } = self.last;
        let here = self.stands.at_device(hook, device(&self.devices, hook));
        let ahead = self.stands.all(hook) & here & !self.behind & !self.met;
        let nat = match connection {
            Some(connection) => connection.may_be_first() && !connection.is_done(hook),
            None => is_destination(hook) && priority < CONNTRACK,
        };
        if nat { ahead } else { ahead & !self.stands.nat(hook) }
    }

    /// What can be seen of the packet after what it met last.
    #[inline]
    fn next(&self) -> Next {
        match self.path.verdict {
            Some(Verdict::Drop | Verdict::Stolen) => Next::Nothing,
            Some(Verdict::Accept) if !self.is_unfinished() => Next::Nothing,
            Some(Verdict::Queue) => Next::Verdict,
            _ => Next::Stand,
        }
    }

    /// Whether it was let through, and there are tables it can still meet.
    #[inline]
    fn is_unfinished(&self) -> bool {
        let over = matches!(self.path.verdict, Some(Verdict::Drop | Verdict::Stolen));
        !over
            && (self.stands.goes_on(self.last.hook, self.last.loopback)
                || self.ahead() != 0
                || self.bridge.is_some()
                || self.stands.has_bridges()
                || (self.stands.has_devices() && self.meets_devices()))
    }

    /// Whether there are chains of devices that it can meet next.
    fn meets_devices(&self) -> bool {
        const EGRESS: u8 = Hook::Egress as u8;
        let others = |hook: u8| self.stands.all(hook) & !self.met != 0;
        match hook_of(self.last.hook) {
            // One device can be on top of another.
            Hook::Ingress => others(Hook::Ingress as u8) || self.stands.all(EGRESS) != 0,
            Hook::Egress => others(EGRESS),
            Hook::Prerouting => self.stands.all(EGRESS) != 0,
            Hook::Forward | Hook::Output | Hook::Postrouting | Hook::ArpOutput => {
                self.stands.at_device(EGRESS, device(&self.devices, EGRESS)) != 0
            }
            _ => false,
        }
    }

    /// Whether it has to be seen again: between these hooks hardly anything drops a packet.
    fn must_go_on(&self) -> bool {
        if !self.begun {
            return false;
        }
        let (hook, loopback) = (hook_of(self.last.hook), self.last.loopback);
        let next: &[Hook] = match hook {
            Hook::Forward | Hook::Output => &[Hook::Postrouting, Hook::Egress],
            Hook::ArpOutput => &[Hook::Egress],
            Hook::Postrouting if loopback => &[Hook::Egress, Hook::Ingress, Hook::Prerouting],
            Hook::Postrouting => &[Hook::Egress],
            Hook::Egress if loopback => &[Hook::Ingress, Hook::Prerouting],
            _ => &[],
        };
        let must = |hook: u8, among| among & self.stands.sure(hook) & !self.stands.nat(hook) != 0;
        // What leaves by a loopback device comes in by it.
        let [_, outdev] = self.devices;
        let there = |hook| self.stands.at_device(hook, trimmed(&outdev));
        next.iter().any(|hook| must(*hook as u8, there(*hook as u8)))
            || (!matches!(hook, Hook::Forward | Hook::Output) && must(self.last.hook, self.ahead()))
    }

    /// The path as it is now. A packet that could have been seen again and was not may have been missed, if any
    /// traversal was missed at that time.
    fn end(mut self, windows: &VecDeque<Window>, last_missed_ns: u64) -> Path {
        if self.is_unfinished() {
            // It may have waited for any time in a queue.
            let missed = match self.path.verdict {
                Some(Verdict::Queue) => last_missed_ns >= self.entry_ns,
                _ => windows.iter().any(|window| {
                    window.until_ns >= self.entry_ns && window.since_ns <= self.exit_ns + SOON_NS
                }),
            };
            let is_explained = matches!(self.ending, Some(Ending::Freed(_)));
            let unwitnessed = self.path.verdict == Some(Verdict::Accept)
                && !is_explained
                && !self.stands.has_witness()
                && self.must_go_on();
            if unwitnessed {
                let chain = hook_of(self.last.hook).chain();
                self.doubt(format!("it was not seen after {chain}"));
            } else if missed {
                let chain = hook_of(self.last.hook).chain();
                self.doubt(format!("it was not seen after {chain}, when some traversals were missed"));
            }
        }
        if self.path.verdict == Some(Verdict::Accept) {
            self.check_bridge();
        }
        self.path.note = self.established.and_then(|established| established.text(self.has_nat));
        self.path.ending = self.ending.take().or_else(|| self.seen_ending());
        self.path
    }

    /// How it ended, as far as what it met tells.
    fn seen_ending(&self) -> Option<Ending> {
        // A bridge takes a packet from its port to another one past the hooks of IP, or around them.
        let last = match &self.bridge {
            Some(bridge) if !self.begun || bridge.last.hook == Hook::BridgePostrouting as u8 => &bridge.last,
            _ => &self.last,
        };
        let hook = hook_of(last.hook);
        let is_out = matches!(hook, Hook::Postrouting | Hook::Egress);
        let came_from = |hooks: &[Hook]| hooks.iter().any(|hook| self.hooks & 1 << *hook as u8 != 0);
        match self.path.verdict? {
            // That another packet has its place now says nothing of how it left.
            _ if self.path.outcome.is_some() => None,
            Verdict::Drop => self.is_decided.then_some(Ending::Dropped),
            Verdict::Stolen => self.is_decided.then_some(Ending::Stolen),
            Verdict::Queue => Some(Ending::Queued { queue: self.queue }),
            Verdict::Accept if self.has_to_go_on(hook) => Some(Ending::Unknown),
            Verdict::Accept if is_out && came_from(&[Hook::Output]) => {
                Some(Ending::Sent(Device(self.devices[1])))
            }
            Verdict::Accept if is_out && came_from(&[Hook::Prerouting, Hook::Forward]) => {
                Some(Ending::Forwarded(Device(self.devices[1])))
            }
            Verdict::Accept => Some(Ending::Accepted(hook)),
            Verdict::Repeat | Verdict::Other(_) => None,
        }
    }

    /// Whether it can only have been seen again, unless it ended.
    fn has_to_go_on(&self, hook: Hook) -> bool {
        let stands = |hook: Hook| self.stands.sure(hook as u8) & !self.stands.nat(hook as u8) != 0;
        let is_routed = hook == Hook::Prerouting
            && stands(Hook::Input)
            && (stands(Hook::Forward) || stands(Hook::Postrouting));
        is_routed || self.must_go_on()
    }

    /// Where functions can have seen it after what it met last: up to what it had to meet next.
    fn unseen(&self) -> Vec<(Hook, i32, i32)> {
        let ahead = self.ahead();
        let first = |hook: Hook, among: u64| {
            let hook = hook as u8;
            self.stands.first_priority(hook, among & self.stands.sure(hook) & !self.stands.nat(hook))
        };
        let here = first(hook_of(self.last.hook), ahead);
        unseen(self.last, here, |hook| first(hook, u64::MAX))
    }
}
