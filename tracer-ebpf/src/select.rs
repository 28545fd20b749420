//! Which packets are traced.
//!
//! A packet is judged once, at its first traversal in a namespace, and stays traced or not for its later hooks, also
//! when NAT has changed it. Its skb's address tells it again, as long as it goes forward, through hooks and what stands
//! at them: addresses are reused within microseconds, so a packet that begins anew (PREROUTING, OUTPUT) or goes backward
//! is another packet. Where base chains of nftables stand at the same place, with one another or with a table, each of
//! them sees a packet once.
//!
//! Between a device and the hooks of IP a packet can get lost without a word, and nothing but its address tells it from
//! the one that takes its place. So there only a packet that is traced stays what it is; any other is judged again.
//!
//! The judgement sits in one 64-bit word in an array indexed by a hash of the address, so that asking again costs one
//! load and no lock. A traced packet that another one displaces there is kept in a map.

use crate::choice;
use crate::config::{config, offset};
use crate::emit::count;
use crate::kernel::{Access, Packet, copy, read};
use crate::legacy::Call;
use crate::maps::{
    CLASS_SLOTS, DECIDED, DECISIONS, FILTER, MET, PACKETS, TABLE_CLASSES, TRACED, TracedPacket, Words,
    class_slot,
};
use crate::nft::nft;
use crate::sender::{self, tell_sender};
use crate::snapshot::mask;
use crate::throttle::admit;
use crate::translated;
use tracer_common::counter::Counter;
use tracer_common::filter::{ACCEPT, MAX_NODES, Node, word};
use tracer_common::legacy::{NAT_CLASS, rank, table_class};
use tracer_common::place::{BRIDGE, EGRESS, INGRESS};

const PREROUTING: u64 = 0;
const INPUT: u64 = 1;
const OUTPUT: u64 = 3;
const POSTROUTING: u64 = 4;
/// From here on a position is that of a device's base chains, whatever their priority. The last eight are those of bridges and of ARP.
const AT_DEVICE: u64 = (INGRESS as u64) << 3;
const AT_BRIDGE: u64 = (BRIDGE as u64) << 3;
/// Interface number of every namespace's loopback device.
const LOOPBACK: u32 = 1;

/// Bits of the words below that are an address: no skb or table lies within 64 bytes of another, and the upper 16
/// bits are the same for all.
pub const ADDRESS_SHIFT: u32 = 16;
pub const ADDRESS_FROM: u32 = 22;
/// Bits for a namespace's number and the family.
const PLACE: u64 = ((1 << ADDRESS_FROM) - 1) & !((1 << PLACE_FROM) - 1);
const PLACE_FROM: u32 = 7;
const NAMESPACE_FROM: u32 = 8;
/// Set for packets that are traced, and for tables whose namespace is.
const IS_TRACED: u64 = 1 << 6;
/// Position of a packet, class of a table.
const POSITION: u64 = 63;
const CLASS: u64 = 7;

/// A packet that is to be traced.
#[derive(Clone, Copy)]
pub struct Selected {
    pub packet: u64,
    /// Nothing earlier of this packet was traced.
    pub first: bool,
}

/// Which tables and chains have seen a packet at its position: a tag of each, the last one lowest. Kept only where
/// nftables is traced: without it one table stands at each position.
#[derive(Clone, Copy)]
struct Met(u64);

impl Met {
    /// No more than one legacy table has a position.
    const LEGACY: u64 = 1;

    /// The tag of a base chain: bits of its address. Never 0, which stands for none.
    #[inline(always)]
    fn chain(address: u64) -> u64 {
        ((address >> 4) ^ (address >> 19)) & 0x7fff | 0x8000
    }

    #[inline(always)]
    fn has(self, tag: u64) -> bool {
        let is = |shift: u32| (self.0 >> shift) & 0xffff == tag;
        is(0) || is(16) || is(32) || is(48)
    }
}

