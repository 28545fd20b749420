//! Whether a packet that user space holds is one that was asked for.

use crate::error::Failure;
use crate::filter::{Filter, Form, LinkType, classic};
use crate::netfilter::Family;
use crate::packet::PacketView;
use crate::predicate::{Predicates, User};
use crate::sys::{pcap, user};
use anyhow::{Context as _, anyhow};
use tracer_common::filter::Key;

/// Whether a packet matches, as far as its bytes are known.
pub(super) fn matches(filter: &Filter, view: &PacketView<'_>) -> bool {
    // An ARP packet can be asked about its frame alone, which is not told before it is sent.
    const ARP_FRAME: [u8; ETHERNET_HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6];
    let is_arp = view.family == Family::Arp;
    match &filter.form {
        Form::Program(program) if is_arp => program.len == 0,
        Form::Program(program) => program.matches(&Key::from_packet(view.bytes)),
        Form::Translated { program, link, .. } => {
            let frame = match (link, view.link.header) {
                (LinkType::Raw, _) if is_arp => return false,
                (LinkType::Raw, _) => return interpret(program, view.bytes, view.len),
                (LinkType::Ethernet, Some(header)) if header.len() == ETHERNET_HEADER => header,
                (LinkType::Ethernet, None) if is_arp => &ARP_FRAME,
                (LinkType::Ethernet, _) => return false,
            };
            let length = view.len.saturating_add(ETHERNET_HEADER as u32);
            interpret(program, &[frame, view.bytes].concat(), length)
        }
    }
}

/// There is such a program only where libpcap is.
fn interpret(program: &[classic::Instruction], bytes: &[u8], length: u32) -> bool {
    pcap::matches(program, bytes, length).unwrap_or(false)
}

/// Bytes of an Ethernet header.
const ETHERNET_HEADER: usize = 14;

/// The same, with users by their numbers.
pub(super) fn resolved(predicates: &Predicates) -> Result<Predicates, Failure> {
    let mut resolved = predicates.clone();
    if let Some(User::Name(name)) = &predicates.uid {
        let number = user::number(name).with_context(|| format!("--uid {name}: cannot read /etc/passwd"))?;
        let unknown = || Failure::usage(anyhow!("--uid {name}: there is no such user in /etc/passwd"));
        let number = number.ok_or_else(|| unknown().with_remedy("give the number of the user"))?;
        resolved.uid = Some(User::Number(number));
    }
    Ok(resolved)
}
