//! Messages of nfnetlink_log: `include/uapi/linux/netfilter/nfnetlink_log.h`.

use super::{Body, Builder, Netfilter, attributes};
use std::borrow::Cow;

/// `NFNL_SUBSYS_ULOG`
const SUBSYSTEM: u8 = 4;
/// `NFULNL_MSG_PACKET`
const PACKET: u8 = 0;
/// `NFULNL_MSG_CONFIG`
const CONFIG: u8 = 1;
/// `NLM_F_REQUEST | NLM_F_ACK`
const ACK: u16 = 5;

/// `enum nfulnl_attr_type`
mod attribute {
    pub(super) const PACKET_HDR: u16 = 1;
    pub(super) const MARK: u16 = 2;
    pub(super) const TIMESTAMP: u16 = 3;
    pub(super) const IFINDEX_INDEV: u16 = 4;
    pub(super) const IFINDEX_OUTDEV: u16 = 5;
    pub(super) const IFINDEX_PHYSINDEV: u16 = 6;
    pub(super) const IFINDEX_PHYSOUTDEV: u16 = 7;
    pub(super) const PAYLOAD: u16 = 9;
    pub(super) const PREFIX: u16 = 10;
    pub(super) const UID: u16 = 11;
    pub(super) const SEQ: u16 = 12;
    pub(super) const GID: u16 = 14;
    pub(super) const HWTYPE: u16 = 15;
    pub(super) const HWHEADER: u16 = 16;
    pub(super) const HWLEN: u16 = 17;
}

/// `enum nfulnl_attr_config`
mod config {
    pub(super) const CMD: u16 = 1;
    pub(super) const MODE: u16 = 2;
    pub(super) const NLBUFSIZ: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const QTHRESH: u16 = 5;
    pub(super) const FLAGS: u16 = 6;
}

/// Asks for the packets of a group. It is refused with `EPERM` when another socket has the group.
pub fn bind(sequence: u32, group: u16) -> Builder {
    // NFULNL_CFG_CMD_BIND
    Builder::new().netfilter((SUBSYSTEM, CONFIG), ACK, sequence, (0, group), |body| {
        body.attribute(config::CMD, &[1]);
    })
}

/// Gives a group up. What waits in the kernel to come together comes before the answer.
pub fn unbind(sequence: u32, group: u16) -> Builder {
    // NFULNL_CFG_CMD_UNBIND
    Builder::new().netfilter((SUBSYSTEM, CONFIG), REQUEST, sequence, (0, group), |body| {
        body.attribute(config::CMD, &[2]);
    })
}

/// How the kernel hands over what it logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Messages that wait for each other, to come in one datagram; 1 for each at once.
    pub together: u32,
    /// What is set aside for a datagram. The kernel takes more for a message that needs more.
    pub bytes: u32,
}

/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;

/// Says how messages are to come from now on; answered only when it is refused.
pub fn deliver(sequence: u32, group: u16, delivery: Delivery) -> Builder {
    Builder::new().netfilter((SUBSYSTEM, CONFIG), REQUEST, sequence, (0, group), |body| {
        delivery.add_to(body);
    })
}

impl Delivery {
    fn add_to(self, body: &mut Body<'_>) {
        body.attribute(config::NLBUFSIZ, &self.bytes.to_be_bytes())
            // Hundredths of a second that the first may wait for others.
            .attribute(config::TIMEOUT, &1_u32.to_be_bytes())
            .attribute(config::QTHRESH, &self.together.to_be_bytes());
    }
}

/// Says what of each packet is to come, of a group that is bound: this many bytes, numbered.
pub fn configure(sequence: u32, group: u16, copy_bytes: u32, delivery: Delivery) -> Builder {
    // NFULNL_COPY_PACKET and a byte that fills up.
    let [a, b, c, d] = copy_bytes.to_be_bytes();
    Builder::new().netfilter((SUBSYSTEM, CONFIG), ACK, sequence, (0, group), |body| {
        // NFULNL_CFG_F_SEQ
        body.attribute(config::MODE, &[a, b, c, d, 2, 0]).attribute(config::FLAGS, &1_u16.to_be_bytes());
        delivery.add_to(body);
    })
}

