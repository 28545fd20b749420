//! Which packets are traced.
//!
//! A packet is judged once, at its first traversal in a namespace, and stays traced or not for its later hooks, also
//! when NAT has changed it. Its skb's address tells it again, as long as it goes forward, through hooks and what stands
//! at them: addresses are reused within microseconds, so a packet that begins anew (PREROUTING, OUTPUT) or goes backward
//! is another packet. Where several stand at the same place, each of them sees a packet once.
//!
//! The judgement sits in one 64-bit word in an array indexed by a hash of the address, so that asking again costs one
//! look-up and no lock. What is lost there by a collision is found again in the map of traced packets.

use crate::config::{config, offset};
use crate::emit::count;
use crate::frame::Cpu;
use crate::kernel::{HookState, Skb, copy, cpu_number, hook_state, read};
use crate::legacy::Call;
use crate::maps::{DECIDED, DECISIONS, FILTER, MET, TABLE_CLASSES, TRACED, TracedPacket};
use crate::translated;
use tracer_common::counter::Counter;
use tracer_common::filter::{ACCEPT, Key, MAX_NODES, Node, word};
use tracer_common::legacy::{TABLE_SLOTS, rank, table_class, table_slot};

const PREROUTING: u64 = 0;
const INPUT: u64 = 1;
const OUTPUT: u64 = 3;
const POSTROUTING: u64 = 4;
/// Interface number of every namespace's loopback device.
const LOOPBACK: u32 = 1;
/// [`TracedPacket::owner`] of a packet whose socket has none.
pub const NO_OWNER: u64 = u64::MAX;

/// A packet that is to be traced.
pub struct Selected {
    pub packet: u64,
    /// Nothing earlier of this packet was traced.
    pub first: bool,
    pub state: HookState,
    /// What is kept of it between its traversals.
    pub known: *mut TracedPacket,
}

/// A packet that comes to a table or to a base chain.
pub struct Visit {
    pub skb: u64,
    /// Address of the `nf_hook_state`.
    pub state: u64,
    /// Address of the table or chain.
    pub at: u64,
    /// Where that stands, see [`position`].
    pub position: u64,
    /// Eight bits of the namespace's address.
    pub namespace: u64,
    /// Whether the namespace is traced.
    pub is_traced: bool,
}

/// Hook and rank in it as one number: the hook from bit 3 on.
#[inline(always)]
pub fn position(hook: u8, rank: u8) -> u64 {
    u64::from(((hook & 7) << 3) | rank)
}

/// The hook of a position.
#[inline(always)]
fn hook_of(position: u64) -> u64 {
    position >> 3
}

/// Which tables and chains have seen a packet at its place: fifteen bits of the address of each, the last one lowest.
#[derive(Clone, Copy)]
struct Met(u64);

impl Met {
    /// Never 0, which stands for none.
    #[inline(always)]
    fn tag(at: u64) -> u64 {
        ((at >> 4) ^ (at >> 19)) & 0x7fff | 0x8000
    }
    #[inline(always)]
    fn has(self, at: u64) -> bool {
        let tag = Self::tag(at);
        let is = |shift: u32| (self.0 >> shift) & 0xffff == tag;
        is(0) || is(16) || is(32) || is(48)
    }
    /// After a visit at `now` of a packet last seen at `before`.
    #[inline(always)]
    fn after(self, before: u64, now: u64, at: u64) -> Self {
        Self(if before == now { self.0 << 16 | Self::tag(at) } else { Self::tag(at) })
    }
}

/// Whether a packet seen at `before`, where `met` saw it, can be at `now` next, in one namespace.
#[inline(always)]
fn follows(before: u64, met: Met, now: u64, at: u64) -> bool {
    // For each hook the set of hooks that come after it: PREROUTING → INPUT, FORWARD, and POSTROUTING where no table
    // stands at FORWARD; FORWARD and OUTPUT → POSTROUTING.
    const NEXT: u64 = 0b10110 | (0b10000 << 10) | (0b10000 << 15);
    let (from, to) = (hook_of(before), hook_of(now));
    if from == to {
        now > before || (now == before && !met.has(at))
    } else {
        (NEXT >> (from * 5 + to)) & 1 == 1
    }
}

