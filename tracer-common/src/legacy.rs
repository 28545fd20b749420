//! Records of the legacy tables: one for each traversal of a table, one for each replaced table.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of packet copied at entry into a [`Traversal`], from the network header on: enough for IP and TCP with most
/// of their options.
pub const ENTRY_BYTES: usize = 80;
/// Bytes of packet in a [`LongTail`] that go on from there: the rest of the packet quoted in an ICMP error, and long
/// headers.
pub const MORE_BYTES: usize = 176;
/// Bytes of packet copied at exit into a [`Traversal`]: what a target can have changed lies in the first headers.
pub const EXIT_BYTES: usize = 80;
/// Bytes of packet copied at exit into a [`LongTail`].
pub const LONG_EXIT_BYTES: usize = 128;
/// Bytes of link-layer header copied.
pub const MAC_BYTES: usize = 32;
/// Distinct entries that fit into a [`Traversal`].
pub const FIRST_MATCHES: usize = 8;
/// Distinct entries of one traversal that are reported; more are counted and flagged.
pub const MAX_MATCHES: usize = 256;
/// Bytes of table copied in one [`TableChunk`].
pub const CHUNK_BYTES: usize = 4096;
/// Chunks copied of one replaced table; a larger table is read again by user space instead.
pub const MAX_CHUNKS: u32 = 256;
/// Rules in one 4096-byte per-CPU block of counters (`XT_PCPU_BLOCK_SIZE` in `net/netfilter/x_tables.c`).
pub const RULES_PER_BLOCK: u32 = 256;

/// What kind of record follows; the first field of each.
pub mod kind {
    /// A [`super::Traversal`].
    pub const TRAVERSAL: u32 = 1;
    /// A [`super::Traversal`] with a [`super::LongTail`], cut off after its last match.
    pub const LONG_TRAVERSAL: u32 = 4;
    /// A [`super::Replaced`].
    pub const REPLACED: u32 = 2;
    /// A [`super::TableChunk`].
    pub const CHUNK: u32 = 3;
}

/// Slots of replace counters.
pub const TABLE_SLOTS: u32 = 64;

/// The slot that counts the replacements of the table at an address. Tables may share one: that costs a false alarm,
/// nothing else.
#[inline(always)]
pub fn table_slot(table: u64) -> u32 {
    ((table >> 7) ^ (table >> 13)) as u32 & (TABLE_SLOTS - 1)
}

/// Which of the five tables a name belongs to, by its first four bytes in memory order; 7 for any other.
#[inline(always)]
pub fn table_class(name: u32) -> u8 {
    const RAW: u32 = u32::from_ne_bytes(*b"raw\0");
    const MANGLE: u32 = u32::from_ne_bytes(*b"mang");
    const FILTER: u32 = u32::from_ne_bytes(*b"filt");
    const SECURITY: u32 = u32::from_ne_bytes(*b"secu");
    const NAT: u32 = u32::from_ne_bytes(*b"nat\0");
    match name {
        RAW => 1,
        MANGLE => 2,
        NAT => NAT_CLASS,
        FILTER => 4,
        SECURITY => 5,
        _ => 7,
    }
}

/// Class of the nat table.
pub const NAT_CLASS: u8 = 3;

/// The order in which the tables of one hook see a packet, from 1. `xt_table.priority` does not tell: `nat` has two
/// priorities and shows neither.
///
/// `enum nf_ip_hook_priorities` in `include/uapi/linux/netfilter_ipv4.h`.
#[inline(always)]
pub fn rank(hook: u8, class: u8) -> u8 {
    // Destinations are translated before filtering, sources after it.
    if class == NAT_CLASS && hook != 0 && hook != 3 { 6 } else { class }
}

