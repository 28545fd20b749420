//! TCP flags and options.

use super::PacketView;
use super::data::Data;
use super::headers::upper;
use super::ip::protocol;
use std::fmt;

/// The flags, from the highest bit on.
const FLAGS: [(&str, u16); 9] = [
    ("ae", 0x100),
    ("cwr", 0x80),
    ("ece", 0x40),
    ("urg", 0x20),
    ("ack", 0x10),
    ("psh", 0x08),
    ("rst", 0x04),
    ("syn", 0x02),
    ("fin", 0x01),
];

/// Flags and options of a TCP header, as far as they were copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp<'a> {
    flags: u16,
    options: &'a [u8],
}

/// The TCP header of a packet; `None` where there is none.
pub fn tcp<'a>(view: &PacketView<'a>) -> Option<Tcp<'a>> {
    let (number, offset) = upper(view)?;
    let offset = offset.filter(|_| number == protocol::TCP)?;
    let data = Data::of(view);
    let header: &[u8; 20] = data.header(offset).ok()?;
    let count = (usize::from(header[12] >> 4) * 4).saturating_sub(header.len());
    let options = data.slice(offset + header.len() as u32, count).unwrap_or_default();
    Some(Tcp { flags: u16::from(header[12] & 1) << 8 | u16::from(header[13]), options })
}

impl<'a> Tcp<'a> {
    /// The names of the flags that are set.
    pub fn flags(&self) -> Vec<&'static str> {
        FLAGS.iter().filter(|(_, bit)| self.flags & bit != 0).map(|(name, _)| *name).collect()
    }

    /// The options in their order. The last is malformed where the list is.
    pub fn options(&self) -> Vec<TcpOption<'a>> {
        let mut options = Vec::new();
        let mut rest = self.options;
        while let Some((&kind, after)) = rest.split_first() {
            let (option, after) = match kind {
                0 => (TcpOption::End, &[][..]),
                1 => (TcpOption::Nop, after),
                _ => {
                    let whole = after
                        .first()
                        .and_then(|len| after.split_at_checked(usize::from(*len).checked_sub(1)?));
                    match whole {
                        Some(([_, value @ ..], after)) => (TcpOption::of(kind, value), after),
                        _ => (TcpOption::Malformed, &[][..]),
                    }
                }
            };
            options.push(option);
            rest = after;
        }
        options
    }
}

/// An option of TCP (the IANA registry "TCP Option Kind Numbers"). Displayed as tcpdump does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOption<'a> {
    /// End of the list.
    End,
    /// No operation.
    Nop,
    /// Maximum segment size, in bytes (RFC 9293).
    Mss(u16),
    /// Window scale: the shift (RFC 7323).
    WindowScale(u8),
    /// Selective acknowledgements are understood (RFC 2018).
    SackPermitted,
    /// Selective acknowledgements: pairs of sequence numbers, eight bytes each (RFC 2018).
    Sack(&'a [u8]),
    /// Time stamps: the sender's, and the one it answers (RFC 7323).
    Timestamps(u32, u32),
    /// A cookie of TCP Fast Open, or a request for one (RFC 7413).
    FastOpen(&'a [u8]),
    /// Another kind, with its bytes.
    Other(u8, &'a [u8]),
    /// Its length cannot be right.
    Malformed,
}

impl<'a> TcpOption<'a> {
    fn of(kind: u8, value: &'a [u8]) -> Self {
        match (kind, value) {
            (2, &[high, low]) => Self::Mss(u16::from_be_bytes([high, low])),
            (3, &[shift]) => Self::WindowScale(shift),
            (4, []) => Self::SackPermitted,
            (5, blocks) if blocks.len() % 8 == 0 => Self::Sack(blocks),
            (8, &[a, b, c, d, e, f, g, h]) => {
                Self::Timestamps(u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
            }
            (34, cookie) => Self::FastOpen(cookie),
            _ => Self::Other(kind, value),
        }
    }
}

impl fmt::Display for TcpOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self {
            Self::End => f.write_str("eol"),
            Self::Nop => f.write_str("nop"),
            Self::Mss(size) => write!(f, "mss {size}"),
            Self::WindowScale(shift) => write!(f, "wscale {shift}"),
            Self::SackPermitted => f.write_str("sackOK"),
            Self::Sack(blocks) => {
                f.write_str("sack")?;
                for &[a, b, c, d, e, g, h, i] in blocks.as_chunks().0 {
                    let (from, to) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, g, h, i]));
                    write!(f, " {from}:{to}")?;
                }
                Ok(())
            }
            Self::Timestamps(value, echoed) => write!(f, "TS val {value} ecr {echoed}"),
            Self::FastOpen([]) => f.write_str("tfo cookiereq"),
            Self::FastOpen(cookie) => {
                f.write_str("tfo cookie ")?;
                hex(f, cookie)
            }
            Self::Other(kind, value) => {
                write!(f, "unknown-{kind} 0x")?;
                hex(f, value)
            }
            Self::Malformed => f.write_str("malformed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(options: &[u8]) -> String {
        let options = Tcp { flags: 0, options }.options();
        options.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn options_as_tcpdump_shows_them() {
        let syn = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0xff, 0xfb, 0x7a, 0xb0, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(shown(&syn), "mss 1460,sackOK,TS val 4294671024 ecr 0,nop,wscale 7");
        assert_eq!(shown(&[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9]), "nop,nop,sack 1:9");
        assert_eq!(shown(&[34, 2, 34, 4, 0xab, 0xcd, 0, 9]), "tfo cookiereq,tfo cookie abcd,eol");
        assert_eq!(shown(&[253, 3, 7, 2, 3, 5]), "unknown-253 0x07,unknown-2 0x05");
        for malformed in [&[2][..], &[2, 0], &[2, 1], &[2, 4, 5]] {
            assert_eq!(shown(malformed), "malformed", "{malformed:?}");
        }
    }

    #[test]
    fn flags_from_the_highest_on() {
        assert_eq!(Tcp { flags: 0x112, options: &[] }.flags(), ["ae", "ack", "syn"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_options(bytes: Vec<u8>) {
            _ = shown(&bytes);
        }
    }
}