/// Whether a packet seen at `before` can be at `now` next, in one namespace. Positions are those of [`Question`].
const fn follows(before: u64, now: u64) -> bool {
    // For each hook the set of hooks that come after it: PREROUTING → INPUT, FORWARD, and POSTROUTING where no table
    // stands at FORWARD; FORWARD and OUTPUT → POSTROUTING.
    const NEXT: u64 = 0b10110 | (0b10000 << 10) | (0b10000 << 15);
    let (from, to) = (before >> 3, now >> 3);
    if from == to { now > before } else { from < 5 && to < 5 && (NEXT >> (from * 5 + to)) & 1 == 1 }
}

/// [`follows`] for each pair of positions: the earlier one is the row.
#[unsafe(no_mangle)]
pub static FOLLOWS: [[u8; 64]; 64] = {
    let mut pairs = [[0; 64]; 64];
    let mut before = 0;
    while before < 64 {
        let mut now = 0;
        while now < 64 {
            pairs[before][now] = follows(before as u64, now as u64) as u8;
            now += 1;
        }
        before += 1;
    }
    pairs
};

/// For each hook, and behind them for each of a bridge and of ARP, the set of those to which a packet that is traced can come from
/// there, where one of them is a device's or a bridge's. With br_netfilter the hooks of IP lie within those of a bridge.
#[unsafe(no_mangle)]
pub static PASSES: [u16; 16] = {
    const ANY_BRIDGE: u16 = 0b1_1111 << 8;
    const PRE: u16 = 1 << 8;
    const LOCAL_IN: u16 = 1 << 9;
    const FORWARDED: u16 = 1 << 10;
    const POST: u16 = 1 << 12;
    const EGRESS: u16 = 1 << 6;
    const UP: u16 = 0b11_0111 | ARP_IN;
    const ARP_IN: u16 = 1 << 13;
    const ARP_OUT: u16 = 1 << 14;
    const ARP_FORWARD: u16 = 1 << 15;
    let mut sets = [0; 16];
    sets[PREROUTING as usize] = EGRESS | PRE | LOCAL_IN | FORWARDED | POST;
    sets[2] = EGRESS | ANY_BRIDGE;
    sets[OUTPUT as usize] = EGRESS | ANY_BRIDGE;
    sets[POSTROUTING as usize] = EGRESS | ANY_BRIDGE;
    sets[INGRESS as usize] = EGRESS | UP | ANY_BRIDGE;
    sets[6] = EGRESS | ANY_BRIDGE;
    sets[8] = EGRESS | UP | PRE | LOCAL_IN | FORWARDED | POST | ARP_FORWARD;
    sets[9] = UP | LOCAL_IN;
    sets[10] = EGRESS | 0b1_0100 | FORWARDED | POST | ARP_FORWARD;
    sets[11] = EGRESS | 1 << 11 | POST;
    sets[12] = EGRESS | 0b1_0000 | POST;
    sets[13] = ARP_IN;
    sets[14] = EGRESS | ANY_BRIDGE | ARP_OUT;
    sets[15] = EGRESS | FORWARDED | POST | ARP_FORWARD;
    sets
};

/// The number of a position's hook in [`PASSES`].
#[inline(always)]
fn node(position: u64) -> u64 {
    if position >= AT_BRIDGE { 8 + (position & 7) } else { position >> 3 }
}

/// Devices by which packets came to a bridge, by their namespaces and indexes.
#[unsafe(no_mangle)]
pub static PORTS: Words<{ PORT_SLOTS as usize }> = Words::new();
const PORT_SLOTS: u32 = 256;

/// What has to be known of an skb before its packet can be looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout(u64);

impl Layout {
    /// An IP packet, at which its data begins.
    pub const IP: Self = Self(0);
    /// One with its frame before it.
    pub const FRAMED: Self = Self(1);
    /// No IP packet: a filter can only be asked about its frame.
    pub const ARP: Self = Self(2);

    /// Of a packet of this family at this hook, one of a base chain.
    #[inline(always)]
    pub fn at(hook: u8, family: u8) -> Self {
        if family == NFPROTO_ARP {
            Self::ARP
        } else if hook == EGRESS {
            Self::FRAMED
        } else {
            Self::IP
        }
    }
}

