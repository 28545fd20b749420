//! Where something stands at a hook: what legacy tables and nftables' chains have in common.

use crate::legacy::NAT_CLASS;

/// What [`Run::hook`](crate::nft::Run::hook) has for a base chain at the ingress of a device, in the families netdev and
/// inet alike. The lower numbers are those of the hooks of IP.
pub const INGRESS: u8 = 5;
/// The same for the egress of a device.
pub const EGRESS: u8 = 6;

/// The first of the five hooks of a bridge, in the order of those of IP.
pub const BRIDGE: u8 = 7;
/// The first of the three hooks of ARP.
pub const ARP: u8 = 12;

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
    match class {
        1 => -300,
        2 => -150,
        NAT_CLASS => nat_priority(hook),
        4 => 0,
        5 => 50,
        _ => i32::MAX,
    }
}

/// Where a priority stands among the legacy tables, as their [`crate::legacy::rank`]: those with the same rank come in
/// the order of their priorities, and are told apart in another way.
#[inline(always)]
pub fn rank(priority: i32) -> u8 {
    // Additions instead of branches: the kernel programs ask for every packet.
    u8::from(priority >= -300)
        + u8::from(priority >= -150)
        + u8::from(priority >= -100)
        + u8::from(priority >= 0)
        + u8::from(priority >= 50)
        + u8::from(priority >= 100)
        + u8::from(priority > 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_tables_have_their_ranks() {
        for hook in 0..5 {
            for class in 1..=5 {
                assert_eq!(rank(legacy_priority(hook, class)), crate::legacy::rank(hook, class));
            }
        }
        assert_eq!(
            [i32::MIN, -301, -200, -140, -99, 10, 60, 101, i32::MAX].map(rank),
            [0, 0, 1, 2, 3, 4, 5, 7, 7]
        );
    }
}
