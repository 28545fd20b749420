//! One condition of a rule, and what a packet says to it.

use super::values::{Addresses, Device, IcmpType, Ports};
use super::{Answer, Checked, Known};
use crate::netfilter::Family;
use crate::packet::{Headers, PacketView, headers, protocol_name, tcp};
use crate::text::lossy;
use std::net::IpAddr;

/// The two ends of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
    /// One of them.
    Either,
}

/// What is asked about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// Its address is among these.
    Address(End, Vec<Addresses>),
    /// It is of one of these protocols.
    Protocol(Vec<u8>),
    /// Its port is among these.
    Port(End, Vec<Ports>),
    /// It came in by one of these devices.
    In(Vec<Device>),
    /// It leaves by one of these devices.
    Out(Vec<Device>),
    /// Its mark, under the mask, is this.
    Mark { value: u32, mask: u32 },
    /// It is an ICMP message of one of these types.
    Icmp(Family, Vec<IcmpType>),
    /// Of these TCP flags, exactly those are set.
    Flags { among: Vec<String>, set: Vec<String> },
    /// It is a fragment, and not the first.
    LaterFragment,
    /// It is of this family.
    Family(Family),
    /// Something that this program cannot ask.
    Other,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// As the rule has it.
    pub(super) text: String,
    pub(super) test: Test,
    pub(super) negated: bool,
}

/// What a packet says to a test.
enum Said {
    /// Yes or no, and what it has.
    Is(bool, String),
    /// It has no such thing, so that neither the condition nor its opposite holds.
    Lacks(String),
    Unknown,
}

impl Condition {
    /// Something that this program cannot ask.
    pub(super) fn other(text: String) -> Self {
        Self { text, test: Test::Other, negated: false }
    }

    /// Asks a packet.
    pub(super) fn check(self, view: &PacketView<'_>, known: Known) -> Checked {
        let of_device = matches!(self.test, Test::In(_) | Test::Out(_) | Test::Family(_));
        let said = if known == Known::All || of_device { ask(&self.test, view) } else { Said::Unknown };
        let answer = match said {
            Said::Is(holds, _) if holds != self.negated => Answer::Holds,
            Said::Is(_, value) | Said::Lacks(value) => Answer::Fails { value },
            Said::Unknown => Answer::Unknown,
        };
        Checked { text: self.text, answer }
    }
}

fn ask(test: &Test, view: &PacketView<'_>) -> Said {
    let packet = headers(view);
    match test {
        Test::Address(end, among) => address(&packet, *end, among),
        Test::Protocol(among) => protocol(view.family, &packet, among),
        Test::Port(end, among) => port(&packet, *end, among),
        Test::In(among) => device(view.indev, among),
        Test::Out(among) => device(view.outdev, among),
        Test::Mark { value, mask } => Said::Is(view.mark & mask == *value, format!("{:#x}", view.mark)),
        Test::Icmp(family, among) => icmp(&packet, *family, among),
        Test::Flags { among, set } => flags(view, &packet, among, set),
        Test::LaterFragment => match packet.src {
            Some(_) if view.family == Family::Ipv4 => {
                let is_later = is_later_fragment(&packet);
                Said::Is(is_later, if is_later { "a later fragment" } else { "no later fragment" }.to_owned())
            }
            _ => Said::Unknown,
        },
        Test::Family(family) => Said::Is(view.family == *family, view.family.name().to_owned()),
        Test::Other => Said::Unknown,
    }
}

fn is_later_fragment(packet: &Headers) -> bool {
    packet.fragment.is_some_and(|fragment| fragment.offset != 0)
}

fn address(packet: &Headers, end: End, among: &[Addresses]) -> Said {
    let address = match end {
        End::Source => packet.src,
        End::Destination => packet.dst,
        End::Either => None,
    };
    let Some(address) = address else { return Said::Unknown };
    // What asks for the other family's header does not find it.
    if among.iter().any(|addresses| addresses.is_ipv4() != address.is_ipv4()) {
        let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        return Said::Lacks(family.name().to_owned());
    }
    Said::Is(among.iter().any(|addresses| addresses.have(address)), address.to_string())
}

/// The kernel takes another header for the protocol of some IPv6 packets (`ipv6_find_hdr`): these say nothing.
fn is_certain(family: Family, number: u8) -> bool {
    const EXTENSIONS: [u8; 9] = [0, 43, 44, 50, 51, 59, 60, 135, 139];
    family == Family::Ipv4 || !EXTENSIONS.contains(&number)
}

fn protocol(family: Family, packet: &Headers, among: &[u8]) -> Said {
    let certain = |number: u8| is_certain(family, number);
    match packet.protocol {
        Some(number) if certain(number) && among.iter().copied().all(certain) => {
            if family == Family::Ipv6 && is_later_fragment(packet) {
                return Said::Unknown;
            }
            Said::Is(among.contains(&number), protocol_name(number).into_owned())
        }
        _ => Said::Unknown,
    }
}

fn port(packet: &Headers, end: End, among: &[Ports]) -> Said {
    let (Some(sport), Some(dport)) = (packet.sport, packet.dport) else {
        return match packet.protocol {
            _ if is_later_fragment(packet) => Said::Lacks("a later fragment, without ports".to_owned()),
            Some(number @ (1 | 58)) => Said::Lacks(format!("{}, without ports", protocol_name(number))),
            _ => Said::Unknown,
        };
    };
    let is = |port: u16| among.iter().any(|ports| ports.have(port));
    match end {
        End::Source => Said::Is(is(sport), sport.to_string()),
        End::Destination => Said::Is(is(dport), dport.to_string()),
        End::Either => Said::Is(is(sport) || is(dport), format!("{sport} and {dport}")),
    }
}

fn device(name: Option<&[u8]>, among: &[Device]) -> Said {
    match name {
        Some(name) if !name.is_empty() => {
            Said::Is(among.iter().any(|device| device.is(name)), lossy(name).into_owned())
        }
        _ => Said::Unknown,
    }
}

fn icmp(packet: &Headers, family: Family, among: &[IcmpType]) -> Said {
    let number = if family == Family::Ipv4 { 1 } else { 58 };
    match (packet.protocol, packet.icmp) {
        (Some(other), _) if other != number && is_certain(family, other) => {
            Said::Lacks(protocol_name(other).into_owned())
        }
        (Some(_), Some([kind, code])) => {
            let is = among.iter().any(|known| known.is(kind, code));
            Said::Is(is, format!("type {kind} code {code}"))
        }
        _ => Said::Unknown,
    }
}

fn flags(view: &PacketView<'_>, packet: &Headers, among: &[String], set: &[String]) -> Said {
    let Some(tcp) = tcp(view) else {
        return match packet.protocol {
            Some(number @ (1 | 17 | 58)) => Said::Lacks(protocol_name(number).into_owned()),
            _ => Said::Unknown,
        };
    };
    let flags = tcp.flags();
    let is = among.iter().all(|name| flags.contains(&name.as_str()) == set.contains(name));
    // One that is to be set and is not looked at never is.
    let is = is && set.iter().all(|name| among.contains(name));
    Said::Is(is, if flags.is_empty() { "none".to_owned() } else { flags.join(",") })
}

/// An address as a number, and whether it is of IPv4.
pub(super) fn number(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(address) => (address.to_bits().into(), true),
        IpAddr::V6(address) => (address.to_bits(), false),
    }
}
