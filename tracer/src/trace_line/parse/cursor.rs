//! Where in a line the reader is, and the forms of numbers and addresses there.
//!
//! A value is taken only in the form in which the kernel writes it, so that writing it gives the same text. Every value
//! and word has a blank after it; the line's end serves as one, because some logs cut it off.

/// Why a line cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: expected {expected}")]
pub struct Unreadable {
    /// Where, in bytes from 1, in the text after the name.
    pub column: usize,
    /// What should be there.
    pub expected: &'static str,
}

pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.as_bytes(), len: text.len() }
    }

    /// The reason that here is not what should be.
    #[cold]
    pub(super) fn wrong<T>(&self, expected: &'static str) -> Result<T, Unreadable> {
        Err(Unreadable { column: self.len - self.rest.len() + 1, expected })
    }

    /// Takes a text if it is next.
    pub(super) fn eat(&mut self, text: &[u8]) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes a text that has to be next.
    pub(super) fn expect(&mut self, text: &'static str) -> Result<(), Unreadable> {
        if self.eat(text.as_bytes()) { Ok(()) } else { self.wrong(text) }
    }

    /// Takes a word and its blank if they are next.
    pub(super) fn word(&mut self, word: &[u8]) -> bool {
        let before = self.rest;
        if self.eat(word) && self.blank() {
            return true;
        }
        self.rest = before;
        false
    }

    fn blank(&mut self) -> bool {
        self.rest.is_empty() || self.eat(b" ")
    }

    pub(super) fn expect_blank(&mut self) -> Result<(), Unreadable> {
        if self.blank() { Ok(()) } else { self.wrong("a blank") }
    }

    /// What is next up to a blank, without taking it.
    pub(super) fn value(&self) -> &'a [u8] {
        let end = self.rest.iter().position(|&byte| byte == b' ').unwrap_or(self.rest.len());
        &self.rest[..end]
    }

    /// Takes all up to a blank, and the blank.
    pub(super) fn take_value(&mut self) -> &'a [u8] {
        let value = self.value();
        self.rest = &self.rest[value.len()..];
        self.blank();
        value
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), Unreadable> {
        if self.rest.is_empty() { Ok(()) } else { self.wrong("the end of the line") }
    }

    /// Takes digits for which `digit` has a value; at most `most`, and no zero before others.
    fn digits(&mut self, radix: u32, most: usize) -> Option<u64> {
        let mut value = 0;
        let mut count = 0;
        while let Some(&byte) = self.rest.get(count)
            && is_digit(byte, radix)
        {
            if count == most || self.rest[0] == b'0' && count == 1 {
                return None;
            }
            value = value * u64::from(radix) + u64::from(digit(byte));
            count += 1;
        }
        self.rest = &self.rest[count..];
        (count > 0).then_some(value)
    }

    /// `%u`
    pub(super) fn decimal<T: TryFrom<u64>>(&mut self) -> Result<T, Unreadable> {
        let before = self.rest;
        match self.digits(10, 10).and_then(|value| value.try_into().ok()) {
            Some(value) => Ok(value),
            None => {
                self.rest = before;
                self.wrong("a number in range")
            }
        }
    }

    /// `%u` and its blank.
    pub(super) fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Unreadable> {
        let value = self.decimal()?;
        self.expect_blank()?;
        Ok(value)
    }

    /// `%x` and its blank.
    pub(super) fn short_hex(&mut self) -> Result<u32, Unreadable> {
        match self.digits(16, 8) {
            Some(value) => {
                self.expect_blank()?;
                Ok(value as u32)
            }
            None => self.wrong("a hexadecimal number"),
        }
    }

    /// `%02x` of each byte of a number, or `%02X`.
    pub(super) fn hex_bytes<const N: usize>(&mut self, case: Case) -> Result<[u8; N], Unreadable> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            match self.hex_byte(case) {
                Some(value) => *byte = value,
                None => return self.wrong("hexadecimal digits"),
            }
        }
        Ok(bytes)
    }

    fn hex_byte(&mut self, case: Case) -> Option<u8> {
        let (&[high, low], rest) = self.rest.split_first_chunk()?;
        let of_case = |byte: u8| match case {
            Case::Lower => is_digit(byte, 16),
            Case::Upper => matches!(byte, b'0'..=b'9' | b'A'..=b'F'),
        };
        (of_case(high) && of_case(low)).then(|| {
            self.rest = rest;
            digit(high) << 4 | digit(low)
        })
    }

    /// `%02X` of each byte, up to `)`, which is taken with its blank.
    pub(super) fn options(&mut self) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = Vec::with_capacity(40);
        while let Some(byte) = self.hex_byte(Case::Upper) {
            bytes.push(byte);
        }
        // Both headers count their options in words, up to ten of them.
        if bytes.is_empty() || bytes.len() % 4 != 0 || bytes.len() > 40 || !self.word(b")") {
            return self.wrong("whole options and \")\"");
        }
        Ok(bytes)
    }

    /// `%02x` of each byte with colons between, and the blank after them. May be empty.
    pub(super) fn colon_hex(&mut self) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = Vec::with_capacity(14);
        while !self.blank_is_next() {
            if !bytes.is_empty() && !self.eat(b":") {
                return self.wrong("\":\"");
            }
            let [byte] = self.hex_bytes(Case::Lower)?;
            bytes.push(byte);
        }
        self.expect_blank()?;
        Ok(bytes)
    }

    fn blank_is_next(&self) -> bool {
        matches!(self.rest, [] | [b' ', ..])
    }

    /// `%pI4`, without a blank.
    pub(super) fn ipv4(&mut self) -> Result<[u8; 4], Unreadable> {
        let mut address = [0; 4];
        for (index, octet) in address.iter_mut().enumerate() {
            if index > 0 {
                self.expect(".")?;
            }
            *octet = self.decimal()?;
        }
        Ok(address)
    }

    /// `%pI6`, without a blank.
    pub(super) fn ipv6(&mut self) -> Result<[u8; 16], Unreadable> {
        let mut address = [0; 16];
        for (index, group) in address.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            if index > 0 {
                self.expect(":")?;
            }
            *group = self.hex_bytes(Case::Lower)?;
        }
        Ok(address)
    }
}

/// The case of hexadecimal digits.
#[derive(Clone, Copy)]
pub(super) enum Case {
    Lower,
    Upper,
}

fn is_digit(byte: u8, radix: u32) -> bool {
    byte.is_ascii_digit() || radix == 16 && matches!(byte, b'a'..=b'f')
}

/// The value of a digit of either case.
fn digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        _ => (byte | 0x20).wrapping_sub(b'a').wrapping_add(10),
    }
}
