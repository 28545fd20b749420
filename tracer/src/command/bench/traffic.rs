//! UDP datagrams from one namespace to another. One thread sends and receives: what a packet costs on its way is done
//! while it is being sent.

use crate::bench;
use crate::sys::netns;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where they come from and where they go: addresses for documentation, which no host has.
pub(super) const FROM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The port that they go to.
pub(super) const PORT: u16 = 5005;
/// Bytes in each.
pub(super) const PAYLOAD: [u8; 64] = [b'x'; 64];

/// Packets that are under way at once; the smallest receive buffer holds them. So few take less time than a process may
/// run before another one has its turn: most batches are disturbed by nothing.
const BATCH: usize = 16;
/// A packet that has not come by then does not come.
const COMES_WITHIN: Duration = Duration::from_secs(2);

/// How much to send for one measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Packets one by one, for the time that each takes.
    pub(super) singles: usize,
    /// How long to send batches.
    pub(super) time: Duration,
    /// At most so many batches.
    pub(super) batches: usize,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) packets: u64,
    /// By those batches that were disturbed least.
    pub(super) packets_per_second: f64,
    pub(super) latencies_ns: Vec<u64>,
}

/// A sender and a receiver.
#[derive(Debug)]
pub(super) struct Traffic {
    from: UdpSocket,
    to: UdpSocket,
}

impl Traffic {
    /// Between namespaces that are joined.
    pub(super) fn new(sender: &File, receiver: &File) -> Result<Self, netns::Error> {
        let open = |namespace, address, port| {
            netns::inside(namespace, || UdpSocket::bind(SocketAddrV4::new(address, port)))?
                .map_err(|source| netns::Error::Thread { source })
        };
        Ok(Self { from: open(sender, FROM, 0)?, to: open(receiver, TO, PORT)? })
    }

    /// Measures, unless it is told to stop.
    pub(super) fn measure(&self, effort: Effort, stop: &AtomicBool) -> io::Result<Sent> {
        self.to.set_read_timeout(Some(COMES_WITHIN))?;
        // Neighbours get to know each other, caches fill.
        self.batch(BATCH)?;
        let mut latencies_ns = Vec::with_capacity(effort.singles);
        let mut packets = BATCH;
        for _ in 0..effort.singles {
            latencies_ns.push(u64::try_from(self.batch(1)?.as_nanos()).unwrap_or(u64::MAX));
            packets += 1;
        }
        let mut seconds = Vec::new();
        let end = Instant::now() + effort.time;
        while seconds.len() < effort.batches
            && (seconds.is_empty() || Instant::now() < end)
            && !stop.load(Ordering::Relaxed)
        {
            seconds.push(self.batch(BATCH)?.as_secs_f64());
            packets += BATCH;
        }
        let packets_per_second = bench::lower_quartile(seconds).map_or(0.0, |seconds| BATCH as f64 / seconds);
        Ok(Sent { packets: packets as u64, packets_per_second, latencies_ns })
    }

    /// Sends and receives so many packets; how long that took.
    fn batch(&self, packets: usize) -> io::Result<Duration> {
        let mut buffer = [0; PAYLOAD.len()];
        let start = Instant::now();
        for _ in 0..packets {
            self.from.send_to(&PAYLOAD, (TO, PORT))?;
        }
        for _ in 0..packets {
            self.to.recv(&mut buffer)?;
        }
        Ok(start.elapsed())
    }
}
