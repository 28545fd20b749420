//! What packets are chosen by beside the filter, as far as the kernel knows at a packet's first hook; and connections that
//! are followed.

use crate::offsets::offsets;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

offsets! {
    /// Byte offsets of the fields that only some choices need.
    ChoiceOffsets, CHOICE_FIELDS;
    /// Two `nf_conntrack_tuple_hash`, for the original direction and for replies.
    ct_tuples: "nf_conn" "tuplehash",
    /// Its namespace.
    ct_net: "nf_conn" "ct_net.net",
    /// u32; not in every kernel.
    ct_mark: "nf_conn" "mark",
    /// u16, likewise.
    ct_zone: "nf_conn" "zone.id",
    /// The tuple in one of them.
    hash_tuple: "nf_conntrack_tuple_hash" "tuple",
    /// 16 bytes, in network byte order.
    tuple_src: "nf_conntrack_tuple" "src.u3",
    /// Two bytes: the source port, or the identifier of echoes.
    tuple_src_port: "nf_conntrack_tuple" "src.u",
    /// u16, `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    tuple_family: "nf_conntrack_tuple" "src.l3num",
    /// 16 bytes.
    tuple_dst: "nf_conntrack_tuple" "dst.u3",
    /// Two bytes: the destination port.
    tuple_dst_port: "nf_conntrack_tuple" "dst.u",
    /// u8.
    tuple_protocol: "nf_conntrack_tuple" "dst.protonum",
    /// Begins with the `cgroup`, or with a word that is odd where the socket has other marks instead.
    sock_cgroup: "sock" "sk_cgrp_data",
    /// i32, how deep it lies.
    cgroup_level: "cgroup" "level",
    /// The `kernfs_node`.
    cgroup_node: "cgroup" "kn",
    /// The cgroups above it and itself, by level; since Linux 6.1.
    cgroup_ancestors: "cgroup" "ancestors",
    /// Their numbers, before that.
    cgroup_ancestor_ids: "cgroup" "ancestor_ids",
    /// u64, the inode number of its directory.
    node_id: "kernfs_node" "id",
}

/// Bits of [`ChoiceConfig::asks`].
pub mod ask {
    /// For the device that a packet came in by.
    pub const IN: u32 = 1 << 0;
    /// A packet that begins here may come in by that device, over loopback: that is seen later.
    pub const LOCAL: u32 = 1 << 1;
    /// For the user that sent it.
    pub const UID: u32 = 1 << 2;
    /// For the cgroup that sent it.
    pub const CGROUP: u32 = 1 << 3;
    /// Connections are followed.
    pub const FOLLOW: u32 = 1 << 4;
    /// Packets are followed into other namespaces.
    pub const ACROSS: u32 = 1 << 5;
    /// What conntrack knows of packets' connections is told.
    pub const TELL: u32 = 1 << 6;
}

/// What user space tells the programs about choices before they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChoiceConfig {
    /// Bits of [`ask`].
    pub asks: u32,
    /// The user.
    pub uid: u32,
    /// The name of the device, and which of its bytes count.
    pub device: [u64; 2],
    /// Likewise.
    pub device_mask: [u64; 2],
    /// The number of the cgroup.
    pub cgroup: u64,
    /// How deep it lies.
    pub cgroup_level: u32,
    /// Distance between the two tuples of a connection.
    pub tuple_stride: u32,
    /// Field offsets.
    pub offsets: ChoiceOffsets,
    /// Fills the structure to a multiple of eight.
    pub reserved: u32,
}

impl ChoiceConfig {
    /// Nothing is asked.
    pub const NOTHING: Self = Self {
        asks: 0,
        uid: 0,
        device: [0; 2],
        device_mask: [0; 2],
        cgroup: 0,
        cgroup_level: 0,
        tuple_stride: 0,
        offsets: ChoiceOffsets::UNRESOLVED,
        reserved: 0,
    };
}

/// [`Link::kind`].
pub const LINK: u32 = 32;

/// What a packet belongs to. Comes before the record that it was learned with; more than once for most packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Link {
    /// [`LINK`].
    pub kind: u32,
    /// Fills to eight.
    pub reserved: u32,
    /// The packet, as in its other records.
    pub packet: u64,
    /// Number of the connection; 0 for none. Each namespace has connections of its own.
    pub connection: u64,
    /// The packet that it was in another namespace; 0 for none.
    pub before: u64,
}

/// One direction of a connection in a namespace; addresses and ports as the filter's key has them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tuple {
    /// Inode number of the namespace.
    pub netns: u32,
    /// 4 or 6, and the protocol in the low byte.
    pub protocol: u32,
    /// Source port and destination port; of echoes, the identifier, twice.
    pub ports: u32,
    /// Fills to eight.
    pub reserved: u32,
    /// Source address; IPv4 has the first word.
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
}

/// [`Tracked::kind`].
pub const TRACKED: u32 = 40;

/// What conntrack knows of a packet's connection, once the entry is confirmed. Comes before or after the record of the
/// traversal that it was learned at; more than once for most packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tracked {
    /// [`TRACKED`].
    pub kind: u32,
    /// Which of the next two the kernel has: bits of [`has`].
    pub has: u32,
    /// The entry's mark.
    pub mark: u32,
    /// The entry's zone.
    pub zone: u32,
    /// The packet, as in its other records.
    pub packet: u64,
    /// The direction of the first packet.
    pub original: Tuple,
    /// What answers look like when they come.
    pub reply: Tuple,
}

/// Bits of [`Tracked::has`].
pub mod has {
    /// Connections have marks.
    pub const MARK: u32 = 1 << 0;
    /// They are of a zone.
    pub const ZONE: u32 = 1 << 1;
}

const _: () = assert!(size_of::<Tracked>().is_multiple_of(8));
const _: () = assert!(size_of::<Link>().is_multiple_of(8));
const _: () = assert!(size_of::<ChoiceConfig>().is_multiple_of(8));
