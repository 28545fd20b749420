//! Every map, once.

use crate::choice::{Followed, Passed, Tuples};
use crate::frame::{DEPTH, Shared, State};
use crate::kernel::SkbWindow;
use crate::last_rule::Last;
use crate::nft::{OpenRun, RUN_SLOTS, UnderWay};
use crate::snapshot::mask;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use core::cell::UnsafeCell;
use tracer_common::choice::Tuple;
use tracer_common::count;
use tracer_common::counter::Counter;
use tracer_common::ending::HookList;
use tracer_common::filter::{Header, Key};
use tracer_common::legacy::{LongTail, RULES_PER_BLOCK, TABLE_SLOTS, TableChunk, Traversal, table_slot};
use tracer_common::nft::{COMMIT_SLOTS, Commits};
use tracer_common::offsets::PLACEHOLDER;
use tracer_common::throttle::Throttle;
use tracer_common::translated::Workspace;

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
    pub tail: LongTail,
}

/// Where the first entry of each counter block lies in a blob.
#[repr(C)]
pub struct BlockOffsets {
    /// The version that this is about, and the replace counter of its table: another blob may come to the same address.
    pub private: u64,
    pub replace_count: u32,
    pub number: u32,
    pub offset: [u32; MAX_BLOCKS as usize],
}

// What loads a part of them would be taken for what stands for a kernel field.
const _: () = assert!(
    size_of::<State>() < PLACEHOLDER && size_of::<Last>() < PLACEHOLDER && size_of::<Record>() < PLACEHOLDER
);

/// What the filter looks at.
#[repr(C)]
pub struct FilterInput {
    pub header: Header,
    pub key: Key,
}

/// A traced packet that was displaced from its slot; see `select`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TracedPacket {
    pub packet: u64,
    pub position: u64,
    /// Which tables and chains have seen it there, see `select`.
    pub met: u64,
}

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 24, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);
#[map]
pub static STATE: PerCpuArray<State> = PerCpuArray::with_max_entries(1, 0);
/// What is kept where only the last rule of packets is looked for.
#[map]
pub static LAST: PerCpuArray<Last> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static RECORDS: PerCpuArray<Record> = PerCpuArray::with_max_entries(DEPTH, 0);
/// Counters as they were at entry, frame after frame; the loader sizes it.
#[map]
pub static SNAPSHOTS: PerCpuArray<Block> = PerCpuArray::with_max_entries(16, 0);
/// Counters as they are now.
#[map]
pub static CURRENT: PerCpuArray<Block> = PerCpuArray::with_max_entries(1, 0);
/// Where the blocks of large tables begin, by the table: a new version takes the place of the one before. Not a map that gives up
/// what was not used for long: of a hundred entries the kernel gives up those in use, too.
#[map]
pub static BLOCK_OFFSETS: HashMap<u64, BlockOffsets> = HashMap::with_max_entries(512, 0);
#[map]
pub static BLOCK_SCRATCH: PerCpuArray<BlockOffsets> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static CHUNK: PerCpuArray<TableChunk> = PerCpuArray::with_max_entries(1, 0);
/// How often a table was replaced, by [`table_slot`].
#[map]
pub static REPLACE_COUNTS: Array<u32> = Array::with_max_entries(TABLE_SLOTS, 0);
#[map]
pub static TRACED: LruHashMap<u64, TracedPacket> = LruHashMap::with_max_entries(1 << 14, 0);
#[map]
pub static SKB: PerCpuArray<SkbWindow> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static FILTER: PerCpuArray<FilterInput> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static WORKSPACE: PerCpuArray<Workspace> = PerCpuArray::with_max_entries(1, 0);

/// What is counted; the loader sizes it.
#[map]
pub static COUNTS: PerCpuHashMap<count::Key, u64> = PerCpuHashMap::with_max_entries(1, 0);
/// How many of the packets that match are traced.
#[map]
pub static THROTTLE: Array<Throttle> = Array::with_max_entries(1, 0);

/// Connections that are followed, by their tuples in both directions; the loader sizes it, as the next.
#[map]
pub static CONNECTIONS: LruHashMap<Tuple, Followed> = LruHashMap::with_max_entries(1 << 14, 0);
/// Traced packets that may go on in another namespace, by their skb.
#[map]
pub static PASSED: LruHashMap<u64, Passed> = LruHashMap::with_max_entries(1 << 12, 0);
#[map]
pub static TUPLES: PerCpuArray<Tuples> = PerCpuArray::with_max_entries(1, 0);

