//! The kernel's own TRACE over netlink: a socket that has group 0 of nfnetlink_log, where TRACE goes when a namespace's
//! `nf_log.2` and `nf_log.10` say `nfnetlink_log`.
#![forbid(unsafe_code)]

mod devices;
mod holder;

use crate::netfilter::{Family, Hook};
use crate::netlink::messages;
use crate::netlink::nflog::{self, Logged};
use crate::packet::{Link, Owner, PacketView};
use crate::sys::netlink::{self, NETFILTER, Received, Socket};
use crate::sys::netns;
use devices::Devices;
pub use holder::Holder;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// The modules that bring it.
pub const MODULES: [&str; 1] = ["nfnetlink_log"];
/// What `nf_log.2` and `nf_log.10` have to be.
pub const LOGGER: &str = "nfnetlink_log";
/// The group of TRACE; the kernel leaves no choice.
const GROUP: u16 = 0;
/// Bytes of each packet: the longest headers, and those of a packet that an ICMP error quotes.
const COPY_BYTES: u32 = 256;
/// What the kernel sets aside for a message. It takes more for one that needs more.
const MESSAGE_BYTES: u32 = 768;
const ARPHRD_SIT: u16 = 776;
const ETH_HLEN: usize = 14;

/// Why nothing can be received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no nfnetlink_log.
    #[error("this kernel has no nfnetlink_log")]
    NoModule(#[source] netlink::Error),
    /// Another socket has the group.
    #[error("group 0 of nfnetlink_log, where TRACE goes, belongs to {0}")]
    Busy(Holder),
    /// Not permitted.
    #[error("cannot take group 0 of nfnetlink_log")]
    Bind(#[source] netlink::Error),
    /// The socket failed.
    #[error("cannot receive from nfnetlink_log")]
    Receive(#[source] io::Error),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
}

impl Error {
    /// Whether this host can do nothing about it while it is as it is.
    pub fn unusable(&self) -> bool {
        !matches!(self, Self::Receive(_))
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoModule(_) => {
                Some("`modprobe nfnetlink_log`, or a kernel with CONFIG_NETFILTER_NETLINK_LOG")
            }
            Self::Busy(_) => Some("end it, have it use another group, or trace with --backend log"),
            Self::Bind(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Some("run it as root, or with CAP_NET_ADMIN in the namespace")
            }
            _ => None,
        }
    }
}

/// One row of TRACE.
#[derive(Debug)]
pub struct Row<'a> {
    /// `table:chain:kind:number`
    pub name: &'a str,
    /// Where in the stack.
    pub hook: Hook,
    /// The packet as the rule saw it.
    pub view: PacketView<'a>,
    /// Nanoseconds since the epoch, where the kernel tells.
    pub time_ns: Option<u64>,
}

/// The group of one namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    devices: Devices,
    buffer: Vec<u8>,
    /// The number that the next message has to have.
    next: Option<u32>,
    lost: u64,
    /// The kernel said that messages were lost, and none has come since that tells how many.
    overrun: bool,
}

impl Netlink {
    /// Whether the group can be had in a namespace, as far as that can be seen.
    pub fn check(namespace: &File) -> Result<(), Error> {
        Holder::of(namespace, GROUP).map_or(Ok(()), |holder| Err(Error::Busy(holder)))
    }

    /// Takes the group in a namespace, with room for so many bytes of messages that wait; less where only root may have
    /// so much. Nothing comes until TRACE is sent there.
    pub fn open(namespace: &File, buffer_bytes: usize) -> Result<Self, Error> {
        let mut socket = Socket::open(Some(namespace), NETFILTER).map_err(Error::Bind)?;
        // Best effort: a small buffer loses more, and says so.
        let _ = socket.set_receive_buffer(buffer_bytes);
        let sequence = socket.next_sequence();
        let ask = |request: crate::netlink::Builder| {
            socket.request(request.as_bytes(), &[sequence], |_| ()).map(drop)
        };
        ask(nflog::bind(sequence, GROUP)).map_err(|error| refused(namespace, error))?;
        ask(nflog::configure(sequence, GROUP, COPY_BYTES, MESSAGE_BYTES)).map_err(Error::Bind)?;
        let devices = Devices::of(namespace)?;
        Ok(Self { socket, devices, buffer: Vec::new(), next: None, lost: 0, overrun: false })
    }

