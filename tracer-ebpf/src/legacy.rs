//! Traversals of the legacy tables: `ipt_do_table`, `ip6t_do_table`, `arpt_do_table`.
//!
//! The rules whose per-CPU counters moved between entry and exit are the rules the packet matched, unless something
//! else moved them. The order of the reads is what makes that provable:
//!
//! - entry: outer frame's counters, then `xt_recseq`, then the replace counter, `private`, the snapshot, `private`;
//! - exit: counters, then `xt_recseq`, then `private` and the replace counter;
//! - exit of an inner traversal: `xt_recseq`, then the outer frame's counters.

use crate::config::{config, offset};
use crate::counts;
use crate::emit::{count, send, send_traversal};
use crate::frame::{ALONE, Cpu, DEPTH, Frame, KnownTable, Rules, SMALL, State, TRACED, cpu, distance, state};
use crate::kernel::{self, Access, HookState, Packet, Probed, Skb, Typed, copy, read, read_pair};
use crate::maps::{RECORDS, Record, replace_count};
use crate::nft::nft;
use crate::preemption::Unpreempted;
use crate::select::{Layout, Question, Selected, goes_on_untraced};
use crate::snapshot;
use core::ffi::c_void;
use tracer_common::count::by;
use tracer_common::counter::Counter;
use tracer_common::legacy::{
    ENTRY_BYTES, EXIT_BYTES, FIRST_MATCHES, LONG_EXIT_BYTES, MAC_BYTES, MAX_MATCHES, MORE_BYTES, Match,
    SkbState, Traversal, doubt, fact, kind,
};

/// Bytes of a kernel stack: frames of one task that are not further apart are on the same one.
const STACK_BYTES: u64 = 1 << 14;
/// No traversal takes that long, not even one whose task has to wait for its CPU.
const FORGOTTEN_NS: u64 = 1_000_000_000;
const NF_STOLEN: u32 = 2;
const TCP_TIME_WAIT: u8 = 6;
const TCP_NEW_SYN_RECV: u8 = 12;
/// What is kept of the owner of a socket that has none.
pub const NO_OWNER: u64 = u64::MAX;

/// The arguments of a traversal.
#[derive(Clone, Copy)]
pub struct Call {
    /// Pointer to the skb; the verifier may know its type.
    pub skb: u64,
    /// The skb as a number.
    pub skb_number: u64,
    /// Pointer to the hook state, as `skb`.
    pub state: u64,
    /// Address of the table.
    pub table: u64,
    /// Where on the stack the traversal was entered, in a number that entry and exit share.
    pub key: u64,
}

/// The end of a traversal.
#[derive(Clone, Copy)]
pub struct End {
    /// Pointer to the skb, where the exit has it.
    pub skb: u64,
    /// As in [`Call`].
    pub key: u64,
    /// What the function returned.
    pub verdict: u32,
}

/// A packet enters a table. `call` fetches the arguments from the context. Says whether a traversal is followed on this CPU
/// now: this one, or one that it is inside of.
#[inline(always)]
pub fn enter<A: Access>(context: *mut c_void, call: impl Fn(*mut c_void) -> Call) -> bool {
    let cpu = cpu();
    if nft!(witness) != 0 {
        look::<A, _>(context, call);
        return cpu.depth.get() != 0;
    }
    // That takes no look at what other programs have open, and one instruction that cannot be torn: it can be done in the
    // middle of another one's work.
    if cpu.is_quiet() && goes_on_untraced::<A>(&call(context)) {
        cpu.outermost.add(1);
        return false;
    }
    if cpu.depth.get() != 0 {
        end_returned::<A, _>(context, &call);
    }
    follow::<A, _>(context, call);
    cpu.depth.get() != 0
}

/// The same where base chains of nftables stand between the tables. Apart from it, as [`follow`] is.
#[inline(never)]
fn look<A: Access, F: Fn(*mut c_void) -> Call>(context: *mut c_void, call: F) {
    let cpu = cpu();
    let Some(question) = Question::of::<A>(&call(context)) else { return };
    if cpu.is_quiet() && question.is_untraced() {
        cpu.outermost.add(1);
        return;
    }
    if cpu.depth.get() != 0 {
        end_returned::<A, _>(context, &call);
    }
    follow::<A, _>(context, call);
}

