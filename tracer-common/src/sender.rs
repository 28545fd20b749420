//! Which process sends a packet that is made on this host: one record for each packet, before those of its tables.

use crate::offsets::offsets;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What kind of record follows; the first field.
pub mod kind {
    /// A [`super::Sender`].
    pub const SENDER: u32 = 33;
}

/// Bits of the preempt count that are set while a CPU serves interrupts, or while they wait: then the current task is any.
///
/// `SOFTIRQ_MASK`, `HARDIRQ_MASK` and `NMI_MASK` in `include/linux/preempt.h`.
pub const INTERRUPTED: u32 = 0x00ff_ff00;

offsets! {
    /// Byte offsets of the fields that tell of a task. None of them is needed for a trace.
    SenderOffsets, SENDER_FIELDS;
    /// The first thread of its process.
    task_group_leader: "task_struct" "group_leader",
    /// 16 bytes.
    task_comm: "task_struct" "comm",
    /// The memory of its process; null in threads of the kernel.
    task_mm: "task_struct" "mm",
    /// i32, where softirqs are counted by task: with PREEMPT_RT.
    task_softirq_disable_cnt: "task_struct" "softirq_disable_cnt",
    /// i32, where the preempt count is part of this per-CPU structure.
    hot_preempt_count: "pcpu_hot" "preempt_count",
}

/// What user space tells the programs about this before they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SenderConfig {
    /// Per-CPU address of the u32 that counts what keeps a CPU from being taken from a task; 0 when it is not known.
    pub preempt_count: u64,
    /// Whether senders are asked for.
    pub asked: u32,
    /// Field offsets.
    pub offsets: SenderOffsets,
}

impl SenderConfig {
    /// The configuration before anything has been looked up.
    pub const UNRESOLVED: Self = Self { preempt_count: 0, asked: 0, offsets: SenderOffsets::UNRESOLVED };
}

/// A packet came to its first table or base chain in the task that sends it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sender {
    /// [`kind::SENDER`].
    pub kind: u32,
    /// The process.
    pub pid: u32,
    /// Which packet: the number that the records of its tables have.
    pub packet: u64,
    /// The cgroup of version 2 that the task is in: the inode number of its folder.
    pub cgroup: u64,
    /// The user that the task is of.
    pub uid: u32,
    /// Fills to eight.
    pub reserved: u32,
    /// Name of the process, filled with zeros.
    pub name: [u8; 16],
}

const _: () = assert!(size_of::<Sender>().is_multiple_of(8));