const NFPROTO_ARP: u8 = 3;
/// Length of an ARP packet for Ethernet and IPv4.
const ARP_BYTES: u32 = 28;

/// A traversal, and what was decided about its packet.
#[derive(Clone, Copy)]
pub struct Question {
    /// Where the decision about this packet is kept, and the word there, which may be about another one.
    word: *mut u64,
    decided: u64,
    /// Where its number is kept.
    slot: u64,
    /// Address and place of this packet, where a decision has them.
    identity: u64,
    /// Hook and rank of the table in it: the hook from bit 3 on.
    now: u64,
    /// What is remembered of the table: its place, and whether that is traced.
    table: u64,
    /// What sees the packet, as a tag of [`Met`].
    tag: u64,
    /// How the packet lies in its memory.
    layout: Layout,
    /// It comes in by a device that is known as a port of a bridge: no packet comes there from a bridge.
    at_port: u64,
}

impl Question {
    /// Asks about a traversal of a legacy table.
    #[inline(always)]
    pub fn of<A: Access>(call: &Call) -> Option<Self> {
        let hook = A::hook(call.state)?;
        let table = table::<A>(call)?;
        let question = Self::new(call.skb_number, position(hook, table), table, Met::LEGACY);
        let noise = question.decided;
        Some(Self { now: blurred(question.now, noise), table: blurred(table, noise), ..question })
    }

    /// Asks about a run through a base chain, whose address `call` has for the table's. `chain` is what is remembered
    /// of the chain: its [`namespace`] and its rank.
    #[inline(always)]
    pub fn of_chain(call: &Call, hook: u8, family: u8, chain: u64) -> Self {
        let now = (u64::from(hook & 7) << 3) | (chain & CLASS);
        Self::new(call.skb_number, now, chain | family_bit(family), Met::chain(call.table))
    }

    /// The same for a base chain of a device, which can be that of several, and see a packet at each of them.
    #[inline(always)]
    pub fn at_device(call: &Call, hook: u8, family: u8, chain: u64, device: u32) -> Self {
        let layout = Layout::at(hook, family);
        let now =
            if hook < BRIDGE { u64::from(hook) << 3 } else { AT_BRIDGE + u64::from((hook - BRIDGE) & 7) };
        let device = u64::from(device);
        let tag = Met::chain(call.table ^ if hook < BRIDGE { device << 4 } else { 0 });
        let port = ((chain & PLACE) << 32) | device;
        if hook == BRIDGE || hook == BRIDGE + 1 {
            PORTS.set::<{ PORT_SLOTS - 1 }>(device, port);
        }
        let at_port = u64::from(hook == INGRESS && PORTS.get::<{ PORT_SLOTS - 1 }>(device) == port);
        Self { layout, at_port, ..Self::new(call.skb_number, now, chain | family_bit(family), tag) }
    }

    /// The same question, of which the verifier no longer knows by which way it came about: it would look at all that
    /// follows once for each.
    #[inline(always)]
    pub fn blurred(self) -> Self {
        let noise = self.decided;
        Self {
            now: blurred(self.now, noise),
            layout: Layout(blurred(self.layout.0, noise)),
            at_port: blurred(self.at_port, noise),
            ..self
        }
    }

    /// What tells the packet from others, by which [`forget`] finds it.
    #[inline(always)]
    pub fn identity(&self) -> u64 {
        self.identity
    }

    #[inline(always)]
    fn new(skb_number: u64, now: u64, table: u64, tag: u64) -> Self {
        let slot = skb_number >> 8;
        let word = DECIDED.at::<{ DECISIONS - 1 }>(slot);
        Self {
            word,
            // SAFETY: a word of global data; volatile because other CPUs write there.
            decided: unsafe { word.read_volatile() },
            slot,
            identity: (skb_number << ADDRESS_SHIFT) ^ (table & PLACE),
            now,
            table,
            tag,
            layout: Layout::IP,
            at_port: 0,
        }
    }

    /// Where its packet lies.
    #[inline(always)]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The hook of the traversal.
    #[inline(always)]
    pub fn hook(&self) -> u8 {
        (self.now >> 3) as u8
    }

