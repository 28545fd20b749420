//! Text to expression, in the grammar of pcap-filter(7).
//!
//! `and` and `or` bind equally, from left to right, and `not` binds to what follows it at once. A value may leave out
//! the keywords that the value before it had: `port 80 or 443`.

use super::error::{FilterError, FilterErrorKind, Quoted};
use super::expr::{Addresses, Direction, Expr, Primitive, Transport, Version};
use super::token::{Token, TokenKind, tokens};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

/// Conditions in a filter; each takes at least one of about as many nodes.
pub(super) const MAX_TERMS: usize = 128;
/// Parentheses and negations within each other.
pub(super) const MAX_DEPTH: usize = 64;

/// The expression of a filter; `None` when there is nothing in it.
pub(super) fn parse(text: &str) -> Result<Option<Expr>, FilterError> {
    let mut parser = Parser { text, tokens: tokens(text), at: 0, inherited: None, terms: 0, depth: 0 };
    if parser.peek().kind == TokenKind::End {
        return Ok(None);
    }
    let expr = parser.expression(Operands::Any)?;
    match parser.peek().kind {
        TokenKind::End => Ok(Some(expr)),
        _ => Err(parser.unexpected("`and`, `or` or the end")),
    }
}

const PROTOCOLS: [(&str, Layer); 15] = [
    ("ip", Layer::Version(Version::V4)),
    ("ip6", Layer::Version(Version::V6)),
    ("tcp", Layer::Transport(Transport::Tcp)),
    ("udp", Layer::Transport(Transport::Udp)),
    ("sctp", Layer::Transport(Transport::Sctp)),
    ("icmp", Layer::Protocol { version: Some(Version::V4), number: 1 }),
    ("icmp6", Layer::Protocol { version: Some(Version::V6), number: 58 }),
    ("igmp", Layer::Protocol { version: Some(Version::V4), number: 2 }),
    ("igrp", Layer::Protocol { version: Some(Version::V4), number: 9 }),
    ("esp", Layer::Protocol { version: None, number: 50 }),
    ("ah", Layer::Protocol { version: None, number: 51 }),
    ("pim", Layer::Protocol { version: None, number: 103 }),
    ("vrrp", Layer::Protocol { version: Some(Version::V4), number: 112 }),
    ("carp", Layer::Protocol { version: Some(Version::V4), number: 112 }),
    // Only a name behind `proto`, as there is no keyword for it.
    ("ipv6-icmp", Layer::Protocol { version: None, number: 58 }),
];

/// For the hint that goes with an unknown word.
pub(super) const KNOWN_WORDS: &str = "ip, ip6, icmp, icmp6, tcp, udp, sctp, igmp, esp, ah, pim, host, net, port, \
                                      portrange, proto, src, dst, and, or, not";
const KEYWORDS: [&str; 11] =
    ["src", "dst", "host", "net", "port", "portrange", "proto", "mask", "and", "or", "not"];
/// What pcap finds in the headers below IP.
const BELOW_IP: [&str; 26] = [
    "ether", "link", "fddi", "tr", "wlan", "ppp", "slip", "arp", "rarp", "vlan", "mpls", "pppoed", "pppoes",
    "llc", "stp", "ipx", "netbeui", "atalk", "aarp", "decnet", "iso", "clnp", "isis", "esis", "type",
    "subtype",
];
/// What pcap finds elsewhere.
const ELSEWHERE: [&str; 20] = [
    "len",
    "length",
    "less",
    "greater",
    "byte",
    "broadcast",
    "multicast",
    "gateway",
    "protochain",
    "geneve",
    "vxlan",
    "inbound",
    "outbound",
    "ifname",
    "ifindex",
    "on",
    "rulenum",
    "rnr",
    "reason",
    "action",
];

/// The keyword that a word would be in lower case.
pub(super) fn lower_case_keyword(word: &str) -> Option<String> {
    let lower = word.to_ascii_lowercase();
    (lower != word && is_keyword(&lower)).then_some(lower)
}

/// What to do without something that is not supported.
pub(super) fn unsupported_hint(word: &str) -> &'static str {
    match word {
        _ if BELOW_IP.contains(&word) => "packets are looked at from their IP header on",
        "inbound" | "outbound" | "on" | "ifname" | "ifindex" => {
            "packets are chosen by their own headers only"
        }
        "gateway" => "use `host` and `not host`",
        "protochain" => "`proto` looks at the first header and behind a fragment header",
        "multicast" | "broadcast" => "use `dst net`, for example `dst net 224.0.0.0/4`",
        _ => "packets are chosen by version, protocol, addresses and ports",
    }
}

fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word) || layer(word).is_some() || is_unsupported(word)
}

fn is_unsupported(word: &str) -> bool {
    BELOW_IP.contains(&word) || ELSEWHERE.contains(&word)
}

fn layer(word: &str) -> Option<Layer> {
    let (name, layer) = *PROTOCOLS.iter().find(|(name, _)| *name == word)?;
    (name != "ipv6-icmp").then_some(layer)
}

/// What a protocol keyword stands for.
#[derive(Clone, Copy, Debug)]
enum Layer {
    Version(Version),
    Transport(Transport),
    Protocol { version: Option<Version>, number: u8 },
}

impl Layer {
    fn primitive(self) -> Primitive {
        match self {
            Self::Version(version) => Primitive::Version(version),
            Self::Transport(transport) => Primitive::Protocol { version: None, number: transport.number() },
            Self::Protocol { version, number } => Primitive::Protocol { version, number },
        }
    }
}

/// The keywords in front of a value.
#[derive(Clone, Copy, Debug)]
enum Qualifier {
    Address { version: Option<Version>, direction: Direction, net: bool },
    Port { transport: Option<Transport>, direction: Direction, range: bool },
    Protocol { version: Option<Version> },
}

impl Qualifier {
    fn expected(self) -> &'static str {
        match self {
            Self::Address { net: false, .. } => "an address",
            Self::Address { net: true, .. } => "a network",
            Self::Port { range: false, .. } => "a port number",
            Self::Port { range: true, .. } => "a port range such as 1000-2000",
            Self::Protocol { .. } => "a protocol number",
        }
    }
}

/// What may stand between `and` and `or`.
#[derive(Clone, Copy, Debug)]
enum Operands {
    Any,
    /// Values for keywords in front of a parenthesis: `port (80 or 443)`.
    Values(Qualifier),
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
    /// The keywords of the value before.
    inherited: Option<Qualifier>,
    terms: usize,
    depth: usize,
}

type Parsed<T> = Result<T, FilterError>;

impl<'a> Parser<'a> {
    fn expression(&mut self, operands: Operands) -> Parsed<Expr> {
        let mut left = self.operand(operands)?;
        loop {
            let join = match self.peek().kind {
                TokenKind::And => Expr::And,
                TokenKind::Or => Expr::Or,
                TokenKind::Arithmetic => return Err(self.arithmetic(self.peek().span.start)),
                _ => return Ok(left),
            };
            self.advance();
            left = join(Box::new(left), Box::new(self.operand(operands)?));
        }
    }

    fn operand(&mut self, operands: Operands) -> Parsed<Expr> {
        match (self.peek().kind, operands) {
            (TokenKind::Not, _) => {
                self.advance();
                let inner = self.nested(|parser| parser.operand(operands))?;
                Ok(Expr::Not(Box::new(inner)))
            }
            (TokenKind::Open, _) => self.group(operands),
            (TokenKind::Word, Operands::Values(qualifier)) => self.value(qualifier),
            (TokenKind::Word, Operands::Any) => self.term(),
            (_, Operands::Values(qualifier)) => Err(self.unexpected(qualifier.expected())),
            (_, Operands::Any) => Err(self.unexpected("a condition such as `tcp` or `host 10.0.0.1`")),
        }
    }

    /// Keywords within parentheses do not reach behind them.
    fn group(&mut self, operands: Operands) -> Parsed<Expr> {
        self.advance();
        let inherited = self.inherited;
        let inner = self.nested(|parser| parser.expression(operands))?;
        self.inherited = inherited;
        if self.peek().kind != TokenKind::Close {
            return Err(self.unexpected("`)`, `and` or `or`"));
        }
        self.advance();
        Ok(inner)
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(FilterErrorKind::TooDeep));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn term(&mut self) -> Parsed<Expr> {
        let Token { text: word, span, .. } = self.peek().clone();
        if is_unsupported(word) {
            return Err(self.error(FilterErrorKind::Unsupported(word.into())));
        }
        if !is_keyword(word) {
            return self.bare_value(word);
        }
        let layer = layer(word);
        if layer.is_some() {
            self.advance();
        }
        match (self.qualifier(layer, span.clone())?, layer) {
            (Some(qualifier), _) => {
                self.inherited = Some(qualifier);
                self.values(qualifier)
            }
            (None, Some(_)) if self.peek().text == "[" => Err(self.arithmetic(span.start)),
            (None, Some(layer)) => {
                self.inherited = None;
                self.count(span)?;
                Ok(Expr::Primitive(layer.primitive()))
            }
            (None, None) => Err(self.unexpected("a condition such as `tcp` or `host 10.0.0.1`")),
        }
    }

