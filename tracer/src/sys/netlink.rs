//! Netlink sockets: requests, dumps and multicast groups.

use super::netns;
use crate::netlink::{self, Message};
use crate::text;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name_inlined;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

pub use rustix::net::netlink::NETFILTER;

/// How long the kernel may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A dump that is disturbed by changes is read this often before giving up.
const ATTEMPTS: u32 = 20;
/// Room for the largest datagram that is expected; a buffer grows when there is a larger one.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
const DUMP_INTR: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: attributes follow an error.
const ACK_TLVS: u16 = 0x200;
/// `struct nlmsgerr`: the error and the header of the request.
const ERROR_BYTES: usize = 20;
/// `NLMSGERR_ATTR_MSG`: the kernel's words about an error.
const ATTR_MSG: u16 = 1;

/// Why a netlink socket did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// No socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A request could not be sent, or its answer not be received.
    #[error("cannot talk to the kernel over netlink")]
    Talk(#[source] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused a netlink request{}", words(message))]
    Refused {
        /// The reason.
        source: io::Error,
        /// The kernel's words, or nothing.
        message: String,
    },
    /// No answer.
    #[error("the kernel did not answer a netlink request within {} seconds", TIMEOUT.as_secs())]
    Silent,
    /// What was dumped never stood still.
    #[error("what was read changed {ATTEMPTS} times while it was being read; try again")]
    Busy,
}

fn words(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({})", text::escape(message)) }
}

impl Error {
    /// The number the kernel gave, as in `errno.h`.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Open(source) | Self::Talk(source) => source.raw_os_error(),
            Self::Netns(_) | Self::Silent | Self::Busy => None,
        }
    }
}

/// What [`Socket::recv`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A datagram of the kernel; see [`netlink::messages`].
    Datagram(&'a [u8]),
    /// Nothing is there.
    Empty,
    /// Messages were lost: nobody took them in time (`ENOBUFS`), or one was larger than the buffer, which has grown.
    Overrun,
}

/// A netlink socket that never blocks. It stays in the namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one in a network namespace, or in the calling thread's own.
    pub fn open(namespace: Option<&File>, protocol: Protocol) -> Result<Self, Error> {
        Self::of_protocol(namespace, Some(protocol))
    }

    /// The same for devices and addresses: `NETLINK_ROUTE`, whose number is 0.
    pub fn open_route(namespace: &File) -> Result<Self, Error> {
        Self::of_protocol(Some(namespace), None)
    }

    fn of_protocol(namespace: Option<&File>, protocol: Option<Protocol>) -> Result<Self, Error> {
        let opened = match namespace {
            Some(namespace) => netns::inside(namespace, || open(protocol))?,
            None => open(protocol),
        };
        Ok(Self { fd: opened.map_err(Error::Open)?, sequence: 0 })
    }

    /// The name of a network device of the socket's namespace; `None` when there is none of this index.
    pub fn device_name(&self, index: u32) -> Option<Vec<u8>> {
        Some(index_to_name_inlined(&self.fd, index).ok()?.as_bytes().to_vec())
    }

    /// Makes messages of a multicast group arrive.
    pub fn join_group(&self, group: u32) -> io::Result<()> {
        set_option(self.fd.as_fd(), libc::NETLINK_ADD_MEMBERSHIP, group)
    }

    /// Makes room for messages that nobody has taken yet. Without CAP_NET_ADMIN no more than `net.core.rmem_max`.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        set_socket_recv_buffer_size_force(&self.fd, bytes)
            .or_else(|_| set_socket_recv_buffer_size(&self.fd, bytes))
            .map_err(Into::into)
    }

    /// A number for the next request, which its answer carries too.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a datagram to the kernel.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = net::sendto(&self.fd, datagram, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        if sent == datagram.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Takes the next datagram that the kernel sent, if there is one, into `buffer`, which grows as needed and is
    /// to be used again.
    pub fn recv<'a>(&self, buffer: &'a mut Vec<u8>) -> io::Result<Received<'a>> {
        if buffer.len() < DATAGRAM_BYTES {
            buffer.resize(DATAGRAM_BYTES, 0);
        }
        loop {
            let (length, sender) = match net::recvfrom(&self.fd, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length, sender)) => (length, sender),
                Err(Errno::AGAIN) => return Ok(Received::Empty),
                Err(Errno::NOBUFS) => return Ok(Received::Overrun),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let port =
                sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok()).map(|from| from.pid());
            if port != Some(0) {
                // Other processes can write to this socket too.
                continue;
            }
            if length > buffer.len() {
                buffer.resize(length, 0);
                return Ok(Received::Overrun);
            }
            return Ok(Received::Datagram(&buffer[..length]));
        }
    }

    /// Sends one or more requests and hands over what is answered to them, until each of `replies` was acknowledged
    /// or ended. The requests carry `NLM_F_ACK` or are dumps, and sequence numbers of [`Self::next_sequence`].
    ///
    /// A dump can be disturbed by a change; [`Self::dump`] reads it again. Not for a socket that has joined a group,
    /// whose messages would be passed over.
    pub fn request(
        &self,
        datagram: &[u8],
        replies: &[u32],
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Consistent, Error> {
        self.send(datagram).map_err(Error::Talk)?;
        let deadline = Instant::now() + TIMEOUT;
        let (mut buffer, mut open, mut consistent) = (Vec::new(), replies.to_vec(), Consistent(true));
        while !open.is_empty() {
            let bytes = match self.recv(&mut buffer).map_err(Error::Talk)? {
                Received::Datagram(bytes) => bytes,
                Received::Empty => {
                    self.wait(deadline)?;
                    continue;
                }
                Received::Overrun => return Err(Error::Talk(Errno::NOBUFS.into())),
            };
            for message in netlink::messages(bytes).filter(|message| replies.contains(&message.sequence)) {
                consistent.0 &= message.flags & DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        refusal(&message)?;
                        open.retain(|sequence| *sequence != message.sequence);
                    }
                    libc::NLMSG_NOOP => {}
                    _ => each(message),
                }
            }
        }
        Ok(consistent)
    }

    /// Dumps what one request names, as often as it takes to read it undisturbed. `request` makes the request with
    /// a sequence number, and `each` answer is added to a list that starts anew for every attempt.
    pub fn dump<T>(
        &mut self,
        request: impl Fn(u32) -> netlink::Builder,
        mut each: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..ATTEMPTS {
            let sequence = self.next_sequence();
            let mut found = Vec::new();
            let consistent = self
                .request(request(sequence).as_bytes(), &[sequence], |message| found.extend(each(message)))?;
            if consistent.0 {
                return Ok(found);
            }
        }
        Err(Error::Busy)
    }

    /// Waits until something can be received.
    fn wait(&self, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => Err(Error::Silent),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Talk(error.into())),
        }
    }
}

