//! Replaced tables: every edit by iptables swaps the whole table.
//!
//! `xt_replace_table` is where a table gets a new blob, also its first one. Counting the calls before `private` is
//! read and after the counters are read is what tells that no new blob came to the same addresses in between. The new
//! blob itself is sent along, so that user space knows each version of the ruleset, however short its life.

use crate::config::offset;
use crate::emit::send;
use crate::frame::cpu;
use crate::kernel::{copy, now_ns, read, read_pair};
use crate::maps::{CHUNK, CLASS_SLOTS, REPLACE_COUNTS, VERSIONS, class_slot, version};
use crate::select::forget_table;
use crate::snapshot::{bounded, locate_blocks, opaque};
use tracer_common::legacy::{
    CHUNK_BYTES, MAX_CHUNKS, RULES_PER_BLOCK, Replaced, TableChunk, kind, table_slot,
};

/// A table gets a new blob.
#[inline(always)]
pub fn replaced(table: u64, info: u64) -> Option<()> {
    let slot = table_slot(table);
    let count = REPLACE_COUNTS.get_ptr_mut(slot)?;
    // SAFETY: a map value. Replacements of one table are serialised by its mutex; a lost update between two tables of
    // one slot still changes the number.
    let count = unsafe {
        let next = core::ptr::read_volatile(count).wrapping_add(1);
        core::ptr::write_volatile(count, next);
        next
    };
    VERSIONS.set::<{ CLASS_SLOTS - 1 }>(class_slot(table), version(table).wrapping_add(1));
    // Another table may come to the address of one that is gone.
    forget_table(table);
    let (size, number) = read_pair(info, offset!(info_size), offset!(info_number))?;
    let family: u8 = read(table + offset!(table_af))?;
    // Otherwise the first traversal that is traced does it.
    if number > RULES_PER_BLOCK
        && let Some(_alone) = cpu().claim()
    {
        locate_blocks(table, info, u32::from(family), count);
    }

    let chunks = size.div_ceil(CHUNK_BYTES as u32);
    let chunks = if chunks > MAX_CHUNKS { 0 } else { chunks };
    let record = Replaced {
        kind: kind::REPLACED,
        replace_count: count,
        table,
        private: info,
        timestamp_ns: now_ns(),
        number,
        size,
        chunks,
        family: u32::from(family),
        hook_entry: read(info + offset!(info_hook_entry))?,
        underflow: read(info + offset!(info_underflow))?,
        table_name: read(table + offset!(table_name))?,
    };
    // SAFETY: the whole record was filled.
    unsafe { send((&raw const record).cast::<u8>(), size_of::<Replaced>() as u64) };

    let chunk = CHUNK.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        (*chunk).kind = kind::CHUNK;
        (*chunk).replace_count = count;
        (*chunk).table = table;
    }
    for index in 0..MAX_CHUNKS {
        if index >= opaque(chunks) {
            break;
        }
        send_chunk(info, index, size);
    }
    Some(())
}

/// Sends one part of a blob.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_chunk(info: u64, index: u32, size: u32) -> u32 {
    let Some(chunk) = CHUNK.get_ptr_mut(0) else { return 1 };
    let begin = index.wrapping_mul(CHUNK_BYTES as u32);
    let left = size.wrapping_sub(begin);
    let len = bounded(if left > CHUNK_BYTES as u32 { CHUNK_BYTES as u32 } else { left }, CHUNK_BYTES as u32);
    // SAFETY: a per-CPU map value; `len` is at most the length of the array.
    unsafe {
        (*chunk).index = index;
        let address = info + offset!(info_entries) + u64::from(begin);
        (*chunk).len = if copy((&raw mut (*chunk).bytes).cast::<u8>(), len, address) { len } else { 0 };
        send(chunk.cast::<u8>().cast_const(), size_of::<TableChunk>() as u64);
    }
    0
}
