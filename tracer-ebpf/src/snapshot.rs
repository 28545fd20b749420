//! Counter snapshots, block by block.
//!
//! The counters of a table lie in 4096-byte per-CPU blocks of 256 rules each, in blob order
//! (`xt_percpu_counter_alloc` in `net/netfilter/x_tables.c`). A block is found through the counter pointer of its
//! first entry. While a traversal has another one inside it, its snapshot holds "snapshot minus counters when the
//! inner one began"; adding the counters when the inner one has ended makes it a snapshot again that leaves out what
//! the inner one did.
//!
//! The functions that loop over a block are global functions to the verifier: it looks at each once, whatever the
//! size of the table, and so are those that do more than a little in each turn of a loop. They take plain numbers,
//! because old kernels accept nothing else there. A branch inside a loop makes the verifier look at what follows once
//! more in every turn, which is most of the time that a trace takes to start.

use crate::config::offset;
use crate::frame::{Frame, HOOKS, KnownTable, Rules, SMALL, State, cpu, state};
use crate::kernel::{copy, per_cpu_offset, read};
use crate::maps::{
    BLOCK_OFFSETS, BLOCK_SCRATCH, Block, BlockOffsets, CURRENT, MAX_BLOCKS, RECORDS, Record, SNAPSHOTS,
};
use tracer_common::legacy::{MAX_MATCHES, RULES_PER_BLOCK, doubt};

/// IPv4 and IPv6 entries: where the counters lie, and the length of the entry (`struct ipt_entry`, `struct ip6t_entry`;
/// part of the kernel's interface with user space, the same on every kernel).
#[inline(always)]
fn entry_layout(family: u8) -> (u64, u64) {
    if family == 10 { (152, 142) } else { (96, 90) }
}

const NFPROTO_IPV6: u32 = 10;

/// Keeps a value in its range where the verifier can see it; the compiler would drop the mask after a comparison.
#[inline(always)]
pub fn mask<const MASK: u32>(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: one AND instruction.
    unsafe { core::arch::asm!("{0} &= {mask}", inout(reg) value, mask = const MASK) };
    value
}

/// 1 for any number from 1 to 2^63, 0 for 0, without a branch: a branch for each rule is what the verifier cannot
/// digest.
#[inline(always)]
pub fn is_nonzero(value: u64) -> u64 {
    let mut negated = value;
    // SAFETY: one instruction.
    unsafe { core::arch::asm!("{0} = -{0}", inout(reg) negated) };
    negated >> 63
}

/// 1 where `left` is the smaller one, else 0, likewise. Both are below 2^63.
#[inline(always)]
pub fn is_below(left: u64, right: u64) -> u64 {
    let mut difference = left;
    // SAFETY: one instruction.
    unsafe { core::arch::asm!("{0} -= {1}", inout(reg) difference, in(reg) right) };
    difference >> 63
}

/// Rules that are looked at in one turn of a loop over a block, because the verifier looks at every turn.
pub const RULES_PER_TURN: u32 = 8;

/// Rules in block `block` of a table with `number` entries.
#[inline(always)]
pub fn rules_in_block(number: u32, block: u32) -> u32 {
    let left = number.wrapping_sub(block * RULES_PER_BLOCK);
    if left > RULES_PER_BLOCK { RULES_PER_BLOCK } else { left }
}

/// Blocks of a table with `number` entries.
#[inline(always)]
pub fn blocks(number: u32) -> u32 {
    number.wrapping_add(RULES_PER_BLOCK - 1) / RULES_PER_BLOCK
}

/// Where a block of the frame's table begins in its blob, if the blocks of that version have been located.
#[inline(always)]
pub fn block_offset(frame: &Frame, block: u32) -> Option<u32> {
    if block == 0 {
        return Some(0);
    }
    let offsets = BLOCK_OFFSETS.get_ptr(frame.table.get())?;
    let index = mask::<{ MAX_BLOCKS - 1 }>(u64::from(block)) as usize;
    // SAFETY: a map value; the index is below the array's length.
    let offset = unsafe { core::ptr::read_volatile((&raw const (*offsets).offset).cast::<u32>().add(index)) };
    is_of(offsets, frame.private.get()).then_some(offset)
}

