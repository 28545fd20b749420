//! The getsockopt calls of the legacy tables.

use crate::netfilter::Family;
use crate::xtables::{Form, RawTable};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const SO_GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const SO_GET_ENTRIES: libc::c_int = 65;
/// A table that is replaced again and again is read this often before giving up.
const ATTEMPTS: u32 = 20;

/// `struct ipt_getinfo`; `struct ip6t_getinfo` is the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct GetInfo {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// `struct ipt_get_entries` without its entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct GetEntries {
    name: [u8; 32],
    size: u32,
    /// The entries are aligned to eight bytes.
    padding: u32,
}

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A privilege is missing.
    #[error(
        "cannot read the {family} table {table:?}: not permitted; it needs CAP_NET_ADMIN and CAP_NET_RAW in the \
         namespace, for example by sudo"
    )]
    Permission {
        /// Its family.
        family: Family,
        /// Its name.
        table: String,
    },
    /// The table does not exist.
    #[error("there is no {family} table {table:?} in this namespace")]
    NoTable {
        /// Its family.
        family: Family,
        /// Its name.
        table: String,
    },
    /// The kernel has no legacy tables of this family.
    #[error("this kernel has no legacy {family} tables, or their module is not loaded")]
    NoLegacy {
        /// The family.
        family: Family,
    },
    /// It was replaced again and again.
    #[error("the {family} table {table:?} changed {ATTEMPTS} times while it was being read; try again")]
    Busy {
        /// Its family.
        family: Family,
        /// Its name.
        table: String,
    },
    /// Anything else.
    #[error("cannot read the {family} table {table:?}")]
    Io {
        /// Its family.
        family: Family,
        /// Its name.
        table: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// Reads a table of the network namespace that the calling thread is in.
///
/// The kernel creates a table that is asked for: ask only for those that `net/ip_tables_names` in `/proc` or
/// `ip6_tables_names` lists.
pub fn read_table(family: Family, table: &str) -> Result<RawTable, Error> {
    read(family, table).and_then(|raw| raw.ok_or(io::ErrorKind::ResourceBusy.into())).map_err(|source| {
        let table = table.to_owned();
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::PermissionDenied, _) => Error::Permission { family, table },
            (io::ErrorKind::ResourceBusy, None) => Error::Busy { family, table },
            (_, Some(libc::ENOENT)) => Error::NoTable { family, table },
            (_, Some(libc::ENOPROTOOPT | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)) => {
                Error::NoLegacy { family }
            }
            _ => Error::Io { family, table, source },
        }
    })
}

/// `None` when the table never stood still.
fn read(family: Family, table: &str) -> io::Result<Option<RawTable>> {
    let socket = socket(family)?;
    let mut name = [0; 32];
    let at = name.get_mut(..table.len()).filter(|at| at.len() < 32).ok_or(io::ErrorKind::InvalidInput)?;
    at.copy_from_slice(table.as_bytes());
    for _ in 0..ATTEMPTS {
        let info = get_info(socket.as_fd(), family, name)?;
        let entries = match get_entries(socket.as_fd(), family, &info) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            entries => entries?,
        };
        // Another table of the same size is no reason for the kernel to refuse: the entries may belong to it.
        if get_info(socket.as_fd(), family, name)? != info {
            continue;
        }
        return Ok(Some(RawTable {
            family,
            name: table.to_owned(),
            valid_hooks: info.valid_hooks,
            hook_entry: info.hook_entry,
            underflow: info.underflow,
            number: info.num_entries,
            form: Form::User,
            bytes: entries,
        }));
    }
    Ok(None)
}

fn socket(family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::Ipv4 | Family::Arp => AddressFamily::INET,
        Family::Ipv6 => AddressFamily::INET6,
    };
    Ok(socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?)
}

fn get_info(socket: BorrowedFd<'_>, family: Family, name: [u8; 32]) -> io::Result<GetInfo> {
    let mut info = GetInfo { name, ..GetInfo::new_zeroed() };
    getsockopt(socket, family, SO_GET_INFO, info.as_mut_bytes())?;
    Ok(info)
}

fn get_entries(socket: BorrowedFd<'_>, family: Family, info: &GetInfo) -> io::Result<Vec<u8>> {
    let head = GetEntries { name: info.name, size: info.size, padding: 0 };
    let mut buffer = head.as_bytes().to_vec();
    buffer.resize(size_of::<GetEntries>() + info.size as usize, 0);
    getsockopt(socket, family, SO_GET_ENTRIES, &mut buffer)?;
    Ok(buffer.split_off(size_of::<GetEntries>()))
}

/// Hands `buffer` to the kernel, which reads the request from it and writes the answer to it.
#[expect(unsafe_code, reason = "no safe wrapper knows these options")]
fn getsockopt(
    socket: BorrowedFd<'_>,
    family: Family,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let level = match family {
        Family::Ipv4 | Family::Arp => libc::IPPROTO_IP,
        Family::Ipv6 => libc::IPPROTO_IPV6,
    };
    let given = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut len = given;
    // SAFETY: `buffer` is valid for reads and writes of `len` bytes, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    match result {
        0 if len == given => Ok(()),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
