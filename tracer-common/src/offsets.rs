//! Field offsets of the running kernel, resolved in user space and handed over as frozen global data.

use zerocopy::{FromBytes as _, IntoBytes as _};

/// The offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// What stands for the first member of [`Offsets`] in instructions that load a field, the next ones for those behind it: the
/// loader writes the field's offset in its place. No structure of the programs' own reaches that far.
pub const PLACEHOLDER: usize = 0x7f00;

macro_rules! offsets {
    ($(#[$title:meta])* $name:ident, $fields:ident; $($(#[$doc:meta])* $field:ident: $structure:literal $path:literal,)*) => {
        $(#[$title])*
        ///
        /// [`ABSENT`](crate::offsets::ABSENT) where this kernel has no such field. Each row names the kernel structure
        /// and field, so that the table is also the list of what has to be looked up.
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name { $($(#[$doc])* #[doc = concat!("\n\n`struct ", $structure, "`, field `", $path, "`")] pub $field: u32,)* }

        impl $name {
            /// The table before anything has been looked up.
            pub const UNRESOLVED: Self = Self { $($field: $crate::offsets::ABSENT,)* };
        }

        #[doc = concat!("One row for each member of [`", stringify!($name), "`], in its order.")]
        pub const $fields: &[$crate::offsets::Field] = &[$($crate::offsets::Field { name: stringify!($field), structure: $structure, path: $path },)*];
    };
}

pub(crate) use offsets;

/// A kernel field whose offset is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The member of [`Offsets`] that holds the offset.
    pub name: &'static str,
    /// The kernel structure, without `struct`.
    pub structure: &'static str,
    /// The field in it; dots step into nested structures, anonymous ones are searched by themselves.
    pub path: &'static str,
}

impl Offsets {
    /// The offset of a field by its row in [`FIELDS`].
    pub fn of(&self, field: usize) -> Option<u32> {
        <[u32]>::ref_from_bytes(self.as_bytes()).ok()?.get(field).copied()
    }
}

offsets! {
    /// Byte offsets of the fields that every trace needs.
    Offsets, FIELDS;
    /// Start of the packet buffer.
    skb_head: "sk_buff" "head",
    /// u16 in network byte order, an `ETH_P_…`.
    skb_protocol: "sk_buff" "protocol",
    /// u16, from `head`.
    skb_network_header: "sk_buff" "network_header",
    /// u16, from `head`.
    skb_mac_header: "sk_buff" "mac_header",
    /// u32, followed by `data_len`.
    skb_len: "sk_buff" "len",
    /// u32, bytes outside the linear part.
    skb_data_len: "sk_buff" "data_len",
    /// u32.
    skb_mark: "sk_buff" "mark",
    /// Device the packet came in by or leaves by.
    skb_dev: "sk_buff" "dev",
    /// Owning socket, or null.
    skb_sk: "sk_buff" "sk",
    /// Conntrack entry and its state in the low three bits.
    skb_nfct: "sk_buff" "_nfct",
    /// u8, or u32 on older kernels: see `state_hook_bytes` in the configuration.
    state_hook: "nf_hook_state" "hook",
    /// u8.
    state_pf: "nf_hook_state" "pf",
    /// Input device, or null.
    state_in: "nf_hook_state" "in",
    /// Output device, or null.
    state_out: "nf_hook_state" "out",
    /// Network namespace.
    state_net: "nf_hook_state" "net",
    /// u32, the number that `/proc/PID/ns/net` shows.
    net_inum: "net" "ns.inum",
    /// u8, which half of the bits of nftables' rules is current.
    net_gencursor: "net" "nft.gencursor",
    /// 16 bytes.
    dev_name: "net_device" "name",
    /// i32.
    dev_ifindex: "net_device" "ifindex",
    /// u16, an ARPHRD value.
    dev_type: "net_device" "type",
    /// u16.
    dev_hard_header_len: "net_device" "hard_header_len",
    /// u8, a TCP state; tells full sockets from time-wait and request ones.
    sock_state: "sock" "__sk_common.skc_state",
    /// Namespace of the socket.
    sock_net: "sock" "__sk_common.skc_net",
    /// The user-space side of the socket, or null.
    sock_socket: "sock" "sk_socket",
    /// Open file of the socket, or null.
    socket_file: "socket" "file",
    /// Credentials of the opener.
    file_cred: "file" "f_cred",
    /// u32.
    cred_fsuid: "cred" "fsuid",
    /// u32.
    cred_fsgid: "cred" "fsgid",
    /// u64 bit set, `enum ip_conntrack_status`.
    ct_status: "nf_conn" "status",
    /// The table's current `xt_table_info`.
    table_private: "xt_table" "private",
    /// u8.
    table_af: "xt_table" "af",
    /// 32 bytes.
    table_name: "xt_table" "name",
    /// u32, bytes of the blob.
    info_size: "xt_table_info" "size",
    /// u32, entries in the blob.
    info_number: "xt_table_info" "number",
    /// u32[5].
    info_hook_entry: "xt_table_info" "hook_entry",
    /// u32[5].
    info_underflow: "xt_table_info" "underflow",
    /// The blob starts here.
    info_entries: "xt_table_info" "entries",
}