/// Why a traversal's matched set may not be what the packet met. Bits of [`Traversal::doubts`].
pub mod doubt {
    /// `table->private` changed between the reads.
    pub const REPLACED: u32 = 1 << 0;
    /// The table's replace counter moved.
    pub const REPLACE_COUNT: u32 = 1 << 1;
    /// `xt_recseq` moved otherwise than by this traversal alone.
    pub const SEQUENCE: u32 = 1 << 2;
    /// Entries and exits seen on this CPU do not add up.
    pub const GENERATION: u32 = 1 << 3;
    /// The exit was never seen: lost, or on another CPU.
    pub const NO_EXIT: u32 = 1 << 4;
    /// More traversals were open on this CPU than can be followed.
    pub const TOO_DEEP: u32 = 1 << 5;
    /// The table is larger than the memory set aside for its counters.
    pub const TOO_LARGE: u32 = 1 << 6;
    /// Kernel memory could not be read.
    pub const UNREADABLE: u32 = 1 << 7;
    /// More distinct rules matched than a record holds.
    pub const TOO_MANY: u32 = 1 << 8;
    /// An exit that belonged to no frame was seen while this one was open.
    pub const ORPHAN: u32 = 1 << 9;
    /// With [`fact::LAST_RULE`](super::fact::LAST_RULE): another packet may have been dropped here at the same time.
    pub const OTHERS: u32 = 1 << 10;
    /// Likewise: the entry was not seen, or on another CPU.
    pub const NO_ENTRY: u32 = 1 << 11;
}

/// Facts about a traversal that cast no doubt. Bits of [`Traversal::facts`].
pub mod fact {
    /// `uid` and `gid` are those of the sending socket's opener.
    pub const OWNER: u32 = 1 << 0;
    /// `mac_header` differs from `network_header`: there is a link-layer header.
    pub const MAC: u32 = 1 << 1;
    /// The packet could be read again at exit.
    pub const EXIT: u32 = 1 << 2;
    /// First record of this packet: nothing earlier of it was traced.
    pub const FIRST: u32 = 1 << 3;
    /// The hook has an input device.
    pub const IN: u32 = 1 << 4;
    /// The hook has an output device.
    pub const OUT: u32 = 1 << 5;
    /// Began inside another traversal on its CPU.
    pub const NESTED: u32 = 1 << 6;
    /// `ct_status` was read: the packet has a conntrack entry.
    pub const CONNTRACK: u32 = 1 << 7;
    /// No target ran that changes packets: what was copied at entry is what there was at exit, too. `exit.copied` and
    /// the bytes at exit are not filled.
    pub const SAME_BYTES: u32 = 1 << 8;
    /// Only the rule that dropped the packet was looked for: it is the one match, or there is none. The packet was copied
    /// at exit.
    pub const LAST_RULE: u32 = 1 << 9;
    /// The exit was not seen, and the counters tell of this packet alone all the same: what began later shows that it is
    /// over. There is no `verdict`, and nothing is known of the packet at exit.
    pub const UNSEEN_END: u32 = 1 << 10;
}

/// What of an skb can change while it is in a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SkbState {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->len`, from the network header on.
    pub len: u32,
    /// Bytes of it that were copied.
    pub copied: u32,
    /// At exit, where that was asked for: nanoseconds that the packet was in the table, at most 2³² - 1; otherwise 0.
    pub took_ns: u32,
}

