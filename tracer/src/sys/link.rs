//! Network devices of namespaces: a pair of virtual ones that joins two of them, and which are bridges.

use super::netlink::{Error, Socket};
use crate::netlink::{Builder, find};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

const REQUEST: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const MAKE: u16 = REQUEST | (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
/// The index of a device that was made here, in either namespace: behind those that the kernel makes by itself.
const INDEX: u32 = 100;
const UP: u32 = libc::IFF_UP as u32;
/// Bits of the network that the two ends share.
const PREFIX: u8 = 30;

/// `IFLA_…`, `IFLA_INFO_…`, `VETH_INFO_PEER` of `drivers/net/veth.c`, `IFA_…`.
mod attribute {
    pub(super) const IFNAME: u16 = 3;
    pub(super) const LINK: u16 = 5;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const NET_NS_FD: u16 = 28;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const VETH_PEER: u16 = 1;
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
}

/// One end of a pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is. It is to have no device but those that the kernel makes.
    pub namespace: &'a File,
    /// Its address; that of the other end is in the same network of four addresses.
    pub address: Ipv4Addr,
}

/// Makes a pair of veth devices of this name, gives them addresses and takes them up. Asking loads the module.
pub fn join(ends: [End<'_>; 2], name: &str) -> Result<(), Error> {
    let [first, second] = ends;
    let socket = Socket::open_route(first.namespace)?;
    ask(socket, |builder, sequence| {
        builder.message(libc::RTM_NEWLINK, MAKE, sequence, &device(0), |body| {
            body.text(attribute::IFNAME, name).nested(attribute::LINKINFO, |body| {
                body.text(attribute::INFO_KIND, "veth").nested(attribute::INFO_DATA, |body| {
                    body.nested(attribute::VETH_PEER, |body| {
                        let namespace = second.namespace.as_raw_fd().to_ne_bytes();
                        body.header(&device(0)).text(attribute::IFNAME, name);
                        body.attribute(attribute::NET_NS_FD, &namespace);
                    });
                });
            });
        })
    })?;
    ends.iter().try_for_each(configure)
}

/// Gives a device its address and takes it up.
fn configure(end: &End<'_>) -> Result<(), Error> {
    // `struct ifaddrmsg`: family, length of the prefix, flags, scope, index.
    let mut header = vec![libc::AF_INET as u8, PREFIX, 0, 0];
    header.extend(INDEX.to_ne_bytes());
    ask(Socket::open_route(end.namespace)?, |builder, sequence| {
        builder.message(libc::RTM_NEWADDR, MAKE, sequence, &header, |body| {
            let address = end.address.octets();
            body.attribute(attribute::LOCAL, &address).attribute(attribute::ADDRESS, &address);
        })
    })?;
    ask(Socket::open_route(end.namespace)?, |builder, sequence| {
        builder.message(libc::RTM_NEWLINK, REQUEST, sequence, &device(UP), |_| ())
    })
}

/// `struct ifinfomsg`: family, type, index, flags, and which of them are meant.
fn device(flags: u32) -> Vec<u8> {
    [[0; 4], INDEX.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

/// The names of a namespace's bridges, and of devices that are on top of one, as a VLAN is.
pub fn bridges(namespace: &File) -> Result<Vec<Vec<u8>>, Error> {
    const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    /// `struct ifinfomsg`
    const HEADER: usize = 16;
    struct Device {
        index: u32,
        below: Option<u32>,
        name: Vec<u8>,
        is_bridge: bool,
    }
    let any = [0; HEADER];
    let request = |sequence| Builder::new().message(libc::RTM_GETLINK, DUMP, sequence, &any, |_| ());
    let mut devices = Socket::open_route(namespace)?.dump(request, |message| {
        let (header, attributes) = message.payload.split_at_checked(HEADER)?;
        let number = |bytes: &[u8]| Some(u32::from_ne_bytes(*bytes.first_chunk()?));
        let kind = find(attributes, attribute::LINKINFO)
            .and_then(|info| info.nested().find(|part| part.kind == attribute::INFO_KIND));
        Some(Device {
            index: number(&header[4..])?,
            below: find(attributes, attribute::LINK).and_then(|below| number(below.value)),
            name: find(attributes, attribute::IFNAME)?.value.strip_suffix(&[0])?.to_vec(),
            is_bridge: kind.is_some_and(|kind| kind.text() == "bridge"),
        })
    })?;
    // One on top of another on top of a bridge: no further.
    for _ in 0..2 {
        let bridges: Vec<u32> =
            devices.iter().filter(|device| device.is_bridge).map(|device| device.index).collect();
        for device in &mut devices {
            device.is_bridge |= device.below.is_some_and(|below| bridges.contains(&below));
        }
    }
    Ok(devices.into_iter().filter(|device| device.is_bridge).map(|device| device.name).collect())
}

fn ask(mut socket: Socket, request: impl FnOnce(Builder, u32) -> Builder) -> Result<(), Error> {
    let sequence = socket.next_sequence();
    let request = request(Builder::new(), sequence);
    socket.request(request.as_bytes(), &[sequence], |_| ()).map(drop)
}