    /// Whether the decision is about this packet.
    #[inline(always)]
    fn same(&self) -> bool {
        (self.decided ^ self.identity) >> PLACE_FROM == 0
    }

    /// Whether the packet can come here after `before`, where `met` saw it.
    #[inline(always)]
    fn goes_on_past(&self, before: u64, met: impl FnOnce() -> Met) -> bool {
        is_forward(before, self.now)
            || (nft!(witness) != 0
                && before & POSITION == self.now
                && self.now < AT_DEVICE
                && !met().has(self.tag))
    }

    /// Whether the packet can come here after `before`, where `met` saw it, if one of the two places is at a device.
    #[inline(always)]
    fn passes_device<A: Access>(&self, before: u64, met: Met, call: &Call) -> bool {
        let before_at = before & POSITION;
        if nft!(witness) == 0 || (before_at < AT_DEVICE && self.now < AT_DEVICE) {
            return false;
        }
        let (from, to) = (node(before_at), node(self.now));
        let sets = (&raw const PASSES).cast::<u16>();
        // SAFETY: the index is masked; volatile because the table is worth its loads.
        let set = u64::from(unsafe { sets.add(mask::<15>(from) as usize).read_volatile() });
        if self.at_port != 0 && before_at >= AT_BRIDGE {
            return false;
        }
        if (set >> to) & 1 == 0 || (before_at >= AT_DEVICE && met.has(self.tag)) {
            return false;
        }
        // One that is not traced must not pass for another, unless conntrack knows it: then its addresses may have been
        // translated, and the filter would be asked about others than before. What was left out is not asked again.
        before & IS_TRACED != 0
            || config!(throttled) != 0
            || ((to >= u64::from(EGRESS) || from > u64::from(EGRESS))
                && A::field(call.skb, offset!(skb_nfct)).unwrap_or(0_u64) & !7 != 0)
    }

    /// What saw the packet of this slot where it was last, if that is kept.
    #[inline(always)]
    fn met(&self) -> Met {
        if nft!(witness) == 0 {
            return Met(0);
        }
        Met(MET.get::<{ DECISIONS - 1 }>(self.slot))
    }

    /// Remembers what saw the packet here: a packet that goes on from `before`, where `met` saw it, or begins. What devices
    /// and bridges have seen of it is remembered until it comes to IP: no chain of theirs sees it twice at one device.
    #[inline(always)]
    fn remember_met(&self, before: Option<u64>, met: impl FnOnce() -> Met) {
        if nft!(witness) == 0 {
            return;
        }
        let stays = |before| before == self.now || (before >= AT_DEVICE && self.now >= AT_DEVICE);
        let earlier = match before {
            Some(before) if stays(before & POSITION) => met().0 << 16,
            _ => 0,
        };
        MET.set::<{ DECISIONS - 1 }>(self.slot, earlier | self.tag);
    }

    #[inline(always)]
    fn remember(&self, traced: bool) {
        let traced = if traced { IS_TRACED } else { 0 };
        // SAFETY: as for the reading.
        unsafe { self.word.write_volatile(self.identity | traced | self.now) };
    }

    /// Whether it is known already that the packet is not traced.
    #[inline(always)]
    pub fn is_untraced(&self) -> bool {
        let position = self.decided ^ self.identity;
        let untraced = position <= POSITION && self.goes_on_past(position, || self.met());
        if untraced {
            self.remember(false);
            self.remember_met(Some(position), || self.met());
        }
        untraced
    }

    /// Whether this can be the other side of a loopback device; hooks without tables are not seen.
    #[inline(always)]
    fn is_looped<A: Access>(&self, before: u64, call: &Call) -> bool {
        const INGRESS: u64 = tracer_common::place::INGRESS as u64;
        const EGRESS: u64 = tracer_common::place::EGRESS as u64;
        let (from, to) = ((before & POSITION) >> 3, self.now >> 3);
        let at_device = || {
            (from == EGRESS && (to == PREROUTING || to == INPUT || to == INGRESS))
                || (from == INGRESS && (to == PREROUTING || to == INPUT))
                || (leaves(from) && to == INGRESS)
        };
        (loops(from, to) || (nft!(witness) != 0 && at_device()))
            && A::input_index(call.state) == Some(LOOPBACK)
    }

