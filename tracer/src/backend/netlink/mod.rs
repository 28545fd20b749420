//! The kernel's own TRACE over netlink: a socket that has group 0 of nfnetlink_log, where TRACE goes when a namespace's
//! `nf_log.2` and `nf_log.10` say `nfnetlink_log`.
#![forbid(unsafe_code)]

mod devices;
mod holder;

use crate::netfilter::{Family, Hook};
use crate::netlink::nflog::{self, Delivery, Logged};
use crate::netlink::{Message, messages};
use crate::nftables::{decode, trace};
use crate::packet::{Link, Owner, PacketView};
use crate::sys::netlink::{self, NETFILTER, Received, Socket};
use crate::sys::netns;
use devices::Devices;
pub use holder::Holder;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The modules that bring it.
pub const MODULES: [&str; 1] = ["nfnetlink_log"];
/// What `nf_log.2` and `nf_log.10` have to be.
pub const LOGGER: &str = "nfnetlink_log";
/// The group of TRACE; the kernel leaves no choice.
const GROUP: u16 = 0;
/// Bytes of each packet: the longest headers, and those of a packet that an ICMP error quotes.
const COPY_BYTES: u32 = 256;
/// Each row at once, so that its time is that of the packet.
const SINGLY: Delivery = Delivery { together: 1, bytes: 768 };
/// As many rows as fit into four pages with what the kernel puts behind them: many rows cost the host and us less then,
/// and the same room holds more of them.
const TOGETHER: Delivery = Delivery { together: 64, bytes: 16 * 1024 - 512 };
/// How often it is decided how rows are to come.
const DECIDE: Duration = Duration::from_millis(100);
/// Rows in that time from which on they come together, and up to which singly.
const MANY: u64 = 1000;
const FEW: u64 = 500;
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
    /// Not permitted.
    #[error("cannot join the group of nftables' trace messages")]
    Join(#[source] io::Error),
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
            Self::Join(_) => Some("run it as root, or with CAP_NET_ADMIN in the namespace"),
            _ => None,
        }
    }
}

/// What comes, in the order in which the kernel sent it.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// A row of a legacy table.
    Row(Row<'a>),
    /// A message of nftables: about a packet, or about a change of the rules.
    Nftables(Message<'a>),
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

/// What of one namespace is listened to, all with one socket: what it gets of one packet is in the order of its way.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    devices: Devices,
    buffer: Vec<u8>,
    /// The number that the next message has to have.
    next: Option<u32>,
    lost: u64,
    /// The kernel said that messages were lost, and no gap has come since that tells how many.
    overrun: bool,
    /// Nftables tells of packets as well.
    nftables: bool,
    pace: Pace,
}

/// How rows come, and how many there were since that was decided.
#[derive(Debug)]
struct Pace {
    delivery: Delivery,
    rows: u64,
    decided: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { delivery: SINGLY, rows: 0, decided: Instant::now() }
    }

    /// How rows are to come from now on, when it is time to decide and that is another way.
    fn decide(&mut self, now: Instant) -> Option<Delivery> {
        if now.duration_since(self.decided) < DECIDE {
            return None;
        }
        let delivery = match self.rows {
            MANY.. => TOGETHER,
            ..=FEW => SINGLY,
            _ => self.delivery,
        };
        let changed = delivery != self.delivery;
        *self = Self { delivery, rows: 0, decided: now };
        changed.then_some(delivery)
    }
}

impl Netlink {
    /// Whether the group can be had in a namespace, as far as that can be seen.
    pub fn check(namespace: &File) -> Result<(), Error> {
        Holder::of(namespace, GROUP).map_or(Ok(()), |holder| Err(Error::Busy(holder)))
    }

    /// Takes the group in a namespace, with room for so many bytes of messages that wait; less where only root may have
    /// so much. Nothing comes until TRACE is sent there.
    pub fn open(namespace: &File, buffer_bytes: usize) -> Result<Self, Error> {
        let mut netlink = Self::deaf(namespace, buffer_bytes)?;
        let sequence = netlink.socket.next_sequence();
        let ask = |request: crate::netlink::Builder| {
            netlink.socket.request(request.as_bytes(), &[sequence], |_| ()).map(drop)
        };
        ask(nflog::bind(sequence, GROUP)).map_err(|error| refused(namespace, error))?;
        ask(nflog::configure(sequence, GROUP, COPY_BYTES, SINGLY)).map_err(Error::Bind)?;
        Ok(netlink)
    }

