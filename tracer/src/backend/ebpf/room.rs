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