/// Whether this is about that version of its table. Asked when it has been read: the map may give the memory to another table at
/// any time, and writes the version first.
#[inline(always)]
fn is_of(offsets: *const BlockOffsets, private: u64) -> bool {
    // SAFETY: a map value.
    unsafe { core::ptr::read_volatile(&raw const (*offsets).private) == private }
}

/// Address of this CPU's copy of a counter block of the frame's table.
#[inline(always)]
fn block_address(frame: &Frame, family: u8, block: u32) -> Option<u64> {
    if block == 0 {
        return Some(frame.first_block.get());
    }
    let entry = block_offset(frame, block)?;
    let (counters, _) = entry_layout(family);
    let pointer: u64 = read(frame.private.get() + offset!(info_entries) + u64::from(entry) + counters)?;
    Some(pointer.wrapping_add(per_cpu_offset(cpu())?))
}

/// Address of this CPU's first counter block, as the blob has it now.
#[inline(always)]
pub fn first_block(private: u64, family: u8, per_cpu: u64) -> Option<u64> {
    let (counters, _) = entry_layout(family);
    let pointer: u64 = read(private + offset!(info_entries) + counters)?;
    // Blocks are aligned to their size. Where there is one possible CPU the count itself stands here instead.
    if pointer & 4095 != 0 || pointer == 0 { None } else { Some(pointer.wrapping_add(per_cpu)) }
}

/// `value`, about which the compiler forgets what it knew. Loops compare their counter with a constant and with an
/// opaque limit: of two comparisons the compiler would keep one, and of a counter and a limit that are both in registers
/// older verifiers learn nothing.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    whole(u64::from(value)) as u32
}

/// [`opaque`] for a whole register.
#[inline(always)]
fn whole(value: u64) -> u64 {
    let mut opaque = value;
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) opaque) };
    opaque
}

/// `value`, at most `limit`, compared where the verifier can see it.
#[inline(always)]
pub fn bounded(value: u32, limit: u32) -> u32 {
    let value = opaque(value);
    if value > limit { limit } else { value }
}

/// The value, or the largest of 32 bits.
#[inline(always)]
pub fn bounded_word(value: u64) -> u32 {
    if whole(value) > u64::from(u32::MAX) { u32::MAX } else { value as u32 }
}

#[inline(always)]
fn family_of(depth: u32) -> Option<u8> {
    let record = RECORDS.get_ptr(depth)?;
    // SAFETY: a map value.
    Some(unsafe { (*record).traversal.family })
}

/// Copies a counter block to `destination`, in whole turns: what is behind the last counter is nobody's, and stays as it is.
#[inline(always)]
pub fn copy_block(frame: &Frame, depth: u32, block: u32, destination: *mut Block) -> bool {
    let Some(family) = family_of(depth) else { return false };
    let Some(address) = block_address(frame, family, block) else { return false };
    let rules = rules_in_block(frame.number.get(), block).next_multiple_of(RULES_PER_TURN);
    let bytes = mask::<8191>(u64::from(rules) * 16) as u32;
    if bytes > 4096 {
        return false;
    }
    // SAFETY: a map value of 4096 bytes; the length is checked above.
    unsafe { copy(destination.cast::<u8>(), bytes, address) }
}

/// Takes the snapshot of one block, if the traversal can meet any rule of it. Returns 0, or 1 when it could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn snapshot_block(depth: u32, block: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let frame = state.frame(depth);
    if !can_meet(frame, block) {
        return 0;
    }
    let Some(page) = SNAPSHOTS.get_ptr_mut(frame.page.get().wrapping_add(block)) else { return 1 };
    if copy_block(frame, depth, block, page) { 0 } else { 1 }
}

/// What counters are multiplied by, to be added (`resume` 1) or subtracted (0).
#[inline(always)]
fn sign(resume: u32) -> u64 {
    u64::from(resume).wrapping_mul(2).wrapping_sub(1)
}