    /// The same without the group: for kernels without legacy tables.
    pub fn deaf(namespace: &File, buffer_bytes: usize) -> Result<Self, Error> {
        let socket = Socket::open(Some(namespace), NETFILTER).map_err(Error::Bind)?;
        // Best effort: a small buffer loses more, and says so.
        let _ = socket.set_receive_buffer(buffer_bytes);
        let devices = Devices::of(namespace)?;
        Ok(Self {
            socket,
            devices,
            buffer: Vec::new(),
            next: None,
            lost: 0,
            overrun: false,
            nftables: false,
            pace: Pace::new(),
        })
    }

    /// Has nftables tell of changes of its rules as well.
    pub fn hear_changes(&self) -> Result<(), Error> {
        self.socket.join_group(decode::GROUP).map_err(Error::Join)
    }

    /// Has nftables tell of traced packets and of changes of its rules as well.
    pub fn hear_nftables(&mut self) -> Result<(), Error> {
        self.socket.join_group(trace::GROUP).map_err(Error::Join)?;
        self.nftables = true;
        self.hear_changes()
    }

    /// Whether nftables tells of packets as well.
    pub fn hears_nftables(&self) -> bool {
        self.nftables
    }

    /// The name of a device of the namespace.
    pub fn device(&mut self, index: u32) -> Rc<[u8]> {
        self.devices.name(index, Instant::now())
    }

    /// Gives what waits to `receive`, about `limit` at most. Says how much there was, losses counted as rows.
    pub fn drain(&mut self, limit: usize, mut receive: impl FnMut(Arrival<'_>)) -> Result<usize, Error> {
        // Rows that wait for each other would come after what nftables told later.
        if let Some(delivery) = self.pace.decide(Instant::now()).filter(|_| !self.nftables) {
            let sequence = self.socket.next_sequence();
            // Best effort: rows come in either way.
            let _ = self.socket.send(nflog::deliver(sequence, GROUP, delivery).as_bytes());
        }
        let Self { socket, devices, buffer, next, lost, overrun, pace, nftables } = self;
        let mut taken = 0;
        while taken < limit {
            let datagram = match socket.recv(buffer).map_err(Error::Receive)? {
                Received::Datagram(datagram) => datagram,
                Received::Empty => return Ok(taken),
                Received::Overrun => {
                    // Messages of nftables have no numbers.
                    *lost += u64::from(*nftables);
                    *overrun = !*nftables;
                    taken += 1;
                    continue;
                }
            };
            let now = Instant::now();
            for message in messages(datagram) {
                if message.subsystem() == decode::SUBSYSTEM {
                    taken += 1;
                    receive(Arrival::Nftables(message));
                    continue;
                }
                let Some(logged) = message.netfilter().and_then(|message| Logged::parse(&message)) else {
                    continue;
                };
                if let Some(sequence) = logged.sequence {
                    let gap = next.map_or(0, |next| sequence.wrapping_sub(next));
                    *lost += u64::from(gap);
                    *next = Some(sequence.wrapping_add(1));
                    // The kernel says that some were lost before it gives those that waited: the gap is behind them.
                    *overrun &= gap == 0;
                }
                taken += 1;
                pace.rows += 1;
                row(&logged, (&mut *devices, now), &mut |row| receive(Arrival::Row(row)));
            }
        }
        Ok(taken)
    }

    /// Gives the group up, and what is still there to `receive`.
    pub fn close(&mut self, receive: impl FnMut(Arrival<'_>)) -> Result<(), Error> {
        let sequence = self.socket.next_sequence();
        // When it does not go, what waits in the kernel comes too late to be shown; nothing else is wrong.
        let _ = self.socket.send(nflog::unbind(sequence, GROUP).as_bytes());
        self.drain(usize::MAX, receive).map(drop)
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
fn row(logged: &Logged<'_>, (devices, now): (&mut Devices, Instant), receive: &mut impl FnMut(Row<'_>)) {
    let (Some(name), Some(family), Some(hook)) =
        (logged.step(), Family::from_nfproto(logged.family), Hook::from_number(logged.hook))
    else {
        return;
    };
    let mut device = |index: Option<u32>| index.map(|index| devices.name(index, now));
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
        Family::Arp => None,
    };
    if copied < COPY_BYTES { copied } else { stated.unwrap_or(0).max(copied) }
}
