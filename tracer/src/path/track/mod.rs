//! Joins what one packet met to a path, legacy tables and base chains of nftables alike, notices what is missing
//! between, and knows when it is done.
#![forbid(unsafe_code)]

mod header;
mod open;
mod rooms;
mod visit;

pub use visit::Visit;

use super::ending::{Ending, Waited};
use super::stands::Stands;
use super::{Certainty, Path, Sighting};
use crate::hash::KernelMap;
use crate::netfilter::{Family, Hook, Verdict};
use header::{Datagram, Header};
use open::{CUT, Fate, GATHERED, Next, Open, unseen};
use rooms::{Room, Rooms};
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use tracer_common::ending::{Freed, Reinjected};
use tracer_common::legacy::Traversal;
use visit::hook_of;

/// How long a packet is silent at least before its path is given out; at most twice as long.
const IDLE_NS: u64 = 250_000_000;
/// The same for one that waits in a queue for user space.
const QUEUED_NS: u64 = 30_000_000_000;
/// A missed traversal of a packet happens within this time of its last one that was seen.
const SOON_NS: u64 = 100_000_000;
/// How long it is remembered that traversals were missed: until all paths are given out that may lack them.
const REMEMBERED_NS: u64 = 2 * (2 * IDLE_NS + SOON_NS);
/// How long the path of a packet is kept that all tables have let go: if the kernel frees it, then mostly at once.
const HOLD_NS: u64 = 20_000_000;
/// A packet that is cut is among so many that began last.
const JUST_LEFT: usize = 64;
/// Packets that are remembered after they were let go out.
const LEFT: usize = 8192;

/// Packets whose paths are not complete yet.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Packets on their way, and those whose paths are held.
    rooms: Rooms,
    /// Packets that are on their way, with the time of a traversal of theirs. Those that were seen again since are put
    /// behind the others when it is their turn.
    silent: VecDeque<(u64, u64)>,
    /// Packets that wait for a verdict from user space, by the time of their last traversal, oldest first.
    queued: VecDeque<(u64, u64)>,
    /// Packets by the address of their skb.
    by_skb: KernelMap<u64, u64>,
    /// Fragments that wait for the others of their datagram.
    pieces: KernelMap<Datagram, Vec<u64>>,
    windows: VecDeque<Window>,
    /// The end of the latest window.
    last_missed_ns: u64,
    packets: u64,
    /// Since when what is added now has been there at the latest: traversals end later than they begin.
    heard_ns: u64,
    /// Whether nobody asks how packets ended.
    omits_endings: bool,
    /// Whether paths are kept until it is known whether their packets were freed.
    holds: bool,
    /// Packets that nothing more can be seen of, and since when, oldest first.
    held: KernelMap<u64, Room>,
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
    token: u64,
}

/// A stretch of time with traversals that no probe saw, or whose records were lost.
#[derive(Clone, Copy, Debug)]
struct Window {
    since_ns: u64,
    until_ns: u64,
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
    /// The packet, where no step shows it.
    pub sighting: Option<Box<Sighting>>,
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

/// Whether what was freed certainly is the packet that had this header, or one that is a copy of it.
fn is_of(freed: &Freed, family: Family, header: &Header, token: u64) -> bool {
    let now = Header::of(family, freed.copied, &freed.bytes);
    now.is_some_and(|now| header.stays(&now)) && header::token(family, freed.copied, &freed.bytes) == token
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

/// A packet that was met again, or for the first time.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its number in this trace, from 1.
    pub number: u64,
    /// The packet that was last met under the kernel program's number.
    room: Option<Room>,
    /// What has become of that one, if this is another.
    fate: Option<Fate>,
}

impl Tracker {
    /// Which packet this is, for [`add`](Self::add).
    #[inline]
    pub fn find(&mut self, visit: &Visit) -> Found {
        let room = self.rooms.of(visit.packet);
        let fate = room.filter(|_| !visit.first).and_then(|room| self.rooms[room].fate(visit));
        let number = match room {
            Some(room) if !visit.first && fate.is_none() => self.rooms[room].path.packet,
            _ => self.packets + 1,
        };
        Found { number, room, fate }
    }

