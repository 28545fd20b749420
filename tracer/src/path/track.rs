//! Joins the traversals of one packet to a path, notices what is missing between them, and knows when it is done.
#![forbid(unsafe_code)]

use super::{Certainty, Path};
use crate::hash::KernelMap;
use crate::history::Loaded;
use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::ip::{Ipv4, Ipv6};
use std::collections::VecDeque;
use std::rc::Rc;
use tracer_common::legacy::{ENTRY_BYTES, EXIT_BYTES, SkbState, Traversal, fact, rank, table_class};

/// How long a packet may be silent before its path is given out.
const IDLE_NS: u64 = 250_000_000;
/// The same for one that waits in a queue for user space.
const QUEUED_NS: u64 = 30_000_000_000;
/// A missed traversal of a packet happens within this time of its last one that was seen.
const SOON_NS: u64 = 100_000_000;
/// Steps for which a path has room from the beginning.
const USUAL_STEPS: usize = 16;
/// The loopback device of every namespace.
const LOOPBACK: &[u8] = b"lo\0";

const IPV4_DONT_FRAGMENT: u8 = 0x40;
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

const TABLES: [&str; 8] = ["?", "raw", "mangle", "nat", "filter", "security", "nat", "?"];

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
    exit_ns: u64,
    /// As it left the last table.
    header: Option<Header>,
    loaded: Loaded,
}

