//! The way out: one ring buffer, whole records, every loss counted.

use crate::config::config;
use crate::maps::{COUNTERS, EVENTS};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query};
use core::ffi::c_void;
use tracer_common::counter::Counter;

/// Adds to a per-CPU counter.
#[inline(always)]
pub fn count(counter: Counter, amount: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU map value, and kprobe programs do not nest on a CPU.
        unsafe { *value = (*value).wrapping_add(amount) }
    }
}

/// Sends `len` bytes. The reader looks by itself every few milliseconds and is woken only when much is waiting: a
/// wake-up for each record would cost more than all the rest.
///
/// # Safety
/// `record` must be valid for `len` bytes, all of them written.
#[inline(always)]
pub unsafe fn send(record: *const u8, len: u64) {
    let ring = (&raw const EVENTS).cast_mut().cast::<c_void>();
    // SAFETY: the ring is a map; the caller vouches for the record.
    unsafe {
        let waiting = bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA));
        let wake =
            if waiting >= u64::from(config!(wakeup_bytes)) { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
        if bpf_ringbuf_output(ring, record.cast_mut().cast::<c_void>(), len, u64::from(wake)) != 0 {
            count(Counter::Lost, 1);
        }
    }
}
