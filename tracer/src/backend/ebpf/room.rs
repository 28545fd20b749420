//! Puts a translated filter into the object, in place of what the kernel programs were compiled with.
//!
//! The room is told by the constant that it begins with. It keeps its length, so everything else in the object stays
//! true, whoever loads it.

use crate::filter::translate::Translated;
use tracer_common::translated::{MARKER, ROOM};

/// `lddw r0, MARKER`.
fn beginning() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = 0x18;
    let [low, high] = [MARKER as u32, (MARKER >> 32) as u32].map(u32::to_le_bytes);
    bytes[4..8].copy_from_slice(&low);
    bytes[12..].copy_from_slice(&high);
    bytes
}

/// The object with a filter in it; `None` where the object has no room for one.
pub(super) fn furnish(object: &[u8], filter: &Translated) -> Option<Vec<u8>> {
    let beginning = beginning();
    let mut places = object.windows(beginning.len()).enumerate().filter(|(_, bytes)| *bytes == beginning);
    let (Some((at, _)), None) = (places.next(), places.next()) else { return None };
    let mut furnished = object.to_vec();
    let room = furnished.get_mut(at..at + 8 * ROOM)?;
    let instructions = &filter.instructions;
    if instructions.len() != ROOM {
        return None;
    }
    for (place, instruction) in room.chunks_exact_mut(8).zip(instructions) {
        place.copy_from_slice(&instruction.bytes());
    }
    Some(furnished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Form, LinkType, classic, compile};

    fn filter() -> Translated {
        let ends = classic::Instruction { code: 0x06, jt: 0, jf: 0, k: 1 };
        match compile("ip", &|_, _| Ok(vec![ends])).map(|filter| filter.form) {
            Ok(Form::Translated { translated, link: LinkType::Raw, .. }) => translated,
            other => panic!("{other:?}"),
        }
    }

    /// Some bytes, room for a filter, some bytes.
    fn object(room: usize) -> Vec<u8> {
        let mut object = vec![7; 5];
        object.extend(beginning());
        object.resize(5 + 8 * room, 0xb7);
        object.extend([9; 3]);
        object
    }

    #[test]
    fn the_filter_takes_the_room_and_nothing_else() {
        let furnished = furnish(&object(ROOM), &filter()).unwrap();
        let (front, rest) = furnished.split_at(5);
        let (room, behind) = rest.split_at(8 * ROOM);
        assert_eq!((front, behind), (&[7; 5][..], &[9; 3][..]));
        let expected: Vec<u8> =
            filter().instructions.iter().flat_map(|instruction| instruction.bytes()).collect();
        assert!(room == expected);
        // `r6 = r1` comes first.
        assert_eq!(room[..8], [0xbf, 0x16, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_object_without_one_room_is_refused() {
        let twice = [object(ROOM), object(ROOM)].concat();
        for object in [&[][..], &[1; 100], &object(ROOM - 1), &twice] {
            assert_eq!(furnish(object, &filter()), None);
        }
    }

    #[test]
    fn the_embedded_object_has_room() {
        if crate::backend::ebpf::object_embedded() {
            assert!(furnish(super::super::OBJECT, &filter()).is_some());
        }
    }
}
