//! Writing numbers and addresses as the kernel's `vsnprintf` does, a few instructions each.
//!
//! Short texts are made in a register and stored at full width, then counted only as far as they go: storing a constant
//! number of bytes takes an instruction or two, copying a counted number takes a call.

/// The longest line: the kernel's buffer (`S_SIZE` in `net/netfilter/nf_log.c`) holds 1018 characters, and the log
/// level takes two of them. Only a device with a link-layer header of a hundred bytes or more gets near it.
pub(super) const LINE_MAX: usize = 1016;

/// The longest text stored at once.
const TEXT_MAX: usize = 64;

const LOWER: [u16; 256] = hex_pairs(b"0123456789abcdef");
const UPPER: [u16; 256] = hex_pairs(b"0123456789ABCDEF");

const fn hex_pairs(digits: &[u8; 16]) -> [u16; 256] {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = u16::from_le_bytes([digits[byte >> 4], digits[byte & 15]]);
        byte += 1;
    }
    pairs
}

/// Numbers below 256 in decimal, a dot after them.
const DECIMAL: [u32; 256] = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        let [hundreds, tens, ones] =
            [b'0' + (value / 100) as u8, b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8];
        table[value] = u32::from_le_bytes(match value {
            0..10 => [ones, b'.', 0, 0],
            10..100 => [tens, ones, b'.', 0],
            _ => [hundreds, tens, ones, b'.'],
        });
        value += 1;
    }
    table
};

/// How many digits a number below 256 has.
fn digit_count(value: u8) -> usize {
    1 + usize::from(value >= 10) + usize::from(value >= 100)
}

/// The line being written, cut where the kernel cuts it. Holds what `struct nf_log_buf` holds, and room for one text
/// beyond, so that one comparison tells whether a text goes in.
#[derive(Debug)]
pub(super) struct Line {
    bytes: [u8; LINE_MAX + TEXT_MAX],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; LINE_MAX + TEXT_MAX], len: 0 }
    }
}

impl Line {
    /// What `fill` writes from the beginning.
    pub(super) fn filled(&mut self, fill: impl FnOnce(&mut Self)) -> &[u8] {
        self.len = 0;
        fill(self);
        self.as_bytes()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.min(LINE_MAX)).unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn text<const N: usize>(&mut self, text: &[u8; N]) {
        self.start_of(text, N);
    }

    /// The first `count` bytes of a text.
    #[inline(always)]
    fn start_of<const N: usize>(&mut self, text: &[u8; N], count: usize) {
        const { assert!(N <= TEXT_MAX) };
        let at = self.len;
        if at <= LINE_MAX {
            self.bytes[at..at + N].copy_from_slice(text);
            self.len = at + count;
        }
    }

    /// Text of any length, as it is, as far as the line has room.
    pub(super) fn raw(&mut self, text: &[u8]) {
        let end = self.len.saturating_add(text.len()).min(self.bytes.len());
        if let Some(room) = self.bytes.get_mut(self.len..end)
            && let Some(part) = text.get(..room.len())
        {
            room.copy_from_slice(part);
            self.len = end;
        }
    }

    /// Makes `\xNN` of all in the line that is not printable ASCII, as `/dev/kmsg` does, so that no control character
    /// gets through.
    pub(super) fn escape(&mut self) {
        if is_printable_text(self.as_bytes()) {
            return;
        }
        let mut escaped = Self::default();
        for &byte in self.as_bytes() {
            if is_printable(byte) {
                escaped.text(&[byte]);
            } else {
                let [high, low] = hex8(byte);
                escaped.text(&[b'\\', b'x', high, low]);
            }
        }
        *self = escaped;
    }

