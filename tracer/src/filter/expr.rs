//! What a filter says, without the ways to say it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A filter expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// One question about the packet.
    Primitive(Primitive),
    /// Not this.
    Not(Box<Expr>),
    /// Both.
    And(Box<Expr>, Box<Expr>),
    /// Either or both.
    Or(Box<Expr>, Box<Expr>),
}

/// One question about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// `ip`, `ip6`.
    Version(Version),
    /// `tcp`, `icmp`, `ip6 proto 50`.
    Protocol {
        /// The version that the packet must have.
        version: Option<Version>,
        /// The transport protocol.
        number: u8,
    },
    /// `host 10.0.0.1`, `src net 10.0.0.0/8`.
    Address {
        /// Which of the packet's addresses.
        direction: Direction,
        /// What it has to be.
        addresses: Addresses,
    },
    /// `port 80`, `udp dst portrange 1000-2000`.
    Port {
        /// The protocol that the packet must have; without, any that has ports.
        transport: Option<Transport>,
        /// Which of the packet's ports.
        direction: Direction,
        /// The smallest that matches.
        low: u16,
        /// The largest that matches.
        high: u16,
    },
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `ip`
    V4,
    /// `ip6`
    V6,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `tcp`
    Tcp,
    /// `udp`
    Udp,
    /// `sctp`
    Sctp,
}

impl Transport {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Which of two fields has to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `src`
    Source,
    /// `dst`
    Destination,
    /// `src or dst`, and what goes without saying.
    Either,
    /// `src and dst`
    Both,
}

/// The addresses that agree with `address` where `mask` has ones; `address` has none elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// The bits that count.
        address: u32,
        /// Any mask, as in libpcap.
        mask: u32,
    },
    /// IPv6.
    V6 {
        /// The bits that count.
        address: u128,
        /// Always a prefix.
        mask: u128,
    },
}

impl Addresses {
    /// The version that a packet with such an address has.
    pub fn version(self) -> Version {
        match self {
            Self::V4 { .. } => Version::V4,
            Self::V6 { .. } => Version::V6,
        }
    }
}

/// In parentheses where [`Expr::And`] and [`Expr::Or`], which bind equally, would otherwise be read differently.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primitive(primitive) => primitive.fmt(f),
            Self::Not(inner) => write!(f, "not {}", Operand(inner)),
            Self::And(left, right) => write!(f, "{left} and {}", Operand(right)),
            Self::Or(left, right) => write!(f, "{left} or {}", Operand(right)),
        }
    }
}

struct Operand<'a>(&'a Expr);

impl fmt::Display for Operand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expr::And(..) | Expr::Or(..) => write!(f, "({})", self.0),
            Expr::Primitive(_) | Expr::Not(_) => self.0.fmt(f),
        }
    }
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Version(version) => version.fmt(f),
            Self::Protocol { version: None, number } => write!(f, "proto {number}"),
            Self::Protocol { version: Some(version), number } => write!(f, "{version} proto {number}"),
            Self::Address { direction, addresses } => write!(f, "{direction}{addresses}"),
            Self::Port { transport, direction, low, high } => {
                if let Some(transport) = transport {
                    write!(f, "{transport} ")?;
                }
                write!(f, "{direction}")?;
                if low == high { write!(f, "port {low}") } else { write!(f, "portrange {low}-{high}") }
            }
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// With a space behind, or empty.
impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "src ",
            Self::Destination => "dst ",
            Self::Either => "",
            Self::Both => "src and dst ",
        })
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4 { address, mask: u32::MAX } => write!(f, "host {}", Ipv4Addr::from(address)),
            Self::V4 { address, mask } if mask.leading_ones() == mask.count_ones() => {
                write!(f, "net {}/{}", Ipv4Addr::from(address), mask.leading_ones())
            }
            Self::V4 { address, mask } => {
                write!(f, "net {} mask {}", Ipv4Addr::from(address), Ipv4Addr::from(mask))
            }
            Self::V6 { address, mask: u128::MAX } => write!(f, "host {}", Ipv6Addr::from(address)),
            Self::V6 { address, mask } => {
                write!(f, "net {}/{}", Ipv6Addr::from(address), mask.leading_ones())
            }
        }
    }
}