    /// A value without keywords.
    fn bare_value(&mut self, word: &str) -> Parsed<Expr> {
        match self.inherited {
            Some(qualifier) => self.value(qualifier),
            None if word.starts_with(|c: char| c.is_ascii_digit()) || word.contains(':') => {
                Err(self.error(FilterErrorKind::NoKeyword(word.into())))
            }
            None => Err(self.error(FilterErrorKind::UnknownWord(word.into()))),
        }
    }

    /// The keywords up to a value, behind a protocol; `None` when the protocol stands alone.
    fn qualifier(&mut self, layer: Option<Layer>, layer_span: Range<usize>) -> Parsed<Option<Qualifier>> {
        let start = self.peek().span.start;
        let direction = self.direction()?;
        let keyword = self.peek().text;
        let either = direction.unwrap_or(Direction::Either);
        let qualifier = match keyword {
            "host" | "net" => {
                let version = self.version_of(layer, &layer_span, keyword)?;
                Qualifier::Address { version, direction: either, net: keyword == "net" }
            }
            "port" | "portrange" => {
                let transport = self.transport_of(layer, &layer_span, keyword)?;
                Qualifier::Port { transport, direction: either, range: keyword == "portrange" }
            }
            "proto" if direction.is_none() => {
                Qualifier::Protocol { version: self.version_of(layer, &layer_span, keyword)? }
            }
            "gateway" | "protochain" | "broadcast" | "multicast" => {
                return Err(self.error(FilterErrorKind::Unsupported(keyword.into())));
            }
            _ if direction.is_some() => {
                let direction_text = self.text[start..self.tokens[self.at - 1].span.end].to_owned();
                let version = self.version_of(layer, &layer_span, &direction_text)?;
                return Ok(Some(Qualifier::Address { version, direction: either, net: false }));
            }
            _ => return Ok(None),
        };
        self.advance();
        Ok(Some(qualifier))
    }

    fn direction(&mut self) -> Parsed<Option<Direction>> {
        let (single, other) = match self.peek().text {
            "src" => (Direction::Source, "dst"),
            "dst" => (Direction::Destination, "src"),
            _ => return Ok(None),
        };
        self.advance();
        let joined = match self.peek().kind {
            TokenKind::And => Direction::Both,
            TokenKind::Or => Direction::Either,
            _ => return Ok(Some(single)),
        };
        self.advance();
        if self.peek().text != other {
            return Err(self.unexpected(if other == "dst" { "`dst`" } else { "`src`" }));
        }
        self.advance();
        Ok(Some(joined))
    }

    fn version_of(&self, layer: Option<Layer>, span: &Range<usize>, word: &str) -> Parsed<Option<Version>> {
        match layer {
            None => Ok(None),
            Some(Layer::Version(version)) => Ok(Some(version)),
            Some(_) if word == "proto" => Err(self.mismatch(span, word, "`proto` goes with `ip` and `ip6`")),
            Some(_) => Err(self.mismatch(span, word, "put `and` between them")),
        }
    }

    fn transport_of(
        &self,
        layer: Option<Layer>,
        span: &Range<usize>,
        word: &str,
    ) -> Parsed<Option<Transport>> {
        match layer {
            None => Ok(None),
            Some(Layer::Transport(transport)) => Ok(Some(transport)),
            Some(Layer::Version(_)) => Err(self.mismatch(span, word, "put `and` between them")),
            Some(_) => Err(self.mismatch(span, word, "ports belong to `tcp`, `udp` and `sctp`")),
        }
    }

    fn mismatch(&self, span: &Range<usize>, word: &str, hint: &'static str) -> FilterError {
        let qualifier = Quoted::from(&self.text[span.clone()]);
        self.error_at(FilterErrorKind::Mismatch { qualifier, word: word.into(), hint }, span.clone())
    }

    /// What stands behind keywords: a value, or values in parentheses.
    fn values(&mut self, qualifier: Qualifier) -> Parsed<Expr> {
        self.operand(Operands::Values(qualifier))
    }

    fn value(&mut self, qualifier: Qualifier) -> Parsed<Expr> {
        let Token { text: word, span, .. } = self.peek().clone();
        self.count(span.clone())?;
        let primitive = match qualifier {
            Qualifier::Protocol { version } => {
                let number = self.protocol_number(word)?;
                Primitive::Protocol { version, number }
            }
            _ if is_keyword(word) => return Err(self.unexpected(qualifier.expected())),
            Qualifier::Port { transport, direction, range } => {
                let (low, high) = if range { self.port_range(word)? } else { self.port(word).map(twice)? };
                Primitive::Port { transport, direction, low, high }
            }
            Qualifier::Address { version, direction, net } => {
                let addresses = self.addresses(net)?;
                self.check_version(version, addresses, span)?;
                return Ok(Expr::Primitive(Primitive::Address { direction, addresses }));
            }
        };
        self.advance();
        Ok(Expr::Primitive(primitive))
    }

