//! Recordings for Wireshark: the packet as its first step met it, its path as its comment.
//!
//! The format is the IETF's draft-ietf-opsawg-pcapng: a section header, an interface for each device with its link type,
//! an enhanced packet block for each packet. Bytes that the tracer did not copy are not there.

use crate::netfilter::Family;
use crate::packet::PacketView;
use crate::path::{Path, Step};
use crate::sink::{Row, Sink, outcome};
use crate::text::{escape, lossy};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

const END_OF_OPTIONS: u16 = 0;
const COMMENT: u16 = 1;
const APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const TIME_RESOLUTION: u16 = 9;
/// Time stamps are in units of 10⁻⁹ s.
const NANOSECONDS: u8 = 9;

const LINKTYPE_ETHERNET: u16 = 1;
const LINKTYPE_RAW: u16 = 101;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const ETHERNET_HEADER: usize = 14;

/// Bytes of comment that an option can hold, rounded down.
const COMMENT_MAX: usize = 65_000;
/// Packets on their way; beyond that the oldest is written as far as it went.
const PENDING: usize = 16_384;

/// Writes a file that Wireshark opens.
#[derive(Debug)]
pub struct Pcapng<W: Write> {
    out: BufWriter<W>,
    /// Numbers of interfaces, by link type and name.
    interfaces: BTreeMap<(u16, String), u32>,
    pending: BTreeMap<u64, Pending>,
}

/// A packet whose path is not known to its end.
#[derive(Debug)]
struct Pending {
    interface: u32,
    time_ns: u64,
    bytes: Vec<u8>,
    /// Its length on the wire.
    len: u32,
    comment: String,
}

impl<W: Write> Pcapng<W> {
    /// Begins a file.
    pub fn new(writer: W) -> io::Result<Self> {
        let mut file =
            Self { out: BufWriter::new(writer), interfaces: BTreeMap::new(), pending: BTreeMap::new() };
        let mut body = Vec::new();
        body.extend_from_slice(&BYTE_ORDER.to_le_bytes());
        // Version 1.0, a section of unknown length.
        body.extend_from_slice(&[1, 0, 0, 0]);
        body.extend_from_slice(&[0xff; 8]);
        option(&mut body, APPLICATION, concat!("nftracer ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(&mut body, END_OF_OPTIONS, &[]);
        file.block(SECTION_HEADER, &body)?;
        Ok(file)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let length = (12 + body.len() as u32).to_le_bytes();
        for part in [&kind.to_le_bytes()[..], &length, body, &length] {
            self.out.write_all(part)?;
        }
        Ok(())
    }

    fn interface(&mut self, link_type: u16, name: String) -> io::Result<u32> {
        let number = self.interfaces.len() as u32;
        if let Some(known) = self.interfaces.get(&(link_type, name.clone())) {
            return Ok(*known);
        }
        let mut body = Vec::new();
        body.extend_from_slice(&link_type.to_le_bytes());
        // Reserved, and no limit to what is captured.
        body.extend_from_slice(&[0; 6]);
        option(&mut body, INTERFACE_NAME, name.as_bytes());
        option(&mut body, TIME_RESOLUTION, &[NANOSECONDS]);
        option(&mut body, END_OF_OPTIONS, &[]);
        self.block(INTERFACE, &body)?;
        self.interfaces.insert((link_type, name), number);
        Ok(number)
    }

    fn packet(&mut self, packet: &Pending) -> io::Result<()> {
        let Pending { interface, time_ns, bytes, len, comment } = packet;
        let time_ns = [(time_ns >> 32) as u32, *time_ns as u32];
        let mut body = Vec::new();
        for number in [*interface, time_ns[0], time_ns[1], bytes.len() as u32, *len] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        option(&mut body, COMMENT, &comment.as_bytes()[..comment.floor_char_boundary(COMMENT_MAX)]);
        option(&mut body, END_OF_OPTIONS, &[]);
        self.block(ENHANCED_PACKET, &body)
    }

    fn begin_packet(&mut self, time_ns: u64, view: &PacketView<'_>) -> io::Result<Pending> {
        let (link_type, mut bytes) = link_layer(view);
        bytes.extend_from_slice(view.bytes);
        let device = view.indev.or(view.outdev).map(lossy).unwrap_or_default().into_owned();
        let interface = self.interface(link_type, device)?;
        let len = view.len + (bytes.len() - view.bytes.len()) as u32;
        Ok(Pending { interface, time_ns, bytes, len, comment: String::new() })
    }

    fn give_out_oldest(&mut self) -> io::Result<()> {
        match self.pending.pop_first() {
            Some((_, mut packet)) => {
                packet.comment += "not finished";
                self.packet(&packet)
            }
            None => Ok(()),
        }
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        if !self.pending.contains_key(&step.packet) {
            let pending = self.begin_packet(step.time_ns.unwrap_or(0), &step.view)?;
            self.pending.insert(step.packet, pending);
        }
        if let Some(packet) = self.pending.get_mut(&step.packet) {
            let comment = &mut packet.comment;
            // Memory takes all that is written.
            let _ = write!(comment, "{}", escape(step.name));
            if let Some(action) = &step.action {
                let _ = write!(comment, " {}", escape(&action.to_string()));
            }
            if let Some(text) = step.rule.text {
                let _ = write!(comment, "  {}", escape(text));
            }
            comment.push('\n');
        }
        if self.pending.len() > PENDING { self.give_out_oldest() } else { Ok(()) }
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        let mut packet = match (self.pending.remove(&path.packet), path.sighting.as_deref()) {
            (Some(packet), _) => packet,
            (None, Some(sighting)) => self.begin_packet(sighting.time_ns, &sighting.packet.view())?,
            // One of which nothing was seen has no bytes to be shown.
            (None, None) => return Ok(()),
        };
        packet.comment += &outcome(path);
        self.packet(&packet)
    }
}

impl<W: Write> Sink for Pcapng<W> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Start(_) => self.flush(),
            Row::Step(step) => self.step(step),
            Row::Path(path) => self.path(path),
            Row::End(_) => {
                while !self.pending.is_empty() {
                    self.give_out_oldest()?;
                }
                self.flush()
            }
            Row::Namespace(..)
            | Row::LogStyle(_)
            | Row::Logged(..)
            | Row::Told(..)
            | Row::Sender(..)
            | Row::Spent(..)
            | Row::Freed(..)
            | Row::Why(_)
            | Row::NoDrop(_) => Ok(()),
        }
    }

    fn enough(&self) -> bool {
        false
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The link type of a packet and its header, where one is known.
fn link_layer(view: &PacketView<'_>) -> (u16, Vec<u8>) {
    let header = view.link.header.filter(|header| header.len() == ETHERNET_HEADER);
    match (view.link.dev_type, header) {
        (ARPHRD_ETHER | ARPHRD_LOOPBACK, Some(header)) => (LINKTYPE_ETHERNET, header.to_vec()),
        // Only a frame can have it: with addresses of zero where they are not known.
        _ if view.family == Family::Arp => (LINKTYPE_ETHERNET, [&[0; 12], ETHERTYPE_ARP.as_slice()].concat()),
        _ => (LINKTYPE_RAW, Vec::new()),
    }
}

/// An option, padded to a multiple of four bytes.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&(value.len() as u16).to_le_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
