//! Names of a namespace's devices by their index.

use crate::hash::KernelMap;
use crate::sys::netns;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A device can be renamed; a name is believed for this long.
const FRESH: Duration = Duration::from_millis(100);

/// The devices of a namespace.
#[derive(Debug)]
pub(super) struct Devices {
    /// Any socket that was opened in the namespace.
    socket: Option<OwnedFd>,
    names: KernelMap<u32, (Rc<[u8]>, Instant)>,
}

impl Devices {
    pub(super) fn of(namespace: &File) -> Result<Self, netns::Error> {
        let open = || socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        Ok(Self { socket: netns::inside(namespace, open)?.ok(), names: KernelMap::default() })
    }

    /// The name of a device; `?` for one that is gone.
    pub(super) fn name(&mut self, index: u32, now: Instant) -> Rc<[u8]> {
        if let Some((name, read)) = self.names.get(&index)
            && now.duration_since(*read) < FRESH
        {
            return Rc::clone(name);
        }
        let found = self.socket.as_ref().and_then(|socket| index_to_name(socket, index).ok());
        // What is gone has the name that it had.
        let name = match (found, self.names.get(&index)) {
            (Some(name), _) => name.into_bytes().into(),
            (None, Some((name, _))) => Rc::clone(name),
            (None, None) => b"?".as_slice().into(),
        };
        self.names.insert(index, (Rc::clone(&name), now));
        name
    }
}
