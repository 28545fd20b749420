//! What to trace: pcap-filter(7), compiled to something that the kernel side runs.
//!
//! There are two forms. The whole language is libpcap's: its compiler makes classic BPF of an expression, which
//! [`translate`](mod@translate) turns into instructions for the kernel. A build without libpcap has the first form: text
//! goes through [`token`] and [`parse`] to an [`Expr`], and through [`compile`](mod@compile) to a
//! [`tracer_common::filter::Program`], a graph of questions about a fixed set of words. Pure: no names are looked up
//! here, nothing is read.
//!
//! A filter is asked about a packet once, as the packet is at its first traversal of a table. What a later rule makes
//! of the packet, an address translation for example, does not change the answer. A packet begins at its IP header; only
//! where libpcap says that an expression needs Ethernet, the packet begins there.
//!
//! What means something else in the first form than in libpcap:
//! - A packet that is too short for a question does not match it, and so matches its negation; libpcap would drop the
//!   packet altogether.
//! - A bare number is never a host: `host 10` and `src 80`, there 0.0.0.10 and 0.0.0.80, are refused.
//! - `proto tcp` needs no backslash, though it may have one, and protocols above 255 are refused. What only the first
//!   form understands, it also says where libpcap is there.

pub mod classic;
mod compile;
pub mod ebpf;
mod error;
mod expr;
mod parse;
mod token;
pub mod translate;
mod ways;

#[cfg(test)]
mod tests;

pub use error::{FilterError, FilterErrorKind};
pub use expr::{Addresses, Direction, Expr, Primitive, Transport, Version};
pub use ways::{Question, ways};

use std::fmt;
use tracer_common::filter::Program;
use translate::{TranslateError, Translated};

/// A compiled filter and the text that it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// For the kernel side.
    pub form: Form,
    /// The first form, where the text can be said in it: for those who can only mark packets by rules.
    pub simple: Option<Box<Program>>,
    /// As it was given.
    pub text: String,
}

/// What the kernel side runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Questions about fixed words of the packet; none for every packet.
    Program(Box<Program>),
    /// Instructions.
    Translated {
        /// libpcap's own, for packets that are no kernel's.
        program: Vec<classic::Instruction>,
        /// To be put into the object.
        translated: Translated,
        /// Where the packet begins for them.
        link: LinkType,
    },
}

/// Where a packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// At its IP header: `DLT_RAW`.
    Raw,
    /// At its Ethernet header: `DLT_EN10MB`.
    Ethernet,
}

/// Why libpcap did not compile an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LibpcapError {
    /// This build has no libpcap.
    Absent,
    /// In libpcap's words.
    Refused(String),
}

/// libpcap's compiler.
pub type Libpcap<'a> = &'a dyn Fn(LinkType, &str) -> Result<Vec<classic::Instruction>, LibpcapError>;

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.trim() {
            "" => f.write_str("every packet"),
            text => write!(f, "{}", text.escape_debug()),
        }
    }
}

/// Compiles a filter; an empty one matches every packet.
pub fn compile(text: &str, libpcap: Libpcap<'_>) -> Result<Filter, FilterError> {
    let simple = first_form(text).map(Box::new);
    let filter = |form| Filter { form, simple: simple.clone().ok(), text: text.to_owned() };
    if text.trim().is_empty() {
        return Ok(filter(Form::Program(Box::new(Program::ANY))));
    }
    let own = || simple.clone().map(|program| filter(Form::Program(program)));
    match full(text, libpcap) {
        Ok((program, link)) => match translate::translate(&program) {
            Ok(translated) => Ok(filter(Form::Translated { program, translated, link })),
            Err(error) => Err(FilterError::new(error.into(), text, 0..text.len())),
        },
        Err(LibpcapError::Absent) => own(),
        Err(LibpcapError::Refused(message)) if message == REJECTS_ALL => {
            Err(FilterError::new(FilterErrorKind::NeverMatches, text, 0..text.len()))
        }
        Err(LibpcapError::Refused(message)) => own().map_err(|error| error.with_libpcap(&message)),
    }
}

/// Ethernet is only asked for where the IP packet alone does not do: an ARP packet, too, is in a frame.
fn full(text: &str, libpcap: Libpcap<'_>) -> Result<(Vec<classic::Instruction>, LinkType), LibpcapError> {
    let with = |link| libpcap(link, text).map(|program| (program, link));
    match with(LinkType::Raw) {
        Err(LibpcapError::Refused(_)) => with(LinkType::Ethernet),
        compiled => compiled,
    }
}

/// libpcap's words for an expression that no packet matches.
const REJECTS_ALL: &str = "expression rejects all packets";

/// The form that needs no libpcap.
fn first_form(text: &str) -> Result<Program, FilterError> {
    match parse::parse(text)? {
        None => Ok(Program::ANY),
        Some(expr) => compile::program(&expr).map_err(|kind| FilterError::new(kind, text, 0..text.len())),
    }
}

impl From<TranslateError> for FilterErrorKind {
    fn from(error: TranslateError) -> Self {
        Self::Untranslatable(error)
    }
}
