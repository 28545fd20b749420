//! How packets end, where no table says it.
//!
//! Packets that are not traced pay only where the kernel drops them, or gives them back from a queue: a few instructions
//! each, to find that out.

use crate::config::offset;
use crate::emit::count;
use crate::frame::cpu;
use crate::kernel::{self, Access, Probed, copy, read};
use crate::last_rule;
use crate::maps::{EVENTS, HOOK_LIST, TOLD};
use crate::select::{self, Layout, forget_at, traced_at};
use crate::sender;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::programs::RawTracePointContext;
use tracer_common::counter::Counter;
use tracer_common::ending::{
    DROPPERS, Dropped, EndingConfig, Freed, HOOKS, HookFunction, HookList, MOST_CALLERS, MOST_FUNCTIONS,
    PACKET_BYTES, Reinjected, kind,
};
use tracer_common::offsets::ABSENT;

/// Replaced by the loader.
#[unsafe(no_mangle)]
pub static ENDING: EndingConfig = EndingConfig::UNRESOLVED;

/// A field of the configuration.
macro_rules! ending {
    ($($field:tt)+) => {
        crate::config::field(&ENDING.$($field)+)
    };
}

/// A packet is freed as dropped. `number` makes of its skb's address what packets are known by.
#[inline(always)]
pub fn freed(ctx: &RawTracePointContext, number: impl FnOnce(u64) -> u64) {
    let skb: u64 = ctx.arg(0);
    let number = number(skb);
    if let Some(packet) = traced_at(number) {
        send_freed(ctx, packet);
    }
    forget_at(number);
}

