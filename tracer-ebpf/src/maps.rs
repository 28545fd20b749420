//! Every map, once.

use crate::frame::{Cpu, Frame};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use tracer_common::counter::Counter;
use tracer_common::filter::Key;
use tracer_common::legacy::{MAX_MATCHES, Match, RULES_PER_BLOCK, TABLE_SLOTS, TableChunk, Traversal, table_slot};

/// Traversals that can be open on one CPU at once.
pub const DEPTH: u32 = 8;
/// Counter blocks of the largest table that can be followed: 65 536 entries.
pub const MAX_BLOCKS: u32 = 256;
/// Slots of remembered decisions.
pub const DECISIONS: u32 = 1 << 16;

/// A counter block as the kernel holds it: packets and bytes of 256 rules.
#[repr(C)]
pub struct Block(pub [[u64; 2]; RULES_PER_BLOCK as usize]);

/// Room for one record with all its matches.
#[repr(C)]
pub struct Record {
    pub traversal: Traversal,
    pub matches: [Match; MAX_MATCHES],
}

/// Where the first entry of each counter block lies in a blob.
#[repr(C)]
pub struct BlockOffsets {
    pub number: u32,
    pub size: u32,
    pub offset: [u32; MAX_BLOCKS as usize],
}

/// What the filter looks at.
#[repr(C)]
pub struct FilterInput {
    pub header: [u8; 64],
    pub key: Key,
}

/// A packet that is being traced, by the address of its skb.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TracedPacket {
    pub packet: u64,
    pub net: u64,
    pub outdev: u64,
    pub position: u64,
}

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 24, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);
#[map]
pub static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static FRAMES: PerCpuArray<Frame> = PerCpuArray::with_max_entries(DEPTH, 0);
#[map]
pub static RECORDS: PerCpuArray<Record> = PerCpuArray::with_max_entries(DEPTH, 0);
/// Counters as they were at entry, frame after frame; the loader sizes it.
#[map]
pub static SNAPSHOTS: PerCpuArray<Block> = PerCpuArray::with_max_entries(16, 0);
/// Counters as they are now.
#[map]
pub static CURRENT: PerCpuArray<Block> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static BLOCK_OFFSETS: LruHashMap<u64, BlockOffsets> = LruHashMap::with_max_entries(64, 0);
#[map]
pub static BLOCK_SCRATCH: PerCpuArray<BlockOffsets> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static CHUNK: PerCpuArray<TableChunk> = PerCpuArray::with_max_entries(1, 0);
/// How often a table was replaced, by [`table_slot`].
#[map]
pub static REPLACE_COUNTS: Array<u32> = Array::with_max_entries(TABLE_SLOTS, 0);
/// Which tables they are, by the same slots: address and class in one word.
#[map]
pub static TABLE_CLASSES: Array<u64> = Array::with_max_entries(TABLE_SLOTS, 0);
#[map]
pub static DECIDED: Array<u64> = Array::with_max_entries(DECISIONS, 0);
#[map]
pub static TRACED: LruHashMap<u64, TracedPacket> = LruHashMap::with_max_entries(1 << 14, 0);
#[map]
pub static FILTER: PerCpuArray<FilterInput> = PerCpuArray::with_max_entries(1, 0);

/// How often the table was replaced so far.
#[inline(always)]
pub fn replace_count(table: u64) -> Option<u32> {
    let count = REPLACE_COUNTS.get_ptr(table_slot(table))?;
    // SAFETY: a map value; another CPU may be adding to it, hence volatile.
    Some(unsafe { core::ptr::read_volatile(count) })
}