/// Subtracts (`resume` 0) or adds (1) the counters of a block to its snapshot, where it has one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn adjust_block(depth: u32, block: u32, resume: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let frame = state.frame(depth);
    if !can_meet(frame, block) {
        return 0;
    }
    let Some(page) = SNAPSHOTS.get_ptr_mut(frame.page.get().wrapping_add(block)) else { return 1 };
    let Some(current) = CURRENT.get_ptr_mut(0) else { return 1 };
    if !copy_block(frame, depth, block, current) {
        return 1;
    }
    let rules = rules_in_block(frame.number.get(), block);
    let (page, current) = (page.cast::<u64>(), current.cast::<u64>());
    let sign = sign(resume);
    for first in (0..RULES_PER_BLOCK).step_by(RULES_PER_TURN as usize) {
        if first >= opaque(rules) {
            break;
        }
        for rule in 0..RULES_PER_TURN {
            let at = (first + rule) as usize * 2;
            // SAFETY: both are map values of 512 numbers.
            unsafe {
                let counter = (*current.add(at)).wrapping_mul(sign);
                *page.add(at) = (*page.add(at)).wrapping_add(counter);
            }
        }
    }
    0
}

/// Adds the rules of a block whose counters moved to the frame's record, if the traversal can meet any. Hardly any has: a turn
/// is looked at rule by rule only where one of it has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn compare_block(depth: u32, block: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let frame = state.frame(depth);
    if !can_meet(frame, block) {
        return 0;
    }
    let Some(page) = SNAPSHOTS.get_ptr(frame.page.get().wrapping_add(block)) else { return 1 };
    let Some(current) = CURRENT.get_ptr_mut(0) else { return 1 };
    if !copy_block(frame, depth, block, current) {
        return 1;
    }
    let rules = rules_in_block(frame.number.get(), block);
    let (page, current) = (page.cast::<u64>(), current.cast_const().cast::<u64>());
    for first in (0..RULES_PER_BLOCK).step_by(RULES_PER_TURN as usize) {
        if first >= opaque(rules) {
            break;
        }
        let mut moved = 0;
        for rule in 0..RULES_PER_TURN {
            let at = (first + rule) as usize * 2;
            // SAFETY: both are map values of 512 numbers.
            moved |= unsafe { *current.add(at) ^ *page.add(at) };
        }
        if moved != 0 && compare_turn(depth, block, first) != 0 {
            return 1;
        }
    }
    0
}

/// Adds the rules of one turn of [`compare_block`] whose counters moved. A function of its own, so that the verifier need not look
/// at it in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn compare_turn(depth: u32, block: u32, first: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let Some(page) = SNAPSHOTS.get_ptr(state.frame(depth).page.get().wrapping_add(block)) else { return 1 };
    let Some(current) = CURRENT.get_ptr(0) else { return 1 };
    let Some(record) = RECORDS.get_ptr_mut(depth) else { return 1 };
    let first = mask::<{ RULES_PER_BLOCK - RULES_PER_TURN }>(u64::from(first));
    // SAFETY: map values; every index is masked to the length of the array it goes into.
    unsafe {
        let (page, current) =
            (page.cast::<u64>().add(first as usize * 2), current.cast::<u64>().add(first as usize * 2));
        let matches = (&raw mut (*record).tail.matches).cast::<u64>();
        let mut found = u64::from((*record).traversal.match_count);
        for rule in 0..RULES_PER_TURN {
            let at = rule as usize * 2;
            let moved = (*current.add(at)).wrapping_sub(*page.add(at)) & 0xffff_ffff;
            // One store of a whole `Match`: index in the low half, count in the high one. It stays only where the
            // count is not zero, because the next one overwrites it.
            let index = u64::from(block * RULES_PER_BLOCK) + first + u64::from(rule);
            let slot = mask::<255>(found) as usize;
            core::ptr::write_volatile(matches.add(slot), index | (moved << 32));
            found += is_nonzero(moved);
        }
        (*record).traversal.match_count = found as u32;
    }
    0
}

