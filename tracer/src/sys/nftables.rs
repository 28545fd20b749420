//! Which tables of nftables hold rules.

use super::netlink::{Error, NETFILTER, Socket};
use crate::netlink::{Builder, find};
use std::fs::File;

/// `NFTA_RULE_TABLE`
const RULE_TABLE: u16 = 1;
const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;

/// Tables of a namespace with at least one rule, such as `inet firewalld`. Asking loads the module where it is not
/// loaded.
pub fn tables_with_rules(namespace: &File) -> Result<Vec<String>, Error> {
    let mut socket = Socket::open(Some(namespace), NETFILTER)?;
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u8, libc::NFT_MSG_GETRULE as u8);
    let request = |sequence| Builder::new().netfilter(kind, DUMP, sequence, (0, 0), |_| ());
    let mut tables = socket.dump(request, |message| {
        let message = message.netfilter()?;
        let family = match message.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "?",
        };
        Some(format!("{family} {}", find(message.attributes, RULE_TABLE)?.text()))
    })?;
    tables.sort();
    tables.dedup();
    Ok(tables)
}