    /// `%u`
    #[inline]
    pub(super) fn decimal(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(value) => self.octet(value),
            Err(_) => self.long_decimal(value),
        }
    }

    /// `%u`
    #[inline]
    pub(super) fn octet(&mut self, value: u8) {
        self.start_of(&DECIMAL[usize::from(value)].to_le_bytes(), digit_count(value));
    }

    fn long_decimal(&mut self, value: u32) {
        const EIGHT: u32 = 100_000_000;
        let digits = eight_digits(value % EIGHT);
        match value / EIGHT {
            0 => {
                let zeros = digits.trailing_zeros() & 0x38;
                self.start_of(&(ascii(digits) >> zeros).to_le_bytes(), 8 - (zeros / 8) as usize);
            }
            leading => {
                self.octet(leading as u8);
                self.text(&ascii(digits).to_le_bytes());
            }
        }
    }

    /// `%04x`
    pub(super) fn hex16(&mut self, value: u16) {
        let [high, low] = value.to_be_bytes();
        let [[a, b], [c, d]] = [hex8(high), hex8(low)];
        self.text(&[a, b, c, d]);
    }

    /// `%08x`
    pub(super) fn hex32(&mut self, value: u32) {
        self.text(&hex_digits(&LOWER, value.to_be_bytes()).to_le_bytes());
    }

    /// `%x`
    pub(super) fn short_hex(&mut self, value: u32) {
        let zeros = (value.leading_zeros() / 4).min(7);
        let digits = hex_digits(&LOWER, value.to_be_bytes()) >> (zeros * 8);
        self.start_of(&digits.to_le_bytes(), 8 - zeros as usize);
    }

    /// `%02X` of each byte.
    pub(super) fn upper_hex(&mut self, bytes: &[u8]) {
        let (fours, rest) = bytes.as_chunks();
        for four in fours {
            self.text(&hex_digits(&UPPER, *four).to_le_bytes());
        }
        for &byte in rest {
            self.text(&upper_hex8(byte));
        }
    }

    /// `%02x` of each byte, with colons between.
    pub(super) fn colon_hex(&mut self, bytes: &[u8]) {
        let Some((last, bytes)) = bytes.split_last() else {
            return;
        };
        let (pairs, rest) = bytes.as_chunks();
        for &[first, second] in pairs {
            let [first, second] = [LOWER[usize::from(first)], LOWER[usize::from(second)]].map(u64::from);
            let text = first | second << 24 | u64::from_le_bytes(*b"\0\0:\0\0:\0\0");
            self.start_of(&text.to_le_bytes(), 6);
        }
        for &byte in rest {
            let [high, low] = hex8(byte);
            self.text(&[high, low, b':']);
        }
        self.text(&hex8(*last));
    }

    /// `%pI4`
    #[inline]
    pub(super) fn ipv4(&mut self, [a, b, c, d]: [u8; 4]) {
        self.two_octets(a, b);
        self.text(b".");
        self.two_octets(c, d);
    }

    fn two_octets(&mut self, first: u8, second: u8) {
        let width = digit_count(first) + 1;
        let [text, more] = [first, second].map(|octet| u64::from(DECIMAL[usize::from(octet)]));
        self.start_of(&(text | more << (width * 8)).to_le_bytes(), width + digit_count(second));
    }

    /// `%pI6`
    pub(super) fn ipv6(&mut self, address: [u8; 16]) {
        let mut text = [b':'; 40];
        for (group, &[high, low]) in text.as_chunks_mut().0.iter_mut().zip(address.as_chunks().0) {
            let [[a, b], [c, d]] = [hex8(high), hex8(low)];
            *group = [a, b, c, d, b':'];
        }
        self.start_of(&text, 39);
    }
}

/// Whether all of it is printable ASCII.
pub(super) fn is_printable_text(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk() else { return text.iter().all(|&byte| is_printable(byte)) };
    let (eights, _) = text.as_chunks();
    eights.iter().fold(unprintable_bits(*last), |found, eight| found | unprintable_bits(*eight)) == 0
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// Zero if and only if all eight are printable: a byte above `~` has the highest bit or gets it from adding one, a byte
/// below the space gets it from subtracting a space.
fn unprintable_bits(eight: [u8; 8]) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let bytes = u64::from_le_bytes(eight);
    (bytes | bytes.wrapping_add(EACH) | bytes.wrapping_sub(EACH * 0x20)) & (EACH * 0x80)
}

/// `%02x`
pub(super) fn hex8(value: u8) -> [u8; 2] {
    LOWER[usize::from(value)].to_le_bytes()
}

/// `%02X`
pub(super) fn upper_hex8(value: u8) -> [u8; 2] {
    UPPER[usize::from(value)].to_le_bytes()
}

/// Two digits for each byte, the first in the lowest byte.
fn hex_digits(pairs: &[u16; 256], bytes: [u8; 4]) -> u64 {
    let [a, b, c, d] = bytes.map(|byte| u64::from(pairs[usize::from(byte)]));
    a | b << 16 | c << 32 | d << 48
}

/// The decimal digits of a number below 10⁸, the first in the lowest byte: halves it to pairs of four digits, then of
/// two, then of one, all lanes at once. The factors are reciprocals that are exact for the lanes' values.
fn eight_digits(value: u32) -> u64 {
    let fours = u64::from(value / 10_000) | u64::from(value % 10_000) << 32;
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = hundreds | (fours - hundreds * 100) << 16;
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | (twos - tens * 10) << 8
}

fn ascii(digits: u64) -> u64 {
    digits | 0x3030_3030_3030_3030
}
