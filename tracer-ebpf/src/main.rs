//! The kernel programs of nftracer.
//!
//! Each entry point fetches the arguments of the probed function from the registers and calls one shared function,
//! so that other ways to attach can share the bodies.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod choice;
mod config;
mod counts;
mod emit;
mod ending;
mod frame;
mod kernel;
mod last_rule;
mod legacy;
mod maps;
mod nft;
mod preemption;
mod record;
mod replace;
mod select;
mod sender;
mod session;
mod snapshot;
mod throttle;
mod translated;
mod unwind;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext};
use core::ffi::c_void;
use frame::distance;
use kernel::{Probed, Typed};
use legacy::{Call, End};

/// Entry of `ipt_do_table` and `ip6t_do_table`.
#[kprobe]
pub fn ip_enter(ctx: ProbeContext) -> u32 {
    legacy::enter::<Probed>(ctx.as_ptr(), probed);
    0
}

/// Entry of `arpt_do_table`: never traced, but it moves the same sequence count.
#[kprobe]
pub fn arp_enter(ctx: ProbeContext) -> u32 {
    legacy::enter_unselected::<Probed>(ctx.as_ptr(), probed);
    0
}

/// Exit of all three.
#[kretprobe]
pub fn leave(ctx: RetProbeContext) -> u32 {
    legacy::leave::<Probed>(ctx.as_ptr(), |context| End {
        skb: 0,
        key: kernel::return_stack_pointer(context),
        verdict: RetProbeContext::new(context).ret::<u32>(),
    });
    0
}

/// As [`ip_enter`], without a kprobe, where the function is `(table, skb, state)`.
#[fentry]
pub fn ip_enter_typed(ctx: FEntryContext) -> i32 {
    legacy::enter::<Typed>(ctx.as_ptr(), typed);
    0
}

/// As [`arp_enter`].
#[fentry]
pub fn arp_enter_typed(ctx: FEntryContext) -> i32 {
    legacy::enter_unselected::<Typed>(ctx.as_ptr(), typed);
    0
}

/// As [`leave`]. The context lies on the stack, in the same place for the entry and the exit of one call.
#[fexit]
pub fn leave_typed(ctx: FExitContext) -> i32 {
    legacy::leave::<Typed>(ctx.as_ptr(), |context| {
        let ctx = FExitContext::new(context);
        End { skb: ctx.arg(1), key: distance(context as u64), verdict: ctx.arg::<u64>(3) as u32 }
    });
    0
}

#[inline(always)]
fn probed(context: *mut c_void) -> Call {
    let (first, second, third) = kernel::first_arguments(context);
    let key = kernel::stack_pointer(context);
    let (table, skb, state) =
        if config::config!(argument_order) == 0 { (first, second, third) } else { (third, first, second) };
    Call { skb, skb_number: skb, state, table, key }
}

#[inline(always)]
fn typed(context: *mut c_void) -> Call {
    let ctx = FEntryContext::new(context);
    let skb = ctx.arg(1);
    Call {
        skb,
        skb_number: distance(skb),
        state: ctx.arg(2),
        table: ctx.arg(0),
        key: distance(context as u64),
    }
}

/// As [`ip_enter`], for the last rule alone.
#[kprobe]
pub fn last_ip_enter(ctx: ProbeContext) -> u32 {
    last_rule::enter::<Probed>(&probed(ctx.as_ptr()));
    0
}

/// As [`arp_enter`], likewise.
#[kprobe]
pub fn last_arp_enter(ctx: ProbeContext) -> u32 {
    last_rule::enter_unwatched::<Probed>(&probed(ctx.as_ptr()));
    0
}

/// As [`counters_added`], likewise.
#[kprobe]
pub fn last_counters_added(_ctx: ProbeContext) -> u32 {
    last_rule::counters_added();
    0
}

/// As [`leave`], likewise.
#[kretprobe]
pub fn last_leave(ctx: RetProbeContext) -> u32 {
    last_rule::leave::<Probed>(ctx.as_ptr(), |context| {
        let key = kernel::return_stack_pointer(context);
        let call = Call { skb: 0, skb_number: 0, state: 0, table: 0, key };
        last_rule::End { call, verdict: RetProbeContext::new(context).ret::<u32>() }
    });
    0
}

/// As [`last_ip_enter`], without a kprobe.
#[fentry]
pub fn last_ip_enter_typed(ctx: FEntryContext) -> i32 {
    last_rule::enter::<Typed>(&typed(ctx.as_ptr()));
    0
}

