//! Bytes from the ring → records, without copying.
#![forbid(unsafe_code)]

use tracer_common::legacy::{self, Match, Replaced, TableChunk, Traversal, kind};
use zerocopy::FromBytes;

/// One record of the ring buffer.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A packet went through a table.
    Traversal(&'a Traversal, &'a [Match]),
    /// A table was replaced.
    Replaced(&'a Replaced),
    /// A part of a replaced table's new blob.
    Chunk(&'a TableChunk),
}

/// Decodes one record; `None` when it is too short or of an unknown kind, which a ring filled by our own programs
/// never holds.
pub fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (kind, _) = u32::ref_from_prefix(bytes).ok()?;
    match *kind {
        kind::TRAVERSAL => {
            let (traversal, rest) = Traversal::ref_from_prefix(bytes).ok()?;
            let count = usize::try_from(traversal.match_count).ok()?.min(legacy::MAX_MATCHES);
            let (matches, _) = <[Match]>::ref_from_prefix_with_elems(rest, count).ok()?;
            Some(Record::Traversal(traversal, matches))
        }
        kind::REPLACED => Replaced::ref_from_prefix(bytes).ok().map(|(replaced, _)| Record::Replaced(replaced)),
        kind::CHUNK => TableChunk::ref_from_prefix(bytes).ok().map(|(chunk, _)| Record::Chunk(chunk)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    #[test]
    fn a_traversal_comes_with_its_matches() {
        let mut traversal = Traversal::new_zeroed();
        traversal.kind = kind::TRAVERSAL;
        traversal.match_count = 2;
        let matches = [Match { index: 3, count: 1 }, Match { index: 7, count: 2 }];
        let bytes = [traversal.as_bytes(), matches.as_bytes()].concat();
        // The ring aligns its records to eight bytes; a vector of bytes need not be.
        let mut aligned = vec![0u64; bytes.len() / 8];
        aligned.as_mut_bytes().copy_from_slice(&bytes);
        match decode(aligned.as_bytes()) {
            Some(Record::Traversal(_, found)) => assert_eq!(found, matches),
            other => panic!("decoded to {other:?}"),
        }
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        let mut traversal = Traversal::new_zeroed();
        traversal.kind = kind::TRAVERSAL;
        traversal.match_count = 1;
        for len in 0..size_of::<Traversal>() {
            assert!(decode(&traversal.as_bytes()[..len]).is_none());
        }
        assert!(decode(traversal.as_bytes()).is_none(), "its match is missing");
    }
}
