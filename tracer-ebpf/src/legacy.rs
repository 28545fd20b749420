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
use crate::emit::count;
use crate::frame::{ALONE, Cpu, DEPTH, Frame, KnownTable, Rules, SMALL, State, TRACED, cpu, state};
use crate::kernel::{self, Access, Probed, read, read_pair};
use crate::maps::{RECORDS, replace_count};
use crate::nft::nft;
use crate::preemption::Unpreempted;
use crate::record::{begin, begin_counted, finish, put};
use crate::select::{Layout, Question, Selected, goes_on_untraced};
use crate::snapshot;
use crate::unwind::{check, end_returned, find, orphan, remove, uncover};
use core::ffi::c_void;
use tracer_common::count::by;
use tracer_common::counter::Counter;
use tracer_common::legacy::{Traversal, doubt, fact};

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
    disturb();
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
pub fn enter_unselected<A: Access>(context: *mut c_void, call: impl Fn(*mut c_void) -> Call) {
    let cpu = cpu();
    if cpu.depth.get() != 0 {
        end_returned::<A, _>(context, &call);
    }
    let _unpreempted = Unpreempted::<A>::new();
    match cpu.claim() {
        Some(_alone) => drop_none(if cpu.depth.get() == 0 {
            pass::<A>(cpu)
        } else {
            push::<A>(cpu, &call(context), None)
        }),
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
fn disturb() {
    if let Some(state) = state() {
        state.disturbed_ns.set(kernel::now_ns());
    }
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
        disturb();
    }
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
        let moved = cpu.moved(sequence);
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

/// Follows a traversal: one that is traced, or one inside another that is followed.
#[inline(always)]
fn push<A: Access>(cpu: &Cpu, call: &Call, traced: Option<(u8, Selected)>) -> Option<()> {
    let state = state()?;
    let task = kernel::task();
    let now_ns = kernel::now_ns();
    let depth = cpu.depth.get();
    if depth >= DEPTH {
        state.disturbed_ns.set(now_ns);
        return None;
    }
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    let per_cpu = kernel::per_cpu_offset(cpu)?;
    let mut page = 0;
    if depth > 0 {
        let outer = state.frame(depth - 1);
        if outer.traced.get() != 0 {
            snapshot::suspend(outer, depth - 1);
        }
        outer.inner.set(outer.inner.get().wrapping_add(1));
        page = outer.page.get() + outer.blocks.get();
    }
    let sequence = kernel::recseq::<A>(per_cpu)?;
    if depth > 0 {
        let outer = state.frame(depth - 1);
        outer.advanced.set(outer.advanced_to(sequence));
    }
    // Inside the counted part of another one, a traversal does not move the sequence count.
    let missed = if sequence & 1 == 0 { checkpoint(cpu, state, sequence, now_ns) } else { (0, 0) };

    let frame = state.frame(depth);
    frame.key.set(call.key);
    frame.task.set(task);
    frame.table.set(call.table);
    frame.skb.set(call.skb_number);
    frame.entry_sequence.set(sequence);
    frame.segment_sequence.set(sequence);
    frame.advanced.set(0);
    frame.entry_ns.set(now_ns);
    frame.generation.set(cpu.generation.get());
    frame.inner.set(0);
    frame.doubts.set(0);
    frame.page.set(page);
    frame.blocks.set(0);
    frame.number.set(0);
    frame.traced.set(0);
    if let Some(traced) = traced {
        let record = RECORDS.get_ptr_mut(depth)?;
        // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
        let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
        frame.traced.set(if cpu.outermost.get() == 1 { ALONE } else { TRACED });
        if counts::counts() {
            begin_counted::<A>(traversal, call, traced);
        } else {
            begin::<A>(state, traversal, depth, call, traced, now_ns, missed);
            if depth > 0 {
                traversal.facts |= fact::NESTED;
            }
        }
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
