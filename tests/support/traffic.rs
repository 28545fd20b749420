//! Traffic: packets made by hand from raw sockets, real connections, and those who answer.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};
use rustix::net::{sendto, socket_with, sockopt};

use crate::lab::{Addresses, Family, Lab, Place, addresses};
use crate::netns::Netns;
use crate::packet::{ACK, Packet, RST, SYN, Transport};
use crate::random::Random;

/// A port where every namespace takes datagrams, and connections.
pub const OPEN: u16 = 4000;
/// A port where nobody listens.
pub const CLOSED: u16 = 4001;

/// A packet and where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    /// The namespace it is sent from.
    pub from: Place,
    /// The packet.
    pub packet: Packet,
}

/// Makes shots of which no two look the same.
#[derive(Clone, Debug)]
pub struct Planner {
    random: Random,
    next: u16,
    /// Step between two packets of this planner, so that several can share the numbers.
    step: u16,
}

impl Planner {
    /// The `which`-th of `of` planners that do not meet.
    pub fn new(seed: u64, which: u16, of: u16) -> Self {
        Self { random: Random::new(seed), next: which, step: of.max(1) }
    }

    /// So many shots of a family.
    pub fn shots(&mut self, family: Family, count: usize) -> Vec<Shot> {
        (0..count).map(|_| self.shot(family)).collect()
    }

    fn shot(&mut self, family: Family) -> Shot {
        let (from, src, dst) = self.route(&addresses(family));
        // A number that repeats only after all others did.
        let number = self.next;
        self.next = (self.next + self.step) % 50_000;
        let sport = 10_000 + number;
        let (transport, room) = self.transport(sport, number);
        let payload = 8 + number % room;
        let tos = *self.random.pick(&[0, 0, 0, 0x10, 0x28]);
        let id = 1 + number;
        let is_udp = matches!(transport, Transport::Udp { .. });
        let fragment = (is_udp && self.random.percent(8)).then(|| (payload / 2).next_multiple_of(8).max(16));
        Shot { from, packet: Packet { src, dst, transport, payload, id, tos, fragment } }
    }

    fn route(&mut self, at: &Addresses) -> (Place, IpAddr, IpAddr) {
        let a = if self.random.percent(30) { at.a_other } else { at.a };
        match self.random.below(100) {
            0..45 => (Place::A, a, at.b),
            45..60 => (Place::A, a, at.r),
            60..70 => (Place::A, a, at.r_dnat),
            70..80 => (Place::R, at.r_far, at.b),
            80..88 => (Place::B, at.b, at.a),
            88..94 => (Place::R, at.lo, at.lo),
            _ => (Place::R, at.r, at.a),
        }
    }

    fn transport(&mut self, sport: u16, number: u16) -> (Transport, u16) {
        let dport = *self.random.pick(&[OPEN, OPEN, CLOSED, 53, 80, 443, 5001, 6001, 7001]);
        match self.random.below(100) {
            // Answers to larger datagrams would be cut, and look the same.
            0..50 => (Transport::Udp { sport, dport }, 480),
            50..75 => (Transport::Echo { id: 100 + number / 7, sequence: number }, 1200),
            75..93 => (Transport::Tcp { sport, dport, flags: SYN }, 1),
            93..97 => (Transport::Tcp { sport, dport, flags: ACK }, 600),
            _ => (Transport::Tcp { sport, dport, flags: RST }, 1),
        }
    }
}

/// Raw sockets of one namespace; any thread may send from them.
#[derive(Debug)]
pub struct Sender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Sender {
    /// Opens them.
    pub fn open(netns: &Netns) -> Result<Self> {
        let open = |family| -> Result<OwnedFd> {
            let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
            sockopt::set_socket_send_buffer_size_force(&socket, 4 << 20)?;
            Ok(socket)
        };
        netns.enter(|| Ok(Self { v4: open(AddressFamily::INET)?, v6: open(AddressFamily::INET6)? }))
    }

    /// Sends a packet. What the ruleset refuses counts as sent.
    pub fn send(&self, packet: &Packet) {
        for bytes in packet.bytes() {
            self.send_bytes(packet.dst, &bytes);
        }
    }

