//! Records of nftables: one for each base chain that a packet enters, one for each verdict on its way through it.

use crate::offsets::offsets;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of packet copied at entry, from the network header on.
pub const PACKET_BYTES: usize = 128;
/// Bytes of link-layer header copied.
pub const MAC_BYTES: usize = 32;
/// Slots of [`Commits`].
pub const COMMIT_SLOTS: u32 = 64;

/// What kind of record follows; the first field of each. Those of the legacy tables have lower numbers.
pub mod kind {
    /// A [`super::Run`].
    pub const RUN: u32 = 16;
    /// A [`super::Event`].
    pub const EVENT: u32 = 17;
    /// A [`super::TimedEvent`].
    pub const TIMED_EVENT: u32 = 18;
}

/// What the programs look at to follow a run.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// `__nft_trace_packet(info, chain, type)`, before Linux 6.4: the rest is in `info`.
    TraceInfo = 1,
    /// `__nft_trace_packet(pkt, verdict, rule, info, type)`, since.
    TraceArguments = 2,
    /// The return of `nft_do_chain` alone: where the base chain ended, not by which rules.
    Return = 3,
}

offsets! {
    /// Byte offsets of the fields of nftables.
    NftOffsets, NFT_FIELDS;
    /// The packet.
    pkt_skb: "nft_pktinfo" "skb",
    /// The `nf_hook_state`.
    pkt_state: "nft_pktinfo" "state",
    /// u64, unique in its table.
    chain_handle: "nft_chain" "handle",
    /// The table.
    chain_table: "nft_chain" "table",
    /// u64, unique in its namespace.
    table_handle: "nft_table" "handle",
    /// The chain within its base chain.
    base_chain: "nft_base_chain" "chain",
    /// i32.
    base_priority: "nft_base_chain" "ops.priority",
    /// u8, `NF_DROP` or `NF_ACCEPT`.
    base_policy: "nft_base_chain" "policy",
    /// The `nft_chain_type`.
    base_type: "nft_base_chain" "type",
    /// u32, `enum nft_chain_types`.
    type_type: "nft_chain_type" "type",
    /// u32 code and, from `verdict_chain` on, the chain it leads to.
    verdict_code: "nft_verdict" "code",
    /// The chain of a jump or goto.
    verdict_chain: "nft_verdict" "chain",
    /// The `nft_pktinfo`; only where the arguments do not have it.
    info_pkt: "nft_traceinfo" "pkt",
    /// The rule, likewise.
    info_rule: "nft_traceinfo" "rule",
    /// The `nft_verdict`, likewise.
    info_verdict: "nft_traceinfo" "verdict",
    /// The `nft_base_chain` that the packet entered, wherever the arguments are.
    info_basechain: "nft_traceinfo" "basechain",
}

/// What user space tells the programs about nftables before they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NftConfig {
    /// A [`Witness`]; 0 when nftables is not traced.
    pub witness: u32,
    /// Where in a rule the u64 lies that holds its handle.
    pub rule_word: u32,
    /// The lowest bit of the handle in it; it has [`HANDLE_BITS`].
    pub rule_shift: u32,
    /// Field offsets.
    pub offsets: NftOffsets,
}

/// Width of a rule's handle.
pub const HANDLE_BITS: u32 = 42;

impl NftConfig {
    /// The configuration before anything has been looked up.
    pub const UNRESOLVED: Self =
        Self { witness: 0, rule_word: 0, rule_shift: 0, offsets: NftOffsets::UNRESOLVED };
}

/// The commits in the namespaces of one slot; see [`commit_slot`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Commits {
    /// Transactions that began to be committed.
    pub begun: u64,
    /// Those of them that ended.
    pub done: u64,
    /// Those of them that changed anything: each gave the rules a new generation.
    pub made: u64,
    /// Number of the namespace; all ones when there were several.
    pub netns: u64,
}

/// The slot that counts the commits of a namespace, by `net->ns.inum`. Where namespaces share one, rules have to be read
/// after each change, and a change of the other's rules is taken for one of this one's.
#[inline(always)]
pub fn commit_slot(netns: u32) -> u32 {
    netns & (COMMIT_SLOTS - 1)
}

/// Facts about a run. Bits of [`Run::facts`]; the names are those of the legacy tables.
pub mod fact {
    /// `uid` and `gid` are those of the sending socket's opener.
    pub const OWNER: u32 = 1 << 0;
    /// There is a link-layer header.
    pub const MAC: u32 = 1 << 1;
    /// First record of this packet: nothing earlier of it was traced.
    pub const FIRST: u32 = 1 << 3;
    /// The hook has an input device.
    pub const IN: u32 = 1 << 4;
    /// The hook has an output device.
    pub const OUT: u32 = 1 << 5;
    /// `ct_status` was read: the packet has a conntrack entry.
    pub const CONNTRACK: u32 = 1 << 7;
    /// Rules were being committed when it began.
    pub const CHANGING: u32 = 1 << 8;
    /// Table and chain could not be read.
    pub const UNREADABLE: u32 = 1 << 9;
    /// `generations` are those of this namespace alone.
    pub const GENERATIONS: u32 = 1 << 10;
    /// Its only event is the one that dropped the packet; what came before was not looked for.
    pub const LAST_RULE: u32 = 1 << 11;
}

