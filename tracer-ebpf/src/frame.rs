//! The traversals that are open on this CPU.

use crate::maps::{CPU, FRAMES};
use core::cell::Cell;

/// State of one CPU.
#[repr(C)]
pub struct Cpu {
    /// Entries and exits seen.
    pub generation: Cell<u32>,
    /// Open frames.
    pub depth: Cell<u32>,
    /// Traversals open, followed or not; only roughly right when exits are lost.
    pub open: Cell<u32>,
    /// Outermost traversals seen since the checkpoint.
    pub outermost: Cell<u32>,
    /// `xt_recseq` at the checkpoint.
    pub checkpoint_sequence: Cell<u32>,
    /// Whether there has been a checkpoint.
    pub checkpoint_valid: Cell<u32>,
    /// When the checkpoint was.
    pub checkpoint_ns: Cell<u64>,
    /// What to add to a per-CPU address, 0 when not asked for yet.
    pub per_cpu_offset: Cell<u64>,
    /// Packets numbered on this CPU.
    pub packets: Cell<u64>,
    /// Runs of nftables numbered on this CPU.
    pub runs: Cell<u64>,
}

/// One open traversal that is followed: one that is traced, or one inside another that is.
#[repr(C)]
pub struct Frame {
    /// Stack pointer at entry: the key that entry and exit share.
    pub stack_pointer: Cell<u64>,
    pub task: Cell<u64>,
    pub entry_ns: Cell<u64>,
    pub table: Cell<u64>,
    pub private: Cell<u64>,
    pub skb: Cell<u64>,
    /// Address of this CPU's first counter block.
    pub first_block: Cell<u64>,
    pub traced: Cell<u32>,
    pub number: Cell<u32>,
    /// First page of the snapshot, and how many.
    pub page: Cell<u32>,
    pub blocks: Cell<u32>,
    /// Of these, the blocks of the hook's own chain, and the first with a user chain in it: no others can be met.
    pub chain_first: Cell<u32>,
    pub chain_last: Cell<u32>,
    pub user_first: Cell<u32>,
    /// `xt_recseq` at entry, at the beginning of the running segment, and its advance over this frame's own
    /// segments: what inner frames do to it does not count.
    pub entry_sequence: Cell<u32>,
    pub segment_sequence: Cell<u32>,
    pub advanced: Cell<u32>,
    /// `Cpu::generation` at entry, and the frames that came and went inside.
    pub generation: Cell<u32>,
    pub inner: Cell<u32>,
    pub replace_count: Cell<u32>,
    pub doubts: Cell<u32>,
}

// SAFETY: values of per-CPU maps. The kernel runs one kprobe program at a time on a CPU, with preemption or migration
// off, so each has one user at a time.
unsafe impl Sync for Cpu {}
// SAFETY: as for `Cpu`.
unsafe impl Sync for Frame {}

impl Frame {
    /// Casts doubt on the traversal.
    #[inline(always)]
    pub fn doubt(&self, doubt: u32) {
        self.doubts.set(self.doubts.get() | doubt);
    }
}

/// The state of the running CPU.
#[inline(always)]
pub fn cpu() -> Option<&'static Cpu> {
    CPU.get(0)
}

/// An open frame by its depth, from 0.
#[inline(always)]
pub fn frame(depth: u32) -> Option<&'static Frame> {
    FRAMES.get(depth)
}