    /// Decides whether this traversal is to be traced, and as which packet's.
    #[inline(always)]
    pub fn decide<A: Access>(&self, call: &Call) -> Option<Selected> {
        let same = self.same();
        let traced = self.decided & IS_TRACED != 0;
        let met = self.met();
        let goes_on = same
            && (self.goes_on_past(self.decided, || met)
                || self.is_looped::<A>(self.decided, call)
                || self.passes_device::<A>(self.decided, met, call));
        let before = if goes_on { Some(self.decided) } else { None };
        if self.table & IS_TRACED == 0 || (goes_on && !traced) {
            self.displace(same, met);
            self.remember(false);
            self.remember_met(before, || met);
            return None;
        }
        let number = PACKETS.get::<{ DECISIONS - 1 }>(self.slot);
        if goes_on && number & SKB == self.identity >> ADDRESS_FROM {
            self.remember(true);
            self.remember_met(before, || met);
            if choice::follows() {
                choice::goes_on::<A>(call, self.hook(), self.layout, number & !KEPT);
            }
            if choice::tells() {
                choice::tell_confirmed::<A>(call, number & !KEPT);
            }
            return Some(Selected { packet: number & !KEPT, first: false });
        }
        // A decision about another packet does not tell whether this one, past its first hook, was seen before.
        let hook = self.now >> 3;
        if number & KEPT != 0 && !same && hook != OUTPUT {
            if let Some(kept) = self.kept::<A>(call) {
                self.displace(same, met);
                PACKETS.set::<{ DECISIONS - 1 }>(self.slot, kept.packet | KEPT);
                self.remember(true);
                self.remember_met(Some(kept.position), || Met(kept.met));
                return Some(Selected { packet: kept.packet, first: false });
            }
        }
        self.displace(same, met);
        let may_begin = same || hook == OUTPUT || hook == PREROUTING || hook >= u64::from(INGRESS);
        let chosen = matches::<A>(call.skb, self.layout)
            && choice::chooses::<A>(call, self.hook())
            && (config!(throttled) == 0 || admit(u32::from(may_begin)) != 0);
        let matched = if choice::follows() { choice::follow::<A>(call, self.layout, chosen) } else { chosen };
        self.remember(matched);
        self.remember_met(before, || met);
        if !matched {
            if goes_on {
                // Two CPUs have written to the slot at once, and which packet this is has been lost.
                count(Counter::Lost, 1);
            }
            return None;
        }
        let number = PACKETS.get::<{ DECISIONS - 1 }>(self.slot);
        if number & KEPT != 0 {
            let _ = TRACED.remove(&self.key());
        }
        let next = (number & !SKB).wrapping_add(SKB + 1) & !(SKB | KEPT);
        let packet = next | (self.identity >> ADDRESS_FROM);
        PACKETS.set::<{ DECISIONS - 1 }>(self.slot, packet | (number & KEPT));
        if choice::follows() {
            choice::begins::<A>(call, self.hook(), self.layout, packet);
        }
        if sender::is_asked() && hook == OUTPUT {
            tell_sender(packet);
        }
        if choice::tells() {
            choice::tell_confirmed::<A>(call, packet);
        }
        Some(Selected { packet, first: true })
    }

    #[inline(always)]
    fn key(&self) -> u64 {
        self.identity & !((1 << PLACE_FROM) - 1)
    }

    /// This packet, if it was displaced.
    #[inline(always)]
    fn kept<A: Access>(&self, call: &Call) -> Option<TracedPacket> {
        let key = self.key();
        let kept = TRACED.get_ptr(key)?;
        // SAFETY: a map value.
        let kept = unsafe { core::ptr::read_volatile(kept) };
        let (before, met) = (kept.position | IS_TRACED, Met(kept.met));
        let goes_on = self.now >> 3 != PREROUTING && self.goes_on_past(before, || met);
        if !goes_on && !self.passes_device::<A>(before, met, call) {
            return None;
        }
        let _ = TRACED.remove(&key);
        Some(kept)
    }