/// Finds where counter block `block` begins: walks 256 entries from the beginning of the one before.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn locate_block(entries: u64, family: u32, block: u32) -> u32 {
    let Some(offsets) = BLOCK_SCRATCH.get_ptr_mut(0) else { return 1 };
    let (_, next_offset) = if family == NFPROTO_IPV6 { entry_layout(10) } else { entry_layout(2) };
    // SAFETY: a map value; the index is below the array's length.
    unsafe {
        let index = mask::<255>(u64::from(block.wrapping_sub(1))) as usize;
        let array = (&raw mut (*offsets).offset).cast::<u32>();
        let mut at = u64::from(core::ptr::read_volatile(array.add(index)));
        for _ in 0..RULES_PER_BLOCK {
            let Some(length) = read::<u16>(entries + at + next_offset) else { return 1 };
            at = (at + u64::from(length)) & 0xffff_ffff;
        }
        core::ptr::write_volatile(array.add(mask::<255>(u64::from(block)) as usize), at as u32);
    }
    0
}

/// Makes sure that the blocks of a table can be found. Done once for each version of a table: when it is replaced, or at
/// its first traced traversal. Returns 0, or 1 when they cannot be found.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn locate_blocks(table: u64, private: u64, family: u32, replace_count: u32) -> u32 {
    let Some(number) = read::<u32>(private + offset!(info_number)) else { return 1 };
    if let Some(known) = BLOCK_OFFSETS.get_ptr(table) {
        // SAFETY: a map value.
        let is_known = unsafe { (*known).number == number && (*known).replace_count == replace_count };
        if is_known && is_of(known, private) {
            return 0;
        }
    }
    let Some(offsets) = BLOCK_SCRATCH.get_ptr_mut(0) else { return 1 };
    let entries = private + offset!(info_entries);
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        (*offsets).private = private;
        (*offsets).replace_count = replace_count;
        (*offsets).number = number;
        (*offsets).offset[0] = 0;
    }
    let count = blocks(number);
    for block in 1..MAX_BLOCKS {
        if block >= opaque(count) {
            break;
        }
        if locate_block(entries, family, block) != 0 {
            return 1;
        }
    }
    // SAFETY: as above; the map copies the value.
    if unsafe { BLOCK_OFFSETS.insert(&table, &*offsets, 0).is_ok() } { 0 } else { 1 }
}

/// What [`block_at`] gives where the blocks of that version are not known.
const NOWHERE: u32 = u32::MAX;

/// The block that holds the entry at `offset` of a table's version whose blocks have been located.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn block_at(table: u64, private: u64, offset: u32) -> u32 {
    let Some(offsets) = BLOCK_OFFSETS.get_ptr(table) else { return NOWHERE };
    // SAFETY: a map value.
    let number = unsafe { core::ptr::read_volatile(&raw const (*offsets).number) };
    let mut found = 0;
    // The halves of what is left to look at.
    for half in (0..MAX_BLOCKS.ilog2()).rev() {
        let block = found + (1 << half);
        // SAFETY: a map value; the index is below the array's length.
        let first = unsafe {
            let array = (&raw const (*offsets).offset).cast::<u32>();
            core::ptr::read_volatile(array.add(mask::<{ MAX_BLOCKS - 1 }>(block) as usize))
        };
        let is_in =
            is_below(block, u64::from(blocks(number))) & is_below(u64::from(first), u64::from(offset) + 1);
        found += is_in << half;
    }
    if is_of(offsets, private) { found as u32 } else { NOWHERE }
}