    /// Sends what begins with an IP header.
    pub fn send_bytes(&self, to: IpAddr, bytes: &[u8]) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let _ = sendto(socket, bytes, SendFlags::empty(), &SocketAddr::new(to, 0));
    }
}

/// Senders of all three places.
#[derive(Debug)]
pub struct Senders {
    a: Sender,
    r: Sender,
    b: Sender,
}

impl Senders {
    /// Opens them.
    pub fn open(lab: &Lab) -> Result<Self> {
        Ok(Self { a: Sender::open(&lab.a)?, r: Sender::open(&lab.r)?, b: Sender::open(&lab.b)? })
    }

    /// Sends from where the shot says.
    pub fn fire(&self, shot: &Shot) {
        self.at(shot.from).send(&shot.packet);
    }

    /// Those of one place.
    pub fn at(&self, place: Place) -> &Sender {
        match place {
            Place::A => &self.a,
            Place::R => &self.r,
            Place::B => &self.b,
        }
    }
}

/// Takes datagrams and connections on [`OPEN`] in one namespace.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _datagrams: UdpSocket,
}

impl Server {
    /// Starts it.
    pub fn start(netns: &Netns) -> Result<Self> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), OPEN);
        let (datagrams, listener) = netns.enter(|| Ok((UdpSocket::bind(any)?, TcpListener::bind(any)?)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = thread::spawn(move || serve(&listener, &theirs));
        Ok(Self { stop, thread: Some(thread), _datagrams: datagrams })
    }

    /// One in each namespace.
    pub fn everywhere(lab: &Lab) -> Result<Vec<Self>> {
        lab.all().into_iter().map(Self::start).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let _ = listener.set_nonblocking(true);
    let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(&listener.as_fd(), PollFlags::IN)], Some(&patience));
        while let Ok((stream, _)) = listener.accept() {
            let _ = stream.set_nonblocking(false);
            let _ = talk(stream, b"answer");
        }
    }
}

/// Opens a connection, sends something, reads something, resets it. What the ruleset refuses is no failure.
pub fn connection(netns: &Netns, to: IpAddr, port: u16) -> Result<()> {
    netns.enter(|| {
        if let Ok(stream) = TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_millis(150))
        {
            let _ = talk(stream, b"question");
        }
        Ok(())
    })
}

/// Nothing of a connection is sent again later: it ends with a reset.
fn talk(mut stream: TcpStream, words: &[u8]) -> Result<()> {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(words)?;
    let _ = stream.read(&mut [0; 64])?;
    Ok(())
}

/// Has the client ask who has the router's address, then the router who has the client's, each when it is called for.
pub fn questions(lab: &Lab) -> impl Iterator<Item = Result<()>> {
    let at = addresses(Family::Ipv4);
    [(&lab.a, at.r), (&lab.r, at.a)].into_iter().map(|(netns, peer)| {
        let route = netns.command("ip", &["route", "get", &peer.to_string()], "")?;
        let device = route.split_once(" dev ").and_then(|(_, rest)| rest.split(' ').next());
        let device = device.with_context(|| format!("there is no way to {peer}"))?;
        // Where rules drop the question nobody waits long for the answer.
        netns.sysctl(&format!("net/ipv4/neigh/{device}/retrans_time_ms"), "50")?;
        netns.command("ip", &["neigh", "del", &peer.to_string(), "dev", device], "")?;
        let _ = connection(netns, peer, OPEN);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::identity;
    use std::collections::HashSet;

    #[test]
    fn no_two_packets_look_the_same() {
        for family in Family::ALL {
            let mut planner = Planner::new(1, 0, 1);
            let shots = planner.shots(family, 2000);
            let bytes: Vec<_> = shots.iter().flat_map(|shot| shot.packet.bytes()).collect();
            let all: HashSet<_> = bytes.iter().filter_map(|bytes| identity(bytes)).collect();
            // Only middle fragments of equal length may.
            assert!(all.len() * 100 >= bytes.len() * 98, "{} of {}", all.len(), bytes.len());
        }
    }
}
