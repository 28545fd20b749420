//! The kernel's own trace of nftables, as it comes over netlink, in the rows of [`crate::nflog`].
//!
//! Packets have to be marked, see [`MARKER`].

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use nftracer::fetch::nft::Nftables;
use nftracer::netlink::messages;
use nftracer::nftables::Ruleset;
use nftracer::nftables::trace::{GROUP, TraceEvent, TraceKind, decode};
use nftracer::sys::netlink::{NETFILTER, Received, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::netns::Netns;
use crate::nflog::Row;
use crate::packet::{Identity, identity};

/// Marks every packet before all other chains, so that the kernel tells of it.
pub const MARKER: &str = "\
table inet marker {
    chain pre { type filter hook prerouting priority -350; meta nftrace set 1; }
    chain out { type filter hook output priority -350; meta nftrace set 1; }
}
";

const RECEIVE_BUFFER_BYTES: usize = 96 << 20;

#[derive(Debug, Default)]
struct Shared {
    rows: Mutex<Vec<Row>>,
    lost: AtomicU64,
    stop: AtomicBool,
}

/// Listens in one namespace until dropped.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Begins to listen. The rules that packets will meet have to be there.
    pub fn start(netns: &Netns) -> Result<Self> {
        let namespace = File::open(format!("/run/netns/{}", netns.name()))?;
        let socket = Socket::open(Some(&namespace), NETFILTER)?;
        socket.set_receive_buffer(RECEIVE_BUFFER_BYTES)?;
        socket.join_group(GROUP)?;
        let ruleset = Nftables::open(&namespace)?.context("nf_tables is not loaded")?.structure()?;
        let shared = Arc::new(Shared::default());
        let mut reader = Reader { ruleset, netns: netns.inode(), packets: HashMap::new() };
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || listen(&socket, &mut reader, &theirs));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What came since the last call.
    pub fn take(&self) -> Vec<Row> {
        std::mem::take(&mut *self.rows())
    }

    /// How many rows wait.
    pub fn waiting(&self) -> usize {
        self.rows().len()
    }

    /// How often messages were lost, so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.shared.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(socket: &Socket, reader: &mut Reader, shared: &Shared) {
    let mut buffer = Vec::new();
    let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !shared.stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&patience));
        loop {
            match socket.recv(&mut buffer) {
                Ok(Received::Datagram(bytes)) => {
                    let events = messages(bytes);
                    let rows: Vec<Row> =
                        events.filter_map(|message| reader.row(&decode(&message.netfilter()?)?)).collect();
                    shared.rows.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
                }
                Ok(Received::Overrun) => {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Received::Empty) | Err(_) => break,
            }
        }
    }
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
            bytes.truncate(if first >> 4 == 6 { 40 } else { usize::from(first & 15) * 4 });
            bytes.extend(packet.transport.unwrap_or_default());
            self.packets.insert(event.id, (identity(&bytes)?, hook, event.chain.to_string()));
        }
        let (packet, hook, base) = self.packets.get(&event.id)?.clone();
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