    fn protocol_number(&self, word: &str) -> Parsed<u8> {
        let name = word.strip_prefix('\\').unwrap_or(word);
        let known = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, layer)| layer.primitive());
        match known {
            Some(Primitive::Protocol { number, .. }) => Ok(number),
            _ => match number(name) {
                Some(value) => u8::try_from(value).map_err(|_| self.out_of_range(word, u8::MAX.into())),
                None => Err(self.unexpected("a protocol number")),
            },
        }
    }

    fn port(&self, word: &str) -> Parsed<u16> {
        match number(word) {
            Some(value) => u16::try_from(value).map_err(|_| self.out_of_range(word, u16::MAX.into())),
            None if word.starts_with(|c: char| c.is_ascii_digit()) => Err(self.unexpected("a port number")),
            None => Err(self.error(FilterErrorKind::ServiceName(word.into()))),
        }
    }

    /// Two ports, in either order, or one.
    fn port_range(&self, word: &str) -> Parsed<(u16, u16)> {
        let Some((first, last)) = word.split_once('-') else { return self.port(word).map(twice) };
        if number(first).is_none() || number(last).is_none() {
            return Err(self.unexpected("a port range such as 1000-2000"));
        }
        let (first, last) = (self.port(first)?, self.port(last)?);
        Ok((first.min(last), first.max(last)))
    }

    /// Goes past the value.
    fn addresses(&mut self, net: bool) -> Parsed<Addresses> {
        let Token { text: word, span, .. } = self.peek().clone();
        let error = |kind: fn(Quoted) -> FilterErrorKind| self.error(kind(word.into()));
        let address = match Written::parse(word) {
            Some(address) => address,
            None if word.starts_with(|c: char| c.is_ascii_digit()) || word.contains(':') => {
                return Err(error(FilterErrorKind::BadAddress));
            }
            None => return Err(error(FilterErrorKind::HostName)),
        };
        self.advance();
        let mask = self.mask(&address)?;
        let span = span.start..self.tokens[self.at - 1].span.end;
        let whole = Quoted::from(&self.text[span.clone()]);
        if mask.is_some() && !net {
            return Err(self.error_at(FilterErrorKind::MaskWithoutNet(whole), span));
        }
        let addresses = match (&address, mask) {
            (_, Some(mask)) => address.under(mask),
            (Written::Number(_), None) if !net => {
                return Err(self.error_at(FilterErrorKind::BadAddress(whole), span));
            }
            (_, None) => address.alone(),
        };
        let addresses = addresses
            .ok_or_else(|| self.error_at(FilterErrorKind::BadAddress(whole.clone()), span.clone()))?;
        let instead = without_host_bits(addresses);
        if instead != addresses {
            let instead = instead.to_string();
            return Err(self.error_at(FilterErrorKind::HostBits { net: whole, instead }, span));
        }
        Ok(addresses)
    }

    /// The mask behind an address, as ones from the left; goes past it.
    fn mask(&mut self, address: &Written) -> Parsed<Option<u128>> {
        if self.peek().kind == TokenKind::Slash {
            self.advance();
            let max = if matches!(address, Written::V6(_)) { 128 } else { 32 };
            let length = number(self.peek().text).ok_or_else(|| self.unexpected("a prefix length"))?;
            if length > max {
                return Err(self.out_of_range(self.peek().text, max));
            }
            self.advance();
            return Ok(Some(u128::MAX.checked_shl(128 - length).unwrap_or(0)));
        }
        if self.peek().text != "mask" {
            return Ok(None);
        }
        if matches!(address, Written::V6(_)) {
            return Err(self.unexpected("`/` and a prefix length"));
        }
        self.advance();
        match Written::parse(self.peek().text) {
            Some(Written::Dotted { value, .. }) => {
                self.advance();
                Ok(Some(u128::from(value) << 96))
            }
            _ => Err(self.unexpected("a mask such as 255.255.255.0")),
        }
    }

    fn check_version(&self, version: Option<Version>, found: Addresses, span: Range<usize>) -> Parsed<()> {
        match version {
            Some(version) if version != found.version() => {
                let kind = FilterErrorKind::Mismatch {
                    qualifier: Quoted(version.to_string()),
                    word: self.text[span.clone()].into(),
                    hint: match found.version() {
                        Version::V4 => "this is an IPv4 address: write `ip` or nothing",
                        Version::V6 => "this is an IPv6 address: write `ip6` or nothing",
                    },
                };
                Err(self.error_at(kind, span))
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, span: Range<usize>) -> Parsed<()> {
        self.terms += 1;
        if self.terms > MAX_TERMS { Err(self.error_at(FilterErrorKind::TooLong, span)) } else { Ok(()) }
    }

    fn peek(&self) -> &Token<'a> {
        &self.tokens[self.at]
    }

    /// Never past the end.
    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    fn unexpected(&self, expected: &'static str) -> FilterError {
        let found = self.peek();
        if found.kind == TokenKind::Arithmetic {
            return self.arithmetic(found.span.start);
        }
        self.error(FilterErrorKind::Expected { expected, found: found.text.into() })
    }

    /// From `start` to the closing bracket, or just the sign.
    fn arithmetic(&self, start: usize) -> FilterError {
        let bracket = || self.tokens[self.at..].iter().find(|token| token.text == "]");
        let last =
            Some(self.peek()).filter(|token| token.text != "[").or_else(bracket).unwrap_or(self.peek());
        let span = start..last.span.end;
        self.error_at(FilterErrorKind::Unsupported(self.text[span.clone()].into()), span)
    }

    fn out_of_range(&self, word: &str, max: u32) -> FilterError {
        self.error(FilterErrorKind::OutOfRange { number: word.into(), max })
    }

    fn error(&self, kind: FilterErrorKind) -> FilterError {
        self.error_at(kind, self.peek().span.clone())
    }

    fn error_at(&self, kind: FilterErrorKind, span: Range<usize>) -> FilterError {
        FilterError::new(kind, self.text, span)
    }
}

