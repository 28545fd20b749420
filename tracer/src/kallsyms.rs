//! `/proc/kallsyms`: the kernel's symbols, a hundred thousand and more, read wherever probes are placed.
//!
//! A line is `ffffffff81000000 T _text`; those of modules have a tab and the module's name in brackets behind it.
#![forbid(unsafe_code)]

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol<'a> {
    /// Sixteen digits.
    digits: &'a [u8],
    /// As `nm` has it: `T` and `t` are functions.
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
    /// `None` for what is part of the kernel itself.
    pub(crate) module: Option<&'a [u8]>,
}

impl Symbol<'_> {
    /// Its address, unless that is hidden.
    pub(crate) fn address(&self) -> Option<u64> {
        let digit = |digit: &u8| char::from(*digit).to_digit(16).map(u64::from);
        let address = self.digits.iter().try_fold(0, |address, text| Some(address << 4 | digit(text)?))?;
        (address != 0).then_some(address)
    }
}

/// All symbols in the order of the file; what is none is passed over.
pub(crate) fn symbols(kallsyms: &[u8]) -> impl Iterator<Item = Symbol<'_>> {
    let mut rest = kallsyms;
    let lines = std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(line)
    });
    lines.filter_map(symbol)
}

fn symbol(line: &[u8]) -> Option<Symbol<'_>> {
    let (digits, rest) = line.split_at_checked(16)?;
    let [b' ', kind, b' ', name @ ..] = rest else { return None };
    let (name, module) = match name {
        [whole @ .., b']'] => {
            let end = memchr::memchr2(b'\t', b' ', whole)?;
            (&whole[..end], Some(whole[end..].trim_ascii_start().strip_prefix(b"[")?))
        }
        _ => (name, None),
    };
    Some(Symbol { digits, kind: *kind, name, module })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = b"ffffffff81000000 T _text\n0000000000000000 A zero\nshort line\n\nffffffffc0000100 t hook\t[ip_vs]";
        let found: Vec<_> = symbols(text).map(|it| (it.address(), it.kind, it.name, it.module)).collect();
        let expected: [(_, _, &[u8], Option<&[u8]>); 3] = [
            (Some(0xffff_ffff_8100_0000), b'T', b"_text", None),
            (None, b'A', b"zero", None),
            (Some(0xffff_ffff_c000_0100), b't', b"hook", Some(b"ip_vs")),
        ];
        assert_eq!(found, expected);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            proptest::prop_assert!(symbols(&bytes).filter_map(|symbol| symbol.address()).all(|address| address != 0));
        }
    }
}