/// As [`last_arp_enter`], without a kprobe.
#[fentry]
pub fn last_arp_enter_typed(ctx: FEntryContext) -> i32 {
    last_rule::enter_unwatched::<Typed>(&typed(ctx.as_ptr()));
    0
}

/// As [`last_leave`], without a kprobe. The arguments are at the same places as at the entry.
#[fexit]
pub fn last_leave_typed(ctx: FExitContext) -> i32 {
    last_rule::leave::<Typed>(ctx.as_ptr(), |context| {
        let verdict = FExitContext::new(context).arg::<u64>(3) as u32;
        last_rule::End { call: typed(context), verdict }
    });
    0
}

/// As [`nft_traced`], for the last rule alone.
#[kprobe]
pub fn last_nft_traced(ctx: ProbeContext) -> u32 {
    let arguments = kernel::five_arguments(ctx.as_ptr());
    let traced = || nft::Traced::from_arguments(arguments);
    nft::dropped::<Probed>(&nft::Told::from_arguments(arguments), traced, |skb| skb);
    0
}

/// As [`nft_traced_typed`], likewise.
#[fentry]
pub fn last_nft_traced_typed(ctx: FEntryContext) -> i32 {
    let told = nft::Told { info: ctx.arg(3), verdict: ctx.arg(1), what: ctx.arg::<u64>(4) as u32 };
    nft::dropped::<Typed>(&told, || Some(traced_by_arguments(&ctx)), distance);
    0
}

/// As [`nft_traced_info_typed`], likewise.
#[fentry]
pub fn last_nft_traced_info_typed(ctx: FEntryContext) -> i32 {
    let told = nft::Told { info: ctx.arg(0), verdict: 0, what: ctx.arg::<u64>(2) as u32 };
    nft::dropped::<Typed>(&told, || traced_by_info(&ctx), distance);
    0
}

/// Entry of `xt_replace_table(table, num_counters, newinfo, error)`.
#[kprobe]
pub fn table_replaced(ctx: ProbeContext) -> u32 {
    let (table, _, info) = kernel::first_arguments(ctx.as_ptr());
    // Seldom, and no verdict waits for it; programs on the packets' way say nothing.
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::info!(&ctx, "table {:x} gets blob {:x}", table, info);
    let _ = replace::replaced(table, info);
    0
}

/// Entry of `xt_copy_counters`: an edited table gets its saved counts back, on the CPU where the tool runs.
#[kprobe]
pub fn counters_added(ctx: ProbeContext) -> u32 {
    legacy::counters_added(kernel::stack_pointer(ctx.as_ptr()));
    0
}

/// Entry of `nft_do_chain(pkt, priv)`.
#[kprobe]
pub fn nft_enter(ctx: ProbeContext) -> u32 {
    let (pkt, chain, _) = kernel::first_arguments(ctx.as_ptr());
    let key = nft::key(pkt, kernel::stack_pointer(ctx.as_ptr()));
    nft::enter::<Probed>(&nft::Start { pkt, chain, key }, |skb| skb);
    0
}

/// Entry of `__nft_trace_packet`.
#[kprobe]
pub fn nft_traced(ctx: ProbeContext) -> u32 {
    if let Some(traced) = nft::Traced::from_arguments(kernel::five_arguments(ctx.as_ptr())) {
        nft::traced::<Probed>(&traced);
    }
    0
}

/// As [`nft_enter`], without a kprobe.
#[fentry]
pub fn nft_enter_typed(ctx: FEntryContext) -> i32 {
    let pkt = ctx.arg(0);
    let key = nft::key(distance(pkt), distance(ctx.as_ptr() as u64));
    nft::enter::<Typed>(&nft::Start { pkt, chain: ctx.arg(1), key }, distance);
    0
}

/// As [`nft_traced`], where the function is `(pkt, verdict, rule, info, type)`.
#[fentry]
pub fn nft_traced_typed(ctx: FEntryContext) -> i32 {
    nft::traced::<Typed>(&traced_by_arguments(&ctx));
    0
}