/// Finds out which blocks a traversal of `hook` can meet: those of the hook's chain, and those behind the last built-in
/// chain, where the user chains are. A large table is mostly one chain, and it need not be this hook's.
#[inline(always)]
pub fn reach(frame: &Frame, hook: u8) -> Option<()> {
    let (table, private) = (frame.table.get(), frame.private.get());
    let hook = mask::<7>(u64::from(hook));
    if hook > 4 {
        return None;
    }
    let start: u32 = read(private + offset!(info_hook_entry) + hook * 4)?;
    let end: u32 = read(private + offset!(info_underflow) + hook * 4)?;
    let underflow: [u32; 5] = read(private + offset!(info_underflow))?;
    let mut last = 0;
    for end in underflow {
        // All ones where the table has no chain at a hook.
        if end != u32::MAX && end > last {
            last = end;
        }
    }
    let at = |offset| block_at(table, private, offset);
    let (chain_first, chain_last, user_first) = (at(start), at(end), at(last));
    if chain_first == NOWHERE || chain_last == NOWHERE || user_first == NOWHERE {
        // Another version has taken its place meanwhile.
        frame.doubt(doubt::UNREADABLE);
    }
    frame.chain_first.set(chain_first);
    frame.chain_last.set(chain_last);
    frame.user_first.set(user_first);
    Some(())
}

/// Whether the frame's traversal can meet a rule of this block.
#[inline(always)]
fn can_meet(frame: &Frame, block: u32) -> bool {
    let in_chain = block >= frame.chain_first.get() && block <= frame.chain_last.get();
    in_chain || block >= frame.user_first.get()
}

/// [`snapshot_block`] for every block of a frame's table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_blocks(depth: u32) -> u32 {
    for_each_block(depth, |block| snapshot_block(depth, block))
}

/// [`adjust_block`] for every block of a frame's table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn adjust_blocks(depth: u32, resume: u32) -> u32 {
    for_each_block(depth, |block| adjust_block(depth, block, resume))
}

/// [`compare_block`] for every block of a frame's table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn compare_blocks(depth: u32) -> u32 {
    for_each_block(depth, |block| compare_block(depth, block))
}

/// Does something with every block of a frame's table. Returns 0, or 1 when it failed for one.
#[inline(always)]
fn for_each_block(depth: u32, does: impl Fn(u32) -> u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let count = state.frame(depth).blocks.get();
    for block in 0..MAX_BLOCKS {
        if block >= opaque(count) {
            break;
        }
        if does(block) != 0 {
            return 1;
        }
    }
    0
}

/// Takes the snapshot of the frame's table.
#[inline(always)]
pub fn take(frame: &Frame, depth: u32) {
    check(frame, take_blocks(depth));
}

/// What [`survey`] keeps in memory: what is in registers the verifier knows something about, other things on each way
/// to a loop, and would look at the loop once for each.
#[repr(C)]
pub struct Policies {
    /// The target of all policies, which is that of all verdicts.
    target: u64,
    /// The offset of the last one.
    last: u32,
    /// Fills to eight.
    reserved: u32,
}

/// The target of all verdicts of the table whose policies were found last.
#[inline(always)]
pub fn standard_target(state: &State) -> u64 {
    // SAFETY: a map value.
    unsafe { (&raw const (*state.policies.get()).target).read_volatile() }
}

/// Finds the policies of a table. Returns 0, or 1 when they could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_policies(private: u64, family: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let policies = state.policies.get();
    let entries = private + offset!(info_entries);
    // SAFETY: a map value.
    unsafe {
        (&raw mut (*policies).last).write_volatile(0);
        for hook in 0..5 {
            let Some(policy) = read::<u32>(private + offset!(info_underflow) + hook * 4) else { return 1 };
            if policy == u32::MAX {
                continue;
            }
            let Some((target, _)) = target(entries + u64::from(policy), family) else { return 1 };
            (&raw mut (*policies).target).write_volatile(target);
            if policy > (&raw const (*policies).last).read_volatile() {
                (&raw mut (*policies).last).write_volatile(policy);
            }
        }
    }
    0
}