    /// Gives waiting rows to `receive`, of at most `limit` datagrams. Says how many there were.
    pub fn drain(&mut self, limit: usize, mut receive: impl FnMut(Row<'_>)) -> Result<usize, Error> {
        let Self { socket, devices, buffer, next, lost, overrun } = self;
        for taken in 0..limit {
            let datagram = match socket.recv(buffer).map_err(Error::Receive)? {
                Received::Datagram(datagram) => datagram,
                Received::Empty => return Ok(taken),
                Received::Overrun => {
                    *overrun = true;
                    continue;
                }
            };
            for message in messages(datagram) {
                let Some(logged) = message.netfilter().and_then(|message| Logged::parse(&message)) else {
                    continue;
                };
                if let Some(sequence) = logged.sequence {
                    *lost += u64::from(next.map_or(0, |next| sequence.wrapping_sub(next)));
                    *next = Some(sequence.wrapping_add(1));
                    *overrun = false;
                }
                row(&logged, devices, &mut receive);
            }
        }
        Ok(limit)
    }

    /// Messages that were lost so far. When none has come after the last loss, it counts as one.
    pub fn lost(&self) -> u64 {
        self.lost + u64::from(self.overrun)
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Why the group could not be bound. The kernel says the same to those who may not and to those who come late.
fn refused(namespace: &File, error: netlink::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EBUSY) => match Holder::of(namespace, GROUP) {
            Some(holder) => Error::Busy(holder),
            None => Error::Bind(error),
        },
        Some(libc::EINVAL | libc::EOPNOTSUPP) => Error::NoModule(error),
        _ => Error::Bind(error),
    }
}

/// Gives a row, unless a rule logged it for another reason.
fn row(logged: &Logged<'_>, devices: &mut Devices, receive: &mut impl FnMut(Row<'_>)) {
    let (Some(name), Some(family), Some(hook)) =
        (logged.step(), Family::from_nfproto(logged.family), Hook::from_number(logged.hook))
    else {
        return;
    };
    let mut device = |index: Option<u32>| index.map(|index| devices.name(index));
    let (indev, outdev) = (device(logged.indev), device(logged.outdev));
    let physin = device(logged.physindev.filter(|port| Some(*port) != logged.indev));
    let physout = device(logged.physoutdev.filter(|port| Some(*port) != logged.outdev));
    let view = PacketView {
        family,
        indev: indev.as_deref(),
        outdev: outdev.as_deref(),
        link: link(logged, physin.as_deref(), physout.as_deref()),
        len: length(logged, family),
        bytes: logged.payload,
        mark: logged.mark,
        owner: logged.uid.zip(logged.gid).map(|(uid, gid)| Owner { uid, gid }),
    };
    receive(Row { name, hook, view, time_ns: logged.time_ns });
}

/// The kernel's logger prints no link-layer header that is the network header; here it is sent nevertheless. That of a
/// SIT tunnel is sent with what is before it (`__build_packet_message` in `net/netfilter/nfnetlink_log.c`).
fn link<'a>(logged: &Logged<'a>, physin: Option<&'a [u8]>, physout: Option<&'a [u8]>) -> Link<'a> {
    let dev_type = logged.dev_type.unwrap_or_default();
    let (before, header) = match logged.hard_header {
        Some(bytes) if dev_type == ARPHRD_SIT => match bytes.split_at_checked(ETH_HLEN) {
            Some((before, header)) => (before, Some(header)),
            None => (bytes, None),
        },
        header => ([].as_slice(), header),
    };
    Link {
        dev_type,
        hard_header_len: logged.hard_header_len.unwrap_or_default(),
        header: header.filter(|header| !logged.payload.starts_with(header)),
        before,
        vlan: None,
        physin,
        physout,
    }
}

/// `skb->len`: what came, or what the header says where not all came.
fn length(logged: &Logged<'_>, family: Family) -> u32 {
    let copied = logged.payload.len() as u32;
    let field = |at: usize| {
        logged.payload.get(at..)?.first_chunk().map(|bytes| u32::from(u16::from_be_bytes(*bytes)))
    };
    let stated = match family {
        Family::Ipv4 => field(2),
        Family::Ipv6 => field(4).map(|payload| payload + 40),
    };
    if copied < COPY_BYTES { copied } else { stated.unwrap_or(0).max(copied) }
}