    /// Keeps the packet whose decision is about to be overwritten, if it is traced and another.
    #[inline(always)]
    fn displace(&self, same: bool, met: Met) {
        if same || self.decided & IS_TRACED == 0 {
            return;
        }
        let number = PACKETS.get::<{ DECISIONS - 1 }>(self.slot);
        if number & SKB != self.decided >> ADDRESS_FROM {
            return;
        }
        let key = self.decided & !((1 << PLACE_FROM) - 1);
        let packet = TracedPacket { packet: number & !KEPT, position: self.decided & POSITION, met: met.0 };
        // The map refuses when its locks are contended; then the packet is not followed, and that is told.
        if TRACED.insert(key, packet, 0).is_err() {
            count(Counter::Lost, 1);
        }
        PACKETS.set::<{ DECISIONS - 1 }>(self.slot, number | KEPT);
    }
}

/// Whether it is known that a packet is not traced: the way of most packets, as short as can be. Only where no base chains
/// of nftables stand between the tables.
///
/// The classes of a hook's tables rise, so that the hook is asked for only where they do not: until then a packet that has
/// come to another hook is taken to be at the one before still. One that begins anew in the same memory begins with the
/// lowest class that there is: all tables but `nat` see each packet.
#[inline(always)]
pub fn goes_on_untraced<A: Access>(call: &Call) -> bool {
    let class_of = TABLE_CLASSES.get::<{ CLASS_SLOTS - 1 }>(class_slot(call.table));
    let table = class_of ^ (call.table << ADDRESS_SHIFT);
    let word = DECIDED.at::<{ DECISIONS - 1 }>(call.skb_number >> 8);
    // SAFETY: a word of global data; volatile because other CPUs write there.
    let decided = unsafe { word.read_volatile() };
    let before = decided ^ (call.skb_number << ADDRESS_SHIFT) ^ (table & PLACE);
    if table >> ADDRESS_FROM != 0 || before > POSITION {
        return false;
    }
    let (class_before, class) = (before & CLASS, table & CLASS);
    let now = if class > class_before && class_before != u64::from(NAT_CLASS) {
        before - class_before + class
    } else {
        let Some(hook) = A::hook(call.state) else { return false };
        let now = position(hook, table);
        if !is_forward(before, now)
            && !(loops(before >> 3, now >> 3) && A::input_index(call.state) == Some(LOOPBACK))
        {
            return false;
        }
        now
    };
    // SAFETY: as for the reading.
    unsafe { word.write_volatile(decided ^ before ^ now) };
    true
}

/// Hook and rank of a table, of which `table` is what is remembered.
#[inline(always)]
fn position(hook: u8, table: u64) -> u64 {
    let class = table & CLASS;
    let rank = if class == u64::from(NAT_CLASS) { u64::from(rank(hook, NAT_CLASS)) } else { class };
    (u64::from(hook) << 3) | rank
}

/// [`follows`], from [`FOLLOWS`].
#[inline(always)]
fn is_forward(before: u64, now: u64) -> bool {
    let pairs = (&raw const FOLLOWS).cast::<u8>();
    let index = mask::<4095>((before << 6) | now) as usize;
    // SAFETY: the index is masked; volatile because the table is worth its loads.
    unsafe { pairs.add(index).read_volatile() != 0 }
}

/// Whether packets leave by this hook.
#[inline(always)]
fn leaves(hook: u64) -> bool {
    hook == POSTROUTING || hook == OUTPUT
}

/// Whether a packet that was at one hook can come to the other by a loopback device.
#[inline(always)]
fn loops(from: u64, to: u64) -> bool {
    leaves(from) && (to == PREROUTING || to == INPUT)
}

/// Forgets a packet of which nothing more can come, so that the next one in its memory is judged.
#[inline(always)]
pub fn forget(identity: u64) {
    let slot = identity >> (ADDRESS_SHIFT + 8);
    if (DECIDED.get::<{ DECISIONS - 1 }>(slot) ^ identity) >> PLACE_FROM == 0 {
        DECIDED.set::<{ DECISIONS - 1 }>(slot, 0);
    }
}

