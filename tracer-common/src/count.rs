//! What the programs count instead of sending records, and by what.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// By what packets are counted: [`Config::count_by`](crate::config::Config::count_by).
pub mod by {
    /// They are traced, not counted.
    pub const NOTHING: u32 = 0;
    /// By the rules that they met.
    pub const RULE: u32 = 1;
    /// By what became of them.
    pub const VERDICT: u32 = 2;
    /// By their source address. From here on a packet is looked at once.
    pub const SRC: u32 = 3;
    /// By their destination address.
    pub const DST: u32 = 4;
    /// By addresses, protocol and ports.
    pub const FLOW: u32 = 5;
}

/// What a number in the map is of: [`Key::kind`].
pub mod kind {
    /// An entry of a legacy table. [`Key::words`]: address of the `xt_table_info`, address of the `xt_table`, index of the
    /// entry below and the table's replace counter above.
    pub const ENTRY: u32 = 1;
    /// A rule of nftables: its handle, that of its table, number of the namespace.
    pub const RULE: u32 = 2;
    /// The policy of a base chain: the chain's handle, that of its table, number of the namespace.
    pub const POLICY: u32 = 3;
    /// Packets that matched.
    pub const PACKETS: u32 = 4;
    /// Ends of tables and base chains other than that the packet went on: the verdict of netfilter.
    pub const VERDICT: u32 = 5;
    /// A source address, destination address or both, as [`super::Key::addresses`] has them.
    pub const ADDRESSES: u32 = 6;
}

/// What is counted. What of it a kind does not use is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Key {
    /// See [`kind`]; for [`kind::ADDRESSES`] four 32-bit words each of source and destination as a packet's
    /// [`filter::Key`](crate::filter::Key) has them, two in each of these, the first one low.
    pub words: [u64; 4],
    /// One of [`kind`].
    pub kind: u32,
    /// For [`kind::ADDRESSES`]: 4 or 6.
    pub version: u8,
    /// Transport protocol.
    pub protocol: u8,
    /// Fills to four.
    pub reserved: u16,
    /// Source port above, destination port below.
    pub ports: u32,
    /// Fills to eight.
    pub reserved_at_end: u32,
}

impl Key {
    /// Source and destination address in the form of a packet's [`filter::Key`](crate::filter::Key).
    pub fn addresses(&self) -> [[u32; 4]; 2] {
        let [a, b, c, d] = self.words;
        let halves = |low: u64, high: u64| [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
        [halves(a, b), halves(c, d)]
    }
}

const _: () = assert!(size_of::<Key>() == 48);
