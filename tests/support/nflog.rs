//! The kernel's own TRACE, as it comes over netlink: a listener on group 0 of nfnetlink_log.
//!
//! TRACE rules and `net.netfilter.nf_log.2` and `.10` have to point there; [`listen`] does the latter.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recv, send, socket_with, sockopt};

use crate::listener::{Listener, Row, Taken};
use crate::netns::Netns;
use crate::packet::identity;

/// `NFNL_SUBSYS_ULOG`, in the upper byte of a message's type.
const ULOG: u16 = 4 << 8;
const CONFIG: u16 = ULOG | 1;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// Bytes of each packet: all headers of ours.
const COPY_BYTES: u32 = 128;
const RECEIVE_BUFFER_BYTES: usize = 96 << 20;

/// Attributes of a packet message: `enum nfulnl_attr_type`.
mod attribute {
    pub(super) const PACKET_HDR: u16 = 1;
    pub(super) const MARK: u16 = 2;
    pub(super) const PAYLOAD: u16 = 9;
    pub(super) const PREFIX: u16 = 10;
    pub(super) const SEQ: u16 = 12;
}

/// Points a namespace's TRACE to netlink and begins to listen.
pub fn listen(netns: &Netns) -> Result<Listener> {
    for family in ["2", "10"] {
        netns.sysctl(&format!("net/netfilter/nf_log/{family}"), "nfnetlink_log")?;
    }
    let socket = netns.enter(open)?;
    let inode = netns.inode();
    let (mut buffer, mut next_sequence) = (vec![0; 64 << 10], None);
    Ok(Listener::start(socket, move |socket, taken| {
        loop {
            match recv(socket.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => take(&buffer[..length], inode, taken, &mut next_sequence),
                // The gap in the sequence tells how many.
                Err(Errno::NOBUFS) => {}
                Err(_) => break,
            }
        }
    }))
}

fn open() -> Result<OwnedFd> {
    let netfilter = Some(netlink::NETFILTER);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, netfilter)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)?;
    // Command: bind this group to this socket.
    configure(&socket, &attribute_bytes(1, &[1])).context("group 0 of nfnetlink_log is taken")?;
    let mut mode = COPY_BYTES.to_be_bytes().to_vec();
    mode.extend([2, 0]);
    let mut settings = attribute_bytes(2, &mode);
    settings.extend(attribute_bytes(3, &1024u32.to_be_bytes()));
    settings.extend(attribute_bytes(5, &1u32.to_be_bytes()));
    settings.extend(attribute_bytes(6, &1u16.to_be_bytes()));
    configure(&socket, &settings)?;
    Ok(socket)
}

fn configure(socket: &OwnedFd, attributes: &[u8]) -> Result<()> {
    let length = u32::try_from(20 + attributes.len())?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(CONFIG.to_ne_bytes());
    // A request, to be acknowledged.
    message.extend(5u16.to_ne_bytes());
    message.extend([0; 8]);
    // Any family, version 0, group 0.
    message.extend([0; 4]);
    message.extend(attributes);
    send(socket, &message, SendFlags::empty())?;
    let mut buffer = [0; 4096];
    let (_, length) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    for (kind, body) in messages(&buffer[..length]) {
        let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        if kind == ERROR && code != 0 {
            bail!("nfnetlink_log: {}", std::io::Error::from_raw_os_error(-code));
        }
    }
    Ok(())
}

pub(crate) fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(4);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn take(datagram: &[u8], netns: u64, taken: &Taken, next_sequence: &mut Option<u32>) {
    for (kind, body) in messages(datagram) {
        if kind != ULOG {
            continue;
        }
        let Some((row, sequence)) = row(body, netns) else { continue };
        if let Some(sequence) = sequence {
            let gap = next_sequence.map_or(0, |expected| sequence.wrapping_sub(expected));
            taken.lose(gap.into());
            *next_sequence = Some(sequence.wrapping_add(1));
        }
        taken.add(row);
    }
}

/// A packet message: the line, if it is one of TRACE, and its number.
fn row(body: &[u8], netns: u64) -> Option<(Option<Row>, Option<u32>)> {
    let (mut hook, mut step, mut packet, mut mark, mut sequence) = (None, None, None, 0, None);
    for (kind, value) in attributes(body.get(4..)?) {
        let number = || value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        match kind {
            attribute::PACKET_HDR => hook = value.get(2).copied(),
            attribute::MARK => mark = number().unwrap_or(0),
            attribute::PAYLOAD => packet = identity(value),
            attribute::PREFIX => step = step_of(value),
            attribute::SEQ => sequence = number(),
            _ => {}
        }
    }
    let row = match (hook, step, packet) {
        (Some(hook), Some(step), Some(packet)) => Some(Row { netns, hook, step, packet, mark }),
        _ => None,
    };
    Some((row, sequence))
}

/// `TRACE: table:chain:kind:number `, ended by a zero.
fn step_of(prefix: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(prefix);
    let text = text.trim_end_matches('\0').strip_prefix("TRACE: ")?;
    Some(text.strip_suffix(' ').unwrap_or(text).to_owned())
}

/// The messages of a datagram: type and what follows the header.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Attributes: type and value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded() {
        let mut bytes = attribute_bytes(1, b"abc");
        bytes.extend(attribute_bytes(2, b"defg"));
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &b"abc"[..]), (2, &b"defg"[..])]);
        assert_eq!(step_of(b"TRACE: raw:A B:rule:1 \0").as_deref(), Some("raw:A B:rule:1"));
    }
}
