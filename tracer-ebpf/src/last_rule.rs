//! `--last-rule`: packets that a legacy table drops, each with the rule that did it and no others.
//!
//! Most packets are accepted, and cost next to nothing: at the entry there is only a note, at the exit a look at the
//! verdict. Which rule dropped a packet is told by the counters of the rules that do nothing else: those with DROP or
//! REJECT, and policies. Each of them moves once for each packet that it drops. Every CPU has a copy of its counters,
//! from when it met this version of the table first, and from the last drop. At a drop exactly one of them must have moved,
//! and by one.
//!
//! What proves that it moved for this packet:
//!
//! - The traversal has a note here, so it has entered here; its table is the one that the copy was made of, before and
//!   after the counters are read.
//! - `xt_recseq` has moved for as many traversals as were seen to begin here: no drop was missed.
//! - No other traversal that may have moved its counter since the copy was made is still without an exit: one of a preempted
//!   task, one that another began, or one whose exit was lost or on another CPU. A note that is lost to another one casts
//!   doubt, too.
//! - The note is of this traversal, not of an earlier one of the same task that went to another CPU before its exit: an
//!   exit without a note is told to all CPUs, which then trust no older note.
//! - No exit was left out, and no saved counts were added to the counters.
//!
//! Without one of these, the rule is not known. Whatever is found, the counters become the new copy.
//!
//! A packet that is dropped so is in [`TOLD`] until the kernel frees it. What is freed as dropped and is not there was
//! dropped by something else; see [`dropped`](crate::ending::dropped).

use crate::config::{config, offset};
use crate::emit::count;
use crate::frame::{Frame, Shared, cpu, cpu_number, state};
use crate::kernel::{self, Access, Probed, read, read_pair};
use crate::legacy::{Call, drop_none};
use crate::maps::{CURRENT, LAST, MAX_BLOCKS, RECORDS, SNAPSHOTS, STRAYS, TOLD, replace_count, version};
use crate::preemption::Unpreempted;
use crate::record::{begin, identify, send_without_exit};
use crate::select::{Layout, Selected, is_wanted};
use crate::snapshot::{self, mask};
use core::cell::Cell;
use core::ffi::c_void;
use tracer_common::counter::Counter;
use tracer_common::legacy::{Match, RULES_PER_BLOCK, TABLE_SLOTS, doubt, fact, table_slot};

const NF_DROP: u32 = 0;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_IPV6: u32 = 10;
/// Traversals that can be open on one CPU at once.
const NOTES: u32 = 128;

/// A traversal that is open.
#[repr(C)]
pub struct Note {
    /// Where on the stack it was entered; 0 for none.
    key: Cell<u64>,
    /// [`Last::seen`] then.
    seen: Cell<u64>,
    /// [`STRAYS`] then.
    strays: Cell<u64>,
    /// Its arguments, where the exit does not have them.
    skb: Cell<u64>,
    state: Cell<u64>,
    table: Cell<u64>,
}

/// A table whose counters are kept.
#[repr(C)]
pub struct Kept {
    table: Cell<u64>,
    version: Cell<u64>,
    private: Cell<u64>,
    first_block: Cell<u64>,
    /// [`Last::seen`] when the copy was made: it may have what was open then already.
    copied: Cell<u64>,
    /// The same, where it is certain that it has. 0 where it is not.
    settled: Cell<u64>,
    /// [`Last::doubtful`] before that.
    doubtful: Cell<u64>,
    name: Cell<[u64; 4]>,
    number: Cell<u32>,
    size: Cell<u32>,
    replace_count: Cell<u32>,
    /// The pages of the copy, how many are in use, and how many there are. In each the packets of a rule are followed by
    /// whether it is one that drops.
    page: Cell<u32>,
    blocks: Cell<u32>,
    pages: Cell<u32>,
}

