//! What user space tells the programs before they are loaded.

use crate::filter::Program;
use crate::offsets::Offsets;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where `ipt_do_table` and its siblings take skb, hook state and table.
///
/// Distribution kernels mix eras, so the order comes from BTF prototypes, never from a version.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentOrder {
    /// `(table, skb, state)`, 5.16 and later.
    TableSkbState = 0,
    /// `(skb, state, table)`, before.
    SkbStateTable = 1,
}

/// The frozen configuration of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// Address of the kernel's `__per_cpu_offset` array.
    pub per_cpu_offset: u64,
    /// Per-CPU address of `xt_recseq`, to which the CPU's offset is added.
    pub recseq: u64,
    /// An [`ArgumentOrder`].
    pub argument_order: u32,
    /// Size of `nf_hook_state.hook`: 1 or 4.
    pub state_hook_bytes: u32,
    /// `netns.inum` to trace, 0 for all.
    pub netns: u32,
    /// 4096-byte snapshot pages for each CPU.
    pub snapshot_pages: u32,
    /// Bytes in the ring before the reader is woken.
    pub wakeup_bytes: u32,
    /// First bytes of a packet that the translated filter wants at hand, 0 where there is none; see
    /// [`translated`](crate::translated).
    pub filter_window: u32,
    /// Bytes in front of the IP header where the packet begins for the translated filter.
    pub filter_link_bytes: u32,
    /// Whether only a part of the packets that match is traced: see [`throttle`](crate::throttle).
    pub throttled: u32,
    /// One of [`count::by`](crate::count::by).
    pub count_by: u32,
    /// Whether it is told how long packets were in tables and base chains.
    pub timed: u32,
    /// Whether programs can call [`CAST`](crate::kfunc::CAST).
    pub casts: u32,
    /// Field offsets.
    pub offsets: Offsets,
    /// Fills the structure to a multiple of eight.
    pub reserved_after_offsets: [u32; Config::OFFSETS_PADDING],
    /// Which packets are traced where no filter is translated.
    pub filter: Program,
}

impl Config {
    /// Numbers between `offsets` and `filter`. Those before `offsets` are odd in number, not counting the two long ones.
    pub const OFFSETS_PADDING: usize = ((size_of::<u32>() + size_of::<Offsets>()) % 8) / 4;
}
