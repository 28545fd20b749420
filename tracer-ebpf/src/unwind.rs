//! Frames that end: the proof that the counters tell of one packet alone, ends that were not seen, and ends in another
//! order than one inside the other.

use crate::config::offset;
use crate::counts;
use crate::emit::{count, send_traversal};
use crate::frame::{ALONE, Cpu, DEPTH, Frame, State, cpu, state};
use crate::kernel::{self, Access, Probed, Typed};
use crate::legacy::Call;
use crate::maps::{RECORDS, replace_count};
use crate::preemption::Unpreempted;
use crate::record::{clear, identify, send_without_exit};
use crate::snapshot;
use core::ffi::c_void;
use tracer_common::counter::Counter;
use tracer_common::legacy::{ENTRY_BYTES, doubt, fact, kind};

/// Bytes of a kernel stack: frames of one task that are not further apart are on the same one.
const STACK_BYTES: u64 = 1 << 14;
/// No traversal takes that long, not even one whose task has to wait for its CPU.
const FORGOTTEN_NS: u64 = 1_000_000_000;

/// The checks that prove that the counters tell of this packet alone. Size, number and place of the counters need no
/// look: they change only with `private` or the replace counter.
#[inline(always)]
pub fn check<A: Access>(cpu: &Cpu, frame: &Frame, sequence: u32) {
    if frame.advanced_to(sequence) != frame.advances() {
        frame.doubt(doubt::SEQUENCE);
    }
    if A::number::<u64>(frame.table.get() + offset!(table_private)) != Some(frame.private.get()) {
        frame.doubt(doubt::REPLACED);
    }
    if replace_count(frame.table.get()) != Some(frame.replace_count.get()) {
        frame.doubt(doubt::REPLACE_COUNT);
    }
    let seen = cpu.generation.get().wrapping_sub(frame.generation.get());
    if seen != frame.inner.get().wrapping_mul(2).wrapping_add(1) {
        frame.doubt(doubt::GENERATION);
    }
}

/// Gives up what the frame at `depth` tells, whose exit will not come. A global function to the verifier, like those of
/// [`snapshot`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn abandon(depth: u32, why: u32) -> u32 {
    let (Some(state), Some(record)) = (state(), RECORDS.get_ptr_mut(depth)) else {
        return 1;
    };
    let cpu = cpu();
    let frame = state.frame(depth);
    if frame.key.get() != 0 && frame.traced.get() != 0 {
        count(Counter::Unended, 1);
        if counts::counts() {
            return 0;
        }
        // SAFETY: a per-CPU map value of this program's own.
        unsafe {
            let traversal = &mut *(&raw mut (*record).traversal);
            identify(cpu, traversal, frame);
            traversal.doubts |= why;
            traversal.kind = kind::TRAVERSAL;
            traversal.verdict = 0;
            traversal.match_count = 0;
            clear(&mut traversal.exit);
            if traversal.entry.copied > ENTRY_BYTES as u32 {
                traversal.entry.copied = ENTRY_BYTES as u32;
            }
            send_traversal(record, state);
        }
    }
    0
}

/// The frame whose exit this is, or [`DEPTH`]. Those of the same task above it are inside of it, and over. Those of other
/// tasks are not: a task may lose its CPU at the end of a table function, and come back before others.
#[inline(never)]
pub fn find<A: Access>(cpu: &Cpu, state: &'static State, key: u64) -> u32 {
    // Kept in memory: where a register has one of eight known numbers, the verifier looks at what follows eight times.
    state.found.set(DEPTH);
    for candidate in 0..DEPTH {
        if candidate < cpu.depth.get() && state.frame(candidate).key.get() == key {
            state.found.set(candidate);
        }
    }
    if state.found.get() >= DEPTH {
        return DEPTH;
    }
    let task = kernel::task();
    for candidate in 0..DEPTH {
        let depth = DEPTH - 1 - candidate;
        let frame = state.frame(depth);
        if depth > state.found.get()
            && depth < cpu.depth.get()
            && frame.key.get() != 0
            && frame.task.get() == task
        {
            end_unseen::<A>(depth);
        }
    }
    state.found.get()
}