/// What one CPU keeps.
#[repr(C)]
pub struct Last {
    /// Outermost traversals that began, and saved counts that were added.
    seen: Shared,
    /// How often something happened after which no copy is good for a proof.
    doubtful: Shared,
    /// Where this CPU's `xt_recseq` is.
    recseq: Cell<u64>,
    /// `xt_recseq` at the last check, rounded up to the end of a traversal, and `seen` with what had not moved it yet.
    checked_sequence: Cell<u32>,
    /// Whether there was anything of that kind.
    pending: Cell<u32>,
    checked_seen: Cell<u64>,
    /// How far the counters of rules that drop have moved, and the sum of the numbers of those that did.
    moved: Cell<u64>,
    index: Cell<u64>,
    /// Packets told of.
    packets: Cell<u64>,
    next_page: Cell<u32>,
    reserved: u32,
    notes: [Note; NOTES as usize],
    tables: [Kept; TABLE_SLOTS as usize],
}

// SAFETY: each CPU has its own, and `Cpu::claim` lets one program at a time to what is not `Shared` and no note. A note that
// is overwritten while it is read has another key.
unsafe impl Sync for Last {}

impl Last {
    /// What is kept of a table, or what may be forgotten for it.
    #[inline(always)]
    fn table(&'static self, table: u64) -> &'static Kept {
        let first = self.kept(table_slot(table));
        if first.table.get() == table {
            return first;
        }
        let second = self.kept(table_slot(table) ^ 1);
        if second.table.get() == table || first.table.get() != 0 { second } else { first }
    }

    #[inline(always)]
    fn kept(&'static self, slot: u32) -> &'static Kept {
        let slot = mask::<{ TABLE_SLOTS - 1 }>(u64::from(slot)) as usize;
        // SAFETY: the mask keeps the index in range.
        unsafe { &*(&raw const self.tables).cast::<Kept>().add(slot) }
    }

    /// Traversals inside one another are some hundred bytes of stack apart.
    #[inline(always)]
    fn note(&'static self, key: u64) -> &'static Note {
        self.note_at(key >> 7)
    }

    #[inline(always)]
    fn note_at(&'static self, index: u64) -> &'static Note {
        let index = mask::<{ NOTES - 1 }>(index) as usize;
        // SAFETY: the mask keeps the index in range.
        unsafe { &*(&raw const self.notes).cast::<Note>().add(index) }
    }
}

/// The end of a traversal.
#[derive(Clone, Copy)]
pub struct End {
    /// What the exit has of it: the key, and perhaps the arguments.
    pub call: Call,
    /// What the function returned.
    pub verdict: u32,
}

/// A packet enters a table.
#[inline(always)]
pub fn enter<A: Access>(call: &Call) {
    let Some(last) = LAST.get(0) else { return };
    let known = last.table(call.table);
    if known.table.get() != call.table || known.version.get() != version(call.table) {
        keep(call.table);
    }
    note::<A>(last, call);
}

/// An ARP packet enters a table: it moves the same sequence count, and is nothing to be shown.
#[inline(always)]
pub fn enter_unwatched<A: Access>(call: &Call) {
    if let Some(last) = LAST.get(0) {
        note::<A>(last, &Call { table: 0, ..*call });
    }
}

#[inline(always)]
fn note<A: Access>(last: &'static Last, call: &Call) {
    // Inside the counted part of another one, a traversal does not move the sequence count.
    if read::<u32>(last.recseq.get()).is_some_and(|sequence| sequence & 1 == 0) {
        last.seen.add(1);
    }
    let note = last.note(call.key);
    if note.key.get() != 0 {
        last.doubtful.add(1);
    }
    note.seen.set(last.seen.get());
    note.strays.set(STRAYS.get());
    if !A::TYPED {
        note.skb.set(call.skb);
        note.state.set(call.state);
        note.table.set(call.table);
    }
    note.key.set(call.key);
}

/// Saved counts are about to be added to a table's counters, which moves `xt_recseq` as a traversal does.
#[inline(always)]
pub fn counters_added() {
    if let Some(last) = LAST.get(0) {
        last.seen.add(1);
        last.doubtful.add(1);
    }
}

/// A packet leaves a table. `end` fetches what there is to know from the context.
#[inline(always)]
pub fn leave<A: Access>(context: *mut c_void, end: impl Fn(*mut c_void) -> End) {
    let ended = end(context);
    if ended.verdict & 0xff == NF_DROP {
        dropped::<A, _>(context, end);
        return;
    }
    let Some(last) = LAST.get(0) else { return };
    let note = last.note(ended.call.key);
    if note.key.get() == ended.call.key {
        note.key.set(0);
    } else {
        STRAYS.add(1);
    }
}

/// Apart from the short way, which would have to share its registers.
#[inline(never)]
fn dropped<A: Access, F: Fn(*mut c_void) -> End>(context: *mut c_void, end: F) {
    let _unpreempted = Unpreempted::<A>::new();
    told(skb_of::<A>(&end(context).call));
    match cpu().claim() {
        Some(_alone) => drop_none(tell::<A>(&end(context))),
        None => {
            count(Counter::LeftOut, 1);
            if let Some(last) = LAST.get(0) {
                last.doubtful.add(1);
            }
        }
    }
}

/// What the packet of a traversal that ends is known by; 0 where that is not known.
#[inline(always)]
fn skb_of<A: Access>(call: &Call) -> u64 {
    if A::TYPED {
        return call.skb_number;
    }
    match LAST.get(0).map(|last| last.note(call.key)) {
        Some(note) if note.key.get() == call.key => note.skb.get(),
        _ => 0,
    }
}

/// A packet is dropped by what is watched: what is told of it is told here, and not where it is freed.
#[inline(always)]
pub fn told(skb: u64) {
    if TOLD.insert(skb, 0, 0).is_err() {
        count(Counter::Lost, 1);
    }
}

/// Looks for the rule that dropped a packet, and sends it if the packet is one that was asked for.
#[inline(always)]
fn tell<A: Access>(end: &End) -> Option<()> {
    let (last, state, record) = (LAST.get(0)?, state()?, RECORDS.get_ptr_mut(0)?);
    let mut call = end.call;
    let note = last.note(call.key);
    if !A::TYPED {
        call.skb = note.skb.get();
        call.skb_number = call.skb;
        call.state = note.state.get();
        call.table = note.table.get();
    }
    let is_noted = note.key.get() == call.key;
    let is_ours = is_noted && note.strays.get() == STRAYS.get();
    if is_noted {
        note.key.set(0);
    } else {
        STRAYS.add(1);
    }
    if !is_noted && !A::TYPED {
        // Nothing is known of it, not even which packet it was: what is freed at about this time may be that.
        count(Counter::LeftOut, 1);
        last.doubtful.add(1);
        return None;
    }
    // Of ARP.
    if call.table == 0 {
        return None;
    }
    let (hook, family) = A::hook_and_family(call.state)?;
    if family == NFPROTO_ARP {
        return None;
    }
    let frame = state.frame(0);
    frame.doubts.set(if is_ours { 0 } else { doubt::NO_ENTRY });
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    traversal.family = family;
    let known = last.table(call.table);
    if known.table.get() == call.table {
        show(frame, call.table, known);
        // It has counted before the copy was made, perhaps.
        if note.seen.get() <= known.copied.get() {
            frame.doubt(doubt::OTHERS);
        }
        settle(last, known, frame);
        if read::<u64>(call.table + offset!(table_private)) != Some(known.private.get())
            || known.version.get() != version(call.table)
        {
            frame.doubt(doubt::REPLACED);
            // The next traversal looks again.
            known.table.set(0);
        }
        traversal.number = known.number.get();
        traversal.size = known.size.get();
        // SAFETY: 32 bytes each; the destination is aligned to eight.
        unsafe {
            core::ptr::write_volatile((&raw mut traversal.table_name).cast::<[u64; 4]>(), known.name.get())
        };
    } else {
        frame.doubt(doubt::UNREADABLE);
        last.doubtful.add(1);
        frame.private.set(0);
        frame.replace_count.set(u32::MAX);
        traversal.number = 0;
        traversal.size = 0;
        let name: [u64; 4] = read(call.table + offset!(table_name))?;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile((&raw mut traversal.table_name).cast::<[u64; 4]>(), name) };
    }
    if !is_wanted::<A>(&call, Layout::IP) {
        return None;
    }
    begin::<A>(state, traversal, 0, &call, (hook, next_packet()?), kernel::now_ns(), (0, 0));
    traversal.facts |= fact::LAST_RULE;
    identify(cpu(), traversal, frame);
    traversal.verdict = end.verdict;
    let is_known = frame.doubts.get() == 0 && last.moved.get() == 1;
    let index = last.index.get() as u32;
    // SAFETY: a map value.
    unsafe {
        (&raw mut (*record).tail.matches).cast::<Match>().write_volatile(Match { index, count: 1 });
    }
    traversal.match_count = u32::from(is_known);
    send_without_exit(state, record);
    Some(())
}

/// A packet of which something is told: once, so that it never goes on.
#[inline(always)]
pub fn next_packet() -> Option<Selected> {
    let last = LAST.get(0)?;
    let told = last.packets.get().wrapping_add(1);
    last.packets.set(told);
    Some(Selected { packet: (cpu_number() << 48) | told, first: true })
}

/// Lets the functions of [`snapshot`] see a table as that of a frame.
#[inline(always)]
fn show(frame: &Frame, table: u64, known: &Kept) {
    frame.table.set(table);
    frame.private.set(known.private.get());
    frame.replace_count.set(known.replace_count.get());
    frame.first_block.set(known.first_block.get());
    frame.number.set(known.number.get());
    frame.page.set(known.page.get());
    frame.blocks.set(known.blocks.get());
}

/// Finds out which counters have moved since the copy was made, and makes it anew.
#[inline(always)]
fn settle(last: &'static Last, known: &Kept, frame: &Frame) {
    last.moved.set(0);
    last.index.set(0);
    // What becomes doubtful from here on may not be in the copy yet.
    let doubtful = last.doubtful.get();
    let before = read::<u32>(last.recseq.get());
    if known.blocks.get() == 0 {
        frame.doubt(doubt::TOO_LARGE);
    } else if settle_blocks() != 0 {
        frame.doubt(doubt::UNREADABLE);
    }
    let seen = last.seen.get();
    let clean = check(last, seen, before);
    if known.doubtful.get() != last.doubtful.get() {
        frame.doubt(doubt::SEQUENCE);
    }
    if last.moved.get() > 1 || is_other_open(known.settled.get()) != 0 {
        frame.doubt(doubt::OTHERS);
    }
    known.doubtful.set(doubtful);
    known.copied.set(seen);
    known.settled.set(if clean { seen } else { 0 });
}

/// Compares how far `xt_recseq` moved with the traversals that were seen to begin. Says whether all that began have moved
/// it to its end, but for the one whose counted part this is in. `before` is what it was before the counters were read.
#[inline(always)]
fn check(last: &Last, seen: u64, before: Option<u32>) -> bool {
    let Some(sequence) = read::<u32>(last.recseq.get()) else {
        last.doubtful.add(1);
        return false;
    };
    if before != Some(sequence) {
        last.doubtful.add(1);
    }
    let rounded = sequence.wrapping_add(sequence & 1);
    let moved = u64::from(rounded.wrapping_sub(last.checked_sequence.get()) / 2);
    let began = seen.wrapping_sub(last.checked_seen.get());
    let mut pending = 0;
    if moved != began {
        last.doubtful.add(1);
        if moved > began {
            count(Counter::Missed, moved - began);
        } else if last.pending.get() == 0 {
            // One that has not come so far yet. If it never does, because its task was moved, that is forgotten.
            pending = began - moved;
        }
    }
    last.checked_sequence.set(rounded);
    last.checked_seen.set(seen.wrapping_sub(pending));
    last.pending.set((pending != 0) as u32);
    moved == began && sequence & 1 == 0 && before == Some(sequence)
}

/// Whether a traversal is open that began when more than so many had been seen. A global function, like those of
/// [`snapshot`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_other_open(settled: u64) -> u32 {
    let Some(last) = LAST.get(0) else { return 1 };
    let mut open = 0;
    for index in 0..u64::from(NOTES) {
        let note = last.note_at(index);
        // Without a branch. Keys are multiples of eight, and may be above 2^63.
        open |= snapshot::is_nonzero(note.key.get() >> 1) & snapshot::is_below(settled, note.seen.get());
    }
    open as u32
}

/// [`settle_block`] for all blocks of the table that is shown.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle_blocks() -> u32 {
    let Some(state) = state() else { return 1 };
    let count = state.frame(0).blocks.get();
    for block in 0..MAX_BLOCKS {
        if block >= snapshot::opaque(count) {
            break;
        }
        if settle_block(block) != 0 {
            return 1;
        }
    }
    0
}

/// Adds up how far the counters of rules that drop have moved since the copy was made, and makes it anew. Returns 0, or 1
/// when they could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle_block(block: u32) -> u32 {
    let (Some(state), Some(last)) = (state(), LAST.get(0)) else { return 1 };
    let frame = state.frame(0);
    let Some(page) = SNAPSHOTS.get_ptr_mut(frame.page.get().wrapping_add(block)) else { return 1 };
    let Some(current) = CURRENT.get_ptr_mut(0) else { return 1 };
    if !snapshot::copy_block(frame, 0, block, current) {
        return 1;
    }
    let rules = snapshot::rules_in_block(frame.number.get(), block);
    let (page, current) = (page.cast::<u64>(), current.cast_const().cast::<u64>());
    let mut sum = 0_u64;
    let mut indexes = 0_u64;
    for first in (0..RULES_PER_BLOCK).step_by(snapshot::RULES_PER_TURN as usize) {
        if first >= snapshot::opaque(rules) {
            break;
        }
        for rule in first..first + snapshot::RULES_PER_TURN {
            let at = rule as usize * 2;
            // SAFETY: both are map values of 512 numbers.
            unsafe {
                let counter = *current.add(at);
                let moved = (counter.wrapping_sub(*page.add(at)) & 0xffff_ffff) * *page.add(at + 1);
                *page.add(at) = counter;
                sum = sum.wrapping_add(moved);
                let index = u64::from(block * RULES_PER_BLOCK + rule);
                indexes = indexes.wrapping_add(index * snapshot::is_nonzero(moved));
            }
        }
    }
    last.moved.set(last.moved.get().wrapping_add(sum));
    last.index.set(last.index.get().wrapping_add(indexes));
    0
}

