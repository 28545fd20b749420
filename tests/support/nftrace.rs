//! The kernel's own trace of nftables, as it comes over netlink, in the same rows as [`crate::nflog`] gives.
//!
//! Packets have to be marked, see [`MARKER`].

use std::collections::HashMap;
use std::fs::File;

use anyhow::{Context as _, Result};
use nftracer::fetch::nft::Nftables;
use nftracer::netlink::messages;
use nftracer::nftables::Ruleset;
use nftracer::nftables::trace::{GROUP, TraceEvent, TraceKind, decode};
use nftracer::sys::netlink::{NETFILTER, Received, Socket};

use crate::listener::{Listener, Row};
use crate::netns::Netns;
use crate::packet::{Identity, identity};

/// Marks every packet before all other chains, so that the kernel tells of it.
pub const MARKER: &str = "\
table inet marker {
    chain pre { type filter hook prerouting priority -350; meta nftrace set 1; }
    chain out { type filter hook output priority -350; meta nftrace set 1; }
}
";

const RECEIVE_BUFFER_BYTES: usize = 96 << 20;

/// Begins to listen in a namespace. The rules that packets will meet have to be there.
pub fn listen(netns: &Netns) -> Result<Listener> {
    let namespace = File::open(format!("/run/netns/{}", netns.name()))?;
    let socket = Socket::open(Some(&namespace), NETFILTER)?;
    socket.set_receive_buffer(RECEIVE_BUFFER_BYTES)?;
    socket.join_group(GROUP)?;
    let ruleset = Nftables::open(&namespace)?.context("nf_tables is not loaded")?.structure()?;
    let mut reader = Reader { ruleset, netns: netns.inode(), packets: HashMap::new() };
    let mut buffer = Vec::new();
    Ok(Listener::start(socket, move |socket, taken| {
        loop {
            match socket.recv(&mut buffer) {
                Ok(Received::Datagram(bytes)) => {
                    let events = messages(bytes);
                    taken.add(events.filter_map(|message| reader.row(&decode(&message.netfilter()?)?)));
                }
                Ok(Received::Overrun) => taken.lose(1),
                Ok(Received::Empty) | Err(_) => break,
            }
        }
    }))
}

/// Turns messages into rows.
struct Reader {
    ruleset: Ruleset,
    netns: u64,
    /// By the kernel's id: the packet and the hook of the base chain that it is in.
    packets: HashMap<u32, (Identity, u8, String)>,
}

impl Reader {
    /// `None` for what is no step, and for packets that are not ours.
    fn row(&mut self, event: &TraceEvent<'_>) -> Option<Row> {
        if let Some(packet) = &event.packet {
            let chain = self.ruleset.table(event.family, &event.table)?.chain(&event.chain)?;
            // Where headers are told, a base chain begins; its first message can come from another chain no more than
            // a rule that leads there can be silent.
            let hook = chain.base.as_ref()?.hook? as u8;
            let mut bytes = packet.network?.to_vec();
            let first = *bytes.first()?;
            match first >> 4 {
                4 => bytes.truncate(usize::from(first & 15) * 4),
                6 => bytes.truncate(40),
                _ => {}
            }
            bytes.extend(packet.transport.unwrap_or_default());
            self.packets.insert(event.id, (identity(&bytes)?, hook, event.chain.to_string()));
        }
        let known = self.packets.get_mut(&event.id)?;
        // A packet that is stolen by the first rule of a base chain is not shown again; nothing jumps to a base chain.
        let chain = self.ruleset.table(event.family, &event.table)?.chain(&event.chain);
        if let Some(hook) = chain.and_then(|chain| chain.base.as_ref()?.hook)
            && *known.2 != *event.chain
        {
            (known.1, known.2) = (hook as u8, event.chain.to_string());
        }
        let (packet, hook, base) = known.clone();
        // Its policy follows.
        if event.kind == TraceKind::Return && event.chain == base {
            return None;
        }
        let located = self.ruleset.locate(event)?;
        let (table, chain) = (&located.table.name, &located.chain.name);
        let step = format!("{table}:{chain}:{}:{}", located.kind, located.number);
        Some(Row { netns: self.netns, hook, step, packet, mark: event.mark })
    }
}
