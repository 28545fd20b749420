//! Which packets are traced.
//!
//! A packet is judged once, at its first traversal in a namespace, and stays traced or not for its later hooks, also
//! when NAT has changed it. Its skb's address tells it again, as long as hook and table go forward: addresses are
//! reused within microseconds, so a packet that begins anew (PREROUTING, OUTPUT) or goes backward is another packet.
//!
//! The judgement sits in one 64-bit word in an array indexed by a hash of the address, so that asking again costs one
//! look-up and no lock. What is lost there by a collision is found again in the map of traced packets.

use crate::config::{config, offset};
use crate::frame::Cpu;
use crate::kernel::{HookState, copy, cpu_number, read};
use crate::legacy::Call;
use crate::maps::{DECIDED, DECISIONS, FILTER, TABLE_CLASSES, TRACED, TracedPacket};
use tracer_common::filter::{ACCEPT, Key, MAX_NODES, Node, word};
use tracer_common::legacy::{rank, table_class, table_slot};

const PREROUTING: u64 = 0;
const OUTPUT: u64 = 3;
const POSTROUTING: u64 = 4;

/// A packet that is to be traced.
pub struct Selected {
    pub packet: u64,
    /// Nothing earlier of this packet was traced.
    pub first: bool,
}

/// Hook and rank of the table in it as one number: the hook from bit 3 on.
#[inline(always)]
fn position(hook: u8, class: u8) -> u64 {
    u64::from(((hook & 7) << 3) | rank(hook, class))
}

/// Whether a packet seen at `before` can be at `now` next, in one namespace.
#[inline(always)]
fn follows(before: u64, now: u64) -> bool {
    // For each hook the set of hooks that come after it: PREROUTING → INPUT, FORWARD; FORWARD and OUTPUT →
    // POSTROUTING.
    const NEXT: u64 = 0b00110 | (0b10000 << 10) | (0b10000 << 15);
    let (from, to) = (before >> 3, now >> 3);
    if from == to { now > before } else { (NEXT >> (from * 5 + to)) & 1 == 1 }
}

/// The judgement about one packet: address, namespace, where it was last, traced or not.
#[derive(Clone, Copy)]
struct Decision(u64);

impl Decision {
    #[inline(always)]
    fn new(skb: u64, net: u64, position: u64, traced: bool) -> Self {
        Self(Self::identity(skb, net) | (position << 5) | u64::from(traced))
    }
    /// 42 bits tell all skbs apart: no two lie closer than 64 bytes.
    #[inline(always)]
    fn identity(skb: u64, net: u64) -> u64 {
        ((skb >> 6) << 22) | (((net >> 6) & 0xff) << 14)
    }
    #[inline(always)]
    fn is_about(self, skb: u64, net: u64) -> bool {
        (self.0 ^ Self::identity(skb, net)) >> 14 == 0
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

/// Which table it is. Asked of the kernel once for each: the slot is cleared when a table is registered or replaced.
#[inline(always)]
fn class(table: u64) -> Option<u8> {
    let slot = TABLE_CLASSES.get_ptr_mut(table_slot(table))?;
    // SAFETY: a map value; one word, so that other CPUs see all of it or nothing. Tables are aligned to eight bytes.
    let known = unsafe { core::ptr::read_volatile(slot) };
    if known & !7 == table {
        return Some((known & 7) as u8);
    }
    let class = table_class(read(table + offset!(table_name))?);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(slot, table | u64::from(class)) };
    Some(class)
}

/// Whether this traversal is to be traced, and as which packet's.
#[inline(always)]
pub fn select(cpu: &Cpu, call: &Call, state: &HookState) -> Option<Selected> {
    let now = position(state.hook, class(call.table)?);
    let slot = DECIDED.get_ptr_mut(((call.skb >> 8) ^ (call.skb >> 20)) as u32 & (DECISIONS - 1))?;
    // SAFETY: a map value; one word, so that other CPUs see all of it or nothing.
    let decided = Decision(unsafe { core::ptr::read_volatile(slot) });
    let remember = |traced| {
        let decision = Decision::new(call.skb, state.net, now, traced);
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(slot, decision.0) };
    };

    let hook = now >> 3;
    let same = decided.is_about(call.skb, state.net);
    if same && !decided.traced() && follows(decided.position(), now) {
        remember(false);
        return None;
    }
    // A traced packet goes on; also one whose slot was taken by another, and one that comes back through loopback.
    let begins = hook == OUTPUT || (hook == PREROUTING && !(same && decided.traced()));
    if (same && decided.traced()) || !(same || begins) {
        if let Some(known) = TRACED.get_ptr_mut(call.skb) {
            // SAFETY: a map value; only the CPU that has the packet writes to it.
            let known = unsafe { &mut *known };
            let looped = hook == PREROUTING
                && known.position >> 3 == POSTROUTING
                && known.outdev != 0
                && known.outdev == state.indev;
            if known.net == state.net && (looped || follows(known.position, now)) {
                known.position = now;
                known.outdev = state.outdev;
                remember(true);
                return Some(Selected { packet: known.packet, first: false });
            }
        }
    }

    let traced = in_namespace(state) && matches(call.skb);
    remember(traced);
    if !traced {
        return None;
    }
    let number = cpu.packets.get() + 1;
    cpu.packets.set(number);
    let packet = (number << 13) | u64::from(cpu_number() & 0x1fff);
    let entry = TracedPacket { packet, net: state.net, outdev: state.outdev, position: now };
    let _ = TRACED.insert(&call.skb, &entry, 0);
    Some(Selected { packet, first: true })
}

#[inline(always)]
fn in_namespace(state: &HookState) -> bool {
    let wanted = config!(netns);
    wanted == 0 || read::<u32>(state.net + offset!(net_inum)) == Some(wanted)
}

/// Whether the packet matches the filter. Nothing is read when there is none.
#[inline(always)]
fn matches(skb: u64) -> bool {
    if config!(filter.len) == 0 {
        return true;
    }
    extract(skb).is_some() && run_filter(0) == u32::from(ACCEPT)
}

/// Puts what the filter can ask about into this CPU's filter input.
#[inline(always)]
fn extract(skb: u64) -> Option<()> {
    let input = FILTER.get_ptr_mut(0)?;
    let head: u64 = read(skb + offset!(skb_head))?;
    let network_header: u16 = read(skb + offset!(skb_network_header))?;
    let len: u32 = read(skb + offset!(skb_len))?;
    let data_len: u32 = read(skb + offset!(skb_data_len))?;
    let linear = len.wrapping_sub(data_len);
    let linear = if linear > 64 { 64 } else { linear as usize };
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        let header = &raw mut (*input).header;
        if !copy(header.cast::<u8>(), 64, head + u64::from(network_header)) {
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
            let value = core::ptr::read_volatile(words.add(word)) & core::ptr::read_volatile(&raw const (*node).mask);
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
