//! Reading headers the way the kernel's `skb_header_pointer` does, from a copy that may end earlier.

use super::PacketView;

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The packet ends before it, so the kernel cannot read it either.
    Ended,
    /// The packet has it, the copied bytes do not.
    NotCopied,
}

/// The packet from its network header on: `len` bytes, of which the first are copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data<'a> {
    bytes: &'a [u8],
    len: u32,
}

impl<'a> Data<'a> {
    pub(crate) fn of(view: &PacketView<'a>) -> Self {
        Self { bytes: view.bytes, len: view.len }
    }

    /// The `N` bytes at `offset`.
    #[inline]
    pub(crate) fn header<const N: usize>(self, offset: u32) -> Result<&'a [u8; N], Missing> {
        self.from(offset, N)?.first_chunk().ok_or(Missing::NotCopied)
    }

    /// `count` bytes at `offset`.
    #[inline]
    pub(crate) fn slice(self, offset: u32, count: usize) -> Result<&'a [u8], Missing> {
        self.from(offset, count)?.get(..count).ok_or(Missing::NotCopied)
    }

    /// `skb->len - offset`, which wraps in the kernel as well.
    pub(crate) fn left(self, offset: u32) -> u32 {
        self.len.wrapping_sub(offset)
    }

    /// The whole packet's length.
    pub(crate) fn len(self) -> u32 {
        self.len
    }

    #[inline]
    fn from(self, offset: u32, count: usize) -> Result<&'a [u8], Missing> {
        if offset as u64 + count as u64 > self.len as u64 {
            return Err(Missing::Ended);
        }
        self.bytes.get(offset as usize..).ok_or(Missing::NotCopied)
    }
}