/// An address as it is written.
#[derive(Clone, Copy, Debug)]
enum Written {
    /// `10`
    Number(u32),
    /// `10.1`, with the bits that are left out zero.
    Dotted {
        value: u32,
        mask: u32,
    },
    V6(u128),
}

impl Written {
    fn parse(word: &str) -> Option<Self> {
        if word.contains(':') {
            return word.parse().ok().map(|address: Ipv6Addr| Self::V6(address.to_bits()));
        }
        if !word.contains('.') {
            return number(word).filter(|value| *value < u32::MAX).map(Self::Number);
        }
        let mut bytes = [0; 4];
        let mut parts = word.split('.');
        let mut count = 0;
        for (byte, part) in bytes.iter_mut().zip(parts.by_ref()) {
            *byte = Some(part).filter(|part| is_digits(part))?.parse().ok()?;
            count += 1;
        }
        let value = Ipv4Addr::from(bytes).to_bits();
        parts.next().is_none().then_some(Self::Dotted { value, mask: u32::MAX << (32 - 8 * count) })
    }

    /// Without a mask: as many bytes as are written.
    fn alone(self) -> Option<Addresses> {
        Some(match self {
            Self::V6(address) => Addresses::V6 { address, mask: u128::MAX },
            Self::Dotted { value, mask } => Addresses::V4 { address: value, mask },
            Self::Number(mut address) => {
                let mut mask = u32::MAX;
                while address != 0 && address >> 24 == 0 {
                    address <<= 8;
                    mask <<= 8;
                }
                Addresses::V4 { address, mask }
            }
        })
    }

    /// With a mask, whose first bits count for IPv4.
    fn under(self, mask: u128) -> Option<Addresses> {
        let short = (mask >> 96) as u32;
        match self {
            Self::V6(address) => Some(Addresses::V6 { address, mask }),
            Self::Dotted { value, .. } => Some(Addresses::V4 { address: value, mask: short }),
            Self::Number(first) => {
                Some(Addresses::V4 { address: u32::from(u8::try_from(first).ok()?) << 24, mask: short })
            }
        }
    }
}

fn without_host_bits(addresses: Addresses) -> Addresses {
    match addresses {
        Addresses::V4 { address, mask } => Addresses::V4 { address: address & mask, mask },
        Addresses::V6 { address, mask } => Addresses::V6 { address: address & mask, mask },
    }
}

/// Decimal, `0x` and hexadecimal, or `0` and octal. Too large a number is [`u32::MAX`].
fn number(word: &str) -> Option<u32> {
    let (digits, radix) = match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if word.len() > 1 && word.starts_with('0') => (&word[1..], 8),
        None => (word, 10),
    };
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    is_number.then(|| u32::from_str_radix(digits, radix).unwrap_or(u32::MAX))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn twice(port: u16) -> (u16, u16) {
    (port, port)
}