/// A traversal that is not looked at, because another program is at work here. What it does to the sequence count is
/// accounted for, so that [`checkpoint`] does not find it once more; those inside it do nothing to it, and nobody else
/// would find them missing.
#[inline(never)]
fn leave_out<A: Access>() {
    let cpu = cpu();
    count(Counter::LeftOut, 1);
    cpu.left_out.add(1);
    drop_none(disturb());
    let sequence = kernel::per_cpu_offset(cpu).and_then(kernel::recseq::<A>);
    if sequence.is_some_and(|sequence| sequence & 1 == 0) {
        cpu.outermost.add(1);
    }
}

/// The way of a packet that is traced, has to be judged, or comes while another one is followed. Apart from the short
/// one, which would have to share its registers.
#[inline(never)]
fn follow<A: Access, F: Fn(*mut c_void) -> Call>(context: *mut c_void, call: F) {
    let _unpreempted = Unpreempted::<A>::new();
    let cpu = cpu();
    // No closure: it would be a function with a frame of its own on the short stack. The decision is read behind it: what
    // interrupts this could decide about another packet in its place.
    match cpu.claim() {
        Some(_alone) => {
            let call = call(context);
            if let Some(question) = Question::of::<A>(&call) {
                judge::<A>(cpu, &call, &question);
            }
        }
        None => leave_out::<A>(),
    }
}

/// Decides about a packet, and follows its traversal if need be.
#[inline(always)]
fn judge<A: Access>(cpu: &Cpu, call: &Call, question: &Question) {
    let selected = question.decide::<A>(call);
    match selected {
        Some(selected) if !counts::counts_packets_alone() => {
            drop_none(push::<A>(cpu, call, Some((question.hook(), selected))));
            return;
        }
        Some(selected) if selected.first => counts::begin::<A>(call.skb, Layout::IP),
        _ => {}
    }
    if cpu.depth.get() != 0 {
        drop_none(push::<A>(cpu, call, None));
    } else if cpu.is_quiet() && selected.is_some_and(|selected| !selected.first) {
        cpu.outermost.add(1);
    } else {
        drop_none(pass::<A>(cpu));
    }
}

/// An ARP packet enters a table.
#[inline(always)]
pub fn enter_unselected<A: Access>(call: &Call) {
    let cpu = cpu();
    match cpu.claim() {
        Some(_alone) => {
            drop_none(if cpu.depth.get() == 0 { pass::<A>(cpu) } else { push::<A>(cpu, call, None) })
        }
        None => leave_out::<A>(),
    }
}

/// What could not be done is found missing later.
#[inline(always)]
pub fn drop_none(_: Option<()>) {}

/// A traversal that nobody follows, of a packet that was not seen before or comes from inside another traversal; only
/// counted, for the sake of [`checkpoint`]. Inside the counted part of another one it does not move the sequence count.
/// Only targets that send packets have traversals there, and each of those packets begins there: as long as none does,
/// nobody else has to look. Softirqs run behind the counted part.
#[inline(always)]
fn pass<A: Access>(cpu: &Cpu) -> Option<()> {
    let nested = kernel::recseq::<A>(kernel::per_cpu_offset(cpu)?)? & 1;
    cpu.nested.set(nested);
    if nested == 0 {
        cpu.outermost.add(1);
    }
    Some(())
}

/// Something uses the tables on this CPU that no frame stands for.
#[inline(always)]
fn disturb() -> Option<()> {
    state()?.disturbed_ns.set(kernel::now_ns());
    Some(())
}

/// Saved counts are about to be added to a table's counters, which moves `xt_recseq` as a traversal does. Of the frames it
/// is one inside the others, until it has done so. `key` as of a traversal.
#[inline(always)]
pub fn counters_added(key: u64) {
    let cpu = cpu();
    if cpu.depth.get() != 0
        && let Some(_alone) = cpu.claim()
    {
        let call = Call { skb: 0, skb_number: 0, state: 0, table: 0, key };
        drop_none(push::<Probed>(cpu, &call, None));
    } else {
        cpu.outermost.add(1);
        drop_none(disturb());
    }
}

