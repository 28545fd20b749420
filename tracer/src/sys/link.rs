//! Network devices of namespaces: a pair of virtual ones that joins two of them, and which are on top of which.

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
    pub(super) const MASTER: u16 = 10;
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

/// A network device and those below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: Vec<u8>,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The names of the devices by which packets come to it: ports of a bridge, what a VLAN is on.
    pub below: Vec<Vec<u8>>,
}

/// All devices of a namespace.
pub fn devices(namespace: &File) -> Result<Vec<Device>, Error> {
    const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    /// `struct ifinfomsg`
    const HEADER: usize = 16;
    /// Of other kinds the link is the other end of a pair, or what carries a tunnel.
    const ON_TOP: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];
    struct Found {
        index: u32,
        kind: Option<String>,
        link: Option<u32>,
        master: Option<u32>,
        name: Vec<u8>,
    }
    let any = [0; HEADER];
    let request = |sequence| Builder::new().message(libc::RTM_GETLINK, DUMP, sequence, &any, |_| ());
    let found = Socket::open_route(namespace)?.dump(request, |message| {
        let (header, attributes) = message.payload.split_at_checked(HEADER)?;
        let number = |bytes: &[u8]| Some(u32::from_ne_bytes(*bytes.first_chunk()?));
        let kind = find(attributes, attribute::LINKINFO)
            .and_then(|info| info.nested().find(|part| part.kind == attribute::INFO_KIND));
        Some(Found {
            index: number(&header[4..])?,
            kind: kind.map(|kind| kind.text().into_owned()),
            link: find(attributes, attribute::LINK).and_then(|link| number(link.value)),
            master: find(attributes, attribute::MASTER).and_then(|master| number(master.value)),
            name: find(attributes, attribute::IFNAME)?.value.strip_suffix(&[0])?.to_vec(),
        })
    })?;
    let of = |device: &Found| {
        let kind = device.kind.as_deref().unwrap_or_default();
        let is_below = |other: &&Found| {
            let carries = ON_TOP.contains(&kind) && device.link == Some(other.index);
            other.master == Some(device.index) || carries
        };
        Device {
            name: device.name.clone(),
            is_bridge: kind == "bridge",
            below: found.iter().filter(is_below).map(|other| other.name.clone()).collect(),
        }
    };
    Ok(found.iter().map(of).collect())
}

fn ask(mut socket: Socket, request: impl FnOnce(Builder, u32) -> Builder) -> Result<(), Error> {
    let sequence = socket.next_sequence();
    let request = request(Builder::new(), sequence);
    socket.request(request.as_bytes(), &[sequence], |_| ()).map(drop)
}
