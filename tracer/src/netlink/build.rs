//! Writing messages.

use super::{ATTRIBUTE_HEADER, HEADER, aligned};

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;

/// A datagram in the making.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// Without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message of nfnetlink. `flags` are its `NLM_F_…`, `family` an `NFPROTO_…`, `resource` the `res_id`.
    #[must_use]
    pub fn netfilter(
        self,
        (subsystem, message): (u8, u8),
        flags: u16,
        sequence: u32,
        (family, resource): (u8, u16),
        fill: impl FnOnce(&mut Body<'_>),
    ) -> Self {
        let kind = u16::from_le_bytes([message, subsystem]);
        // `struct nfgenmsg`, version NFNETLINK_V0.
        let [high, low] = resource.to_be_bytes();
        self.message(kind, flags, sequence, &[family, 0, high, low], fill)
    }

    /// Adds a message of any kind. `header` is what comes before its attributes, in the kernel's own layout.
    #[must_use]
    pub fn message(
        mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        header: &[u8],
        fill: impl FnOnce(&mut Body<'_>),
    ) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; HEADER - 12]);
        self.bytes.extend(header);
        fill(&mut Body { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// All messages so far, ready to be sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Where attributes are written to.
#[derive(Debug)]
pub struct Body<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// Adds an attribute.
    ///
    /// # Panics
    ///
    /// When the value has more bytes than the 65 531 that an attribute can hold.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend(value);
        self.close(start);
        self
    }

    /// Adds text with the NUL that the kernel wants after it.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend(value.bytes().chain([0]));
        self.close(start);
        self
    }

    /// Adds what comes before attributes.
    pub fn header(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self
    }

    /// Adds an attribute that holds others.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        let start = self.open(kind | NESTED);
        fill(&mut Body { bytes: self.bytes });
        self.close(start);
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    /// Writes the length, which is without the padding, and pads.
    fn close(&mut self, start: usize) {
        let length = self.bytes.len() - start;
        debug_assert!(length >= ATTRIBUTE_HEADER);
        let field = u16::try_from(length).expect("attributes are small");
        self.bytes[start..start + 2].copy_from_slice(&field.to_ne_bytes());
        self.bytes.resize(start + aligned(length), 0);
    }
}