/// Looks at each entry of a small table whose policies have been found, for what [`KnownTable`] keeps of them. Returns
/// 0, or 1 when they could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn survey(table: u64, private: u64, family: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let known = state.table(table);
    let entries = private + offset!(info_entries);
    if state.ask_places(private).is_none() {
        return 1;
    }
    let (first, last) = (known.hook_first.get().cast::<u32>(), known.hook_last.get().cast::<u32>());
    // SAFETY: map values, each with room for every hook.
    unsafe {
        for hook in 0..5 {
            first.add(hook).write_volatile(0);
            last.add(hook).write_volatile(0);
        }
        known.changers.set(0);
        known.user_first.set(1);
        let number = known.number.get();
        let mut at = 0;
        for rule in 0..SMALL {
            if rule >= opaque(number) {
                break;
            }
            let length = survey_entry(table, entries, at as u32, rule, family);
            if length == 0 {
                return 1;
            }
            at = (at + u64::from(length)) & 0xffff_ffff;
        }
    }
    0
}

/// Looks at one entry for [`survey`]: the `rule`th from 0, at this offset. Returns its length, or 0 when it could not be
/// read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn survey_entry(table: u64, entries: u64, at: u32, rule: u32, family: u32) -> u32 {
    let Some(state) = state() else { return 0 };
    let known = state.table(table);
    let at = u64::from(at);
    let Some((target, length)) = target(entries + at, family) else { return 0 };
    let (first, last) = (known.hook_first.get().cast::<u32>(), known.hook_last.get().cast::<u32>());
    let places = state.known_places();
    // SAFETY: map values, each with room for every hook.
    unsafe {
        let policies = state.policies.get();
        let standard = (&raw const (*policies).target).read_volatile();
        let last_policy = (&raw const (*policies).last).read_volatile();
        known.changers.set(known.changers.get() | is_nonzero(target ^ standard) << (rule & 63));
        add_if_below(known.user_first.as_ptr(), at, last_policy);
        for hook in 0..5 {
            add_if_below(first.add(hook), at, places.add(hook).read_volatile());
            add_if_below(last.add(hook), at, places.add(hook + 5).read_volatile());
        }
    }
    u32::from(length)
}

/// The target of an entry, and the entry's length. Both structures are part of the interface with user space.
#[inline(always)]
fn target(entry: u64, family: u32) -> Option<(u64, u16)> {
    /// `xt_entry_target.u.kernel.target`
    const TARGET: u64 = 8;
    let target_offset = if family == NFPROTO_IPV6 { 140 } else { 88 };
    let [offset, length]: [u16; 2] = read(entry + target_offset)?;
    Some((read(entry + u64::from(offset) + TARGET)?, length))
}

/// Counts the entries before a place, one by one. Without a branch, like [`is_nonzero`].
///
/// # Safety
/// `count` must be valid.
#[inline(always)]
unsafe fn add_if_below(count: *mut u32, at: u64, place: u32) {
    // SAFETY: the caller vouches for it.
    unsafe {
        count.write_volatile(count.read_volatile().wrapping_add(is_below(at, u64::from(place)) as u32))
    };
}

/// The rules of a small table that a packet can meet at a hook: those of the hook's chain, and where there are user
/// chains, which come last, all that follow.
#[inline(always)]
pub fn rules_met(known: &KnownTable, hook: u8) -> Rules {
    let hook = mask::<{ HOOKS as u32 - 1 }>(u64::from(hook)) as usize;
    let number = known.number.get();
    // SAFETY: the index is masked.
    let (first, last) = unsafe {
        (
            known.hook_first.get().cast::<u32>().add(hook).read_volatile(),
            known.hook_last.get().cast::<u32>().add(hook).read_volatile(),
        )
    };
    Rules {
        first,
        count: if known.has_user_chains() { number } else { last.wrapping_add(1) }.wrapping_sub(first),
    }
}

/// Copies the counters of a small table.
#[inline(always)]
fn copy_small(frame: &Frame, destination: *mut u8) -> bool {
    let Rules { first, count } = frame.rules.get();
    let bytes = bounded(count, SMALL) * 16;
    // SAFETY: the caller has room for the counters of a small table.
    unsafe { copy(destination, bytes, frame.first_block.get().wrapping_add(u64::from(first) * 16)) }
}

/// Takes the snapshot of a small table.
#[inline(always)]
pub fn take_small(state: &State, frame: &Frame, depth: u32) {
    if !copy_small(frame, state.small(depth).cast::<u8>()) {
        frame.doubt(doubt::UNREADABLE);
    }
}