/// Forgets the packet at a place in memory that becomes free: what comes there next is another one, wherever it is seen first.
#[inline(always)]
pub fn forget_at(skb_number: u64) {
    let slot = skb_number >> 8;
    if (DECIDED.get::<{ DECISIONS - 1 }>(slot) ^ (skb_number << ADDRESS_SHIFT)) >> ADDRESS_FROM == 0 {
        DECIDED.set::<{ DECISIONS - 1 }>(slot, 0);
    }
}

/// The number of the packet that was last traced at this place in memory, as long as its slot tells of it. One that was
/// displaced is not found.
#[inline(always)]
pub fn traced_at(skb_number: u64) -> Option<u64> {
    let slot = skb_number >> 8;
    let decided = DECIDED.get::<{ DECISIONS - 1 }>(slot);
    let identity = skb_number << ADDRESS_SHIFT;
    if decided & IS_TRACED == 0 || (decided ^ identity) >> ADDRESS_FROM != 0 {
        return None;
    }
    let number = PACKETS.get::<{ DECISIONS - 1 }>(slot);
    (number & SKB == identity >> ADDRESS_FROM).then_some(number & !KEPT)
}

/// A packet's number: the address of its skb in the lowest bits, above it a number that counts the packets of its slot,
/// so that no two are the same. The highest bit of the word says that the map may hold packets of this slot.
const SKB: u64 = (1 << (64 - ADDRESS_FROM)) - 1;
const KEPT: u64 = 1 << 63;

/// The namespace of a hook state, and whether it is traced, as they stand in decisions.
#[inline(always)]
pub fn namespace<A: Access>(state: u64) -> Option<u64> {
    let net: u64 = A::field(state, offset!(state_net))?;
    let number: u32 = A::field(net, offset!(net_inum))?;
    let traced = if is_traced(number) { IS_TRACED } else { 0 };
    Some(((u64::from(number) << NAMESPACE_FROM) & PLACE) | traced)
}

/// Whether the namespace of this number is traced.
#[inline(always)]
pub fn is_traced(netns: u32) -> bool {
    let wanted = config!(netns);
    wanted == 0 || netns == wanted
}

/// The family, `NFPROTO_IPV4` or `NFPROTO_IPV6`, as it stands in decisions.
#[inline(always)]
fn family_bit(family: u8) -> u64 {
    u64::from(family & 8) << (PLACE_FROM - 3)
}

/// What is remembered of a table, in one word: its address, the place, whether its namespace is traced, its class.
/// Asked of the kernel once for each table: the word is cleared when a table is registered or replaced. Returned
/// without the address.
#[inline(always)]
fn table<A: Access>(call: &Call) -> Option<u64> {
    let word = TABLE_CLASSES.at::<{ CLASS_SLOTS - 1 }>(class_slot(call.table));
    // SAFETY: a word of global data; volatile because other CPUs write there.
    let known = unsafe { word.read_volatile() } ^ (call.table << ADDRESS_SHIFT);
    if known >> ADDRESS_FROM == 0 {
        return Some(known);
    }
    match learn_table::<A>(call.table, call.state, word) {
        UNREADABLE => None,
        known => Some(known),
    }
}

/// Has the kernel asked again about the table at an address.
#[inline(always)]
pub fn forget_table(table: u64) {
    TABLE_CLASSES.set::<{ CLASS_SLOTS - 1 }>(class_slot(table), 0);
}

/// What [`learn_table`] gives when the kernel's memory cannot be read.
const UNREADABLE: u64 = u64::MAX;

#[inline(never)]
fn learn_table<A: Access>(table: u64, state: u64, to: *mut u64) -> u64 {
    ask_table::<A>(table, state, to).unwrap_or(UNREADABLE)
}

#[inline(always)]
fn ask_table<A: Access>(table: u64, state: u64, to: *mut u64) -> Option<u64> {
    let class = table_class(read(table + offset!(table_name))?);
    let family: u8 = read(table + offset!(table_af))?;
    let word = namespace::<A>(state)? | family_bit(family) | u64::from(class);
    // SAFETY: as for the reading.
    unsafe { to.write_volatile(word ^ (table << ADDRESS_SHIFT)) };
    Some(word)
}

