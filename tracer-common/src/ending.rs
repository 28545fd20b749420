//! How packets end, where no table says it: one record for each traced packet that the kernel frees as dropped, one for
//! each that comes back from a queue for user space, and a list of the functions at the hooks.

use crate::offsets::offsets;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of packet copied, from the network header on: what tells it from another at the same place in memory.
pub const PACKET_BYTES: usize = 64;
/// Functions at one hook that are listed.
pub const MOST_FUNCTIONS: usize = 16;
/// Hooks of a family.
pub const HOOKS: usize = 5;
/// Calling functions that are copied.
pub const MOST_CALLERS: usize = 12;
/// The kernel's functions that drop packets on behalf of others: at hooks, and for user space.
pub const DROPPERS: usize = 3;

/// What kind of record follows; the first field of each. Those of tables and base chains have lower numbers.
pub mod kind {
    /// A [`super::Freed`].
    pub const FREED: u32 = 24;
    /// A [`super::Reinjected`].
    pub const REINJECTED: u32 = 25;
    /// A [`super::Dropped`].
    pub const DROPPED: u32 = 26;
}

offsets! {
    /// Byte offsets of the fields that tell how packets end. None of them is needed for a trace.
    EndingOffsets, ENDING_FIELDS;
    /// Namespace of a device.
    dev_net: "net_device" "nd_net.net",
    /// The functions at the hooks of IPv4, an array of pointers.
    hooks_ipv4: "net" "nf.hooks_ipv4",
    /// The same for IPv6.
    hooks_ipv6: "net" "nf.hooks_ipv6",
    /// u16, how many functions there are at a hook.
    entries_count: "nf_hook_entries" "num_hook_entries",
    /// They, and behind them as many pointers to what they were registered with.
    entries_hooks: "nf_hook_entries" "hooks",
    /// The function.
    entry_hook: "nf_hook_entry" "hook",
    /// i32.
    ops_priority: "nf_hook_ops" "priority",
    /// The packet that waits in a queue.
    queued_skb: "nf_queue_entry" "skb",
}

/// What user space tells the programs about this before they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EndingConfig {
    /// Whether the tracepoint `kfree_skb` has a reason.
    pub has_reason: u32,
    /// Bytes of a `struct nf_hook_entry`; 0 when hooks cannot be listed.
    pub entry_bytes: u32,
    /// Where the functions that drop packets on behalf of others begin, and where they end; 0 for none.
    pub droppers: [[u64; 2]; DROPPERS],
    /// Field offsets.
    pub offsets: EndingOffsets,
}

impl EndingConfig {
    /// The configuration before anything has been looked up.
    pub const UNRESOLVED: Self = Self {
        has_reason: 0,
        entry_bytes: 0,
        droppers: [[0; 2]; DROPPERS],
        offsets: EndingOffsets::UNRESOLVED,
    };
}

/// The kernel freed a packet as dropped, as far as `kfree_skb` tells that from consumed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Freed {
    /// [`kind::FREED`].
    pub kind: u32,
    /// Why, `enum skb_drop_reason`; 0 where the kernel has none.
    pub reason: u32,
    /// Which packet was last traced at this place in memory; it may have gone, and this be another.
    pub packet: u64,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The address that it was freed from.
    pub location: u64,
    /// Address of the namespace of its device or socket; 0 where it has neither.
    pub net: u64,
    /// Number of that namespace.
    pub netns: u32,
    /// Bytes that were read; the packet may be shorter.
    pub copied: u32,
    /// The first bytes, from the network header on.
    pub bytes: [u8; PACKET_BYTES],
}

/// A packet was dropped at a hook, or by user space, and by nothing that is watched; where only that is looked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dropped {
    /// With [`kind::DROPPED`], and a number of its own.
    pub freed: Freed,
    /// The addresses that each function was called from which led there, the innermost first; 0 behind the last.
    pub callers: [u64; MOST_CALLERS],
    /// Name of its device, with zeros behind it.
    pub device: [u8; 16],
    /// `skb->len`
    pub len: u32,
    /// `skb->mark`
    pub mark: u32,
    /// Whether a traversal was open on this CPU: if its exit was missed, a rule of it may have dropped the packet.
    pub is_open: u32,
    /// Fills to eight.
    pub reserved: u32,
}

/// A packet comes back from a queue for user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reinjected {
    /// [`kind::REINJECTED`].
    pub kind: u32,
    /// What user space decided.
    pub verdict: u32,
    /// Which packet, as in [`Freed`].
    pub packet: u64,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
}

/// A function at a hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HookFunction {
    /// Its address.
    pub address: u64,
    /// Where among the others.
    pub priority: i32,
    /// Fills to eight.
    pub reserved: u32,
}

/// The functions at the hooks of one family in one namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HookList {
    /// How many there are at each hook, also when not all fit; all ones where they cannot be read.
    pub counts: [u64; HOOKS],
    /// They, in their order.
    pub functions: [[HookFunction; MOST_FUNCTIONS]; HOOKS],
}

const _: () = assert!(size_of::<Freed>().is_multiple_of(8) && size_of::<Dropped>().is_multiple_of(8));
const _: () = assert!(size_of::<Reinjected>().is_multiple_of(8));
