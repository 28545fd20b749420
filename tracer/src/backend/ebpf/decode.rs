//! Bytes from the ring → records, without copying.
#![forbid(unsafe_code)]

use tracer_common::choice::{LINK, Link, TRACKED, Tracked};
use tracer_common::ending::{self, Dropped, Freed, Reinjected};
use tracer_common::legacy::{
    ENTRY_BYTES, EXIT_BYTES, LONG_EXIT_BYTES, MAX_MATCHES, MORE_BYTES, Match, Replaced, TableChunk,
    Traversal, fact, kind,
};
use tracer_common::nft::{self, Event, Run, TimedEvent};
use tracer_common::sender::{self, Sender};
use zerocopy::FromBytes;

/// One record of the ring buffer.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A packet went through a table.
    Traversal(Seen<'a>),
    /// A table was replaced.
    Replaced(&'a Replaced),
    /// A part of a replaced table's new blob.
    Chunk(&'a TableChunk),
    /// A packet entered a base chain of nftables.
    Run(&'a Run),
    /// A verdict on its way through it, and where that was asked for how many nanoseconds it had been there.
    Event(&'a Event, Option<u64>),
    /// The kernel freed a packet.
    Freed(&'a Freed),
    /// A packet was dropped by nothing that is watched.
    Dropped(&'a Dropped),
    /// Who sends a packet.
    Sender(&'a Sender),
    /// User space has decided about a packet in a queue.
    Reinjected(&'a Reinjected),
    /// A packet is of a connection, or was seen in another namespace.
    Link(&'a Link),
    /// What conntrack knows of a packet's connection.
    Tracked(&'a Tracked),
}

/// A traversal with what may be spread over its record.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The fixed part.
    pub traversal: &'a Traversal,
    /// Entries whose counters moved, in the table's order.
    pub matches: &'a [Match],
    /// The packet at entry, as far as it was copied.
    pub entry_bytes: &'a [u8],
    /// The packet at exit, likewise.
    pub exit_bytes: &'a [u8],
}

/// Decodes one record; `None` when it is too short or of an unknown kind, which a ring filled by our own programs
/// never holds.
#[inline]
pub fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (kind, _) = u32::ref_from_prefix(bytes).ok()?;
    match *kind {
        kind::TRAVERSAL => {
            let (traversal, _) = Traversal::ref_from_prefix(bytes).ok()?;
            let entry_bytes = &traversal.entry_bytes[..count(traversal.entry.copied).min(ENTRY_BYTES)];
            let exit_bytes = &traversal.exit_bytes[..count(traversal.exit.copied).min(EXIT_BYTES)];
            Some(Record::Traversal(Seen {
                traversal,
                matches: traversal.matches.get(..count(traversal.match_count))?,
                entry_bytes,
                exit_bytes: if same_bytes(traversal) { entry_bytes } else { exit_bytes },
            }))
        }
        kind::LONG_TRAVERSAL => {
            let (traversal, tail) = Traversal::ref_from_prefix(bytes).ok()?;
            let (_, tail) = tail.split_at_checked(MORE_BYTES)?;
            let (exit, matches) = tail.split_at_checked(LONG_EXIT_BYTES)?;
            let matches_count = count(traversal.match_count).min(MAX_MATCHES);
            let (matches, _) = <[Match]>::ref_from_prefix_with_elems(matches, matches_count).ok()?;
            // The bytes at entry are the last field, and go on in the tail.
            let entry =
                bytes.get(size_of::<Traversal>() - ENTRY_BYTES..size_of::<Traversal>() + MORE_BYTES)?;
            let entry_bytes = &entry[..count(traversal.entry.copied).min(entry.len())];
            let exit_bytes = &exit[..count(traversal.exit.copied).min(exit.len())];
            Some(Record::Traversal(Seen {
                traversal,
                matches,
                entry_bytes,
                exit_bytes: if same_bytes(traversal) { entry_bytes } else { exit_bytes },
            }))
        }
        kind::REPLACED => {
            Replaced::ref_from_prefix(bytes).ok().map(|(replaced, _)| Record::Replaced(replaced))
        }
        nft::kind::RUN => Run::ref_from_prefix(bytes).ok().map(|(run, _)| Record::Run(run)),
        nft::kind::EVENT => Event::ref_from_prefix(bytes).ok().map(|(event, _)| Record::Event(event, None)),
        nft::kind::TIMED_EVENT => TimedEvent::ref_from_prefix(bytes)
            .ok()
            .map(|(TimedEvent { event, since_ns }, _)| Record::Event(event, Some(*since_ns))),
        ending::kind::FREED => Freed::ref_from_prefix(bytes).ok().map(|(freed, _)| Record::Freed(freed)),
        ending::kind::DROPPED => {
            Dropped::ref_from_prefix(bytes).ok().map(|(dropped, _)| Record::Dropped(dropped))
        }
        sender::kind::SENDER => Sender::ref_from_prefix(bytes).ok().map(|(sender, _)| Record::Sender(sender)),
        ending::kind::REINJECTED => {
            Reinjected::ref_from_prefix(bytes).ok().map(|(reinjected, _)| Record::Reinjected(reinjected))
        }
        TRACKED => Tracked::ref_from_prefix(bytes).ok().map(|(tracked, _)| Record::Tracked(tracked)),
        LINK => Link::ref_from_prefix(bytes).ok().map(|(link, _)| Record::Link(link)),
        kind::CHUNK => TableChunk::ref_from_prefix(bytes).ok().map(|(chunk, _)| Record::Chunk(chunk)),
        _ => None,
    }
}

fn same_bytes(traversal: &Traversal) -> bool {
    traversal.facts & fact::SAME_BYTES != 0
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

const _: () = assert!(std::mem::offset_of!(Traversal, entry_bytes) == size_of::<Traversal>() - ENTRY_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    /// The ring aligns its records to eight bytes; a vector of bytes need not be.
    fn aligned(parts: &[&[u8]]) -> Vec<u64> {
        let bytes = parts.concat();
        let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
        aligned.as_mut_bytes()[..bytes.len()].copy_from_slice(&bytes);
        aligned
    }

    fn traversal(kind: u32, match_count: u32, copied: u32) -> Traversal {
        let mut traversal = Traversal::new_zeroed();
        traversal.kind = kind;
        traversal.match_count = match_count;
        traversal.entry.copied = copied;
        traversal.entry_bytes = [7; ENTRY_BYTES];
        traversal.matches[1] = Match { index: 7, count: 2 };
        traversal
    }

    #[test]
    fn a_traversal_has_its_first_matches() {
        let record = aligned(&[traversal(kind::TRAVERSAL, 2, 20).as_bytes()]);
        match decode(record.as_bytes()) {
            Some(Record::Traversal(seen)) => {
                assert_eq!(seen.matches, [Match::default(), Match { index: 7, count: 2 }]);
                assert_eq!(seen.entry_bytes, [7; 20]);
            }
            other => panic!("decoded to {other:?}"),
        }
    }

    #[test]
    fn a_long_one_goes_on_behind() {
        let matches: Vec<Match> = (0..9).map(|index| Match { index, count: 1 }).collect();
        let mut head = traversal(kind::LONG_TRAVERSAL, 9, 82);
        head.exit.copied = 100;
        let record = aligned(&[head.as_bytes(), &[8; MORE_BYTES], &[9; LONG_EXIT_BYTES], matches.as_bytes()]);
        match decode(record.as_bytes()) {
            Some(Record::Traversal(seen)) => {
                assert_eq!(seen.matches, matches);
                assert_eq!(seen.entry_bytes[78..], [7, 7, 8, 8]);
                assert_eq!(seen.exit_bytes, [9; 100]);
            }
            other => panic!("decoded to {other:?}"),
        }
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        for kind in [kind::TRAVERSAL, kind::LONG_TRAVERSAL] {
            let record = traversal(kind, 1, 0);
            for len in 0..size_of::<Traversal>() {
                assert!(decode(&record.as_bytes()[..len]).is_none());
            }
        }
        let record = traversal(kind::LONG_TRAVERSAL, 1, 0);
        assert!(decode(record.as_bytes()).is_none(), "its match is missing");
        assert!(decode(traversal(kind::TRAVERSAL, 9, 0).as_bytes()).is_none(), "so many do not fit");
    }
    proptest::proptest! {
        /// Also of bytes that begin as a record does, at any alignment.
        #[test]
        fn any_bytes_are_a_record_or_not(kind in 0_u32..28, bytes: Vec<u8>, len in 0..2 * size_of::<Traversal>(), at in 0..8_usize) {
            _ = decode(&bytes);
            let mut record = vec![0; at];
            record.extend(kind.to_ne_bytes());
            record.extend(bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { len }));
            _ = decode(&record[at..]);
        }
    }
}