/// What a packet waits for.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Its path is done.
    Nothing,
    /// A verdict from user space.
    Verdict,
    /// Its next table.
    Table,
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
    fn of(family: Family, state: &SkbState, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..usize::try_from(state.copied).ok()?.min(bytes.len()))?;
        let mut addresses = [0; 32];
        Some(match family {
            Family::Ipv4 => {
                let ip = Ipv4(bytes.first_chunk()?);
                addresses[..4].copy_from_slice(&ip.src());
                addresses[4..8].copy_from_slice(&ip.dst());
                let piece = Piece::of(ip.frag_off() & IP_MORE != 0, ip.fragment());
                let (id, len) = (ip.id().into(), ip.total_len().into());
                Self { id, len, protocol: ip.protocol(), piece, addresses }
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
                Self { id: ip.flow_label(), len: ip.total_len(), protocol, piece, addresses }
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
        if same { entry } else { Self::of(family, after, exit_bytes) }
    }

    /// Whether this can be the same packet some time later.
    fn stays(&self, later: &Self) -> bool {
        let what = |header: &Self| (header.id, header.len, header.protocol, header.piece);
        what(self) == what(later)
    }
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

/// Where a traversal was, and what conntrack said then.
#[derive(Clone, Copy, Debug)]
struct Place {
    hook: u8,
    rank: u8,
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
}

impl Tracker {
    /// The packet's number in this trace, from 1.
    #[inline]
    pub fn number(&mut self, traversal: &Traversal) -> u64 {
        match self.open.get(&traversal.packet) {
            Some(open) if traversal.facts & fact::FIRST == 0 && open.becomes(traversal).is_none() => {
                open.path.packet
            }
            _ => self.packets + 1,
        }
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

    /// Adds a traversal. Gives out the packet's path when it is done, and the path of an earlier packet when this one
    /// shows that it is.
    pub fn add(
        &mut self,
        traversal: &Traversal,
        family: Family,
        part: Part<'_>,
        loaded: Loaded,
        give: &mut impl FnMut(Path),
    ) {
        self.notice(traversal);
        let place = Place::of(family, traversal);
        let first = traversal.facts & fact::FIRST != 0;
        let mut fate = None;
        if let Some(open) = self.open.get_mut(&traversal.packet).filter(|_| !first) {
            fate = open.becomes(traversal);
            if fate.is_none() {
                open.loaded = loaded;
                open.add(part, place, traversal);
                let next = open.next();
                self.wait(traversal, next, give);
                return;
            }
            open.path.outcome = fate.map(str::to_owned);
        }
        if first || fate.is_some() {
            self.give(traversal.packet, give);
        }
        let earlier = match self.open.get(&traversal.packet) {
            Some(_) => None,
            None => self.by_skb.insert(traversal.skb, traversal.packet),
        };
        let begins = place.hook == Hook::Prerouting as u8 || place.hook == Hook::Output as u8;
        let torn = earlier.filter(|_| first && !begins);
        // The kernel program has forgotten that it had seen it.
        let torn = torn.and_then(|earlier| self.open.get_mut(&earlier)).is_some_and(|earlier| {
            let soon = !earlier.last.loopback && traversal.entry_ns <= earlier.exit_ns + SOON_NS;
            if soon {
                earlier.doubt("it may have gone on as the packet after it".to_owned());
            }
            soon
        });
        let packets = &mut self.packets;
        let open = self.open.entry(traversal.packet).or_insert_with(|| {
            *packets += 1;
            let mut open = Open::new(*packets, family, traversal, place, loaded);
            if first {
                open.check_beginning(place);
            } else if fate.is_none() {
                open.doubt("its earlier tables were not seen, or shown before, as another packet".to_owned());
            }
            open
        });
        if torn {
            open.doubt("it may be the rest of a packet that was shown before".to_owned());
        }
        open.loaded = loaded;
        open.add(part, place, traversal);
        let next = open.next();
        self.wait(traversal, next, give);
    }

    /// Gives a packet out, or waits for what comes next of it.
    fn wait(&mut self, traversal: &Traversal, next: Next, give: &mut impl FnMut(Path)) {
        match next {
            Next::Nothing => self.give(traversal.packet, give),
            Next::Verdict => self.queued.push_back((traversal.entry_ns, traversal.packet)),
            Next::Table => self.silent.push_back((traversal.entry_ns, traversal.packet)),
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
        while self.windows.front().is_some_and(|window| window.until_ns + 2 * IDLE_NS < now_ns) {
            self.windows.pop_front();
        }
    }

    /// Gives out all that is left, in the order the packets came. Of one that was seen just now, more might have come.
    pub fn finish(&mut self, now_ns: u64, give: &mut impl FnMut(Path)) {
        let mut left: Vec<(u64, u64)> =
            self.open.iter().map(|(packet, open)| (open.path.packet, *packet)).collect();
        left.sort_unstable();
        for (_, packet) in left {
            if let Some(open) = self.open.get_mut(&packet)
                && open.is_unfinished()
                && open.exit_ns + SOON_NS > now_ns
            {
                open.doubt("the trace ended while it was on its way".to_owned());
            }
            self.give(packet, give);
        }
        self.silent.clear();
        self.queued.clear();
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self { open, silent, queued, by_skb, windows, .. } = self;
        (open.len(), silent.len(), queued.len(), by_skb.len(), windows.len()) == (0, 0, 0, 0, 0)
    }

    fn give(&mut self, packet: u64, give: &mut impl FnMut(Path)) {
        let Some(open) = self.open.remove(&packet) else { return };
        if self.by_skb.get(&open.skb) == Some(&packet) {
            self.by_skb.remove(&open.skb);
        }
        give(open.end(&self.windows, self.last_missed_ns));
    }
}

impl Place {
    #[inline]
    fn of(family: Family, traversal: &Traversal) -> Self {
        let name = [0, 1, 2, 3].map(|index| traversal.table_name[index]);
        let connection = (traversal.facts & fact::CONNTRACK != 0).then(|| Connection::of(family, traversal));
        Self {
            hook: traversal.hook.min(4),
            rank: rank(traversal.hook, table_class(u32::from_ne_bytes(name))),
            connection,
            loopback: traversal.facts & fact::OUT != 0 && traversal.outdev.starts_with(LOOPBACK),
        }
    }
}

impl Connection {
    fn of(family: Family, traversal: &Traversal) -> Self {
        let (info, status) = (traversal.ctinfo, u64::from(traversal.ct_status));
        let header = || Header::of(family, &traversal.entry, &traversal.entry_bytes);
        let icmp = if family == Family::Ipv4 { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
        let is_error = [info::RELATED, info::RELATED_REPLY].contains(&info)
            && header().is_some_and(|header| header.protocol == icmp);
        Self { info, status, is_error }
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

fn nat_rank(hook: u8) -> u8 {
    if is_destination(hook) { 3 } else { 6 }
}

/// Hooks that a packet passes between two others.
fn skipped(from: u8, to: u8) -> &'static [Hook] {
    match (Hook::from_number(from), Hook::from_number(to)) {
        (Some(Hook::Prerouting), Some(Hook::Postrouting)) => &[Hook::Forward],
        (Some(Hook::Output), Some(Hook::Prerouting)) => &[Hook::Postrouting],
        (Some(Hook::Output), Some(Hook::Input)) => &[Hook::Postrouting, Hook::Prerouting],
        (Some(Hook::Postrouting), Some(Hook::Input)) => &[Hook::Prerouting],
        _ => &[],
    }
}

/// Ranks above `after` and below `before`, as bits.
fn between(after: u8, before: u8) -> u8 {
    (u8::MAX << 1 << after) & !(u8::MAX << before.min(7))
}

impl Open {
    fn new(number: u64, family: Family, traversal: &Traversal, place: Place, loaded: Loaded) -> Self {
        let path = Path {
            packet: number,
            family,
            steps: Vec::with_capacity(USUAL_STEPS),
            verdict: None,
            certainty: Certainty::Complete,
            why: Vec::new(),
            outcome: None,
            generation: Vec::with_capacity(USUAL_STEPS),
            netns: Some(traversal.netns),
        };
        Self { path, last: place, skb: traversal.skb, exit_ns: traversal.entry_ns, header: None, loaded }
    }

    fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    fn not_seen(&mut self, hook: u8, ranks: u8) {
        if ranks == 0 {
            return;
        }
        for rank in (1..7u8).filter(|rank| ranks & 1 << rank != 0) {
            let chain = Hook::from_number(hook).map_or("?", Hook::chain);
            self.doubt(format!("{}:{chain} was not seen", TABLES[usize::from(rank)]));
        }
    }

    /// Tables of a hook between two ranks that a packet must have met, given what conntrack said before or after.
    fn expected(
        &self,
        hook: u8,
        after: u8,
        before: u8,
        earlier: Option<Connection>,
        later: Option<Connection>,
    ) -> u8 {
        let nat = 1 << nat_rank(hook);
        let ranks = self.loaded.ranks[usize::from(hook)] & between(after, before);
        let consulted = match (earlier, later) {
            (Some(earlier), _) => earlier.undecided(hook),
            (None, Some(later)) => later.is_first(),
            (None, None) => false,
        };
        if consulted { ranks } else { ranks & !nat }
    }

    /// What has become of this packet, if what is seen now is another one in its memory: the whole packet takes the skb
    /// of the fragment that came last, and the first fragment takes that of the packet that is cut.
    #[inline]
    fn becomes(&self, traversal: &Traversal) -> Option<&'static str> {
        let before = self.header.as_ref()?;
        let is_whole = || {
            self.path.family == Family::Ipv4
                && matches!(traversal.entry_bytes[6..8], [high, 0] if high & !IPV4_DONT_FRAGMENT == 0)
        };
        if before.piece == Piece::Whole && (!self.last.loopback || is_whole()) {
            return None;
        }
        self.becomes_other(before, traversal)
    }

    /// The same where a packet was cut or put together, or may have been.
    fn becomes_other(&self, before: &Header, traversal: &Traversal) -> Option<&'static str> {
        let later = Header::of(self.path.family, &traversal.entry, &traversal.entry_bytes)?;
        if (before.id, before.protocol) != (later.id, later.protocol) {
            return None;
        }
        match (before.piece, later.piece) {
            // Without conntrack between PREROUTING and INPUT: `ip_local_deliver` in `net/ipv4/ip_input.c`.
            (Piece::First | Piece::Later, Piece::Whole) if self.path.family == Family::Ipv4 => {
                Some("put together with other fragments")
            }
            // After POSTROUTING: `ip_finish_output` and its sibling. Only through loopback is the fragment seen again.
            (Piece::Whole, Piece::First)
                if self.last.loopback && later.len < before.len && later.addresses == before.addresses =>
            {
                Some("cut into fragments")
            }
            _ => None,
        }
    }

    /// A packet begins at the first table of PREROUTING or OUTPUT, or earlier tables were not seen.
    fn check_beginning(&mut self, place: Place) {
        let missing = self.expected(place.hook, 0, place.rank, None, place.connection);
        self.not_seen(place.hook, missing);
        // Each way it can have come by is a row of hooks.
        let ways: &[&[Hook]] = match Hook::ALL[usize::from(place.hook)] {
            Hook::Prerouting | Hook::Output | Hook::Ingress | Hook::Egress => &[],
            Hook::Input | Hook::Forward => &[&[Hook::Prerouting]],
            Hook::Postrouting => &[&[Hook::Output], &[Hook::Forward, Hook::Prerouting]],
        };
        let seen_at = |hook: &&Hook| self.expected(**hook as u8, 0, 7, None, place.connection) != 0;
        let seen: Option<Vec<Hook>> = ways.iter().map(|way| way.iter().find(seen_at).copied()).collect();
        if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
            let names: Vec<_> = seen.into_iter().map(Hook::chain).collect();
            self.doubt(format!("it was not seen in {}", names.join(" or ")));
        }
    }

    fn add(&mut self, part: Part<'_>, place: Place, traversal: &Traversal) {
        if !self.path.steps.is_empty() || self.path.verdict.is_some() {
            let last = self.last;
            if last.hook == place.hook {
                let missing =
                    self.expected(place.hook, last.rank, place.rank, last.connection, place.connection);
                self.not_seen(place.hook, missing);
            } else {
                let missing = self.expected(last.hook, last.rank, 7, last.connection, place.connection);
                self.not_seen(last.hook, missing);
                for hook in skipped(last.hook, place.hook).iter().map(|hook| *hook as u8) {
                    let missing = self.expected(hook, 0, 7, last.connection, place.connection);
                    self.not_seen(hook, missing);
                }
                // What conntrack said at another hook does not tell about this one, except that it is the first packet.
                let earlier = last.connection.filter(|_| place.connection.is_none());
                let missing = self.expected(place.hook, 0, place.rank, earlier, place.connection);
                self.not_seen(place.hook, missing);
            }
        }
        let entry = Header::of(self.path.family, &traversal.entry, &traversal.entry_bytes);
        if let (Some(last), Some(entry)) = (&self.header, &entry)
            && !last.stays(entry)
        {
            self.doubt("another packet may have come to its place in memory".to_owned());
        }
        self.header = if traversal.facts & fact::EXIT != 0 {
            Header::at_exit(self.path.family, entry, traversal)
        } else {
            None
        };
        self.last = place;
        self.exit_ns = traversal.entry_ns;
        self.path.steps.append(part.steps);
        self.path.verdict = part.verdict.or(self.path.verdict);
        self.path.certainty = self.path.certainty.max(part.certainty);
        self.path.outcome = part.outcome;
        if let Some(why) = part.why
            && !self.path.why.contains(&why)
        {
            self.path.why.push(why);
        }
        self.path.generation.extend(part.generation);
    }

    /// Tables that can still come at the hook where the packet was last.
    fn ahead(&self) -> u8 {
        let Place { hook, rank, connection, .. } = self.last;
        let ranks = self.loaded.possible[usize::from(hook)] & between(rank, 7);
        let nat = match connection {
            Some(connection) => connection.may_be_first() && !connection.is_done(hook),
            // Conntrack comes after raw and before mangle.
            None => is_destination(hook) && rank <= 1,
        };
        if nat { ranks } else { ranks & !(1 << nat_rank(hook)) }
    }

    /// Hooks that can come after the one where the packet was last.
    fn hooks_ahead(&self) -> &'static [Hook] {
        match Hook::ALL[usize::from(self.last.hook)] {
            Hook::Prerouting => &[Hook::Input, Hook::Forward, Hook::Postrouting],
            Hook::Output if self.last.loopback => &[Hook::Postrouting, Hook::Prerouting, Hook::Input],
            Hook::Forward | Hook::Output => &[Hook::Postrouting],
            Hook::Postrouting if self.last.loopback => &[Hook::Prerouting, Hook::Input],
            Hook::Input | Hook::Postrouting | Hook::Ingress | Hook::Egress => &[],
        }
    }

    /// What can be seen of the packet after its last table.
    #[inline]
    fn next(&self) -> Next {
        match self.path.verdict {
            Some(Verdict::Drop | Verdict::Stolen) => Next::Nothing,
            Some(Verdict::Accept) if !self.is_unfinished() => Next::Nothing,
            Some(Verdict::Queue) => Next::Verdict,
            _ => Next::Table,
        }
    }

    /// Whether it was let through, and there are tables it can still meet.
    #[inline]
    fn is_unfinished(&self) -> bool {
        let over = matches!(self.path.verdict, Some(Verdict::Drop | Verdict::Stolen));
        let later = self.hooks_ahead().iter().any(|hook| self.loaded.possible[*hook as usize] != 0);
        !over && (later || self.ahead() != 0)
    }

    /// The path as it is now. A packet that could have been seen again and was not may have been missed, if any
    /// traversal was missed at that time.
    fn end(mut self, windows: &VecDeque<Window>, last_missed_ns: u64) -> Path {
        if self.is_unfinished() {
            // It may have waited for any time in a queue.
            let missed = match self.path.verdict {
                Some(Verdict::Queue) => last_missed_ns >= self.exit_ns,
                _ => windows.iter().any(|window| {
                    window.until_ns >= self.exit_ns && window.since_ns <= self.exit_ns + SOON_NS
                }),
            };
            if missed {
                let chain = Hook::ALL[usize::from(self.last.hook)].chain();
                self.doubt(format!("it was not seen after {chain}, when some traversals were missed"));
            }
        }
        self.path
    }
}