    /// Says of no packet how it ended, or of all, as at the beginning: it costs something to find out.
    pub fn omit_endings(&mut self, omits: bool) {
        self.omits_endings = omits;
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

    /// Whether traversals were missed, or their records lost, at about this time.
    pub fn may_lack(&self, time_ns: u64) -> bool {
        let is_about =
            |window: &Window| window.until_ns + SOON_NS >= time_ns && window.since_ns <= time_ns + SOON_NS;
        self.windows.iter().any(is_about)
    }

    /// The number of one more packet.
    pub fn number(&mut self) -> u64 {
        self.packets += 1;
        self.packets
    }

    /// Adds what a packet met. Gives out its path when it is done, and the path of an earlier packet when this one
    /// shows that it is.
    pub fn add(
        &mut self,
        visit: &Visit,
        Found { number, room, fate }: Found,
        part: Part<'_>,
        stands: &Rc<Stands>,
        give: &mut impl FnMut(&Path),
    ) {
        let Visit { packet, first, .. } = *visit;
        if self.holds {
            self.give_held(packet, give);
            self.left.remove(&packet);
        }
        let room = match room {
            Some(room) if !first && fate.is_none() => room,
            _ => self.begin(number, room.filter(|_| !first), fate, visit, stands, give),
        };
        let open = &mut self.rooms[room];
        let next = open.go_on(part, visit, stands, self.heard_ns);
        // Records can be taken long after that.
        open.may_lack = self.last_missed_ns >= visit.entry_ns;
        let datagram = open.datagram();
        let before = std::mem::replace(&mut open.piece_of, datagram);
        if before != datagram {
            self.forget_piece(before, packet);
            if let Some(datagram) = datagram {
                self.pieces.entry(datagram).or_default().push(packet);
            }
        }
        self.wait(packet, room, next, visit.entry_ns.max(self.heard_ns), give);
    }

    /// A packet is met for the first time, or for the first time as this one, after `earlier`.
    fn begin(
        &mut self,
        number: u64,
        earlier: Option<Room>,
        fate: Option<Fate>,
        visit: &Visit,
        stands: &Rc<Stands>,
        give: &mut impl FnMut(&Path),
    ) -> Room {
        // Where there is nothing that it must have met before, the kernel program took it for the other one because it cannot look
        // at headers.
        let begins = visit.first || (fate == Some(Fate::Unknown) && Open::can_begin(visit, stands));
        let bridge = earlier.zip(fate).and_then(|(earlier, fate)| {
            let earlier = &mut self.rooms[earlier];
            match fate {
                Fate::Became(outcome) => {
                    earlier.path.outcome = Some(outcome.to_owned());
                    earlier.has_become |= outcome == CUT;
                    earlier.bridge.take()
                }
                Fate::Unknown => {
                    if !begins {
                        earlier.doubt("another packet has come to its place in memory".to_owned());
                    }
                    None
                }
            }
        });
        if fate == Some(Fate::Became(GATHERED)) {
            self.gather(visit, give);
        }
        if begins && fate == Some(Fate::Unknown) {
            self.set_aside(visit.packet);
        }
        self.give(visit.packet, give);
        let is_start = matches!(
            hook_of(visit.place.hook),
            Hook::Ingress | Hook::Prerouting | Hook::Output | Hook::BridgePrerouting | Hook::ArpOutput
        );
        let earlier = self.by_skb.insert(visit.skb, visit.packet);
        // The kernel program has forgotten that it had seen it.
        let torn = earlier.filter(|_| visit.first && !is_start).and_then(|earlier| self.rooms.of(earlier));
        let torn = torn.is_some_and(|earlier| {
            let earlier = &mut self.rooms[earlier];
            let soon = !earlier.last.loopback
                && earlier.path.ending.is_none()
                && visit.entry_ns <= earlier.exit_ns + SOON_NS;
            if soon {
                earlier.doubt("it may have gone on as the packet after it".to_owned());
            }
            soon
        });
        self.packets = number;
        if visit.first && visit.is_looped() && stands.sure(Hook::Postrouting as u8) != 0 {
            self.find_cut(visit);
        }
        let room = self.rooms.begin(number, visit, stands);
        let open = &mut self.rooms[room];
        if begins {
            open.check_beginning(visit);
        } else if !matches!(fate, Some(Fate::Became(_))) {
            open.doubt("its earlier tables were not seen, or shown before, as another packet".to_owned());
        }
        // What became another packet on its way across a bridge is still there.
        open.bridge = bridge;
        if torn {
            open.doubt("it may be the rest of a packet that was shown before".to_owned());
        }
        room
    }

    /// A datagram has been put together where nothing but that comes between PREROUTING and here. If its fragments that
    /// were seen make all of it, each of them came to this end, whatever was missed meanwhile.
    fn gather(&mut self, whole: &Visit, give: &mut impl FnMut(&Path)) {
        let Some(header) = whole.entry.filter(|_| whole.place.hook == Hook::Input as u8) else { return };
        let datagram = Datagram::of(whole.netns, &header);
        let Some(pieces) = self.pieces.get(&datagram).cloned() else { return };
        let rooms = &mut self.rooms;
        let headers = pieces.iter().filter_map(|piece| rooms.of(*piece).and_then(|room| rooms[room].header));
        let mut spans: Vec<_> = headers.map(|piece| (piece.offset(), piece.payload())).collect();
        spans.sort_unstable();
        // Each begins where the one before it ends: none is there twice in the place of another one.
        let end = spans.iter().try_fold(0, |end, (offset, len)| (*offset == end).then_some(end + len));
        if end != Some(header.payload()) {
            return;
        }
        for piece in pieces {
            let Some(room) = self.rooms.of(piece) else { continue };
            let open = &mut self.rooms[room];
            open.has_become = true;
            if piece != whole.packet {
                open.path.outcome = Some(GATHERED.to_owned());
                self.give(piece, give);
            }
        }
    }

    /// A packet comes in by loopback that should have been seen before. If it is of a datagram that left lately, that one was cut:
    /// its path waits until it is known whether something was missed at that time, which would make two packets of it.
    fn find_cut(&mut self, visit: &Visit) {
        for (_, packet) in self.silent.iter().rev().take(JUST_LEFT) {
            if let Some(room) = self.rooms.of(*packet)
                && self.rooms[room].is_cut_into(visit)
            {
                self.rooms[room].path.outcome = Some(CUT.to_owned());
                return;
            }
        }
    }

    /// Another packet is seen under the number of this one, which is over. Its path waits, under a number that the kernel program
    /// does not give, until it is known whether something of it was missed.
    fn set_aside(&mut self, packet: u64) {
        const ASIDE: u64 = 1 << 63;
        let Some(room) = self.rooms.of(packet) else { return };
        let open = &mut self.rooms[room];
        let piece_of = open.piece_of.take();
        let (exit_ns, aside) = (open.exit_ns, ASIDE | open.path.packet);
        (open.is_awaited, open.is_queued) = (true, false);
        self.rooms.rename(packet, aside);
        self.forget_piece(piece_of, packet);
        self.silent.push_back((exit_ns, aside));
    }

    /// Gives a packet out, or waits for what comes next of it. What it met last was over at `exit_ns`.
    fn wait(&mut self, packet: u64, room: Room, next: Next, exit_ns: u64, give: &mut impl FnMut(&Path)) {
        match next {
            Next::Nothing if self.holds && self.rooms[room].path.verdict == Some(Verdict::Accept) => {
                if let Some(room) = self.close(packet) {
                    self.held.insert(packet, room);
                    self.holding.push_back((exit_ns, packet));
                }
            }
            Next::Nothing => self.give(packet, give),
            Next::Verdict => {
                self.rooms[room].is_queued = true;
                self.queued.push_back((exit_ns, packet));
            }
            Next::Stand => self.await_silence(packet, room),
        }
    }

    /// Has a packet given out when it has been silent for long.
    #[inline]
    fn await_silence(&mut self, packet: u64, room: Room) {
        let open = &mut self.rooms[room];
        if !open.is_awaited {
            open.is_awaited = true;
            self.silent.push_back((open.exit_ns, packet));
        }
    }

    fn give_held(&mut self, packet: u64, give: &mut impl FnMut(&Path)) {
        let Some(room) = self.held.remove(&packet) else { return };
        let Open { path, header, token, .. } = &self.rooms[room];
        if let (Some(Ending::Sent(_) | Ending::Forwarded(_)), Some(header)) = (&path.ending, *header) {
            if self.leaving.len() == LEFT
                && let Some(oldest) = self.leaving.pop_front()
            {
                self.left.remove(&oldest);
            }
            self.leaving.push_back(packet);
            let Path { packet: number, family, netns, .. } = *path;
            self.left.insert(packet, Left { number, family, netns, header, token: *token });
        }
        give(path);
        self.rooms.leave(room);
    }

    /// As [`freed`](Self::freed), for a packet whose path was given out when it was let go out. Gives its number in this
    /// trace, and the namespace where it was seen.
    pub fn freed_later(&mut self, freed: &Freed, function: &str) -> Option<(u64, Option<u32>)> {
        let left = self.left.get(&freed.packet)?;
        if !is_of(freed, left.family, &left.header, left.token) || is_receiving(function, Hook::Postrouting) {
            return None;
        }
        self.left.remove(&freed.packet).map(|left| (left.number, left.netns))
    }

    /// The kernel freed what is at a packet's place in memory, in this function. Gives what is known of the packet if it
    /// still is that one, so that [`end`](Self::end) can be told how it ended.
    pub fn freed(&mut self, freed: &Freed, function: &str) -> Option<Released> {
        let on_its_way = self.rooms.of(freed.packet);
        let open = &self.rooms[on_its_way.or_else(|| self.held.get(&freed.packet).copied())?];
        let (path, last) = (&open.path, open.last);
        // What left may be taken in by another namespace, or come back through loopback.
        let is_outside = last.loopback || (freed.netns != 0 && Some(freed.netns) != path.netns);
        let hook = hook_of(last.hook);
        let has_left = !matches!(hook, Hook::Ingress | Hook::Prerouting | Hook::Input);
        if !is_of(freed, path.family, &open.header?, open.token)
            || (is_receiving(function, hook) && !(has_left && is_outside))
        {
            return None;
        }
        let unseen = if on_its_way.is_some() { open.unseen() } else { unseen(last, None, |_| None) };
        Some(Released { family: path.family, netns: path.netns, unseen })
    }

    /// A packet does not wait any more for the other fragments of its datagram.
    fn forget_piece(&mut self, datagram: Option<Datagram>, packet: u64) {
        if let Some(Entry::Occupied(mut pieces)) = datagram.map(|datagram| self.pieces.entry(datagram)) {
            pieces.get_mut().retain(|piece| *piece != packet);
            if pieces.get().is_empty() {
                pieces.remove();
            }
        }
    }

    /// A packet has ended this way. Of one that could still have been seen, traversals may have been missed: its path
    /// waits until that is known. `unseen` says that they were: what ended it should have been seen.
    pub fn end(&mut self, packet: u64, ending: Ending, unseen: bool, give: &mut impl FnMut(&Path)) {
        if let Some(room) = self.rooms.of(packet) {
            let open = &mut self.rooms[room];
            open.ended(ending, unseen);
            open.is_queued = false;
            let piece_of = open.piece_of.take();
            self.forget_piece(piece_of, packet);
            self.await_silence(packet, room);
        } else if let Some(room) = self.held.get(&packet) {
            self.rooms[*room].ended(ending, unseen);
            self.give_held(packet, give);
        }
    }

    /// User space has decided about a packet that waited in a queue.
    pub fn reinjected(&mut self, reinjected: &Reinjected, give: &mut impl FnMut(&Path)) {
        let Reinjected { packet, time_ns, verdict, .. } = *reinjected;
        let heard_ns = self.heard_ns;
        let Some(room) = self.rooms.of(packet) else { return };
        let open = &mut self.rooms[room];
        if open.path.verdict != Some(Verdict::Queue) {
            return;
        }
        let (verdict, queue) = (Verdict::from_return(verdict), open.queue);
        let waited_ns = time_ns.saturating_sub(open.entry_ns);
        open.path.waited.push(Waited { queue, waited_ns, verdict });
        open.exit_ns = time_ns.max(heard_ns);
        open.is_queued = false;
        match verdict {
            Verdict::Drop => {
                open.path.ending = Some(Ending::ByUser { queue });
                self.give(packet, give);
            }
            Verdict::Accept => {
                open.path.verdict = Some(verdict);
                open.is_decided = false;
                let (next, exit_ns) = (open.next(), open.exit_ns);
                self.wait(packet, room, next, exit_ns, give);
            }
            _ => self.await_silence(packet, room),
        }
    }

    /// Gives out the paths of packets that have been silent for long.
    pub fn expire(&mut self, now_ns: u64, give: &mut impl FnMut(&Path)) {
        let over = |patience_ns| move |&mut (exit_ns, _): &mut (u64, u64)| exit_ns + patience_ns <= now_ns;
        while let Some((exit_ns, packet)) = self.silent.pop_front_if(over(IDLE_NS)) {
            let Some(room) = self.rooms.of(packet) else { continue };
            let open = &mut self.rooms[room];
            if open.exit_ns == exit_ns {
                self.give(packet, give);
            } else {
                open.is_awaited = false;
                if !open.is_queued {
                    self.await_silence(packet, room);
                }
            }
        }
        while let Some((exit_ns, packet)) = self.queued.pop_front_if(over(QUEUED_NS)) {
            if self.rooms.of(packet).is_some_and(|room| self.rooms[room].exit_ns == exit_ns) {
                self.give(packet, give);
            }
        }
        while let Some((_, packet)) = self.holding.pop_front_if(over(HOLD_NS)) {
            self.give_held(packet, give);
        }
        while self.windows.front().is_some_and(|window| window.until_ns + REMEMBERED_NS < now_ns) {
            self.windows.pop_front();
        }
    }

    /// Gives out all that is left, in the order the packets came. Of one that was seen shortly before the end of what was
    /// read, more might have come.
    pub fn finish(&mut self, read_until_ns: u64, give: &mut impl FnMut(&Path)) {
        let open = self.rooms.iter().map(|(packet, open)| (open.path.packet, packet));
        let held = self.held.iter().map(|(packet, room)| (self.rooms[*room].path.packet, *packet));
        let mut left: Vec<(u64, u64)> = open.chain(held).collect();
        left.sort_unstable();
        for (_, packet) in left {
            self.give_held(packet, give);
            if let Some(room) = self.rooms.of(packet) {
                let open = &mut self.rooms[room];
                if open.is_unfinished()
                    && open.path.ending.is_none()
                    && open.exit_ns + SOON_NS > read_until_ns
                {
                    open.doubt("the trace ended while it was on its way".to_owned());
                }
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
        let Self { rooms, held, silent, queued, holding, by_skb, pieces, windows, .. } = self;
        rooms.is_empty()
            && pieces.is_empty()
            && held.len() + by_skb.len() + silent.len() + queued.len() + holding.len() + windows.len() == 0
    }

    fn give(&mut self, packet: u64, give: &mut impl FnMut(&Path)) {
        if let Some(room) = self.close(packet) {
            give(&self.rooms[room].path);
            self.rooms.leave(room);
        }
    }

    /// Nothing more can be seen of a packet: its path is as it will stay.
    fn close(&mut self, packet: u64) -> Option<Room> {
        let room = self.rooms.close(packet)?;
        let open = &mut self.rooms[room];
        if self.by_skb.get(&open.skb) == Some(&packet) {
            self.by_skb.remove(&open.skb);
        }
        open.end(&self.windows, self.last_missed_ns, self.holds);
        if !self.omits_endings {
            open.tell_ending();
        }
        let piece_of = open.piece_of.take();
        self.forget_piece(piece_of, packet);
        Some(room)
    }
}
