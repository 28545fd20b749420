//! The kernel's functions by their addresses.
#![forbid(unsafe_code)]

use crate::kallsyms;

/// A place in the kernel's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The function.
    pub name: &'a str,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// No function is that long: what is further from the last one before it is in a module that came later.
const LONGEST: u64 = 1 << 20;

/// Where the kernel's functions begin, and their names.
#[derive(Clone, Debug, Default)]
pub struct Functions {
    /// Addresses, in order, each with where its name begins in `names`.
    begin: Vec<(u64, u32)>,
    /// Each with a line's end behind it.
    names: String,
}

impl Functions {
    /// Reads `/proc/kallsyms`.
    pub fn parse(kallsyms: &[u8]) -> Self {
        let mut functions = Self::default();
        let is_code = |symbol: &kallsyms::Symbol<'_>| matches!(symbol.kind, b't' | b'T' | b'w' | b'W');
        for symbol in kallsyms::symbols(kallsyms).filter(is_code) {
            let Some((address, name)) = symbol.address().zip(std::str::from_utf8(symbol.name).ok()) else {
                continue;
            };
            let Ok(at) = u32::try_from(functions.names.len()) else { break };
            functions.begin.push((address, at));
            functions.names.push_str(name);
            functions.names.push('\n');
        }
        // Of several names at one address the first stays: the others are aliases.
        functions.begin.sort_by_key(|(address, _)| *address);
        functions
    }

    /// Where a function begins and ends; `None` when there is none of this name.
    pub fn range(&self, name: &str) -> Option<[u64; 2]> {
        let is_it = |(_, at): &&(u64, u32)| {
            let rest = self.names.get(*at as usize..).and_then(|names| names.strip_prefix(name));
            rest.is_some_and(|rest| rest.starts_with('\n'))
        };
        let (begin, _) = *self.begin.iter().find(is_it)?;
        let after = self.begin.partition_point(|(other, _)| *other <= begin);
        let end = self.begin.get(after).map_or(u64::MAX, |(next, _)| *next);
        Some([begin, end.min(begin + LONGEST)])
    }

    /// Where an address is; `None` when no function is known there.
    pub fn at(&self, address: u64) -> Option<Place<'_>> {
        let after = self.begin.partition_point(|(begin, _)| *begin <= address);
        let (begin, _) = self.begin.get(after.checked_sub(1)?)?;
        let first = self.begin.partition_point(|(other, _)| other < begin);
        let (begin, name) = *self.begin.get(first)?;
        let offset = address - begin;
        let name = self.names.get(name as usize..)?.split('\n').next()?;
        (offset < LONGEST).then_some(Place { name, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &[u8] = b"ffffffff81000000 T _text\nffffffff81000000 T startup_64\nffffffff81000040 t nf_hook_slow\n\
        ffffffff82000000 D jiffies\nffffffffc0000100 t ip_vs_in_hook\t[ip_vs]\nffffffff81000080 T kfree_skb\n";

    #[test]
    fn an_address_is_in_the_function_before_it() {
        let functions = Functions::parse(KALLSYMS);
        let at = |address| functions.at(address).map(|place| (place.name, place.offset));
        assert_eq!(at(0xffff_ffff_8100_0041), Some(("nf_hook_slow", 1)));
        assert_eq!(at(0xffff_ffff_8100_0001), Some(("_text", 1)));
        assert_eq!(at(0xffff_ffff_c000_0100), Some(("ip_vs_in_hook", 0)));
        assert_eq!(at(0xffff_ffff_8100_0090), Some(("kfree_skb", 16)));
        assert_eq!(at(0xffff_ffff_9000_0000), None, "far behind the last");
        assert_eq!(at(1), None, "before the first");
    }

    #[test]
    fn a_function_ends_where_the_next_one_begins() {
        let functions = Functions::parse(KALLSYMS);
        assert_eq!(functions.range("nf_hook_slow"), Some([0xffff_ffff_8100_0040, 0xffff_ffff_8100_0080]));
        assert_eq!(functions.range("startup_64"), Some([0xffff_ffff_8100_0000, 0xffff_ffff_8100_0040]));
        assert_eq!(functions.range("kfree_skb"), Some([0xffff_ffff_8100_0080, 0xffff_ffff_8110_0080]));
        assert_eq!(functions.range("nf_hook"), None, "a part of a name");
    }

    #[test]
    fn hidden_addresses_are_none() {
        assert_eq!(Functions::parse(b"0000000000000000 T _text\n").at(0x1000), None);
    }
}