/// A packet that was logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logged<'a> {
    /// `NFPROTO_…`
    pub family: u8,
    /// Number of the hook.
    pub hook: u8,
    /// What was to be put before it, such as `TRACE: raw:PREROUTING:policy:1 `.
    pub prefix: Cow<'a, str>,
    /// Index of the input device.
    pub indev: Option<u32>,
    /// Index of the output device.
    pub outdev: Option<u32>,
    /// Index of the bridge port that it came in by.
    pub physindev: Option<u32>,
    /// Index of the bridge port that it leaves by.
    pub physoutdev: Option<u32>,
    /// `skb->mark`
    pub mark: u32,
    /// User of the sending socket.
    pub uid: Option<u32>,
    /// Group of the sending socket.
    pub gid: Option<u32>,
    /// `skb->dev->type`, of a packet with a link-layer header.
    pub dev_type: Option<u16>,
    /// `skb->dev->hard_header_len`
    pub hard_header_len: Option<u16>,
    /// Bytes from the link-layer header on.
    pub hard_header: Option<&'a [u8]>,
    /// Bytes from the network header on.
    pub payload: &'a [u8],
    /// When it arrived, nanoseconds since the epoch, where the kernel tells.
    pub time_ns: Option<u64>,
    /// Counts the messages of the group, sent or not.
    pub sequence: Option<u32>,
}

impl<'a> Logged<'a> {
    /// From a message; `None` for another.
    pub fn parse(message: &Netfilter<'a>) -> Option<Self> {
        if (message.subsystem, message.message) != (SUBSYSTEM, PACKET) {
            return None;
        }
        // `struct nfulnl_msg_packet_hdr`: protocol, hook.
        const HOOK: usize = 2;
        let mut logged = Self { family: message.family, hook: u8::MAX, ..Self::default() };
        for found in attributes(message.attributes) {
            match found.kind {
                attribute::PACKET_HDR => logged.hook = found.value.get(HOOK).copied().unwrap_or(u8::MAX),
                attribute::PREFIX => logged.prefix = found.text(),
                attribute::IFINDEX_INDEV => logged.indev = found.be32(),
                attribute::IFINDEX_OUTDEV => logged.outdev = found.be32(),
                attribute::IFINDEX_PHYSINDEV => logged.physindev = found.be32(),
                attribute::IFINDEX_PHYSOUTDEV => logged.physoutdev = found.be32(),
                attribute::MARK => logged.mark = found.be32().unwrap_or(0),
                attribute::UID => logged.uid = found.be32(),
                attribute::GID => logged.gid = found.be32(),
                attribute::HWTYPE => logged.dev_type = found.be16(),
                attribute::HWLEN => logged.hard_header_len = found.be16(),
                attribute::HWHEADER => logged.hard_header = Some(found.value),
                attribute::PAYLOAD => logged.payload = found.value,
                attribute::TIMESTAMP => logged.time_ns = timestamp(found.value),
                attribute::SEQ => logged.sequence = found.be32(),
                _ => {}
            }
        }
        Some(logged)
    }

    /// What TRACE calls the rule that logged it, `table:chain:kind:number`; `None` when it was not TRACE.
    pub fn step(&self) -> Option<&str> {
        self.prefix.strip_prefix("TRACE: ").map(|name| name.trim_end_matches(' '))
    }
}

/// `struct nfulnl_msg_packet_timestamp`: seconds and microseconds.
fn timestamp(bytes: &[u8]) -> Option<u64> {
    let (seconds, micros) = bytes.split_first_chunk()?;
    let micros = u64::from_be_bytes(*micros.first_chunk()?);
    u64::from_be_bytes(*seconds).checked_mul(1_000_000_000)?.checked_add(micros.checked_mul(1000)?)
}