#[inline(always)]
fn send_freed(ctx: &RawTracePointContext, packet: u64) {
    let Some(mut entry) = EVENTS.reserve::<Freed>(0) else {
        count(Counter::Lost, 1);
        return;
    };
    fill(entry.as_mut_ptr(), ctx, packet);
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Writes each field of a reservation.
#[inline(always)]
fn fill(freed: *mut Freed, ctx: &RawTracePointContext, packet: u64) {
    let skb: u64 = ctx.arg(0);
    // SAFETY: the caller has reserved it.
    unsafe {
        (*freed).kind = kind::FREED;
        (*freed).reason = if ending!(has_reason) != 0 { ctx.arg::<u64>(2) as u32 } else { 0 };
        (*freed).packet = packet;
        (*freed).time_ns = kernel::now_ns();
        (*freed).location = ctx.arg(1);
        let net = namespace(skb);
        (*freed).net = net;
        (*freed).netns = if net == 0 { 0 } else { read_or_zero::<u32>(net + offset!(net_inum)) };
        (*freed).copied = 0;
        // Headers stay where they are when layers above take them off; whatever is behind a short packet can be read, too.
        if let Some(packet) = Probed::packet(skb)
            && copy((&raw mut (*freed).bytes).cast::<u8>(), PACKET_BYTES as u32, packet.network())
        {
            (*freed).copied = PACKET_BYTES as u32;
        }
    }
}

/// A packet is freed as dropped, and only what drops packets is looked for: tells of it, unless the rule is told already.
#[inline(always)]
pub fn dropped(ctx: &RawTracePointContext, number: impl FnOnce(u64) -> u64) {
    let is_told = TOLD.remove(number(ctx.arg(0))).is_ok();
    if is_told || !is_dropper(ctx.arg(1)) {
        return;
    }
    match cpu().claim() {
        Some(_alone) => send_dropped(ctx),
        None => count(Counter::Lost, 1),
    }
}

/// Whether this place is in a function that drops packets on behalf of others.
#[inline(always)]
fn is_dropper(location: u64) -> bool {
    (0..DROPPERS).any(|which| {
        let [begin, end] = ending!(droppers[which]);
        location.wrapping_sub(begin) < end.wrapping_sub(begin)
    })
}

#[inline(always)]
fn send_dropped(ctx: &RawTracePointContext) {
    let skb: u64 = ctx.arg(0);
    let number: u32 = read_or_zero(namespace(skb) + offset!(net_inum));
    if !select::is_traced(number) || !select::matches::<Probed>(skb, Layout::IP) {
        return;
    }
    let Some(selected) = last_rule::next_packet() else { return };
    let Some(mut entry) = EVENTS.reserve::<Dropped>(0) else {
        count(Counter::Lost, 1);
        return;
    };
    let dropped = entry.as_mut_ptr();
    // SAFETY: a reservation for one of these; each field is written, and the helper is given the length of its room.
    unsafe {
        fill(&raw mut (*dropped).freed, ctx, selected.packet);
        (*dropped).freed.kind = kind::DROPPED;
        (*dropped).callers = [0; MOST_CALLERS];
        let bytes = (MOST_CALLERS * size_of::<u64>()) as u32;
        bpf_get_stack(ctx.as_ptr(), (&raw mut (*dropped).callers).cast(), bytes, 0);
        let device: u64 = read_or_zero(skb + offset!(skb_dev));
        let name = if device == 0 { None } else { Probed::device_name(device) };
        (&raw mut (*dropped).device).cast::<[u64; 2]>().write(name.unwrap_or_default());
        (*dropped).len = read_or_zero(skb + offset!(skb_len));
        (*dropped).mark = read_or_zero(skb + offset!(skb_mark));
        (*dropped).is_open = last_rule::is_other_open(0);
        (*dropped).reserved = 0;
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// The namespace of a packet's device, or of its socket; 0 where it has neither. Numbers only: what has to be there or
/// not makes the verifier of Linux 5.10 look at stack that was never written.
#[inline(always)]
fn namespace(skb: u64) -> u64 {
    let dev: u64 = read_or_zero(skb + offset!(skb_dev));
    let mut net = 0;
    if dev != 0 && ending!(offsets.dev_net) != ABSENT {
        net = read_or_zero(dev + u64::from(ending!(offsets.dev_net)));
    }
    if net == 0 && offset!(sock_net) != u64::from(ABSENT) {
        let sock: u64 = read_or_zero(skb + offset!(skb_sk));
        if sock != 0 {
            net = read_or_zero(sock + offset!(sock_net));
        }
    }
    net
}

#[inline(always)]
fn read_or_zero<T: Copy + Default>(address: u64) -> T {
    read(address).unwrap_or_default()
}

/// User space has decided about a packet that waited in a queue.
#[inline(always)]
pub fn reinjected(entry: u64, verdict: u32, number: impl FnOnce(u64) -> u64) {
    sender::reinjects();
    let Some(skb) = read(entry + u64::from(ending!(offsets.queued_skb))) else { return };
    let Some(packet) = traced_at(number(skb)) else { return };
    let Some(mut entry) = EVENTS.reserve::<Reinjected>(0) else {
        count(Counter::Lost, 1);
        return;
    };
    let reinjected = Reinjected { kind: kind::REINJECTED, verdict, packet, time_ns: kernel::now_ns() };
    entry.write(reinjected);
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Lists the functions at the hooks of a family in a namespace.
#[inline(always)]
pub fn list_hooks(net: u64, family: u32) {
    const IPV4: u32 = 2;
    let Some(list) = HOOK_LIST.get_ptr_mut(0) else { return };
    let hooks = if family == IPV4 { ending!(offsets.hooks_ipv4) } else { ending!(offsets.hooks_ipv6) };
    if ending!(entry_bytes) == 0 || hooks == ABSENT {
        return;
    }
    for hook in 0..HOOKS {
        let entries: u64 = read_or_zero(net + u64::from(hooks) + 8 * hook as u64);
        // SAFETY: a map value, and a hook within it.
        unsafe { (*list).counts[hook] = if entries == 0 { 0 } else { list_hook(list, hook, entries) } };
    }
}

/// Lists the functions at one hook. Gives how many there are; all ones where they cannot be read.
#[inline(always)]
fn list_hook(list: *mut HookList, hook: usize, entries: u64) -> u64 {
    let size = u64::from(ending!(entry_bytes));
    let count = u64::from(read_or_zero::<u16>(entries + u64::from(ending!(offsets.entries_count))));
    let first = entries + u64::from(ending!(offsets.entries_hooks));
    for index in 0..MOST_FUNCTIONS {
        if index as u64 >= count {
            break;
        }
        let entry = first + index as u64 * size;
        let address: u64 = read_or_zero(entry + u64::from(ending!(offsets.entry_hook)));
        // What they were registered with comes behind all of them.
        let ops: u64 = read_or_zero(first + count * size + 8 * index as u64);
        let priority: i32 = read_or_zero(ops + u64::from(ending!(offsets.ops_priority)));
        if address == 0 || ops == 0 {
            return u64::MAX;
        }
        // SAFETY: a map value, and both within their arrays.
        unsafe { (*list).functions[hook][index] = HookFunction { address, priority, reserved: 0 } };
    }
    if count == 0 { u64::MAX } else { count }
}