/// Ends the frames that a traversal that begins shows to be over. The same task cannot be deeper in its stack than a call
/// it made before, and a packet is in one place at a time. A frame that is very old has ended on another CPU; nobody waits
/// any more for what it could tell.
#[inline(never)]
pub fn end_returned<A: Access, F: Fn(*mut c_void) -> Call>(context: *mut c_void, call: &F) {
    let _unpreempted = Unpreempted::<A>::new();
    let cpu = cpu();
    let (Some(_alone), Some(state)) = (cpu.claim(), state()) else { return };
    let Call { skb_number, key, .. } = call(context);
    let (task, now_ns) = (kernel::task(), kernel::now_ns());
    for candidate in 0..DEPTH {
        let depth = DEPTH - 1 - candidate;
        if depth >= cpu.depth.get() {
            continue;
        }
        let frame = state.frame(depth);
        let returned = frame.task.get() == task && key.wrapping_sub(frame.key.get()) < STACK_BYTES;
        let elsewhere = frame.traced.get() != 0 && frame.skb.get() == skb_number;
        let forgotten = now_ns.wrapping_sub(frame.entry_ns.get()) > FORGOTTEN_NS;
        if forgotten {
            frame.doubt(doubt::NO_EXIT);
        }
        if frame.key.get() != 0
            && (returned || elsewhere || forgotten || has_added::<A>(cpu, state, frame, depth))
        {
            end_unseen::<A>(depth);
        }
    }
    if cpu.depth.get() >= DEPTH {
        for above in 0..DEPTH {
            abandon(DEPTH - 1 - above, doubt::TOO_DEEP);
        }
        cpu.depth.set(0);
        count(Counter::Overflowed, u64::from(DEPTH));
    }
}

/// Whether a frame stands for [`counters_added`], and they have been.
#[inline(always)]
fn has_added<A: Access>(cpu: &Cpu, state: &'static State, frame: &Frame, depth: u32) -> bool {
    if frame.table.get() != 0 || has_early(state, depth) {
        return false;
    }
    let is_top = cpu.depth.get() == depth + 1;
    let sequence = kernel::per_cpu_offset(cpu).and_then(kernel::recseq::<A>);
    frame.advanced.get() != 0 || (is_top && sequence != Some(frame.segment_sequence.get()))
}

/// Ends a frame whose exit was not seen.
#[inline(always)]
fn end_unseen<A: Access>(depth: u32) {
    if A::TYPED {
        end_unseen_typed(depth)
    } else {
        end_unseen_probed(depth)
    };
}

/// [`end_unseen`] in programs at fentry and fexit. Global functions to the verifier, like those of [`snapshot`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end_unseen_typed(depth: u32) -> u32 {
    u32::from(end_without_exit::<Typed>(depth).is_none())
}

/// [`end_unseen`] in programs at kprobes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end_unseen_probed(depth: u32) -> u32 {
    u32::from(end_without_exit::<Probed>(depth).is_none())
}

/// Ends a frame whose exit was not seen. Its counters are those of its packet all the same if nothing else moved any since:
/// that takes the same proof as at an exit, and that no traversal went by unseen, which could stand for this one. Programs
/// at kprobes miss entry and exit alike, and have no use for it.
#[inline(always)]
fn end_without_exit<A: Access>(depth: u32) -> Option<()> {
    let (cpu, state) = (cpu(), state()?);
    // What would have been seen.
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    let frame = state.frame(depth);
    let per_cpu = kernel::per_cpu_offset(cpu)?;
    let is_top = cpu.depth.get() == depth + 1;
    if !is_top {
        uncover::<A>(cpu, state, frame, depth, per_cpu)?;
    }
    // Inside the counted part of another one, nothing would tell that this one's has begun.
    let is_counted = frame.entry_sequence.get() & 1 == 0;
    if A::TYPED && is_counted && frame.traced.get() != 0 && !counts::counts() {
        let record = RECORDS.get_ptr_mut(depth)?;
        snapshot::compare(state, frame, record, depth);
        let sequence = kernel::recseq::<A>(per_cpu)?;
        check::<A>(cpu, frame, sequence);
        if frame.doubts.get() == 0 && is_alone(cpu, state, frame, depth, sequence) {
            // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
            let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
            identify(cpu, traversal, frame);
            traversal.facts |= fact::UNSEEN_END;
            traversal.verdict = 0;
            send_without_exit(state, record);
            // Nothing more to tell.
            frame.traced.set(0);
        }
    }
    abandon(depth, doubt::NO_EXIT);
    remove(cpu, state, depth, kernel::recseq::<A>(per_cpu)?);
    Some(())
}