/// A version of a table is met for the first time on this CPU: makes a copy of its counters.
#[inline(never)]
fn keep(table: u64) {
    if let Some(_alone) = cpu().claim() {
        drop_none(ask(table));
    }
}

#[inline(always)]
fn ask(table: u64) -> Option<()> {
    let (last, state, record) = (LAST.get(0)?, state()?, RECORDS.get_ptr_mut(0)?);
    let known = last.table(table);
    // Nothing is known while it is being asked for.
    known.table.set(0);
    let version = version(table);
    known.doubtful.set(last.doubtful.get());
    let per_cpu = kernel::per_cpu_offset(cpu())?;
    if last.recseq.get() == 0 {
        let sequence = kernel::recseq::<Probed>(per_cpu)?;
        last.checked_sequence.set(sequence.wrapping_add(sequence & 1));
        last.checked_seen.set(last.seen.get());
        last.recseq.set(config!(recseq).wrapping_add(per_cpu));
    }
    let replaced = replace_count(table)?;
    let private: u64 = read(table + offset!(table_private))?;
    let (size, number) = read_pair(private, offset!(info_size), offset!(info_number))?;
    let family: u8 = read(table + offset!(table_af))?;
    known.first_block.set(snapshot::first_block(private, family, per_cpu)?);
    known.name.set(read(table + offset!(table_name))?);
    known.private.set(private);
    known.replace_count.set(replaced);
    known.number.set(number);
    known.size.set(size);
    let wanted = snapshot::blocks(number);
    if wanted > known.pages.get() {
        let page = last.next_page.get();
        let next = page.saturating_add(wanted);
        let fits = wanted <= MAX_BLOCKS && next <= config!(snapshot_pages);
        if fits {
            known.page.set(page);
            known.pages.set(wanted);
            last.next_page.set(next);
        }
    }
    let family = u32::from(family);
    let fits = wanted <= known.pages.get()
        && (wanted == 1 || snapshot::locate_blocks(table, private, family, replaced) == 0);
    known.blocks.set(if fits { wanted } else { 0 });
    // SAFETY: a per-CPU map value of this program's own.
    unsafe { (*record).traversal.family = family as u8 };
    show(state.frame(0), table, known);
    if fits
        && (snapshot::find_policies(private, family) != 0 || mark_blocks(family) != 0 || settle_blocks() != 0)
    {
        return None;
    }
    known.copied.set(last.seen.get());
    known.settled.set(0);
    known.version.set(version);
    known.table.set(table);
    Some(())
}