/// The judgement about one packet: address, namespace, where it was last, traced or not.
#[derive(Clone, Copy)]
struct Decision(u64);

impl Decision {
    #[inline(always)]
    fn new(identity: u64, position: u64, traced: bool) -> Self {
        Self(identity | (position << 5) | u64::from(traced))
    }
    #[inline(always)]
    fn is_about(self, identity: u64) -> bool {
        self.0 & !IDENTITY_BELOW == identity
    }
    #[inline(always)]
    fn position(self) -> u64 {
        (self.0 >> 5) & 63
    }
    #[inline(always)]
    fn traced(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Bits of a decision that do not say which packet it is about.
const IDENTITY_BELOW: u64 = (1 << 14) - 1;

/// Which packet: 42 bits tell all skbs apart, as no two lie closer than 64 bytes; eight bits the namespace.
#[inline(always)]
fn identity(skb: u64, namespace: u64) -> u64 {
    ((skb >> 6) << 22) | (namespace << 14)
}

/// Eight bits that tell most namespaces apart.
#[inline(always)]
pub fn namespace_bits(net: u64) -> u64 {
    (net >> 6) & 0xff
}

/// What is remembered of a table, in one word: its class in the lowest three bits, its address up to bit 47, whether
/// its namespace is traced in bit 48, and eight bits of the namespace's address above.
#[derive(Clone, Copy)]
struct Table(u64);

impl Table {
    const ADDRESS: u64 = (1 << 48) - 8;

    /// Asked of the kernel once for each table: the word is cleared when a table is registered or replaced.
    #[inline(always)]
    fn of(call: &Call) -> Option<Self> {
        let slot = u64::from(table_slot(call.table));
        let known = TABLE_CLASSES.get::<{ TABLE_SLOTS - 1 }>(slot);
        if (known ^ call.table) & Self::ADDRESS == 0 {
            return Some(Self(known));
        }
        let class = table_class(read(call.table + offset!(table_name))?);
        let net: u64 = read(call.state + offset!(state_net))?;
        let wanted = config!(netns);
        let traced = wanted == 0 || read::<u32>(net + offset!(net_inum)) == Some(wanted);
        let word = (namespace_bits(net) << 49)
            | (u64::from(traced) << 48)
            | (call.table & Self::ADDRESS)
            | u64::from(class);
        TABLE_CLASSES.set::<{ TABLE_SLOTS - 1 }>(slot, word);
        Some(Self(word))
    }
    #[inline(always)]
    fn class(self) -> u8 {
        (self.0 & 7) as u8
    }
    #[inline(always)]
    fn namespace(self) -> u64 {
        (self.0 >> 49) & 0xff
    }
    #[inline(always)]
    fn is_traced(self) -> bool {
        (self.0 >> 48) & 1 == 1
    }
}

/// Whether this traversal of a legacy table is to be traced, and as which packet's.
#[inline(always)]
pub fn select_table(cpu: &Cpu, call: &Call, hook: u8) -> Option<Selected> {
    let table = Table::of(call)?;
    select(
        cpu,
        &Visit {
            skb: call.skb,
            state: call.state,
            at: call.table,
            position: position(hook, rank(hook, table.class())),
            namespace: table.namespace(),
            is_traced: table.is_traced(),
        },
    )
}

/// Whether this visit is to be traced, and as which packet's.
#[inline(always)]
pub fn select(cpu: &Cpu, visit: &Visit) -> Option<Selected> {
    let &Visit { skb, at, position: now, .. } = visit;
    let slot = (skb >> 8) ^ (skb >> 20);
    let identity = identity(skb, visit.namespace);
    let decided = Decision(DECIDED.get::<{ DECISIONS - 1 }>(slot));
    let met = Met(MET.get::<{ DECISIONS - 1 }>(slot));
    let remember = |traced, met: Met| {
        DECIDED.set::<{ DECISIONS - 1 }>(slot, Decision::new(identity, now, traced).0);
        MET.set::<{ DECISIONS - 1 }>(slot, met.0);
    };
    let alone = Met(Met::tag(at));

    let same = decided.is_about(identity);
    if same
        && !decided.traced()
        && (follows(decided.position(), met, now, at) || is_looped(decided.position(), now, visit))
    {
        remember(false, met.after(decided.position(), now, at));
        return None;
    }
    if !visit.is_traced {
        remember(false, alone);
        return None;
    }
    // A traced packet goes on; also one whose slot was taken by another, and one that comes back through loopback.
    let hook = hook_of(now);
    let begins = hook == OUTPUT || hook == PREROUTING;
    // A decision about another packet does not tell whether this one, past its first hook, was seen before.
    if (same && decided.traced()) || !(same || begins) {
        if let Some(known) = TRACED.get_ptr_mut(skb) {
            let state = hook_state(visit.state)?;
            // SAFETY: a map value; only the CPU that has the packet writes to it.
            let packet = unsafe { &mut *known };
            let looped = loops(packet.position, now) && packet.outdev != 0 && packet.outdev == state.indev;
            let met = Met(packet.met);
            if packet.net == state.net && (looped || follows(packet.position, met, now, at)) {
                let met = met.after(packet.position, now, at);
                packet.met = met.0;
                packet.position = now;
                packet.outdev = state.outdev;
                remember(true, met);
                return Some(Selected { packet: packet.packet, first: false, state, known });
            }
        }
    }

    let traced = matches(skb);
    remember(traced, alone);
    if !traced {
        return None;
    }
    let state = hook_state(visit.state)?;
    let number = cpu.packets.get() + 1;
    cpu.packets.set(number);
    let packet = (number << 13) | u64::from(cpu_number() & 0x1fff);
    let entry = TracedPacket {
        packet,
        net: state.net,
        outdev: state.outdev,
        position: now,
        met: alone.0,
        sock: 0,
        owner: NO_OWNER,
    };
    let _ = TRACED.insert(skb, entry, 0);
    // The map refuses when its locks are contended; then the packet is not followed, and that is told.
    let Some(known) = TRACED.get_ptr_mut(skb) else {
        count(Counter::Lost, 1);
        return None;
    };
    Some(Selected { packet, first: true, state, known })
}

/// Whether these can be the two sides of a loopback device; hooks without tables are not seen.
#[inline(always)]
fn loops(before: u64, now: u64) -> bool {
    let (from, to) = (hook_of(before), hook_of(now));
    (from == POSTROUTING || from == OUTPUT) && (to == PREROUTING || to == INPUT)
}

/// Whether a packet that is not traced comes back through loopback: then it has been judged already.
#[inline(always)]
fn is_looped(before: u64, now: u64, visit: &Visit) -> bool {
    loops(before, now)
        && read::<u64>(visit.state + offset!(state_in))
            .and_then(|device| read::<u32>(device + offset!(dev_ifindex)))
            .is_some_and(|ifindex| ifindex == LOOPBACK)
}

/// Whether the packet matches the filter. Nothing is read when there is none.
#[inline(always)]
fn matches(skb: u64) -> bool {
    if config!(filter_window) != 0 {
        return Skb::packet(skb).is_some_and(|skb| translated::matches(&skb));
    }
    if config!(filter.len) == 0 {
        return true;
    }
    extract(skb).is_some() && run_filter(0) == u32::from(ACCEPT)
}

/// Puts what the filter can ask about into this CPU's filter input.
#[inline(always)]
fn extract(skb: u64) -> Option<()> {
    let input = FILTER.get_ptr_mut(0)?;
    let skb = Skb::packet(skb)?;
    let linear = if skb.linear() > 64 { 64 } else { skb.linear() as usize };
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        let header = &raw mut (*input).header;
        if !copy(header.cast::<u8>(), 64, skb.network()) {
            return None;
        }
        (*input).key = Key::from_header(&*header, linear);
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
