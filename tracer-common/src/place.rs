//! Where something stands at a hook, as a number that legacy tables and nftables' chains share.

use crate::legacy::NAT_CLASS;

/// Bits of a rank.
pub const RANK_BITS: u32 = 10;
/// The rank of priority 0.
const MIDDLE: i32 = 1 << (RANK_BITS - 1);
/// The highest rank.
const LAST: i32 = (1 << RANK_BITS) - 1;

/// The order in which a hook's tables and chains see a packet: their priority, moved above zero. Priorities far out
/// share a rank.
#[inline(always)]
pub fn rank(priority: i32) -> u32 {
    let rank = priority.saturating_add(MIDDLE);
    if rank < 0 {
        0
    } else if rank > LAST {
        LAST as u32
    } else {
        rank as u32
    }
}

/// Priority of all that translates addresses, whatever priority it was given itself: destinations at PREROUTING (0)
/// and OUTPUT (3), sources at the other hooks.
#[inline(always)]
pub fn nat_priority(hook: u8) -> i32 {
    if hook == 0 || hook == 3 { -100 } else { 100 }
}

/// Priority of a legacy table by its class, see [`crate::legacy::table_class`]; `enum nf_ip_hook_priorities` in
/// `include/uapi/linux/netfilter_ipv4.h`. `xt_table.priority` does not tell that of nat.
#[inline(always)]
pub fn legacy_priority(hook: u8, class: u8) -> i32 {
    // No table of numbers: it would be data that the kernel programs have to look up.
    if class == NAT_CLASS {
        nat_priority(hook)
    } else if class == 1 {
        -300
    } else if class == 2 {
        -150
    } else if class == 4 {
        0
    } else if class == 5 {
        50
    } else {
        LAST
    }
}