/// How many outermost traversals moved `xt_recseq` since the checkpoint.
#[inline(always)]
fn moved(cpu: &Cpu, sequence: u32) -> u64 {
    u64::from(sequence.wrapping_sub(cpu.checkpoint_sequence.get()) / 2)
}

/// An outermost traversal begins: compares how far `xt_recseq` moved with the traversals seen since the last time. The
/// rest was missed. One that was seen and has not moved it yet stays in the account.
/// Returns the number missed or left out and the time of the checkpoint before.
#[inline(always)]
fn checkpoint(cpu: &Cpu, state: &State, sequence: u32, now_ns: u64) -> (u32, u64) {
    let seen = cpu.outermost.get();
    let mut missed = 0;
    let mut pending = 0;
    if cpu.checkpoint_valid.get() != 0 {
        let moved = moved(cpu, sequence);
        if moved > seen {
            missed = (moved - seen) as u32;
        } else {
            pending = seen - moved;
        }
    }
    let since_ns = cpu.checkpoint_ns.get();
    cpu.checkpoint_sequence.set(sequence);
    // A difference, because another program may be adding its own.
    cpu.outermost.add((pending + 1).wrapping_sub(seen));
    cpu.checkpoint_valid.set(1);
    cpu.checkpoint_ns.set(now_ns);
    if missed != 0 {
        count(Counter::Missed, u64::from(missed));
        // Before what begins now.
        state.disturbed_ns.set(now_ns.wrapping_sub(1));
    }
    let left_out = cpu.left_out.get();
    if left_out != 0 {
        cpu.left_out.add(left_out.wrapping_neg());
    }
    (missed.wrapping_add(left_out as u32), since_ns)
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

/// Fills in what is known of a traversal at its end, however it ends.
#[inline(always)]
pub fn identify(cpu: &Cpu, traversal: &mut Traversal, frame: &Frame) {
    traversal.cpu = cpu.number();
    traversal.private = frame.private.get();
    traversal.replace_count = frame.replace_count.get();
    traversal.doubts = frame.doubts.get();
}

/// Follows a traversal: one that is traced, or one inside another that is followed.
#[inline(always)]
fn push<A: Access>(cpu: &Cpu, call: &Call, traced: Option<(u8, Selected)>) -> Option<()> {
    let state = state()?;
    let task = kernel::task();
    let now_ns = kernel::now_ns();
    let depth = cpu.depth.get();
    if depth >= DEPTH {
        return disturb();
    }
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    let per_cpu = kernel::per_cpu_offset(cpu)?;
    let frame = state.frame(depth);
    frame.key.set(call.key);
    frame.task.set(task);
    frame.table.set(call.table);
    frame.skb.set(call.skb_number);
    frame.advanced.set(0);
    frame.entry_ns.set(now_ns);
    frame.generation.set(cpu.generation.get());
    frame.inner.set(0);
    frame.doubts.set(0);
    frame.page.set(0);
    frame.blocks.set(0);
    frame.number.set(0);
    frame.traced.set(0);
    // Softirqs may come in here, and their traversals are left out. So what takes long comes before the counts are looked
    // at.
    let mut traversal = None;
    if let Some(traced) = traced {
        let record = RECORDS.get_ptr_mut(depth)?;
        // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
        let record = unsafe { &mut *(&raw mut (*record).traversal) };
        if counts::counts() {
            begin_counted::<A>(record, call, traced);
        } else {
            begin::<A>(state, record, depth, call, traced, now_ns);
            if depth > 0 {
                record.facts |= fact::NESTED;
            }
        }
        frame.traced.set(TRACED);
        traversal = Some(record);
    }
    if depth > 0 {
        let outer = state.frame(depth - 1);
        if outer.traced.get() != 0 {
            snapshot::suspend(outer, depth - 1);
        }
        outer.inner.set(outer.inner.get().wrapping_add(1));
        frame.page.set(outer.page.get() + outer.blocks.get());
    }
    let sequence = kernel::recseq::<A>(per_cpu)?;
    if depth > 0 {
        let outer = state.frame(depth - 1);
        outer.advanced.set(outer.advanced_to(sequence));
    }
    frame.entry_sequence.set(sequence);
    frame.segment_sequence.set(sequence);
    // Inside the counted part of another one, a traversal does not move the sequence count.
    let (missed, since_ns) =
        if sequence & 1 == 0 { checkpoint(cpu, state, sequence, now_ns) } else { (0, 0) };
    if let Some(traversal) = traversal {
        if cpu.outermost.get() == 1 {
            frame.traced.set(ALONE);
        }
        traversal.missed = missed;
        traversal.checkpoint_ns = since_ns;
        if counts::counts_by(by::VERDICT) {
            // As of a small table of which nothing can be met: no counters are read.
            frame.rules.set(Rules { first: 0, count: 0 });
        } else if watch::<A>(state, frame, traversal, depth, per_cpu).is_none() {
            frame.doubt(doubt::UNREADABLE);
            put(&mut traversal.number, 0);
            put(&mut traversal.size, 0);
            put(&mut traversal.match_count, 0);
        }
    }
    cpu.depth.set(depth + 1);
    if config!(timed) != 0 {
        state.began(depth).set(kernel::now_ns());
    }
    Some(())
}

/// Ends the frames that a traversal that begins shows to be over. The same task cannot be deeper in its stack than a call
/// it made before, and a packet is in one place at a time. A frame that is very old has ended on another CPU; nobody waits
/// any more for what it could tell.
#[inline(never)]
fn end_returned<A: Access, F: Fn(*mut c_void) -> Call>(context: *mut c_void, call: &F) {
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
fn uncover<A: Access>(
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
        state.disturbed_ns.get() >= frame.entry_ns.get() || moved(cpu, sequence) > cpu.outermost.get();
    frame.traced.get() == ALONE && !is_disturbed && !has_early(state, depth)
}

/// Takes a frame away that has ended: at once where it is the top one, with those below it that ended before; the next one
/// goes on. Otherwise it stays until those above it have ended.
#[inline(always)]
fn remove(cpu: &Cpu, state: &'static State, depth: u32, sequence: u32) {
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

/// Takes down which version of the table is current, and its counters.
#[inline(always)]
fn watch<A: Access>(
    state: &'static State,
    frame: &Frame,
    traversal: &mut Traversal,
    depth: u32,
    per_cpu: u64,
) -> Option<()> {
    let table = frame.table.get();
    let count = replace_count(table)?;
    frame.replace_count.set(count);
    // If another blob is current by the time that the counters are read, or that the function itself looks, this one
    // is not current any more at the exit, or the replace counter has moved.
    let private: u64 = A::number(table + offset!(table_private))?;
    frame.private.set(private);
    let known = state.table(table);
    if known.table.get() != table || known.private.get() != private || known.replace_count.get() != count {
        learn(known, table, private, count, traversal.family, per_cpu)?;
    }
    let number = known.number.get();
    frame.number.set(number);
    traversal.number = number;
    traversal.size = known.size.get();
    frame.first_block.set(known.first_block.get());
    // SAFETY: 32 bytes each; the destination is aligned to eight.
    unsafe {
        core::ptr::write_volatile((&raw mut traversal.table_name).cast::<[u64; 4]>(), known.name.get())
    };
    if number <= SMALL {
        frame.rules.set(snapshot::rules_met(known, traversal.hook));
        frame.changers.set(known.changers.get());
        snapshot::take_small(state, frame, depth);
        return Some(());
    }
    put(&mut traversal.match_count, 0);
    // All of them, where there are too many for bits.
    frame.changers.set(u64::MAX);
    let blocks = snapshot::blocks(number);
    if frame.page.get().saturating_add(blocks) > config!(snapshot_pages)
        || (blocks > 1
            && snapshot::locate_blocks(traversal.table, private, u32::from(traversal.family), count) != 0)
    {
        frame.doubt(doubt::TOO_LARGE);
        return Some(());
    }
    frame.chain_first.set(0);
    frame.chain_last.set(0);
    frame.user_first.set(0);
    if blocks > 1 {
        snapshot::reach(frame, traversal.hook)?;
    }
    frame.blocks.set(blocks);
    snapshot::take(frame, depth);
    Some(())
}

/// Asks the kernel about a version of a table.
#[inline(always)]
fn learn(known: &KnownTable, table: u64, private: u64, count: u32, family: u8, per_cpu: u64) -> Option<()> {
    // Nothing is known while it is being asked for.
    known.table.set(0);
    known.told.set(0);
    let (size, number) = read_pair(private, offset!(info_size), offset!(info_number))?;
    known.size.set(size);
    known.number.set(number);
    known.first_block.set(snapshot::first_block(private, family, per_cpu)?);
    known.name.set(read(table + offset!(table_name))?);
    let family = u32::from(family);
    if number <= SMALL
        && (snapshot::find_policies(private, family) != 0 || snapshot::survey(table, private, family) != 0)
    {
        return None;
    }
    known.private.set(private);
    known.replace_count.set(count);
    known.table.set(table);
    Some(())
}

/// What counting needs of a record.
#[inline(always)]
fn begin_counted<A: Access>(traversal: &mut Traversal, call: &Call, (hook, selected): (u8, Selected)) {
    if selected.first && counts::counts_by(by::VERDICT) {
        counts::begin::<A>(call.skb, Layout::IP);
    }
    put(&mut traversal.match_count, 0);
    traversal.hook = hook;
    traversal.family = A::field::<u8>(call.state, offset!(state_pf)).unwrap_or(0);
    traversal.netns = config!(netns);
    if traversal.netns == 0
        && let Some(net) = A::field::<u64>(call.state, offset!(state_net))
    {
        traversal.netns = A::field(net, offset!(net_inum)).unwrap_or(0);
    }
}

/// Fills the entry half of a record, apart from what was missed.
#[inline(always)]
pub fn begin<A: Access>(
    state: &State,
    traversal: &mut Traversal,
    depth: u32,
    call: &Call,
    (hook, selected): (u8, Selected),
    now_ns: u64,
) {
    let mut facts = if selected.first { fact::FIRST } else { 0 };
    traversal.packet = selected.packet;
    traversal.entry_ns = now_ns;
    traversal.skb = call.skb_number;
    traversal.table = call.table;
    traversal.hook = hook;
    traversal.family = A::field::<u8>(call.state, offset!(state_pf)).unwrap_or(0);
    traversal.netns = config!(netns);
    let skb = A::skb(call.skb);
    if skb.is_none() {
        clear(&mut traversal.entry);
        put(&mut traversal.ctinfo, 0);
    }
    if let Some(hook_state) = A::hook_state(call.state) {
        if traversal.netns == 0 {
            traversal.netns = A::field(hook_state.net, offset!(net_inum)).unwrap_or(0);
        }
        if device::<A>(&mut traversal.indev, hook_state.indev) {
            facts |= fact::IN;
        }
        if device::<A>(&mut traversal.outdev, hook_state.outdev) {
            facts |= fact::OUT;
        }
        if let Some(skb) = skb {
            facts |= fill::<A>(state, traversal, depth, &hook_state, &skb);
        }
    } else {
        clear(&mut traversal.entry);
        put(&mut traversal.ctinfo, 0);
    }
    traversal.facts = facts;
}

/// Fills in what the skb tells; returns the facts learned.
#[inline(always)]
fn fill<A: Access>(
    state: &State,
    traversal: &mut Traversal,
    depth: u32,
    hook_state: &HookState,
    skb: &Skb,
) -> u32 {
    let mut facts = 0;
    traversal.ctinfo = (skb.nfct & 7) as u8;
    if let Some(status) = kernel::ct_status::<A>(skb.nfct) {
        traversal.ct_status = status;
        facts |= fact::CONNTRACK;
    }
    traversal.entry.mark = skb.packet.mark;
    traversal.entry.len = skb.packet.len;
    traversal.entry.copied = copy_packet(traversal, &skb.packet);
    // The kernel's logger prints the link layer only where there is an input device.
    if hook_state.indev != 0 {
        facts |= link::<A>(state, traversal, depth, skb);
    }
    if skb.sock != 0 {
        let owner = known_owner::<A>(state, traversal.packet, skb.sock, hook_state.net);
        if owner != NO_OWNER {
            traversal.uid = owner as u32;
            traversal.gid = (owner >> 32) as u32;
            facts |= fact::OWNER;
        }
    }
    facts
}

/// Copies as much of the packet as its headers can need; returns how much.
#[inline(always)]
fn copy_packet(traversal: &mut Traversal, packet: &Packet) -> u32 {
    let linear = packet.linear();
    let bytes = (&raw mut traversal.entry_bytes).cast::<u8>();
    let len = snapshot::bounded(linear, ENTRY_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if !unsafe { copy(bytes, len, packet.network()) } {
        return 0;
    }
    if linear <= ENTRY_BYTES as u32 || headers_fit(&traversal.entry_bytes) {
        return len;
    }
    let more = snapshot::bounded(linear - ENTRY_BYTES as u32, MORE_BYTES as u32);
    // For verifiers that forget the bound of a number that was on the stack meanwhile.
    let masked = snapshot::mask::<255>(u64::from(more)) as u32;
    // SAFETY: what follows `entry_bytes` in the record continues it, for `MORE_BYTES`.
    if unsafe { copy(bytes.add(ENTRY_BYTES), masked, packet.network() + ENTRY_BYTES as u64) } {
        ENTRY_BYTES as u32 + more
    } else {
        len
    }
}

/// Whether the headers that a log line shows certainly end within `bytes`: those of TCP and UDP behind a plain IP
/// header.
#[inline(always)]
fn headers_fit(bytes: &[u8; ENTRY_BYTES]) -> bool {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let (protocol, transport) = match bytes[0] {
        0x45 => (bytes[9], 20),
        first if first >> 4 == 6 => (bytes[6], 40),
        _ => return false,
    };
    match (protocol, transport) {
        (UDP, _) => true,
        (TCP, 20) => bytes[32] >> 4 <= (ENTRY_BYTES as u8 - 20) / 4,
        (TCP, _) => bytes[52] >> 4 <= (ENTRY_BYTES as u8 - 40) / 4,
        _ => false,
    }
}

/// Writes one field: the compiler would join several zeros to a call of `memset`, which is slow here.
#[inline(always)]
fn put<T>(field: &mut T, value: T) {
    // SAFETY: a valid reference.
    unsafe { core::ptr::write_volatile(field, value) };
}

/// Empties a state.
#[inline(always)]
fn clear(state: &mut SkbState) {
    for field in [&mut state.mark, &mut state.len, &mut state.copied, &mut state.took_ns] {
        put(field, 0);
    }
}

/// Reads what the kernel's logger prints about a device; what was there is left where there is none.
#[inline(always)]
pub fn device<A: Access>(to: &mut [u8; 16], address: u64) -> bool {
    if address == 0 {
        return false;
    }
    let Some([first, second]) = A::device_name(address) else { return false };
    let to = to.as_mut_ptr().cast::<u64>();
    // SAFETY: 16 bytes, aligned to eight in the record. Volatile, or else it would be a call of `memcpy`.
    unsafe {
        to.write_volatile(first);
        to.add(1).write_volatile(second);
    }
    true
}

/// Reads the link layer of an incoming packet; returns the facts learned. Its header stays as it is as long as the packet
/// is at one hook, and need not be read again where this record still has it.
#[inline(always)]
fn link<A: Access>(state: &State, traversal: &mut Traversal, depth: u32, skb: &Skb) -> u32 {
    let (dev_type, hard_header_len) = (offset!(dev_type), offset!(dev_hard_header_len));
    if !A::TYPED && hard_header_len == dev_type + 2 {
        let both: u32 = read(skb.dev + dev_type).unwrap_or(0);
        traversal.dev_type = both as u16;
        traversal.hard_header_len = (both >> 16) as u16;
    } else {
        traversal.dev_type = A::field(skb.dev, dev_type).unwrap_or(0);
        traversal.hard_header_len = A::field(skb.dev, hard_header_len).unwrap_or(0);
    }
    if skb.mac_header == skb.packet.network_header {
        return 0;
    }
    let address = skb.packet.head + u64::from(skb.mac_header);
    // The highest bits of kernel addresses are all the same.
    let at = (address << 6) | (u64::from(traversal.hook) << 3) | u64::from(depth);
    if state.mac_at.get() == at && state.mac_of.get() == traversal.packet {
        return fact::MAC;
    }
    let len = snapshot::bounded(u32::from(traversal.hard_header_len), MAC_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if unsafe { copy((&raw mut traversal.mac).cast::<u8>(), len, address) } {
        traversal.mac_len = len as u8;
        state.mac_at.set(at);
        state.mac_of.set(traversal.packet);
    } else {
        put(&mut traversal.mac_len, 0);
        state.mac_at.set(0);
    }
    fact::MAC
}

/// Owner of a packet's socket, asked for once for all that the packet meets; [`NO_OWNER`] where it has none.
#[inline(always)]
pub fn known_owner<A: Access>(state: &State, packet: u64, sock: u64, net: u64) -> u64 {
    // Only the packet holds on to the socket: its address may be another one's in another packet.
    let number = if A::TYPED { distance(sock) } else { sock };
    if state.sock.get() != number || state.sock_packet.get() != packet {
        state.owner.set(owner::<A>(sock, net).unwrap_or(NO_OWNER));
        state.sock.set(number);
        state.sock_packet.set(packet);
    }
    state.owner.get()
}

/// Owner of a socket, under the conditions of `nf_log_dump_sk_uid_gid` in `net/netfilter/nf_log_syslog.c`: user id in
/// the low half, group id in the high one.
#[inline(always)]
pub fn owner<A: Access>(sock: u64, net: u64) -> Option<u64> {
    let state: u8 = A::field(sock, offset!(sock_state))?;
    if state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || A::field::<u64>(sock, offset!(sock_net))? != net
    {
        return None;
    }
    let socket: u64 = A::field(sock, offset!(sock_socket))?;
    if socket == 0 {
        return None;
    }
    let file: u64 = A::field(socket, offset!(socket_file))?;
    if file == 0 {
        return None;
    }
    let cred: u64 = A::field(file, offset!(file_cred))?;
    let (uid, gid): (u32, u32) = if A::TYPED {
        (A::field(cred, offset!(cred_fsuid))?, A::field(cred, offset!(cred_fsgid))?)
    } else {
        read_pair(cred, offset!(cred_fsuid), offset!(cred_fsgid))?
    };
    Some((u64::from(gid) << 32) | u64::from(uid))
}

/// A packet leaves a table. `end` fetches what there is to know from the context.
#[inline(always)]
pub fn leave<A: Access>(context: *mut c_void, end: impl Fn(*mut c_void) -> End) {
    if cpu().depth.get() != 0 {
        end_frame::<A, _>(context, end);
    }
}

/// Apart from the short way, as [`follow`] is.
#[inline(never)]
fn end_frame<A: Access, F: Fn(*mut c_void) -> End>(context: *mut c_void, end: F) {
    let _unpreempted = Unpreempted::<A>::new();
    let cpu = cpu();
    if let Some(_alone) = cpu.claim() {
        drop_none(pop::<A>(cpu, &end(context)));
    }
}

/// Ends the frame of a traversal, if it has one.
#[inline(always)]
fn pop<A: Access>(cpu: &Cpu, end: &End) -> Option<()> {
    let state = state()?;
    if config!(timed) != 0 {
        state.left_ns.set(kernel::now_ns());
    }
    let top = cpu.depth.get();
    if top == 0 {
        return None;
    }
    let mut depth = top - 1;
    let per_cpu = kernel::per_cpu_offset(cpu)?;
    let is_top = state.frame(depth).key.get() == end.key;
    if !is_top {
        depth = find::<A>(cpu, state, end.key);
    }
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    if !is_top {
        if depth >= DEPTH {
            orphan(cpu, state);
            return Some(());
        }
        if cpu.depth.get() != depth + 1 {
            uncover::<A>(cpu, state, state.frame(depth), depth, per_cpu)?;
        }
    }
    let depth = snapshot::mask::<{ DEPTH - 1 }>(u64::from(depth)) as u32;
    let frame = state.frame(depth);
    let sequence = if frame.traced.get() != 0 {
        let record = RECORDS.get_ptr_mut(depth)?;
        let by_verdict = counts::counts_by(by::VERDICT);
        let changed = !by_verdict && snapshot::compare(state, frame, record, depth);
        let sequence = kernel::recseq::<A>(per_cpu)?;
        if !by_verdict {
            check::<A>(cpu, frame, sequence);
        }
        if counts::counts() {
            counts::finish(state, frame, record, depth, end.verdict);
        } else {
            if config!(timed) != 0 {
                let took_ns = state.left_ns.get().wrapping_sub(state.began(depth).get());
                state.took_ns.set(u64::from(snapshot::bounded_word(took_ns)));
            }
            finish::<A>(cpu, state, frame, record, end, changed);
        }
        sequence
    } else {
        kernel::recseq::<A>(per_cpu)?
    };
    remove(cpu, state, depth, sequence);
    Some(())
}

/// The frame whose exit this is, or [`DEPTH`]. Those of the same task above it are inside of it, and over. Those of other
/// tasks are not: a task may lose its CPU at the end of a table function, and come back before others.
#[inline(never)]
fn find<A: Access>(cpu: &Cpu, state: &'static State, key: u64) -> u32 {
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

/// An exit without a frame: its frame is on the CPU where it entered, or was never made.
#[inline(always)]
fn orphan(cpu: &Cpu, state: &'static State) {
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

/// The checks that prove that the counters tell of this packet alone. Size, number and place of the counters need no
/// look: they change only with `private` or the replace counter.
#[inline(always)]
fn check<A: Access>(cpu: &Cpu, frame: &Frame, sequence: u32) {
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

/// Fills the exit half of the record and sends it. `changed` says whether a target may have changed the packet.
#[inline(always)]
fn finish<A: Access>(cpu: &Cpu, state: &State, frame: &Frame, record: *mut Record, end: &End, changed: bool) {
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    identify(cpu, traversal, frame);
    traversal.verdict = end.verdict;
    let long = is_long(traversal);
    let skb = if A::TYPED { end.skb } else { frame.skb.get() };
    // A stolen packet may be gone.
    if end.verdict & 0xff != NF_STOLEN
        && let Some(packet) = A::packet(skb)
    {
        traversal.exit.mark = packet.mark;
        traversal.exit.len = packet.len;
        traversal.facts |= fact::EXIT;
        let same = !changed
            && frame.doubts.get() == 0
            && (packet.mark, packet.len) == (traversal.entry.mark, traversal.entry.len);
        // SAFETY: a map value; the lengths are at most those of the arrays.
        traversal.exit.copied = unsafe {
            if same {
                traversal.facts |= fact::SAME_BYTES;
                0
            } else if long {
                let bytes = (&raw mut (*record).tail.exit_bytes).cast::<u8>();
                let len = snapshot::bounded(packet.linear(), LONG_EXIT_BYTES as u32);
                // The first of them are also where those of a short record are.
                let first = snapshot::bounded(packet.linear(), EXIT_BYTES as u32);
                copy((&raw mut traversal.exit_bytes).cast::<u8>(), first, packet.network());
                if copy(bytes, len, packet.network()) { len } else { 0 }
            } else {
                let bytes = (&raw mut traversal.exit_bytes).cast::<u8>();
                let len = snapshot::bounded(packet.linear(), EXIT_BYTES as u32);
                if copy(bytes, len, packet.network()) { len } else { 0 }
            }
        };
    } else {
        clear(&mut traversal.exit);
    }
    if config!(timed) != 0 {
        traversal.exit.took_ns = state.took_ns.get() as u32;
    }
    send_record(state, record, long);
}

/// Whether a traversal needs a [`LongTail`](tracer_common::legacy::LongTail).
#[inline(always)]
fn is_long(traversal: &Traversal) -> bool {
    traversal.match_count > FIRST_MATCHES as u32 || traversal.entry.copied > ENTRY_BYTES as u32
}

/// Sends a traversal of which nothing is known at its exit.
#[inline(always)]
pub fn send_without_exit(state: &State, record: *mut Record) {
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    clear(&mut traversal.exit);
    send_record(state, record, is_long(traversal));
}

#[inline(always)]
fn send_record(state: &State, record: *mut Record, long: bool) {
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    if !long {
        traversal.kind = kind::TRAVERSAL;
        // SAFETY: a map value and a reservation, both of the size of a traversal; the matches were written by
        // `snapshot`, those beyond the last one are left from others and not counted.
        unsafe { send_traversal(record, state) };
        return;
    }
    traversal.kind = kind::LONG_TRAVERSAL;
    let matches = snapshot::bounded(traversal.match_count, MAX_MATCHES as u32);
    let tail = (MORE_BYTES + LONG_EXIT_BYTES) as u64 + u64::from(matches) * size_of::<Match>() as u64;
    // SAFETY: at most the size of the record.
    unsafe { send(record.cast::<u8>(), size_of::<Traversal>() as u64 + tail) };
}