/// Whether a packet is in a namespace that is traced, and matches the filter now.
#[inline(always)]
pub fn is_wanted<A: Access>(call: &Call, layout: Layout) -> bool {
    namespace::<A>(call.state).is_some_and(|place| place & IS_TRACED != 0) && matches::<A>(call.skb, layout)
}

/// Whether the packet matches the filter. Nothing is read when there is none.
#[inline(always)]
pub fn matches<A: Access>(skb: u64, layout: Layout) -> bool {
    if config!(filter_window) != 0 {
        return translated::matches::<A>(skb, layout);
    }
    if config!(filter.len) == 0 {
        return true;
    }
    layout != Layout::ARP && extract::<A>(skb, layout).is_some() && run_filter(0) == u32::from(ACCEPT)
}

/// A number of which the verifier knows nothing any more. It knows nothing of `noise`.
#[inline(always)]
pub fn blurred(number: u64, noise: u64) -> u64 {
    let mut number = number;
    // SAFETY: adds a number and takes it away.
    unsafe { core::arch::asm!("{0} += {1}", "{0} -= {1}", inout(reg) number, in(reg) noise) };
    number
}

/// Where the packet lies, and how long it is from its network header on.
#[inline(always)]
pub fn packet<A: Access>(skb: u64, layout: Layout) -> Option<Packet> {
    let packet = A::packet(skb)?;
    Some(match layout {
        Layout::IP => packet,
        Layout::FRAMED => packet.without_frame(A::field::<u16>(skb, offset!(skb_mac_header))?),
        // Before it is sent, its length counts its frame as well.
        _ => {
            Packet { len: if packet.len > ARP_BYTES { ARP_BYTES } else { packet.len }, data_len: 0, ..packet }
        }
    })
}

/// Puts what the filter can ask about into this CPU's filter input.
#[inline(always)]
pub fn extract<A: Access>(skb: u64, layout: Layout) -> Option<()> {
    let input = FILTER.get_ptr_mut(0)?;
    let skb = packet::<A>(skb, layout)?;
    let linear = if skb.linear() > 64 { 64 } else { skb.linear() as usize };
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        let header = &raw mut (*input).header;
        if !copy(header.cast::<u8>(), 64, skb.network()) {
            return None;
        }
        // Word by word: a key made on the stack would not fit there.
        for word in 0..word::COUNT {
            (&raw mut (*input).key.words).cast::<u32>().add(word).write_volatile(0);
        }
        (*input).key.fill(&*header, linear);
    }
    Some(())
}

/// Runs the filter program on this CPU's filter input: [`ACCEPT`] or something else.
///
/// A global function with a bounded loop, like those of `snapshot`: the node to go to is data, so the verifier must
/// look at each turn once for all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn run_filter(start: u32) -> u32 {
    let Some(input) = FILTER.get_ptr(0) else { return 0 };
    let mut next = start;
    for _ in 0..MAX_NODES {
        if next >= MAX_NODES as u32 {
            break;
        }
        // SAFETY: both indices are masked to the length of their array.
        unsafe {
            let nodes = (&raw const crate::config::CONFIG.filter.nodes).cast::<Node>();
            let node = nodes.add(next as usize & (MAX_NODES - 1));
            let words = (&raw const (*input).key.words).cast::<u32>();
            let word = core::ptr::read_volatile(&raw const (*node).word) as usize & (word::COUNT - 1);
            let value =
                core::ptr::read_volatile(words.add(word)) & core::ptr::read_volatile(&raw const (*node).mask);
            let yes = value >= core::ptr::read_volatile(&raw const (*node).low)
                && value <= core::ptr::read_volatile(&raw const (*node).high);
            next = u32::from(if yes {
                core::ptr::read_volatile(&raw const (*node).yes)
            } else {
                core::ptr::read_volatile(&raw const (*node).no)
            });
        }
    }
    next
}
