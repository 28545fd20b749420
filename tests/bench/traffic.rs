//! UDP packets over loopback, sent and received by one thread.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Where the packets go.
pub(crate) const PORT: u16 = 5005;
/// Bytes in each packet.
const PAYLOAD: [u8; 64] = [b'x'; 64];

/// A sender and a receiver.
pub(crate) struct Traffic {
    from: UdpSocket,
    to: UdpSocket,
    address: SocketAddr,
}

impl Traffic {
    pub(crate) fn new() -> Result<Self> {
        let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))?;
        to.set_read_timeout(Some(Duration::from_secs(5)))?;
        let address = to.local_addr()?;
        Ok(Self { from, to, address })
    }

    /// One packet after the other; how long that took.
    pub(crate) fn batch(&mut self, packets: u32) -> Result<Duration> {
        let mut buffer = [0; 128];
        let start = Instant::now();
        for _ in 0..packets {
            self.from.send_to(&PAYLOAD, self.address)?;
            let length = self.to.recv(&mut buffer)?;
            ensure!(length == PAYLOAD.len(), "a packet of {length} bytes came");
        }
        Ok(start.elapsed())
    }
}
