//! The way out: one ring buffer, whole records, every loss counted.

use crate::config::config;
use crate::frame::State;
use crate::maps::{COUNTERS, EVENTS, Record};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::bpf_ringbuf_output;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::{read_volatile, write_volatile};
use tracer_common::counter::Counter;
use tracer_common::legacy::{EXIT_BYTES, FIRST_MATCHES, Traversal};

/// Adds to a per-CPU counter.
#[inline(always)]
pub fn count(counter: Counter, amount: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: one instruction on a map value: programs may interrupt each other here.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) amount) }
    }
}

/// Sends a traversal with its first matches. Copied word by word into a reservation, which costs a third of what the
/// helper that copies by itself costs. What is not counted as copied is left as the ring has it: matches beyond the last,
/// bytes at exit where there are none.
///
/// # Safety
/// `record` must be valid, and all of its traversal written.
#[inline(always)]
pub unsafe fn send_traversal(record: *const Record, state: &State) {
    let Some(mut entry) = EVENTS.reserve::<Traversal>(0) else {
        count(Counter::Lost, 1);
        return;
    };
    // SAFETY: both are valid for a traversal, aligned to eight; the caller vouches for the record.
    unsafe {
        let to = entry.as_mut_ptr().cast::<u64>();
        let from = record.cast::<u64>();
        let matches = (&raw const (*record).tail.matches).cast::<u64>();
        const FIRST_MATCH: usize = offset_of!(Traversal, matches) / 8;
        const EXIT_BYTES_AT: usize = FIRST_MATCH + FIRST_MATCHES;
        const FEW: usize = FIRST_MATCHES / 2;
        const AFTER_EXIT: usize = EXIT_BYTES_AT + EXIT_BYTES / 8;
        const { assert!(offset_of!(Traversal, exit_bytes) == EXIT_BYTES_AT * 8) };
        copy_words::<FIRST_MATCH>(to, from);
        // Most packets meet few rules of a table.
        copy_words::<FEW>(to.add(FIRST_MATCH), matches);
        if (*record).traversal.match_count > FEW as u32 {
            copy_words::<{ FIRST_MATCHES - FEW }>(to.add(FIRST_MATCH + FEW), matches.add(FEW));
        }
        if (*record).traversal.exit.copied != 0 {
            copy_words::<{ EXIT_BYTES / 8 }>(to.add(EXIT_BYTES_AT), from.add(EXIT_BYTES_AT));
        }
        copy_words::<{ size_of::<Traversal>() / 8 - AFTER_EXIT }>(to.add(AFTER_EXIT), from.add(AFTER_EXIT));
        let sent = state.records.get().wrapping_add(1);
        state.records.set(sent);
        let flags = if sent % RECORDS_PER_LOOK == 0 { wake() } else { u64::from(BPF_RB_NO_WAKEUP) };
        entry.submit(flags);
    }
}

/// How full the ring is, is looked at only so often.
const RECORDS_PER_LOOK: u64 = 16;

/// Copies words in runs of eight, so that there is one comparison for sixteen instructions that do something. Volatile,
/// because the compiler would make a call of `memcpy` of it, which is slower.
///
/// # Safety
/// Both must be valid for `N` words.
#[inline(always)]
unsafe fn copy_words<const N: usize>(to: *mut u64, from: *const u64) {
    // SAFETY: the caller vouches for both.
    let copy = |word: usize| unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
    let mut word = 0;
    while word + 8 <= N {
        copy(word);
        copy(word + 1);
        copy(word + 2);
        copy(word + 3);
        copy(word + 4);
        copy(word + 5);
        copy(word + 6);
        copy(word + 7);
        word += 8;
    }
    while word < N {
        copy(word);
        word += 1;
    }
}

/// Whether the reader is to be woken: it looks by itself every few milliseconds and is woken only when much is
/// waiting. A wake-up for each record would cost more than all the rest.
#[inline(always)]
pub fn wake() -> u64 {
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    u64::from(if waiting >= u64::from(config!(wakeup_bytes)) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    })
}

/// Sends `len` bytes.
///
/// # Safety
/// `record` must be valid for `len` bytes, all of them written.
#[inline(always)]
pub unsafe fn send(record: *const u8, len: u64) {
    let ring = (&raw const EVENTS).cast_mut().cast::<c_void>();
    // SAFETY: the ring is a map; the caller vouches for the record.
    if unsafe { bpf_ringbuf_output(ring, record.cast_mut().cast::<c_void>(), len, wake()) } != 0 {
        count(Counter::Lost, 1);
    }
}