/// [`mark_block`] for all blocks of the table that is shown.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark_blocks(family: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let count = state.frame(0).blocks.get();
    for block in 0..MAX_BLOCKS {
        if block >= snapshot::opaque(count) {
            break;
        }
        if mark_block(family, block) != 0 {
            return 1;
        }
    }
    0
}

/// Marks the rules of a block that drop. Returns 0, or 1 when they could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark_block(family: u32, block: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let frame = state.frame(0);
    let index = frame.page.get().wrapping_add(block);
    let Some(page) = SNAPSHOTS.get_ptr_mut(index) else { return 1 };
    let page = page.cast::<u64>();
    for rule in 0..RULES_PER_BLOCK as usize {
        // SAFETY: a map value of 512 numbers.
        unsafe { page.add(rule * 2 + 1).write_volatile(0) };
    }
    let private = frame.private.get();
    let Some(at) = snapshot::block_offset(frame, block) else { return 1 };
    let mut at = u64::from(at);
    let entries = private + offset!(info_entries);
    let rules = snapshot::rules_in_block(frame.number.get(), block);
    for rule in 0..RULES_PER_BLOCK {
        if rule >= snapshot::opaque(rules) {
            break;
        }
        let length = mark_entry(entries + at, family, index, rule);
        if length == 0 {
            return 1;
        }
        at = (at + u64::from(length)) & 0xffff_ffff;
    }
    0
}