/// What [`compare_block`] does, for a small table. Not a global function: it is called in one place only, and saves the
/// look-ups of what its caller has.
#[inline(never)]
fn compare_small(state: &'static State, record: *mut Record, depth: u32) -> u32 {
    let (frame, current) = (state.frame(depth), state.small_now());
    if !copy_small(frame, current.cast::<u8>()) {
        // SAFETY: a map value.
        unsafe { (*record).traversal.match_count = 0 };
        return 1;
    }
    let Rules { first, count } = frame.rules.get();
    // From the first rule that can be met on.
    let changers = frame.changers.get() >> (first & 63);
    let (before, now) = (state.small(depth).cast::<u64>(), current.cast_const().cast::<u64>());
    let mut changed = 0;
    // SAFETY: map values; every index is masked to the length of the array it goes into.
    unsafe {
        let mut found = 0;
        let matches = (&raw mut (*record).tail.matches).cast::<u64>();
        // In whole registers: halves would have to be cleared in each turn.
        for rule in 0..u64::from(SMALL) {
            if rule >= whole(u64::from(count)) {
                break;
            }
            let at = rule as usize * 2;
            let moved = (*now.add(at)).wrapping_sub(*before.add(at)) & 0xffff_ffff;
            let slot = mask::<{ SMALL - 1 }>(found) as usize;
            core::ptr::write_volatile(matches.add(slot), (u64::from(first) + rule) | (moved << 32));
            found += is_nonzero(moved);
            changed |= (changers >> rule) & is_nonzero(moved);
        }
        (*record).traversal.match_count = found as u32;
    }
    if changed & 1 == 0 { 0 } else { CHANGED }
}

/// What [`compare_small`] returns where a target may have changed the packet; 1 means that it failed.
const CHANGED: u32 = 2;

/// What [`adjust_block`] does, for a small table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn adjust_small(depth: u32, resume: u32) -> u32 {
    let Some(state) = state() else { return 1 };
    let (frame, current) = (state.frame(depth), state.small_now());
    if !copy_small(frame, current.cast::<u8>()) {
        return 1;
    }
    let (snapshot, current) = (state.small(depth).cast::<u64>(), current.cast::<u64>());
    let rules = frame.rules.get().count;
    let sign = sign(resume);
    for rule in 0..SMALL as usize {
        if rule as u32 >= opaque(rules) {
            break;
        }
        // SAFETY: both have two numbers for each rule of a small table.
        unsafe {
            let counter = (*current.add(rule * 2)).wrapping_mul(sign);
            *snapshot.add(rule * 2) = (*snapshot.add(rule * 2)).wrapping_add(counter);
        }
    }
    0
}

/// Another traversal begins above this one: what the frame's own packet did so far is kept.
#[inline(always)]
pub fn suspend(frame: &Frame, depth: u32) {
    if frame.number.get() <= SMALL {
        check(frame, adjust_small(depth, 0));
    } else {
        check(frame, adjust_blocks(depth, 0));
    }
}

/// Those above it have ended, or the frame itself does.
#[inline(always)]
pub fn resume(frame: &Frame, depth: u32) {
    if frame.number.get() <= SMALL {
        check(frame, adjust_small(depth, 1));
    } else {
        check(frame, adjust_blocks(depth, 1));
    }
}

/// Writes the matches to the frame's record. Says whether a target may have changed the packet.
#[inline(always)]
pub fn compare(state: &'static State, frame: &Frame, record: *mut Record, depth: u32) -> bool {
    if frame.number.get() <= SMALL {
        let result = compare_small(state, record, depth);
        check(frame, result & !CHANGED);
        return result != 0;
    }
    check(frame, compare_blocks(depth));
    // SAFETY: a map value.
    if unsafe { (*record).traversal.match_count } > MAX_MATCHES as u32 {
        frame.doubt(doubt::TOO_MANY);
    }
    true
}

#[inline(always)]
fn check(frame: &Frame, failed: u32) {
    if failed != 0 {
        frame.doubt(doubt::UNREADABLE);
    }
}
