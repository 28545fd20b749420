//! Text from the kernel, from packets and from people, made fit for a terminal.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Bytes as text; what is not UTF-8 becomes `\xff`.
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(replace_invalid(bytes)),
    }
}

fn replace_invalid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Whether a terminal would act on this character instead of showing it: control characters, and those that turn
/// the direction of the text around them.
pub fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces every character for which [`is_unsafe`] holds: `\n`, `\t`, `\x1b`, `\u{202e}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(Escaped(text).to_string())
}

/// Shows text with [`escape`] applied.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(is_unsafe) {
            let mut rest = part.chars();
            match rest.next_back() {
                Some(last) if is_unsafe(last) => {
                    f.write_str(rest.as_str())?;
                    write_escape(f, last)?;
                }
                _ => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

fn write_escape(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        c if c.is_ascii() => write!(f, "\\x{:02x}", u32::from(c)),
        c => write!(f, "\\u{{{:x}}}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_untouched() {
        let text = r#"-A INPUT -m comment --comment "grüße \"a\"" -j DROP"#;
        assert!(matches!(escape(text), Cow::Borrowed(same) if same == text));
    }

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        assert_eq!(escape("a\x1b[31mb\nc\x7f\u{9b}d\u{202e}"), r"a\x1b[31mb\nc\x7f\u{9b}d\u{202e}");
    }

    #[test]
    fn bytes_that_are_not_text_are_shown() {
        assert_eq!(lossy(b"eth\xff0\xc3"), r"eth\xff0\xc3");
        assert_eq!(lossy("ä".as_bytes()), "ä");
    }
}