/// A frame ends below others. Its snapshot is one again, and what began later does not count what it does now. Counts that
/// moved before others began are its own, unless one below it was early; if it was early itself, its counts are among those
/// of the others.
#[inline(always)]
pub fn uncover<A: Access>(
    cpu: &Cpu,
    state: &'static State,
    frame: &Frame,
    depth: u32,
    per_cpu: u64,
) -> Option<()> {
    let sequence = kernel::recseq::<A>(per_cpu)?;
    let is_early = frame.is_early();
    if is_early || !is_alone(cpu, state, frame, depth, sequence) {
        frame.doubt(doubt::SEQUENCE);
    }
    frame.segment_sequence.set(sequence);
    if frame.traced.get() != 0 {
        snapshot::resume(frame, depth);
    }
    for candidate in 0..DEPTH {
        if candidate > depth && candidate < cpu.depth.get() {
            let above = state.frame(candidate);
            above.generation.set(above.generation.get().wrapping_add(1));
            // What came and went inside of those; they themselves came, and have not gone if they are open.
            let events = above.inner.get().wrapping_mul(2).wrapping_sub(u32::from(above.key.get() != 0));
            frame.generation.set(frame.generation.get().wrapping_add(events));
            let is_top = candidate + 1 == cpu.depth.get();
            if is_early && (above.advanced.get() != 0 || (is_top && above.segment_sequence.get() != sequence))
            {
                above.doubt(doubt::SEQUENCE);
            }
        }
    }
    Some(())
}

/// Whether one of the lowest `depth` frames is early.
#[inline(always)]
fn has_early(state: &'static State, depth: u32) -> bool {
    // In memory, for the reason that `found` is.
    state.early.set(0);
    for candidate in 0..DEPTH {
        if candidate < depth && state.frame(candidate).is_early() {
            state.early.set(1);
        }
    }
    state.early.get() != 0
}

/// Whether nothing that no frame stands for can have moved the sequence count in place of a frame since that was made, nor a
/// frame below it.
#[inline(always)]
fn is_alone(cpu: &Cpu, state: &'static State, frame: &Frame, depth: u32, sequence: u32) -> bool {
    let is_disturbed =
        state.disturbed_ns.get() >= frame.entry_ns.get() || cpu.moved(sequence) > cpu.outermost.get();
    frame.traced.get() == ALONE && !is_disturbed && !has_early(state, depth)
}

/// Takes a frame away that has ended: at once where it is the top one, with those below it that ended before; the next one
/// goes on. Otherwise it stays until those above it have ended.
#[inline(always)]
pub fn remove(cpu: &Cpu, state: &'static State, depth: u32, sequence: u32) {
    let frame = state.frame(depth);
    if cpu.depth.get() != depth + 1 {
        frame.key.set(0);
        return;
    }
    cpu.depth.set(depth);
    if depth == 0 {
        return;
    }
    if frame.advanced_to(sequence) != frame.advances() {
        // What it has too much, or has not, an early one below has or had.
        for candidate in 0..DEPTH {
            let below = state.frame(candidate);
            if candidate < depth && below.is_early() {
                below.doubt(doubt::SEQUENCE);
            }
        }
    }
    for _ in 0..DEPTH {
        let depth = cpu.depth.get();
        if depth == 0 || depth > DEPTH {
            return;
        }
        let (frame, outer) = (state.frame(depth), state.frame(depth - 1));
        outer.inner.set(outer.inner.get().wrapping_add(frame.inner.get()));
        if outer.key.get() != 0 {
            break;
        }
        cpu.depth.set(depth - 1);
    }
    let depth = cpu.depth.get().wrapping_sub(1);
    let outer = state.frame(depth);
    outer.segment_sequence.set(sequence);
    if outer.traced.get() != 0 {
        snapshot::resume(outer, depth);
    }
}

/// An exit without a frame: its frame is on the CPU where it entered, or was never made.
#[inline(always)]
pub fn orphan(cpu: &Cpu, state: &'static State) {
    count(Counter::OrphanExits, 1);
    state.disturbed_ns.set(kernel::now_ns());
    let top = state.frame(cpu.depth.get().wrapping_sub(1));
    if top.task.get() == kernel::task() {
        top.doubt(doubt::ORPHAN);
    } else {
        // Another task runs only while the one on top is outside its counted part, and if this one had moved
        // counters here, it would have moved the sequence count, too.
        cpu.generation.set(cpu.generation.get().wrapping_sub(1));
    }
}

/// No traversal that user space waits for at the end takes that long.
const SWEPT_NS: u64 = 100_000_000;

/// Gives up the frames that have been open for long: the trace is over, and nothing else would find them.
#[inline(always)]
pub fn sweep() {
    let cpu = cpu();
    let (Some(_alone), Some(state)) = (cpu.claim(), state()) else { return };
    let now_ns = kernel::now_ns();
    for _ in 0..DEPTH {
        let depth = cpu.depth.get();
        if depth == 0 || depth > DEPTH {
            break;
        }
        if now_ns.wrapping_sub(state.frame(depth - 1).entry_ns.get()) <= SWEPT_NS {
            break;
        }
        abandon(depth - 1, doubt::NO_EXIT);
        cpu.depth.set(depth - 1);
    }
}
