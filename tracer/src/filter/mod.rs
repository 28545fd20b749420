//! What to trace: a part of pcap-filter(7), compiled to a [`tracer_common::filter::Program`].
//!
//! Text goes through [`token`] and [`parse`] to an [`Expr`], and through [`compile`](mod@compile) to a program, which
//! the kernel side runs. Pure: no names are looked up, nothing is read.
//!
//! A filter is asked about a packet once, as the packet is at its first traversal of a table. What a later rule makes
//! of the packet, an address translation for example, does not change the answer.
//!
//! What means something else here than in libpcap:
//! - A packet that is too short for a question does not match it, and so matches its negation; libpcap would drop the
//!   packet altogether.
//! - A bare number is never a host: `host 10` and `src 80`, there 0.0.0.10 and 0.0.0.80, are refused.
//! - `proto tcp` needs no backslash, though it may have one, and protocols above 255 are refused.

mod compile;
mod error;
mod expr;
mod parse;
mod token;
mod ways;

#[cfg(test)]
mod tests;

pub use error::{FilterError, FilterErrorKind};
pub use expr::{Addresses, Direction, Expr, Primitive, Transport, Version};
pub use ways::{Question, ways};

use std::fmt;
use tracer_common::filter::{Key, Program};

/// A compiled filter and the text that it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// For the kernel side.
    pub program: Program,
    /// As it was given.
    pub text: String,
}

impl Filter {
    /// Whether a packet with this key is to be traced.
    pub fn matches(&self, key: &Key) -> bool {
        self.program.matches(key)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.trim() {
            "" => f.write_str("every packet"),
            text => write!(f, "{}", text.escape_debug()),
        }
    }
}

/// Compiles a filter; an empty one matches every packet.
pub fn compile(text: &str) -> Result<Filter, FilterError> {
    compile_with(text, &|_| None)
}

/// Like [`compile`](fn@compile), with a way to find the port of a service.
pub fn compile_with(text: &str, service: &dyn Fn(&str) -> Option<u16>) -> Result<Filter, FilterError> {
    let whole = |kind| FilterError::new(kind, text, 0..text.len());
    let program = match parse::parse(text, service)? {
        None => Program::ANY,
        Some(expr) => compile::program(&expr).map_err(whole)?,
    };
    Ok(Filter { program, text: text.to_owned() })
}