/// Marks an entry if it can do nothing but drop: the `rule`th of a page. Returns its length, or 0 when it could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark_entry(entry: u64, family: u32, page: u32, rule: u32) -> u32 {
    /// As a verdict in an entry.
    const DROP: i32 = -(NF_DROP as i32) - 1;
    /// `xt_target.name`, which begins with this only where it is the name.
    const NAME: u64 = 16;
    const REJECT: u64 = u64::from_le_bytes(*b"REJECT\0\0");
    let (Some(state), Some(page)) = (state(), SNAPSHOTS.get_ptr_mut(page)) else { return 0 };
    let target_offset = if family == NFPROTO_IPV6 { 140 } else { 88 };
    let Some([offset, length]) = read::<[u16; 2]>(entry + target_offset) else { return 0 };
    // `struct xt_standard_target`: the kernel's target, the name's other bytes, the verdict.
    let Some([_, target, _, _, verdict]) = read::<[u64; 5]>(entry + u64::from(offset)) else { return 0 };
    let drops = if target == snapshot::standard_target(state) {
        verdict as i32 == DROP
    } else {
        read::<u64>(target + NAME).is_some_and(|name| name & (u64::MAX >> 8) == REJECT)
    };
    let slot = mask::<{ RULES_PER_BLOCK - 1 }>(u64::from(rule)) as usize;
    // SAFETY: a map value of 512 numbers; the index is masked.
    unsafe { page.cast::<u64>().add(slot * 2 + 1).write_volatile(u64::from(drops)) };
    u32::from(length)
}
