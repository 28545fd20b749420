//! Which of the packets that match are traced, where not all of them are to be.

use crate::emit::count;
use crate::kernel;
use crate::maps::THROTTLE;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use tracer_common::counter::Counter;

const NS_PER_S: u64 = 1_000_000_000;

/// Whether a packet is taken: 1 or 0. `may_begin` is 0 for one that is past its first hook and may have been judged before:
/// it would be judged by chance once more, and its path begin in the middle.
///
/// A global function, like those of `snapshot`, so that nothing of it is on the way of packets where all are taken.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit(may_begin: u32) -> u32 {
    let Some(throttle) = THROTTLE.get_ptr_mut(0) else { return 1 };
    // SAFETY: a map value; other CPUs and user space may be writing to it, hence volatile. The helper has no preconditions.
    let (by_chance, limit) = unsafe {
        let threshold = core::ptr::read_volatile(&raw const (*throttle).threshold);
        let by_chance = threshold == u32::MAX || (may_begin != 0 && bpf_get_prandom_u32() <= threshold);
        (by_chance, core::ptr::read_volatile(&raw const (*throttle).limit))
    };
    if !by_chance {
        count(Counter::SampledOut, 1);
        return 0;
    }
    if limit == 0 {
        return 1;
    }
    let second = kernel::now_ns() / NS_PER_S;
    // SAFETY: as above.
    unsafe {
        let (of, taken) = (&raw mut (*throttle).second, &raw mut (*throttle).taken);
        if core::ptr::read_volatile(of) != second {
            core::ptr::write_volatile(of, second);
            core::ptr::write_volatile(taken, 0);
        }
        if core::ptr::read_volatile(taken) >= u64::from(limit) {
            count(Counter::LimitedOut, 1);
            return 0;
        }
        kernel::add(taken, 1);
    }
    1
}
