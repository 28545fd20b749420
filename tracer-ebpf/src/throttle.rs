//! Which of the packets that match are traced, where not all of them are to be.

use crate::emit::count;
use crate::kernel;
use crate::maps::THROTTLE;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use tracer_common::counter::Counter;
use tracer_common::throttle::{Admission, Throttle};

/// Whether a packet is taken: 1 or 0. `may_begin` is 0 for one that is past its first hook and may have been judged before:
/// it would be judged by chance once more, and its path begin in the middle.
///
/// A global function, like those of `snapshot`, so that nothing of it is on the way of packets where all are taken.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit(may_begin: u32) -> u32 {
    let Some(map) = THROTTLE.get_ptr_mut(0) else { return 1 };
    // SAFETY: a map value; other CPUs and user space may be writing to it, hence volatile.
    let throttle = unsafe {
        Throttle {
            threshold: core::ptr::read_volatile(&raw const (*map).threshold),
            limit: core::ptr::read_volatile(&raw const (*map).limit),
            second: core::ptr::read_volatile(&raw const (*map).second),
            taken: core::ptr::read_volatile(&raw const (*map).taken),
        }
    };
    // SAFETY: the helper has no preconditions.
    let random = || (may_begin != 0).then(|| unsafe { bpf_get_prandom_u32() });
    match throttle.judge(random, kernel::now_ns) {
        Admission::Taken => {}
        Admission::TakenIn(second) => {
            // SAFETY: as above.
            unsafe {
                let taken = &raw mut (*map).taken;
                if throttle.second != second {
                    core::ptr::write_volatile(&raw mut (*map).second, second);
                    core::ptr::write_volatile(taken, 0);
                }
                kernel::add(taken, 1);
            }
        }
        Admission::SampledOut => {
            count(Counter::SampledOut, 1);
            return 0;
        }
        Admission::LimitedOut => {
            count(Counter::LimitedOut, 1);
            return 0;
        }
    }
    1
}