/// One call of `ipt_do_table` or `ip6t_do_table`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Traversal {
    /// [`kind::TRAVERSAL`] or [`kind::LONG_TRAVERSAL`].
    pub kind: u32,
    /// CPU of the exit.
    pub cpu: u32,
    /// Which packet: the same number for all traversals of one packet in one network namespace.
    pub packet: u64,
    /// CLOCK_MONOTONIC at entry.
    pub entry_ns: u64,
    /// Which skb: a number that no other has as long as this one exists.
    pub skb: u64,
    /// Address of the `xt_table`: identifies table and namespace while it exists.
    pub table: u64,
    /// Address of the `xt_table_info` that was current: identifies the version of the ruleset together with
    /// `replace_count`.
    pub private: u64,
    /// CLOCK_MONOTONIC of the checkpoint before this one on this CPU: `missed` happened since.
    pub checkpoint_ns: u64,
    /// Replace counter of the table at entry.
    pub replace_count: u32,
    /// What the function returned: verdict in the low byte. Not filled with [`fact::UNSEEN_END`].
    pub verdict: u32,
    /// Bits of [`doubt`].
    pub doubts: u32,
    /// Bits of [`fact`].
    pub facts: u32,
    /// `net->ns.inum`.
    pub netns: u32,
    /// Owner's user id, valid with [`fact::OWNER`].
    pub uid: u32,
    /// Owner's group id, valid with [`fact::OWNER`].
    pub gid: u32,
    /// Traversals on this CPU that no probe saw since the previous checkpoint.
    pub missed: u32,
    /// `xt_table_info.number`: entries in the blob.
    pub number: u32,
    /// `xt_table_info.size`: bytes of the blob.
    pub size: u32,
    /// Low half of `nf_conn.status`, valid with [`fact::CONNTRACK`].
    pub ct_status: u32,
    /// Distinct entries whose counter moved; at most [`MAX_MATCHES`] are reported.
    pub match_count: u32,
    /// Hook number, `NF_INET_PRE_ROUTING` (0) to `NF_INET_POST_ROUTING` (4).
    pub hook: u8,
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub family: u8,
    /// Low three bits of `skb->_nfct`: `enum ip_conntrack_info`.
    pub ctinfo: u8,
    /// Bytes in `mac`, valid with [`fact::MAC`].
    pub mac_len: u8,
    /// `skb->dev->type`, an ARPHRD value; valid with [`fact::IN`].
    pub dev_type: u16,
    /// `skb->dev->hard_header_len`, likewise.
    pub hard_header_len: u16,
    /// Table name, filled with zeros.
    pub table_name: [u8; 32],
    /// Name of the input device, filled with zeros; valid with [`fact::IN`].
    pub indev: [u8; 16],
    /// Name of the output device, likewise with [`fact::OUT`].
    pub outdev: [u8; 16],
    /// Link-layer header of a packet with [`fact::IN`].
    pub mac: [u8; MAC_BYTES],
    /// The packet at entry.
    pub entry: SkbState,
    /// The packet at exit, valid with [`fact::EXIT`].
    pub exit: SkbState,
    /// The first entries whose counters moved, in the table's order.
    pub matches: [Match; FIRST_MATCHES],
    /// The first bytes at exit, from the network header on.
    pub exit_bytes: [u8; EXIT_BYTES],
    /// The first bytes at entry.
    pub entry_bytes: [u8; ENTRY_BYTES],
}

/// What follows a traversal that does not fit. Sent up to its last match.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LongTail {
    /// Bytes that follow [`Traversal::entry_bytes`]; `entry.copied` counts them.
    pub entry_more: [u8; MORE_BYTES],
    /// The first bytes at exit, those of [`Traversal::exit_bytes`] among them.
    pub exit_bytes: [u8; LONG_EXIT_BYTES],
    /// All matches, the first ones too.
    pub matches: [Match; MAX_MATCHES],
}

/// An entry of the blob whose counter moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Match {
    /// Index of the entry in the blob, hidden tail entries included.
    pub index: u32,
    /// How often it matched; wraps below zero when something else disturbed the counters.
    pub count: u32,
}

/// `xt_replace_table` was called. The new blob follows in [`TableChunk`]s of the same `table` and `replace_count`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Replaced {
    /// [`kind::REPLACED`].
    pub kind: u32,
    /// The table's replace counter, this replacement included.
    pub replace_count: u32,
    /// Address of the `xt_table`.
    pub table: u64,
    /// Address of the new `xt_table_info`.
    pub private: u64,
    /// CLOCK_MONOTONIC.
    pub timestamp_ns: u64,
    /// Entries in the new blob.
    pub number: u32,
    /// Bytes of the new blob.
    pub size: u32,
    /// Chunks that follow; 0 when the table is too large to be copied.
    pub chunks: u32,
    /// Address family of the table.
    pub family: u32,
    /// Start of each built-in chain, as offset into the blob.
    pub hook_entry: [u32; 5],
    /// Policy entry of each built-in chain, as offset into the blob.
    pub underflow: [u32; 5],
    /// Table name, filled with zeros.
    pub table_name: [u8; 32],
}

/// A part of a replaced table's new blob, in the kernel's own form: pointers where user space has names.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TableChunk {
    /// [`kind::CHUNK`].
    pub kind: u32,
    /// As in [`Replaced`].
    pub replace_count: u32,
    /// As in [`Replaced`].
    pub table: u64,
    /// Number of the chunk, from 0.
    pub index: u32,
    /// Valid bytes in `bytes`; 0 when they could not be read.
    pub len: u32,
    /// Part of the blob.
    pub bytes: [u8; CHUNK_BYTES],
}

const _: () = assert!(size_of::<Traversal>().is_multiple_of(8));
const _: () = assert!(size_of::<Replaced>().is_multiple_of(8));
const _: () = assert!(size_of::<TableChunk>().is_multiple_of(8));
