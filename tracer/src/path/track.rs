//! Joins the traversals of one packet to a path, notices what is missing between them, and knows when it is done.
#![forbid(unsafe_code)]

use super::{Certainty, Path};
use crate::history::Loaded;
use crate::netfilter::{Family, Hook, Verdict};
use std::collections::{HashMap, VecDeque};
use tracer_common::legacy::{Traversal, fact, rank, table_class};

/// How long a packet may be silent before its path is given out.
const IDLE_NS: u64 = 250_000_000;
/// The same for one that waits in a queue for user space.
const QUEUED_NS: u64 = 30_000_000_000;
/// A missed traversal of a packet happens within this time of its last one that was seen.
const SOON_NS: u64 = 100_000_000;
/// Interface number of every namespace's loopback device.
const LOOPBACK: u32 = 1;

/// `enum ip_conntrack_info`: a packet of a connection that has had no reply.
const IP_CT_NEW: u8 = 2;
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
    open: HashMap<u64, Open>,
    /// Packets by the time of their last traversal, oldest first; those seen again since are skipped.
    silent: VecDeque<(u64, u64)>,
    /// The same for packets that wait for a verdict from user space.
    queued: VecDeque<(u64, u64)>,
    windows: VecDeque<Window>,
    packets: u64,
}

/// A stretch of time in which a CPU made traversals that no probe saw.
#[derive(Clone, Copy, Debug)]
struct Window {
    since_ns: u64,
    until_ns: u64,
}

#[derive(Debug)]
struct Open {
    path: Path,
    last: Place,
    exit_ns: u64,
    loaded: Loaded,
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
}

/// What one traversal adds to a path.
#[derive(Debug)]
pub struct Part {
    /// `table:chain:kind:number` of its steps.
    pub steps: Vec<String>,
    /// How far they can be relied on.
    pub certainty: Certainty,
    /// Why not further.
    pub why: Option<String>,
    /// The version of the table, `table@generation`.
    pub generation: Option<String>,
    /// What ended the packet, where no step says it.
    pub outcome: Option<String>,
    /// What the table decided; `None` when its end was not seen.
    pub verdict: Option<Verdict>,
}

impl Tracker {
    /// The packet's number in this trace, from 1.
    pub fn number(&mut self, traversal: &Traversal) -> u64 {
        match self.open.get(&traversal.packet) {
            Some(open) if traversal.facts & fact::FIRST == 0 => open.path.packet,
            _ => self.packets + 1,
        }
    }

    /// Adds a traversal. Gives out the packet's path when it is done, and the path of an earlier packet when this one
    /// shows that it is.
    pub fn add(
        &mut self,
        traversal: &Traversal,
        family: Family,
        part: Part,
        loaded: Loaded,
        give: &mut impl FnMut(Path),
    ) {
        if traversal.missed != 0 {
            self.windows.push_back(Window { since_ns: traversal.checkpoint_ns, until_ns: traversal.entry_ns });
        }
        let place = Place::of(traversal);
        let first = traversal.facts & fact::FIRST != 0;
        if first && let Some(open) = self.open.remove(&traversal.packet) {
            give(open.end(&self.windows));
        }
        let packets = &mut self.packets;
        let open = self.open.entry(traversal.packet).or_insert_with(|| {
            *packets += 1;
            let mut open = Open::new(*packets, family, traversal, place, loaded);
            if first {
                open.check_beginning(place);
            } else {
                open.doubt("its earlier tables were shown before, as another packet".to_owned());
            }
            open
        });
        open.loaded = loaded;
        open.add(part, place, traversal);
        if open.is_done() {
            if let Some(open) = self.open.remove(&traversal.packet) {
                give(open.end(&self.windows));
            }
        } else if open.path.verdict == Some(Verdict::Queue) {
            self.queued.push_back((traversal.exit_ns, traversal.packet));
        } else {
            self.silent.push_back((traversal.exit_ns, traversal.packet));
        }
    }

    /// Gives out the paths of packets that have been silent for long.
    pub fn expire(&mut self, now_ns: u64, give: &mut impl FnMut(Path)) {
        for (queue, patience_ns) in [(&mut self.silent, IDLE_NS), (&mut self.queued, QUEUED_NS)] {
            while let Some((exit_ns, packet)) = queue.pop_front_if(|(exit_ns, _)| *exit_ns + patience_ns <= now_ns) {
                if self.open.get(&packet).is_some_and(|open| open.exit_ns == exit_ns)
                    && let Some(open) = self.open.remove(&packet)
                {
                    give(open.end(&self.windows));
                }
            }
        }
        while self.windows.front().is_some_and(|window| window.until_ns + 2 * IDLE_NS < now_ns) {
            self.windows.pop_front();
        }
    }

    /// Gives out all that is left, in the order the packets came.
    pub fn finish(&mut self, give: &mut impl FnMut(Path)) {
        let mut left: Vec<Open> = self.open.drain().map(|(_, open)| open).collect();
        left.sort_by_key(|open| open.path.packet);
        left.into_iter().for_each(|open| give(open.end(&self.windows)));
        self.silent.clear();
    }
}

impl Place {
    fn of(traversal: &Traversal) -> Self {
        let name = [0, 1, 2, 3].map(|index| traversal.table_name[index]);
        let connection = (traversal.facts & fact::CONNTRACK != 0)
            .then_some(Connection { info: traversal.ctinfo, status: traversal.ct_status });
        Self {
            hook: traversal.hook.min(4),
            rank: rank(traversal.hook, table_class(u32::from_ne_bytes(name))),
            connection,
            loopback: traversal.facts & fact::OUT != 0 && traversal.outdev.ifindex == LOOPBACK,
        }
    }
}

