//! Devices and link layer of a line.

use super::super::{ARPHRD_ETHER, ARPHRD_SIT, ETH_HLEN, LogStyle};
use super::cursor::{Case, Cursor, Unreadable};
use crate::netfilter::Family;
use crate::packet::{OwnedLink, Vlan};

pub(super) struct Devices {
    pub(super) indev: Option<Vec<u8>>,
    pub(super) outdev: Option<Vec<u8>>,
    pub(super) link: OwnedLink,
    /// What Ethernet says.
    pub(super) family: Option<Family>,
}

pub(super) fn devices(cursor: &mut Cursor<'_>, style: &mut LogStyle) -> Result<Devices, Unreadable> {
    let name = |cursor: &mut Cursor<'_>| {
        let name = cursor.take_value();
        (!name.is_empty()).then(|| name.to_vec())
    };
    cursor.expect("IN=")?;
    let indev = name(cursor);
    cursor.expect("OUT=")?;
    let outdev = name(cursor);
    let physin = if cursor.eat(b"PHYSIN=") { name(cursor) } else { None };
    let physout = if cursor.eat(b"PHYSOUT=") { name(cursor) } else { None };
    // Only where there is an input device the kernel writes of a link layer.
    let link = if indev.is_some() { mac(cursor, style)? } else { OwnedLink::default() };
    let link = OwnedLink { physin, physout, ..link };
    let family = match link.header.as_deref() {
        Some([.., 0x86, 0xdd]) => Some(Family::Ipv6),
        Some([.., 0x08, 0x00]) => Some(Family::Ipv4),
        _ => None,
    };
    Ok(Devices { indev, outdev, link, family })
}

fn mac(cursor: &mut Cursor<'_>, style: &mut LogStyle) -> Result<OwnedLink, Unreadable> {
    if cursor.eat(b"MACSRC=") {
        style.mac_decoded = true;
        return decoded(cursor);
    }
    let bytes = if cursor.eat(b"MAC=") { Some(cursor.colon_hex()?) } else { None };
    if cursor.eat(b"TUNNEL=") {
        return tunnel(cursor, bytes);
    }
    Ok(match bytes {
        // A device without a header, or a packet without one.
        Some(bytes) if bytes.is_empty() => OwnedLink::default(),
        Some(bytes) => {
            OwnedLink { hard_header_len: bytes.len() as u16, header: Some(bytes), ..OwnedLink::default() }
        }
        // There is a header, but whoever wrote the line did not know it.
        None => {
            OwnedLink { hard_header_len: ETH_HLEN as u16, header: Some(Vec::new()), ..OwnedLink::default() }
        }
    })
}

/// `MACSRC=%pM MACDST=%pM VPROTO=%04x VID=%u MACPROTO=%04x `, after its first equals sign.
fn decoded(cursor: &mut Cursor<'_>) -> Result<OwnedLink, Unreadable> {
    let source = cursor.colon_hex()?;
    cursor.expect("MACDST=")?;
    let destination = cursor.colon_hex()?;
    let mut vlan = None;
    if cursor.eat(b"VPROTO=") {
        let protocol = u16::from_be_bytes(cursor.hex_bytes(Case::Lower)?);
        cursor.expect(" VID=")?;
        vlan = Some(Vlan { protocol, tci: cursor.number()? });
    }
    cursor.expect("MACPROTO=")?;
    let protocol: [u8; 2] = cursor.hex_bytes(Case::Lower)?;
    cursor.expect_blank()?;
    if (source.len(), destination.len()) != (6, 6) {
        return cursor.wrong("addresses of six bytes");
    }
    Ok(OwnedLink {
        dev_type: ARPHRD_ETHER,
        hard_header_len: ETH_HLEN as u16,
        header: Some([&destination[..], &source, &protocol].concat()),
        vlan,
        ..OwnedLink::default()
    })
}

/// `%pI4->%pI4 ` of a SIT tunnel. `bytes` are from an Ethernet header's length before the IPv4 header on.
fn tunnel(cursor: &mut Cursor<'_>, bytes: Option<Vec<u8>>) -> Result<OwnedLink, Unreadable> {
    let source = cursor.ipv4()?;
    cursor.expect("->")?;
    let destination = cursor.ipv4()?;
    cursor.expect_blank()?;
    let len = bytes.as_ref().map_or(20, Vec::len);
    let mut before = bytes.unwrap_or_default();
    let mut header = if before.len() > ETH_HLEN { before.split_off(ETH_HLEN) } else { Vec::new() };
    if !before.is_empty() && before.len() != ETH_HLEN {
        return cursor.wrong("bytes of a link-layer header");
    }
    let addresses = [source, destination].concat();
    let known = header.len().clamp(12, 20);
    if header.get(12..known).is_some_and(|known| !addresses.starts_with(known)) {
        return cursor.wrong("the addresses of the tunnel in MAC=, too");
    }
    header.resize(header.len().max(20), 0);
    header[12..20].copy_from_slice(&addresses);
    Ok(OwnedLink {
        dev_type: ARPHRD_SIT,
        hard_header_len: len as u16,
        header: Some(header),
        before,
        ..OwnedLink::default()
    })
}
