//! Counting instead of tracing: one number for each CPU and each thing that is counted, and no records.
//!
//! Of a legacy table only the first traversal that a CPU sees of each version is sent, so that user space learns which
//! table has which address.

use crate::config::config;
use crate::emit::{count, send_traversal};
use crate::frame::{Frame, State, state};
use crate::kernel::Access;
use crate::maps::{COUNTS, FILTER, RECORDS, Record};
use crate::select::{Layout, extract};
use crate::snapshot::{mask, opaque};
use tracer_common::count::{by, kind};
use tracer_common::counter::Counter;
use tracer_common::filter::word;
use tracer_common::legacy::{self, MAX_MATCHES, Match};

/// Whether packets are counted, by this.
#[inline(always)]
pub fn counts_by(what: u32) -> bool {
    config!(count_by) == what
}

/// Whether packets are counted.
#[inline(always)]
pub fn counts() -> bool {
    config!(count_by) != by::NOTHING
}

/// Whether a packet is looked at only once.
#[inline(always)]
pub fn counts_packets_alone() -> bool {
    config!(count_by) >= by::SRC
}

/// Adds to the count of what the CPU's key says. A global function, like those of `snapshot`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_counted(amount: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let amount = u64::from(amount);
    // SAFETY: the key is this CPU's own, and so is the count; `Cpu::alone` lets one program at a time to them.
    unsafe {
        let key = &*state.counted.get();
        match COUNTS.get_ptr_mut(key) {
            Some(number) => *number = (*number).wrapping_add(amount),
            None => {
                if COUNTS.insert(key, amount, 0).is_err() {
                    count(Counter::Uncounted, amount);
                    return 1;
                }
            }
        }
    }
    0
}

/// Counts one of something that three numbers tell.
#[inline(always)]
pub fn add_one(kind: u32, words: [u64; 3]) {
    let Some(state) = state() else { return };
    put(state, kind, words);
    add_counted(1);
}

#[inline(always)]
fn put(state: &State, kind: u32, words: [u64; 3]) {
    let key = state.counted.get();
    // SAFETY: a map value of this CPU's own; volatile, or else it would be a call of `memcpy`.
    unsafe {
        let to = (&raw mut (*key).words).cast::<u64>();
        to.write_volatile(words[0]);
        to.add(1).write_volatile(words[1]);
        to.add(2).write_volatile(words[2]);
        (&raw mut (*key).kind).write_volatile(kind);
    }
}

/// A traversal ends whose rules are counted, or how it ended.
#[inline(always)]
pub fn finish(state: &'static State, frame: &Frame, record: *mut Record, depth: u32, verdict: u32) {
    if counts_by(by::VERDICT) {
        ended(verdict);
        return;
    }
    if frame.doubts.get() != 0 {
        count(Counter::Doubtful, 1);
        return;
    }
    put(state, kind::ENTRY, [frame.private.get(), frame.table.get(), 0]);
    if add_matches(depth, frame.replace_count.get()) != 0 {
        count(Counter::Doubtful, 1);
    }
    let known = state.table(frame.table.get());
    if known.told.get() == 0 {
        known.told.set(1);
        // SAFETY: a map value of this CPU's own.
        unsafe {
            let traversal = &mut *(&raw mut (*record).traversal);
            traversal.kind = legacy::kind::TRAVERSAL;
            traversal.match_count = 0;
            traversal.table = frame.table.get();
            traversal.private = frame.private.get();
            traversal.replace_count = frame.replace_count.get();
            send_traversal(record, state);
        }
    }
}

/// How a table or a base chain let go of a packet, unless that goes on.
#[inline(always)]
pub fn ended(verdict: u32) {
    const NF_ACCEPT: u32 = 1;
    let verdict = verdict & 0xff;
    if verdict != NF_ACCEPT {
        add_one(kind::VERDICT, [u64::from(verdict), 0, 0]);
    }
}

/// Counts the matches of the record at a depth.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_matches(depth: u32, replace_count: u32) -> u32 {
    let Some(record) = RECORDS.get_ptr(depth) else { return 1 };
    // SAFETY: a map value.
    let found = unsafe { (*record).traversal.match_count };
    for number in 0..MAX_MATCHES as u32 {
        if number >= opaque(found) {
            break;
        }
        add_match(depth, number, replace_count);
    }
    0
}

/// Counts one match.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_match(depth: u32, number: u32, replace_count: u32) -> u32 {
    let (Some(state), Some(record)) = (state(), RECORDS.get_ptr(depth)) else { return 1 };
    // SAFETY: map values; the index is masked to the length of the array.
    let Match { index, count } = unsafe {
        let matches = (&raw const (*record).tail.matches).cast::<Match>();
        let found = matches.add(mask::<{ MAX_MATCHES as u32 - 1 }>(u64::from(number)) as usize);
        let found = found.read();
        let words = (&raw mut (*state.counted.get()).words).cast::<u64>();
        words.add(2).write_volatile((u64::from(replace_count) << 32) | u64::from(found.index));
        found
    };
    let _ = index;
    add_counted(count)
}

/// A packet that matched is seen for the first time.
#[inline(always)]
pub fn begin<A: Access>(skb: u64, layout: Layout) {
    if counts_by(by::VERDICT) {
        add_one(kind::PACKETS, [0; 3]);
        return;
    }
    if layout == Layout::ARP || extract::<A>(skb, layout).is_none() || add_addresses() != 0 {
        count(Counter::Uncounted, 1);
    }
}

/// Counts the packet that the filter's input is of.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_addresses() -> u32 {
    let (Some(state), Some(input)) = (state(), FILTER.get_ptr(0)) else { return 1 };
    // SAFETY: map values of this CPU's own; all indices are constants.
    unsafe {
        let from = (&raw const (*input).key.words).cast::<u32>();
        let key = state.counted.get();
        let to = (&raw mut (*key).words).cast::<u32>();
        if !counts_by(by::DST) {
            for at in 0..4 {
                to.add(at).write_volatile(from.add(word::SRC as usize + at).read_volatile());
            }
        }
        if !counts_by(by::SRC) {
            for at in 0..4 {
                to.add(4 + at).write_volatile(from.add(word::DST as usize + at).read_volatile());
            }
        }
        (&raw mut (*key).kind).write_volatile(kind::ADDRESSES);
        (&raw mut (*key).version).write_volatile(from.add(word::VERSION as usize).read_volatile() as u8);
        if counts_by(by::FLOW) {
            (&raw mut (*key).protocol)
                .write_volatile(from.add(word::PROTOCOL as usize).read_volatile() as u8);
            let sport = from.add(word::SPORT as usize).read_volatile();
            let dport = from.add(word::DPORT as usize).read_volatile();
            (&raw mut (*key).ports).write_volatile((sport << 16) | (dport & 0xffff));
        }
    }
    // What finds no room is counted there.
    add_counted(1);
    0
}
