//! One entry of the blob: `struct ipt_entry` or `struct ip6t_entry`, its matches and its target.
//!
//! Layouts: `include/uapi/linux/netfilter/x_tables.h`, `…/netfilter_ipv4/ip_tables.h`,
//! `…/netfilter_ipv6/ip6_tables.h`. They are user-space ABI and the same in every kernel.

use super::{Error, RawTable};
use crate::netfilter::Family;
use std::ops::Range;

/// Where fields lie in an entry.
struct Layout {
    /// Size of `struct ipt_ip` or `struct ip6t_ip6`, which come first.
    ip: usize,
    /// `ip.flags` or `ipv6.flags`.
    flags: usize,
    /// `IPT_F_GOTO` or `IP6T_F_GOTO`.
    goto: u8,
    /// `target_offset`; `next_offset` follows.
    target_offset: usize,
    /// `counters`, two u64.
    counters: usize,
    /// Size of the struct.
    size: usize,
}

const IPV4: Layout = Layout { ip: 84, flags: 82, goto: 0x02, target_offset: 88, counters: 96, size: 112 };
const IPV6: Layout = Layout { ip: 136, flags: 131, goto: 0x04, target_offset: 140, counters: 152, size: 168 };

/// Size of `struct xt_entry_target` and of `struct xt_entry_match`, without their parameters.
const HEAD: usize = 32;
/// Size of the counters.
const COUNTERS: usize = 16;
/// `XT_FUNCTION_MAXNAMELEN`: an ERROR target's text.
const ERROR_TEXT: usize = 30;

/// An entry whose offsets have been checked.
#[derive(Clone)]
pub(super) struct RawEntry<'a> {
    /// From the start of the blob.
    pub(super) offset: usize,
    layout: &'static Layout,
    target_offset: usize,
    target_size: usize,
    /// The entry with its matches and target.
    bytes: &'a [u8],
}

/// The entries of a table, if they fill it exactly and are as many as it says.
pub(super) fn entries(raw: &RawTable) -> Result<Vec<RawEntry<'_>>, Error> {
    let layout = match raw.family {
        // Tables of ARP are not read.
        Family::Ipv4 | Family::Arp => &IPV4,
        Family::Ipv6 => &IPV6,
    };
    let mut entries = Vec::new();
    let mut offset = 0;
    while let Some(rest) = raw.bytes.get(offset..).filter(|rest| !rest.is_empty()) {
        let entry = RawEntry::first(layout, offset, rest).map_err(|what| Error::Entry { offset, what })?;
        offset += entry.bytes.len();
        entries.push(entry);
    }
    if entries.len() != raw.number as usize {
        return Err(Error::Table("has another number of entries than it says"));
    }
    Ok(entries)
}

impl<'a> RawEntry<'a> {
    fn first(layout: &'static Layout, offset: usize, rest: &'a [u8]) -> Result<Self, &'static str> {
        let target_offset = u16_at(rest, layout.target_offset).ok_or("is cut off")?;
        let next_offset = u16_at(rest, layout.target_offset + 2).ok_or("is cut off")?;
        let bytes = rest.get(..next_offset).ok_or("reaches beyond the table")?;
        if target_offset < layout.size {
            return Err("has its target inside its head");
        }
        let target = bytes.get(target_offset..).ok_or("has its target outside")?;
        let target_size = u16_at(target, 0).ok_or("has no room for its target")?;
        if target_size < HEAD || target_size > target.len() {
            return Err("has a target of impossible size");
        }
        Ok(Self { offset, layout, target_offset, target_size, bytes })
    }

    /// Offset of the entry that follows.
    pub(super) fn next(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// Where the counters lie in the blob.
    pub(super) fn counters(&self) -> Range<usize> {
        let start = self.offset + self.layout.counters;
        start..start + COUNTERS
    }

    /// What comes before the counters: addresses, devices, flags, offsets, back pointer.
    pub(super) fn head(&self) -> &'a [u8] {
        part(self.bytes, 0..self.layout.counters)
    }

    /// As the kernel's `unconditional()`: no IP fields and no matches.
    pub(super) fn unconditional(&self) -> bool {
        self.target_offset == self.layout.size
            && part(self.bytes, 0..self.layout.ip).iter().all(|byte| *byte == 0)
    }

    /// Whether a jump is a goto.
    pub(super) fn goto(&self) -> bool {
        self.bytes.get(self.layout.flags).is_some_and(|flags| flags & self.layout.goto != 0)
    }

    /// The target.
    pub(super) fn target(&self) -> Part<'a> {
        Part(part(self.bytes, self.target_offset..self.target_offset + self.target_size))
    }

    /// The matches; `None` when their sizes do not add up.
    pub(super) fn matches(&self) -> Option<Vec<Part<'a>>> {
        let mut rest = self.bytes.get(self.layout.size..self.target_offset)?;
        let mut matches = Vec::new();
        while !rest.is_empty() {
            let size = u16_at(rest, 0).filter(|size| *size >= HEAD)?;
            matches.push(Part(rest.get(..size)?));
            rest = rest.get(size..)?;
        }
        Some(matches)
    }
}

/// A match or a target; never shorter than its head.
#[derive(Clone, Copy)]
pub(super) struct Part<'a>(&'a [u8]);

impl<'a> Part<'a> {
    /// Its size.
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    /// The name, in the form that user space sees.
    pub(super) fn name(self) -> &'a [u8] {
        until_zero(part(self.0, 2..31))
    }

    /// The revision. The kernel's pointer does not reach it.
    pub(super) fn revision(self) -> u8 {
        self.0.get(31).copied().unwrap_or_default()
    }

    /// The pointer, in the kernel's form.
    pub(super) fn pointer(self) -> u64 {
        self.0.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }

    /// What the kernel's pointer left of the name: up to six bytes. The name is whole when there are fewer.
    pub(super) fn name_rest(self) -> &'a [u8] {
        until_zero(part(self.0, 2..8))
    }

    /// The parameters.
    pub(super) fn data(self) -> &'a [u8] {
        part(self.0, HEAD..self.0.len())
    }

    /// The verdict or jump of a standard target.
    pub(super) fn verdict(self) -> Option<i32> {
        self.data().get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes)
    }

    /// The text of an ERROR target: the name of a user chain.
    pub(super) fn error_text(self) -> String {
        text(part(self.data(), 0..ERROR_TEXT.min(self.data().len())))
    }
}

/// Text up to the first zero; what is not UTF-8 is replaced.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(until_zero(bytes)).into_owned()
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn part(bytes: &[u8], range: Range<usize>) -> &[u8] {
    bytes.get(range).unwrap_or_default()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let bytes = bytes.get(offset..offset.checked_add(2)?)?;
    Some(usize::from(u16::from_ne_bytes(bytes.try_into().ok()?)))
}