/// Whether a dump was undisturbed by changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Consistent(pub bool);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
    // For the kernel's words about an error, without the request that led to it. Kernels before 4.12 have none.
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        match set_option(fd.as_fd(), option, 1) {
            Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => return Err(error),
            _ => {}
        }
    }
    Ok(fd)
}

/// The error in a message that ends an answer, if it is one.
fn refusal(message: &Message<'_>) -> Result<(), Error> {
    let Some(number) = message.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) else {
        return Ok(());
    };
    if number >= 0 {
        return Ok(());
    }
    let after = if i32::from(message.kind) == libc::NLMSG_DONE { 4 } else { ERROR_BYTES };
    let attributes =
        message.payload.get(after..).filter(|_| message.flags & ACK_TLVS != 0).unwrap_or_default();
    let words = netlink::find(attributes, ATTR_MSG).map(|words| words.text().into_owned());
    let source = io::Error::from_raw_os_error(number.saturating_neg());
    Err(Error::Refused { source, message: words.unwrap_or_default() })
}

/// Sets an option of `SOL_NETLINK`.
#[expect(unsafe_code, reason = "no safe wrapper knows these options")]
fn set_option(socket: BorrowedFd<'_>, option: libc::c_int, value: u32) -> io::Result<()> {
    let length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the kernel reads the four bytes of `value`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Builder;

    const GETGEN: (u8, u8) = (libc::NFNL_SUBSYS_NFTABLES as u8, libc::NFT_MSG_GETGEN as u8);
    const ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;

    /// `None` after printing why not.
    fn socket() -> Option<Socket> {
        Socket::open(None, NETFILTER).inspect_err(|error| println!("skipped: {error}")).ok()
    }

    #[test]
    fn a_request_is_answered_or_refused() {
        let Some(mut socket) = socket() else { return };
        let sequence = socket.next_sequence();
        let request = Builder::new().netfilter(GETGEN, ACK, sequence, (0, 0), |_| ());
        let mut answers = 0;
        match socket.request(request.as_bytes(), &[sequence], |_| answers += 1) {
            Ok(consistent) => assert_eq!((consistent, answers), (Consistent(true), 1)),
            Err(error) => println!("skipped: {error}: {:?}", error.raw_os_error()),
        }
        let nonsense = Builder::new().netfilter((200, 0), ACK, 77, (0, 0), |_| ());
        let error = socket.request(nonsense.as_bytes(), &[77], |_| ()).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }

    #[test]
    fn nothing_there_is_no_error_and_lost_messages_are_told() {
        let Some(receiver) = socket() else { return };
        let mut buffer = Vec::new();
        assert_eq!(receiver.recv(&mut buffer).unwrap(), Received::Empty);
        // Acknowledgements that nobody takes fill the smallest buffer.
        receiver.set_receive_buffer(1).unwrap();
        let nonsense = Builder::new().netfilter((200, 0), ACK, 1, (0, 0), |_| ());
        let mut sent = 0;
        while sent < 100 && receiver.send(nonsense.as_bytes()).is_ok() {
            sent += 1;
        }
        let mut found = Vec::new();
        loop {
            match receiver.recv(&mut buffer).unwrap() {
                Received::Empty => break,
                received => found.push(received == Received::Overrun),
            }
        }
        assert!(found.contains(&true), "{found:?}");
    }
}