#[inline(always)]
fn traced_by_arguments(ctx: &FEntryContext) -> nft::Traced {
    let (pkt, verdict, rule, info) = (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    let what = ctx.arg::<u64>(4) as u32;
    nft::Traced { info, pkt, verdict, rule, key: distance(pkt), what }
}

/// As [`nft_traced`], where the function is `(info, chain, type)`.
#[fentry]
pub fn nft_traced_info_typed(ctx: FEntryContext) -> i32 {
    if let Some(traced) = traced_by_info(&ctx) {
        nft::traced::<Typed>(&traced);
    }
    0
}

#[inline(always)]
fn traced_by_info(ctx: &FEntryContext) -> Option<nft::Traced> {
    nft::Traced::from_info::<Typed>(ctx.arg(0), ctx.arg::<u64>(2) as u32, distance)
}

/// As [`nft_leave`], as [`leave_typed`] is to [`leave`].
#[fexit]
pub fn nft_leave_typed(ctx: FExitContext) -> i32 {
    nft::leave(distance(ctx.as_ptr() as u64), ctx.arg::<u64>(2) as u32);
    0
}

/// Exit of `nft_do_chain`, where nothing else tells how a run ended.
#[kretprobe]
pub fn nft_leave(ctx: RetProbeContext) -> u32 {
    nft::leave(kernel::return_stack_pointer(ctx.as_ptr()), ctx.ret::<u32>());
    0
}

/// Entry of `__nf_conntrack_confirm(skb)`, where packets are known by the address of their skb.
#[kprobe]
pub fn connection_confirmed(ctx: ProbeContext) -> u32 {
    let (skb, _, _) = kernel::first_arguments(ctx.as_ptr());
    choice::confirmed(skb, |skb| skb);
    0
}

/// As [`connection_confirmed`], where the table functions are watched without kprobes.
#[kprobe]
pub fn connection_confirmed_typed(ctx: ProbeContext) -> u32 {
    let (skb, _, _) = kernel::first_arguments(ctx.as_ptr());
    choice::confirmed(skb, frame::distance_of_number);
    0
}

/// Entry of `nf_tables_commit(net, skb)`.
#[kprobe]
pub fn commit_enter(ctx: ProbeContext) -> u32 {
    let (net, _, _) = kernel::first_arguments(ctx.as_ptr());
    let _ = nft::commit_begins(net);
    0
}

/// Exit of `nf_tables_commit`.
#[kretprobe]
pub fn commit_leave(_ctx: RetProbeContext) -> u32 {
    let _ = nft::commit_ends();
    0
}

/// The tracepoint `kfree_skb(skb, location, reason, …)`, where packets are known by the address of their skb.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn freed(ctx: RawTracePointContext) -> i32 {
    ending::freed(&ctx, |skb| skb);
    0
}

/// As [`freed`], where the table functions are watched without kprobes.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn freed_typed(ctx: RawTracePointContext) -> i32 {
    ending::freed(&ctx, frame::distance_of_number);
    0
}

/// As [`freed`], for the last rule alone.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn last_freed(ctx: RawTracePointContext) -> i32 {
    ending::dropped(&ctx, |skb| skb);
    0
}

/// As [`freed_typed`], likewise.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn last_freed_typed(ctx: RawTracePointContext) -> i32 {
    ending::dropped(&ctx, frame::distance_of_number);
    0
}

/// Entry of `nf_reinject(entry, verdict)`, where packets are known by the address of their skb.
#[kprobe]
pub fn reinjected(ctx: ProbeContext) -> u32 {
    let (entry, verdict, _) = kernel::first_arguments(ctx.as_ptr());
    ending::reinjected(entry, verdict as u32, |skb| skb);
    0
}

/// As [`reinjected`], where the table functions are watched without kprobes.
#[kprobe]
pub fn reinjected_typed(ctx: ProbeContext) -> u32 {
    let (entry, verdict, _) = kernel::first_arguments(ctx.as_ptr());
    ending::reinjected(entry, verdict as u32, frame::distance_of_number);
    0
}

/// Placed nowhere: user space runs it with a namespace and a family, to learn of the functions at the hooks.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn list_hooks(ctx: RawTracePointContext) -> i32 {
    ending::list_hooks(ctx.arg(0), ctx.arg::<u64>(1) as u32);
    0
}

/// Placed nowhere: user space runs it on each CPU at the end, for traversals whose exit was never seen.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn sweep(_ctx: RawTracePointContext) -> i32 {
    unwind::sweep();
    0
}

/// The floor of any probe pair, for measurements.
#[kprobe]
pub fn empty_enter(_ctx: ProbeContext) -> u32 {
    0
}

/// The floor of any probe pair, for measurements.
#[kretprobe]
pub fn empty_leave(_ctx: RetProbeContext) -> u32 {
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No program contains a panic: the kernel's verifier would refuse the endless loop.
    loop {}
}

/// The kernel demands a GPL-compatible licence for the helpers that read its memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
