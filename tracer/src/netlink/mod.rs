//! The wire format of netlink: messages and their attributes, read and written.
//!
//! Reading never fails: what does not fit into the bytes that are there ends the list.
#![forbid(unsafe_code)]

mod build;
pub mod nflog;
#[cfg(test)]
mod tests;

pub use build::{Body, Builder};

use crate::text;
use std::borrow::Cow;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: the type without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = 0x3fff;
/// `struct nfgenmsg`, which stands before the attributes of all of nfnetlink's messages.
const NFGENMSG: usize = 4;

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`, `NLM_F_…`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// `nlmsg_pid`: which socket's request it answers; 0 for what was not asked for.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// `NFNL_SUBSYS_…`, of a message of nfnetlink.
    pub fn subsystem(&self) -> u8 {
        self.kind.to_le_bytes()[1]
    }

    /// As nfnetlink's; `None` when it is too short to be one.
    pub fn netfilter(&self) -> Option<Netfilter<'a>> {
        let (header, attributes) = self.payload.split_at_checked(NFGENMSG)?;
        let [message, subsystem] = self.kind.to_le_bytes();
        let resource = u16::from_be_bytes([header[2], header[3]]);
        Some(Netfilter { subsystem, message, family: header[0], resource, attributes })
    }
}

/// A message of nfnetlink, `include/uapi/linux/netfilter/nfnetlink.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netfilter<'a> {
    /// `NFNL_SUBSYS_…`.
    pub subsystem: u8,
    /// Its number in the subsystem, such as `NFT_MSG_NEWRULE`.
    pub message: u8,
    /// `nfgen_family`, an `NFPROTO_…`.
    pub family: u8,
    /// `res_id`: a group, a queue, or the low half of a generation.
    pub resource: u16,
    /// See [`attributes`].
    pub attributes: &'a [u8],
}

/// The messages of a datagram. Ends at the first that is cut short.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = usize::try_from(u32_at(header, 0)?).ok()?;
        let message = Message {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            sequence: u32_at(header, 8)?,
            port: u32_at(header, 12)?,
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// One attribute of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `nla_type` without its flags.
    pub kind: u16,
    /// What it holds, without padding.
    pub value: &'a [u8],
}

/// The attributes in a message after its fixed part, or in an attribute. Ends at the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute =
            Attribute { kind: u16_at(bytes, 2)? & TYPE_MASK, value: bytes.get(ATTRIBUTE_HEADER..length)? };
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The first attribute of a kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<Attribute<'_>> {
    attributes(bytes).find(|attribute| attribute.kind == kind)
}

impl<'a> Attribute<'a> {
    /// The attributes in it.
    pub fn nested(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        attributes(self.value)
    }

    /// One byte.
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// Two bytes in network order, which most of netfilter's attributes have.
    pub fn be16(&self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.value.first_chunk()?))
    }

    /// Four bytes in network order.
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.value.first_chunk()?))
    }

    /// Eight bytes in network order.
    pub fn be64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.value.first_chunk()?))
    }

    /// Text up to its NUL; what is not UTF-8 appears as `\xff`.
    pub fn text(&self) -> Cow<'a, str> {
        let length = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        text::lossy(&self.value[..length])
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// `NLMSG_ALIGN` and `NLA_ALIGN`.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}