/// A packet enters a base chain.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Run {
    /// [`kind::RUN`].
    pub kind: u32,
    /// CPU of the entry.
    pub cpu: u32,
    /// Which run: the same number in its events.
    pub run: u64,
    /// Which packet: the same number for all it meets in one network namespace.
    pub packet: u64,
    /// CLOCK_MONOTONIC.
    pub entry_ns: u64,
    /// Address of the skb.
    pub skb: u64,
    /// `nft_table.handle`.
    pub table: u64,
    /// `nft_chain.handle`.
    pub chain: u64,
    /// Low half of [`Commits::begun`] of the namespace's slot: the version of the rules.
    pub commits: u32,
    /// See [`commit_slot`].
    pub commit_slot: u32,
    /// Bits of [`fact`].
    pub facts: u32,
    /// `net->ns.inum`.
    pub netns: u32,
    /// Owner's user id, valid with [`fact::OWNER`].
    pub uid: u32,
    /// Owner's group id, valid with [`fact::OWNER`].
    pub gid: u32,
    /// Low half of `nf_conn.status`, valid with [`fact::CONNTRACK`].
    pub ct_status: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->len`, from the network header on.
    pub len: u32,
    /// Valid bytes in `bytes`.
    pub copied: u32,
    /// Where among all that is at the hook; for a chain of type nat that of address translation. What does not fit
    /// into sixteen bits is cut off.
    pub priority: i32,
    /// Hook number, of the family's own hooks, or one of [`place`](crate::place).
    pub hook: u8,
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub family: u8,
    /// Low three bits of `skb->_nfct`: `enum ip_conntrack_info`.
    pub ctinfo: u8,
    /// Bytes in `mac`.
    pub mac_len: u8,
    /// `skb->dev->type`, an ARPHRD value.
    pub dev_type: u16,
    /// `skb->dev->hard_header_len`.
    pub hard_header_len: u16,
    /// Low half of [`Commits::made`], valid with [`fact::GENERATIONS`].
    pub generations: u32,
    /// Name of the input device, filled with zeros; valid with [`fact::IN`].
    pub indev: [u8; 16],
    /// Name of the output device, likewise with [`fact::OUT`].
    pub outdev: [u8; 16],
    /// Link-layer header.
    pub mac: [u8; MAC_BYTES],
    /// The first bytes, from the network header on.
    pub bytes: [u8; PACKET_BYTES],
}

/// What happened in a run. [`Event::what`]; the first three are `enum nft_trace_types`.
pub mod what {
    /// `NFT_TRACETYPE_POLICY`: the base chain's policy decides.
    pub const POLICY: u32 = 1;
    /// `NFT_TRACETYPE_RETURN`: back to the calling chain, by a rule or at the end of a chain.
    pub const RETURN: u32 = 2;
    /// `NFT_TRACETYPE_RULE`: a rule held.
    pub const RULE: u32 = 3;
    /// `nft_do_chain` returned: see [`super::Witness::Return`].
    pub const LEFT: u32 = 4;
}

/// What a rule decided, `enum nft_verdicts` in `include/uapi/linux/netfilter/nf_tables.h`. Those of netfilter, in the
/// low byte, are not negative.
pub mod code {
    /// `NFT_CONTINUE`
    pub const CONTINUE: i32 = -1;
    /// `NFT_JUMP`
    pub const JUMP: i32 = -3;
    /// `NFT_GOTO`
    pub const GOTO: i32 = -4;
    /// `NFT_RETURN`
    pub const RETURN: i32 = -5;
}

/// A verdict in a run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// [`kind::EVENT`].
    pub kind: u32,
    /// Number in its run, from 0.
    pub index: u32,
    /// As in [`Run`].
    pub run: u64,
    /// Handle of the rule; 0 where no rule decided.
    pub rule: u64,
    /// Handle of the chain that a jump or goto leads to.
    pub target: u64,
    /// One of [`what`].
    pub what: u32,
    /// One of [`code`], or a verdict of netfilter.
    pub code: i32,
    /// Low half of [`Commits::begun`] of the run's slot at this moment.
    pub commits: u32,
    /// `skb->mark`; 0 when the packet may be gone.
    pub mark: u32,
}

/// An event, where it was asked for how long packets take.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TimedEvent {
    /// [`kind::TIMED_EVENT`] as its kind.
    pub event: Event,
    /// Nanoseconds since the run began, without those that the programs took.
    pub since_ns: u64,
}

const _: () = assert!(size_of::<TimedEvent>().is_multiple_of(8));
const _: () = assert!(size_of::<Run>().is_multiple_of(8));
const _: () = assert!(size_of::<Event>().is_multiple_of(8));
