//! A program that decides about packets in a queue.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recv, send, socket_with};

use crate::nflog::{attribute_bytes, attributes, messages};

/// `NFNL_SUBSYS_QUEUE`, in the upper byte of a message's type.
const QUEUE: u16 = 3 << 8;
const VERDICT: u16 = QUEUE | 1;
const CONFIG: u16 = QUEUE | 2;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NFQA_PACKET_HDR`
const PACKET_HDR: u16 = 1;

/// A queue of one namespace.
#[derive(Debug)]
pub struct Queue {
    socket: OwnedFd,
    number: u16,
}

impl Queue {
    /// Takes it; in its namespace.
    pub fn open(number: u16) -> Result<Self> {
        let netfilter = Some(netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, netfilter)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let queue = Self { socket, number };
        // Command: bind; then only what is told of a packet, and none of its bytes.
        queue.send(CONFIG, &attribute_bytes(1, &[1, 0, 0, 0]))?;
        queue.acknowledged().context("bind the queue")?;
        queue.send(CONFIG, &attribute_bytes(2, &[0, 0, 0, 0, 1]))?;
        queue.acknowledged().context("set what the queue copies")?;
        Ok(queue)
    }

    /// Waits for the next packet and gives the verdict: 0 drops it, 1 accepts it.
    pub fn decide(&self, verdict: u32) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let (_, length) = recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
            for (kind, body) in messages(&buffer[..length]) {
                let header =
                    attributes(body.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == PACKET_HDR);
                let Some((_, header)) = header.filter(|_| kind == QUEUE) else { continue };
                let mut answer = verdict.to_be_bytes().to_vec();
                answer.extend(header.get(..4).context("the packet has no number")?);
                return self.send(VERDICT, &attribute_bytes(2, &answer));
            }
        }
    }

    fn send(&self, kind: u16, attributes: &[u8]) -> Result<()> {
        let length = u32::try_from(20 + attributes.len())?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        // A request; the kernel acknowledges configurations when asked to.
        message.extend((if kind == CONFIG { 5u16 } else { 1 }).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([0, 0]);
        message.extend(self.number.to_be_bytes());
        message.extend(attributes);
        send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    fn acknowledged(&self) -> Result<()> {
        let mut buffer = [0; 4096];
        let (_, length) = recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            if kind == ERROR && code != 0 {
                bail!("nfnetlink_queue: {}", std::io::Error::from_raw_os_error(-code));
            }
        }
        Ok(())
    }
}