impl Connection {
    /// Whether the packet is the first of a connection that nothing has confirmed, so that the nat table decides.
    fn is_first(self) -> bool {
        self.info == IP_CT_NEW && self.status & (status::CONFIRMED | status::TEMPLATE) == 0
    }

    /// Whether the nat table at this hook still has to decide.
    fn undecided(self, hook: u8) -> bool {
        let done = if is_destination(hook) { status::DST_NAT_DONE } else { status::SRC_NAT_DONE };
        self.is_first() && self.status & done == 0
    }
}

/// Whether nat at this hook translates destinations.
fn is_destination(hook: u8) -> bool {
    hook == Hook::Prerouting as u8 || hook == Hook::Output as u8
}

fn nat_rank(hook: u8) -> u8 {
    if is_destination(hook) { 3 } else { 6 }
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
            steps: Vec::new(),
            verdict: None,
            certainty: Certainty::Complete,
            why: Vec::new(),
            outcome: None,
            generation: Vec::new(),
            netns: traversal.netns,
        };
        Self { path, last: place, exit_ns: traversal.exit_ns, loaded }
    }

    fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    fn not_seen(&mut self, hook: u8, ranks: u8) {
        for rank in (1..7u8).filter(|rank| ranks & 1 << rank != 0) {
            let chain = Hook::from_number(hook).map_or("?", Hook::chain);
            self.doubt(format!("{}:{chain} was not seen", TABLES[usize::from(rank)]));
        }
    }

    /// Tables of a hook between two ranks that a packet must have met, given what conntrack said before or after.
    fn expected(&self, hook: u8, after: u8, before: u8, earlier: Option<Connection>, later: Option<Connection>) -> u8 {
        let nat = 1 << nat_rank(hook);
        let ranks = self.loaded.ranks[usize::from(hook)] & between(after, before);
        let consulted = match (earlier, later) {
            (Some(earlier), _) => earlier.undecided(hook),
            (None, Some(later)) => later.is_first(),
            (None, None) => false,
        };
        if consulted { ranks } else { ranks & !nat }
    }

    /// A packet begins at the first table of PREROUTING or OUTPUT, or earlier tables were not seen.
    fn check_beginning(&mut self, place: Place) {
        let missing = self.expected(place.hook, 0, place.rank, None, place.connection);
        self.not_seen(place.hook, missing);
        let before: &[Hook] = match Hook::ALL[usize::from(place.hook)] {
            Hook::Prerouting | Hook::Output => &[],
            Hook::Input | Hook::Forward => &[Hook::Prerouting],
            Hook::Postrouting => &[Hook::Forward, Hook::Output],
        };
        let nat = |hook: &Hook| 1u8 << nat_rank(*hook as u8);
        if !before.is_empty() && before.iter().all(|hook| self.loaded.ranks[*hook as usize] & !nat(hook) != 0) {
            let names: Vec<_> = before.iter().map(|hook| hook.chain()).collect();
            self.doubt(format!("it was not seen in {}", names.join(" or ")));
        }
    }

    fn add(&mut self, part: Part, place: Place, traversal: &Traversal) {
        if !self.path.steps.is_empty() || self.path.verdict.is_some() {
            let last = self.last;
            if last.hook == place.hook {
                let missing =
                    self.expected(place.hook, last.rank, place.rank, last.connection, place.connection);
                self.not_seen(place.hook, missing);
            } else {
                let missing = self.expected(last.hook, last.rank, 7, last.connection, place.connection);
                self.not_seen(last.hook, missing);
                // What conntrack said at another hook does not tell about this one, except that it is the first packet.
                let earlier = last.connection.filter(|_| place.connection.is_none());
                let missing = self.expected(place.hook, 0, place.rank, earlier, place.connection);
                self.not_seen(place.hook, missing);
            }
        }
        self.last = place;
        self.exit_ns = traversal.exit_ns;
        self.path.steps.extend(part.steps);
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
        self.expected(self.last.hook, self.last.rank, 7, self.last.connection, None)
    }

    /// Hooks that can come after the one where the packet was last.
    fn hooks_ahead(&self) -> &'static [Hook] {
        match Hook::ALL[usize::from(self.last.hook)] {
            Hook::Prerouting => &[Hook::Input, Hook::Forward],
            Hook::Forward | Hook::Output => &[Hook::Postrouting],
            Hook::Postrouting if self.last.loopback => &[Hook::Prerouting],
            Hook::Input | Hook::Postrouting => &[],
        }
    }

    /// Whether nothing more can be seen of the packet.
    fn is_done(&self) -> bool {
        match self.path.verdict {
            Some(Verdict::Drop | Verdict::Stolen) => true,
            Some(Verdict::Accept) => self.ahead() == 0 && !self.can_go_on(),
            _ => false,
        }
    }

    fn can_go_on(&self) -> bool {
        self.hooks_ahead().iter().any(|hook| self.loaded.ranks[*hook as usize] != 0)
    }

    /// The path as it is now. A packet that could have been seen again and was not may have been missed, if any
    /// traversal was missed at that time.
    fn end(mut self, windows: &VecDeque<Window>) -> Path {
        let accepted = !matches!(self.path.verdict, Some(Verdict::Drop | Verdict::Stolen));
        if accepted && (self.ahead() != 0 || self.can_go_on()) {
            let missed = windows
                .iter()
                .any(|window| window.until_ns >= self.exit_ns && window.since_ns <= self.exit_ns + SOON_NS);
            if missed {
                let chain = Hook::ALL[usize::from(self.last.hook)].chain();
                self.doubt(format!("it was not seen after {chain}, when some traversals were missed"));
            }
        }
        self.path
    }
}
