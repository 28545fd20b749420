//! What is wrong with a filter, where, and what to write instead.

use super::parse::{self, MAX_DEPTH, MAX_TERMS};
use super::translate::TranslateError;
use crate::text::Escaped;
use std::fmt;
use std::ops::Range;
use tracer_common::filter::MAX_NODES;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterErrorKind {
    /// No word of pcap's filters.
    #[error("unknown word {0}")]
    UnknownWord(Quoted),
    /// A part of pcap's filters that this form of the filter lacks.
    #[error("not supported without libpcap: {0}")]
    Unsupported(Quoted),
    /// Refused by libpcap, too, and best said in its words.
    #[error("libpcap says: {}", Escaped(.message))]
    Libpcap {
        /// Its words.
        message: String,
        /// The place is that of a word that the first form does not know, either.
        placed: bool,
    },
    /// Compiled, but not for the kernel.
    #[error("cannot run in the kernel: {0}")]
    Untranslatable(TranslateError),
    /// The text does not go on as it has to.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What could have been there.
        expected: &'static str,
        /// What is.
        found: Quoted,
    },
    /// An address or number with no keyword that it could belong to.
    #[error("no keyword in front of {0}")]
    NoKeyword(Quoted),
    /// A keyword that cannot qualify what follows.
    #[error("{qualifier} does not go with {word}")]
    Mismatch {
        /// In front.
        qualifier: Quoted,
        /// What follows.
        word: Quoted,
        /// How to say it.
        hint: &'static str,
    },
    /// A host, which would need a name server.
    #[error("host names are not looked up: {0}")]
    HostName(Quoted),
    /// A service, which would need the system's list.
    #[error("service names are not looked up: {0}")]
    ServiceName(Quoted),
    /// Not an address.
    #[error("not an address: {0}")]
    BadAddress(Quoted),
    /// A mask without `net`.
    #[error("mask without `net`: {0}")]
    MaskWithoutNet(Quoted),
    /// A network with bits set that its mask leaves out.
    #[error("bits set outside of the mask: {net}")]
    HostBits {
        /// As written.
        net: Quoted,
        /// The same without those bits.
        instead: String,
    },
    /// A number that is too large for its place.
    #[error("out of range: {number}")]
    OutOfRange {
        /// As written.
        number: Quoted,
        /// The largest that fits.
        max: u32,
    },
    /// More conditions than any program has room for.
    #[error("more than {MAX_TERMS} conditions")]
    TooLong,
    /// More parentheses than anyone needs.
    #[error("nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// More tests than a program has room for.
    #[error("needs {needed} tests of a packet, and there is room for {MAX_NODES}")]
    TooManyNodes {
        /// Tests, after all that could be shared is shared.
        needed: usize,
    },
    /// No packet can match.
    #[error("no packet can match this")]
    NeverMatches,
}

impl FilterErrorKind {
    fn has_place(&self) -> bool {
        !matches!(
            self,
            Self::TooManyNodes { .. }
                | Self::NeverMatches
                | Self::Untranslatable(_)
                | Self::Libpcap { placed: false, .. }
        )
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownWord(word) => match parse::lower_case_keyword(&word.0) {
                Some(keyword) => format!("words are in lower case: `{keyword}`"),
                None => format!("this form of the filter knows {}", parse::KNOWN_WORDS),
            },
            Self::Unsupported(word) => {
                format!(
                    "{}; `cargo xtask build` makes a build with libpcap",
                    parse::unsupported_hint(&word.0)
                )
            }
            Self::Untranslatable(TranslateError::Loop) => {
                "`protochain` looks for a header as long as there is another: ask for the headers one by one"
                    .to_owned()
            }
            Self::Untranslatable(TranslateError::Unset) => {
                "what stands behind `geneve` is asked about the inner packet: join it with `and`".to_owned()
            }
            Self::Untranslatable(TranslateError::Special) => {
                "packets are chosen by their own bytes, not by device or direction".to_owned()
            }
            Self::NoKeyword(word) | Self::BadAddress(word) if word.is_digits() => {
                format!("if this is a port, write `port {}`", word.escaped())
            }
            Self::NoKeyword(word) => format!("write what it is, such as `host {}`", word.escaped()),
            Self::Mismatch { hint, .. } => (*hint).to_owned(),
            Self::HostName(_) => "write the address".to_owned(),
            Self::ServiceName(_) => "write the port number".to_owned(),
            Self::BadAddress(_) => {
                "addresses look like 10.0.0.1 or fd00::1, networks like 10.0.0.0/8".to_owned()
            }
            Self::MaskWithoutNet(_) => "write `net`, `src net` or `dst net` in front".to_owned(),
            Self::HostBits { instead, .. } => format!("write `{instead}`"),
            Self::OutOfRange { max, .. } => format!("the largest is {max}"),
            Self::TooLong
            | Self::TooManyNodes { .. }
            | Self::Untranslatable(TranslateError::TooLong { .. }) => {
                "use networks and port ranges instead of lists".to_owned()
            }
            Self::NeverMatches => "`and` where `or` is meant is a common reason".to_owned(),
            Self::Libpcap { .. } => "see pcap-filter(7)".to_owned(),
            Self::Expected { .. } | Self::TooDeep | Self::Untranslatable(_) => return None,
        })
    }
}

/// A piece of the filter's text; shown in backquotes, without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted(pub String);

impl Quoted {
    fn is_digits(&self) -> bool {
        self.0.bytes().all(|byte| byte.is_ascii_digit())
    }

    fn escaped(&self) -> impl fmt::Display {
        self.0.escape_debug()
    }
}

impl From<&str> for Quoted {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the end") } else { write!(f, "`{}`", self.escaped()) }
    }
}

/// Why a filter cannot be used. Displays as several lines that point at the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    kind: Box<FilterErrorKind>,
    text: String,
    span: Range<usize>,
}

impl FilterError {
    pub(super) fn new(kind: FilterErrorKind, text: &str, span: Range<usize>) -> Self {
        Self { kind: Box::new(kind), text: text.to_owned(), span }
    }

    /// The same after libpcap, too, refused the text. Where the first form only lacks something, it cannot tell what is
    /// wrong.
    pub(super) fn with_libpcap(self, message: &str) -> Self {
        let placed = match *self.kind {
            FilterErrorKind::UnknownWord(_) | FilterErrorKind::ServiceName(_) => true,
            FilterErrorKind::Unsupported(_)
            | FilterErrorKind::TooManyNodes { .. }
            | FilterErrorKind::TooLong => false,
            _ => return self,
        };
        let message = message.trim_start_matches("can't parse filter expression: ").to_owned();
        Self { kind: Box::new(FilterErrorKind::Libpcap { message, placed }), ..self }
    }

    /// What is wrong.
    pub fn kind(&self) -> &FilterErrorKind {
        &self.kind
    }

    /// Where, in bytes of the text.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Where, in characters from 1.
    pub fn column(&self) -> usize {
        characters(&self.text[..self.span.start]) + 1
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        self.kind.hint()
    }
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter: {}", self.kind)?;
        if self.kind.has_place() {
            let shown: String = self.text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect();
            let carets = characters(&self.text[self.span.clone()]).max(1);
            let column = self.column();
            write!(
                f,
                " at column {column}\n    {}\n{:3$}{:^<carets$}",
                shown.trim_end(),
                "",
                "",
                column + 3
            )?;
        }
        match self.hint() {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FilterError {}

/// Takes one column, and does nothing else to a terminal.
fn is_plain(c: char) -> bool {
    c.is_ascii_graphic() || c.escape_debug().len() == 1
}

fn characters(text: &str) -> usize {
    text.chars().count()
}