/// Runs of nftables that are open, by a hash of their key.
#[map]
pub static OPEN_RUNS: Array<OpenRun> = Array::with_max_entries(RUN_SLOTS, 0);
/// How often rules of nftables were committed, by the namespace's slot.
#[map]
pub static COMMITS: Array<Commits> = Array::with_max_entries(COMMIT_SLOTS, 0);
/// Tasks that have given packets back from a queue, where senders are asked for. As for [`BLOCK_OFFSETS`]: one that was given up
/// would pass for the sender of what others have sent.
#[map]
pub static REINJECTING: HashMap<u64, u64> = HashMap::with_max_entries(1024, 0);
/// The functions at the hooks of a namespace, where user space asked for them.
#[map]
pub static HOOK_LIST: Array<HookList> = Array::with_max_entries(1, 0);
/// Packets whose rule has been told, by their skb, until they are freed; see `last_rule`.
#[map]
pub static TOLD: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1 << 12, 0);
/// The commits under way, by their tasks. As for [`BLOCK_OFFSETS`]: one that was given up would seem to be under way for ever.
#[map]
pub static COMMITTING: HashMap<u64, UnderWay> = HashMap::with_max_entries(1024, 0);

/// Words that all CPUs share. Global data instead of maps, because its address is part of the program: no look-up.
pub struct Words<const N: usize>(UnsafeCell<[u64; N]>);

// SAFETY: only whole words are read and written, each by one instruction.
unsafe impl<const N: usize> Sync for Words<N> {}

impl<const N: usize> Words<N> {
    /// No word is set.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    /// The word at an index, which is taken modulo `MASK` + 1.
    #[inline(always)]
    pub fn at<const MASK: u32>(&self, index: u64) -> *mut u64 {
        // SAFETY: the mask keeps the index in range.
        unsafe { self.0.get().cast::<u64>().add(mask::<MASK>(index) as usize) }
    }

    /// Reads a word.
    #[inline(always)]
    pub fn get<const MASK: u32>(&self, index: u64) -> u64 {
        // SAFETY: a word of this array.
        unsafe { core::ptr::read_volatile(self.at::<MASK>(index)) }
    }

    /// Writes a word.
    #[inline(always)]
    pub fn set<const MASK: u32>(&self, index: u64, word: u64) {
        // SAFETY: a word of this array.
        unsafe { core::ptr::write_volatile(self.at::<MASK>(index), word) }
    }
}

/// Which tables there are, by some bits of their addresses; see `select`.
#[unsafe(no_mangle)]
pub static TABLE_CLASSES: Words<{ CLASS_SLOTS as usize }> = Words::new();
/// Every namespace can have five tables for each family.
pub const CLASS_SLOTS: u32 = 1024;
/// How often a table was replaced, by the same bits: without a look-up, for every traversal; see `last_rule`.
#[unsafe(no_mangle)]
pub static VERSIONS: Words<{ CLASS_SLOTS as usize }> = Words::new();
/// Exits without a note of their entry, on any CPU; see `last_rule`.
#[unsafe(no_mangle)]
pub static STRAYS: Shared = Shared::ZERO;
/// Decisions about packets, by some bits of the skb's address; see `select`.
#[unsafe(no_mangle)]
pub static DECIDED: Words<{ DECISIONS as usize }> = Words::new();
/// The last traced packet of each slot of [`DECIDED`]; see `select`.
#[unsafe(no_mangle)]
pub static PACKETS: Words<{ DECISIONS as usize }> = Words::new();

/// Which tables and chains have seen a packet where it was last, by the same hash; see `select`.
#[unsafe(no_mangle)]
pub static MET: Words<{ DECISIONS as usize }> = Words::new();

/// Where a table is remembered. No two of them begin within 64 bytes, and few within 128.
#[inline(always)]
pub fn class_slot(table: u64) -> u64 {
    table >> 7
}

/// A number that is another one when the table was replaced. Tables may share one.
#[inline(always)]
pub fn version(table: u64) -> u64 {
    VERSIONS.get::<{ CLASS_SLOTS - 1 }>(class_slot(table))
}

/// How often the table was replaced so far.
#[inline(always)]
pub fn replace_count(table: u64) -> Option<u32> {
    let count = REPLACE_COUNTS.get_ptr(table_slot(table))?;
    // SAFETY: a map value; another CPU may be adding to it, hence volatile.
    Some(unsafe { core::ptr::read_volatile(count) })
}
