//! Packets that meet legacy tables and nftables: what both tell, put together.

use super::known::Does;
use super::nft::Live;
use crate::command::kept::Kept;
use crate::netfilter::{TableFamily, Verdict};
use crate::netlink::Message;
use crate::nftables::Located;
use crate::nftables::decode;
use crate::nftables::trace::{self, TraceEvent};
use crate::nftables::traversal::{Added, Assembler};
use crate::packet::{Packet, PacketView};
use crate::path::group::Met;
use crate::path::group::join::{At, Half, Join, Joined, Seen};
use crate::path::{Action, Path};
use std::rc::Rc;
use std::sync::Arc;

/// What came and waits until the rules it is about are known.
pub(super) enum Pending {
    /// A row of a legacy table.
    Row { name: Box<str>, packet: Rc<Packet>, time_ns: u64 },
    /// A message of nftables.
    Message { kind: u16, payload: Box<[u8]>, time_ns: u64 },
}

impl Pending {
    pub(super) fn message(message: &Message<'_>, time_ns: u64) -> Self {
        Self::Message { kind: message.kind, payload: message.payload.into(), time_ns }
    }
}

/// What is known of packets on their way.
pub(super) struct Both {
    live: Live,
    pending: Vec<Pending>,
    assembler: Assembler,
    join: Join<Kept>,
    clock_ns: u64,
}

impl Both {
    pub(super) fn new(live: Live, netns: Option<u32>) -> Self {
        let is_marked = live.is_marked();
        Self {
            live,
            pending: Vec::new(),
            assembler: Assembler::default(),
            join: Join::new(netns, is_marked),
            clock_ns: 0,
        }
    }

    pub(super) fn wait(&mut self, pending: Pending) {
        self.pending.push(pending);
    }

    /// What came since the last call, after the rules have been looked at.
    pub(super) fn settle(&mut self) -> Vec<Pending> {
        if !self.pending.is_empty() {
            self.live.settle();
        }
        std::mem::take(&mut self.pending)
    }

    /// The time, later with each call.
    pub(super) fn tick(&mut self, now_ns: u64) -> u64 {
        self.clock_ns = now_ns.max(self.clock_ns + 1);
        self.clock_ns
    }

    /// Has rules printed that have no text.
    pub(super) fn print(&mut self) {
        self.live.print();
    }

    /// Takes a row of a packet of legacy tables.
    pub(super) fn row(
        &mut self,
        number: u64,
        met: &Met,
        view: PacketView<'_>,
        does: Option<Does<'_>>,
        clock_ns: u64,
    ) {
        let verdict = match does {
            Some(Does::Always(Action::Verdict(verdict))) => Some(verdict),
            _ => None,
        };
        let seen = Seen {
            at: At::of_legacy(&met.table, &met.chain),
            view: Some(view),
            clock_ns,
            begins: None,
            inside: false,
            gone: is_end(verdict),
            queued: verdict == Some(Verdict::Queue),
        };
        self.join.meet(Half::Legacy(number), seen, self.live.stands());
    }

    /// Keeps a step of a legacy table.
    pub(super) fn keep(&mut self, number: u64, clock_ns: u64, step: Kept) {
        self.join.keep(Half::Legacy(number), clock_ns, step);
    }

    /// No more of a packet comes from legacy tables.
    pub(super) fn close(&mut self, path: Path) -> Option<Joined<Kept>> {
        self.join.close(Half::Legacy(path.packet), path).map(|joined| without_ours(&self.live, joined))
    }

    /// Takes a message of nftables: its kind and what follows the header. Gives the packet of legacy tables that has
    /// ended by it.
    pub(super) fn message(
        &mut self,
        (kind, payload): (u16, &[u8]),
        (time_ns, clock_ns): (u64, u64),
        netns: Option<u32>,
        device: &mut dyn FnMut(u32) -> Rc<[u8]>,
        finish: &mut dyn FnMut(Joined<Kept>),
    ) -> Option<u64> {
        let message = Message { kind, flags: 0, sequence: 0, port: 0, payload };
        let message = message.netfilter()?;
        if let Some(generation) = decode::generation(&message) {
            self.live.announce(generation);
        }
        let event = trace::decode(&message)?;
        let Self { live, assembler, join, .. } = self;
        let located = live.locate(&event);
        let mut name = |index| Some(device(index));
        let mut done = Vec::new();
        let added = assembler.add(&event, located, (time_ns, netns), &mut name, &mut |path| done.push(path));
        for path in done {
            let joined = join.close(Half::Nft(path.packet), path);
            joined.into_iter().for_each(|joined| finish(without_ours(live, joined)));
        }
        let half = Half::Nft(added.packet);
        join.meet(half, seen(&event, located.as_ref(), &added, clock_ns), live.stands());
        if let Some(step) = added.step.filter(|_| !live.is_of_ours(event.family, &event.table)) {
            join.keep(half, clock_ns, Kept::of(&step));
        }
        join.gone(half)
    }

    /// Gives out the packets of which nftables told nothing since a time.
    pub(super) fn expire(&mut self, before_ns: u64, finish: &mut dyn FnMut(Joined<Kept>)) {
        let Self { live, assembler, join, .. } = self;
        assembler.expire(before_ns, &mut |path| {
            let joined = join.close(Half::Nft(path.packet), path);
            joined.into_iter().for_each(|joined| finish(without_ours(live, joined)));
        });
    }

    /// Something was lost.
    pub(super) fn lost(&mut self, why: &str) {
        self.live.lost();
        self.assembler.lost();
        self.join.lost(why);
    }

    /// The trace ends.
    pub(super) fn end(&mut self, clock_ns: u64) {
        self.join.end(clock_ns);
    }
}

/// A packet without the versions of tables that mark packets for a run: those are no part of the ruleset.
fn without_ours(live: &Live, mut joined: Joined<Kept>) -> Joined<Kept> {
    let table = |tag: &str| tag.rsplit_once('@').map_or(tag, |(table, _)| table).to_owned();
    joined.path.generation.retain(|tag| !live.is_of_ours(TableFamily::Inet, &table(tag)));
    joined
}

fn is_end(verdict: Option<Verdict>) -> bool {
    matches!(verdict, Some(Verdict::Drop | Verdict::Stolen))
}

/// What a trace message says of its packet's way.
fn seen<'a>(
    event: &TraceEvent<'_>,
    located: Option<&Located<'_>>,
    added: &Added<'a>,
    clock_ns: u64,
) -> Seen<'a> {
    let beginning = located.filter(|_| event.packet.is_some());
    let base = beginning.and_then(|located| Some((located, located.base()?)));
    Seen {
        at: base.and_then(|(_, base)| base.at()),
        view: added.view,
        clock_ns,
        begins: base.map(|(located, _)| {
            (event.family, Arc::clone(&located.table.name), Arc::clone(&located.chain.name))
        }),
        inside: added.verdict.is_none(),
        gone: is_end(added.verdict),
        queued: added.verdict == Some(Verdict::Queue),
    }
}
