//! The legacy blob: what getsockopt returns and what the kernel holds, fixed parts only.
//!
//! Both are a row of `ipt_entry` (or `ip6t_entry`), each followed by its matches and its target. They differ in one
//! thing: where user space sees the name of a match or target, the kernel has written a pointer over bytes 8 to 16
//! of it ([`Form`]). The parameters of extensions are not understood here; `iptables-save` prints them.
//!
//! Pure, and panics on no input.
#![forbid(unsafe_code)]

mod decode;
mod entry;
mod names;
#[cfg(test)]
pub(crate) mod tests;

pub use names::TargetNames;

use crate::netfilter::Family;
use crate::ruleset::Table;
use std::ops::Range;
use tracer_common::legacy::Replaced;

/// Whose form a blob has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As `IPT_SO_GET_ENTRIES` returns it: with names, and with counters summed up over all CPUs.
    User,
    /// As the kernel holds it (64-bit kernels): with pointers to `struct xt_target` and `struct xt_match` instead of
    /// names, and with per-CPU pointers instead of counters.
    Kernel,
}

/// A table as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTable {
    /// Address family.
    pub family: Family,
    /// `filter`, `nat`, …
    pub name: String,
    /// Bit n set: the table has a chain at hook n.
    pub valid_hooks: u32,
    /// Offset of the first entry of each hook's chain.
    pub hook_entry: [u32; 5],
    /// Offset of the policy entry of each hook's chain.
    pub underflow: [u32; 5],
    /// Entries in the blob.
    pub number: u32,
    /// Whose form the blob has.
    pub form: Form,
    /// The blob.
    pub bytes: Vec<u8>,
}

/// Why bytes are not a legacy table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// In one entry.
    #[error("the entry at offset {offset} {what}")]
    Entry {
        /// Its offset.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// In what belongs to a hook.
    #[error("the {hook} hook {what}")]
    Hook {
        /// Name of its chain.
        hook: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// In one chain.
    #[error("chain {chain:?} {what}")]
    Chain {
        /// Its name.
        chain: String,
        /// What is wrong.
        what: &'static str,
    },
    /// In the table as a whole.
    #[error("the table {0}")]
    Table(&'static str),
}

impl RawTable {
    /// From the record of a replaced table and the bytes of all its chunks. The kernel marks hooks at which the table
    /// has no chain with an offset of all ones.
    pub fn from_replaced(replaced: &Replaced, bytes: Vec<u8>) -> Result<Self, Error> {
        let family = u8::try_from(replaced.family).ok().and_then(Family::from_nfproto);
        let valid = replaced.hook_entry.iter().enumerate().filter(|(_, offset)| **offset != u32::MAX);
        if bytes.len() != replaced.size as usize {
            return Err(Error::Table("was not captured in full"));
        }
        Ok(Self {
            family: family.ok_or(Error::Table("is neither of IPv4 nor of IPv6"))?,
            name: entry::text(&replaced.table_name),
            valid_hooks: valid.fold(0, |bits, (hook, _)| bits | 1 << hook),
            hook_entry: replaced.hook_entry,
            underflow: replaced.underflow,
            number: replaced.number,
            form: Form::Kernel,
            bytes,
        })
    }

    /// The table's structure. `names` serves the kernel's form only; without it a long name of an extension stays
    /// unknown.
    pub fn decode(&self, names: &TargetNames) -> Result<Table, Error> {
        decode::decode(self, names)
    }

    /// Whether `other` holds the same rules in the same form, whatever the counters say.
    pub fn same_rules(&self, other: &Self) -> bool {
        let head =
            |raw: &Self| (raw.family, raw.valid_hooks, raw.hook_entry, raw.underflow, raw.number, raw.form);
        if head(self) != head(other) || self.name != other.name || self.bytes.len() != other.bytes.len() {
            return false;
        }
        let Ok(counters) = self.counters() else { return false };
        let mut from = 0;
        for range in counters {
            if self.bytes.get(from..range.start) != other.bytes.get(from..range.start) {
                return false;
            }
            from = range.end;
        }
        self.bytes.get(from..) == other.bytes.get(from..)
    }

    /// How many packets each entry has counted, in [`Form::User`]; nothing where the blob is none.
    pub fn packet_counts(&self) -> Vec<u64> {
        let count = |range: Range<usize>| {
            let packets = self.bytes.get(range)?.first_chunk()?;
            Some(u64::from_ne_bytes(*packets))
        };
        self.counters().into_iter().flatten().map(|range| count(range).unwrap_or(0)).collect()
    }

    /// Where the counters of all entries lie.
    fn counters(&self) -> Result<Vec<Range<usize>>, Error> {
        Ok(entry::entries(self)?.iter().map(entry::RawEntry::counters).collect())
    }
}
