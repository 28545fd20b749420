//! Where packets on their way are kept.
#![forbid(unsafe_code)]

use super::open::Open;
use super::visit::Visit;
use crate::hash::KernelMap;
use crate::path::stands::Stands;
use std::ops::{Index, IndexMut};
use std::rc::Rc;

/// The place of a packet that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room(usize);

/// Packets by their numbers. What a packet that is gone has allocated serves another one.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    all: Vec<Open>,
    free: Vec<Room>,
    by_packet: KernelMap<u64, Room>,
    /// The packet that was looked for last: mostly the one that is looked for next.
    last: Option<(u64, Room)>,
}

impl Rooms {
    /// Where a packet is.
    #[inline]
    pub(super) fn of(&mut self, packet: u64) -> Option<Room> {
        match self.last {
            Some((last, room)) if last == packet => Some(room),
            _ => {
                let room = *self.by_packet.get(&packet)?;
                self.last = Some((packet, room));
                Some(room)
            }
        }
    }

    /// The packets that are known by their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Open)> {
        self.by_packet.iter().map(|(packet, room)| (*packet, &self[*room]))
    }

    /// Keeps a packet that begins here, with its number in this trace.
    pub(super) fn begin(&mut self, number: u64, visit: &Visit, stands: &Rc<Stands>) -> Room {
        let room = match self.free.pop() {
            Some(room) => {
                self[room].renew(number, visit, stands);
                room
            }
            None => {
                self.all.push(Open::new(number, visit, Rc::clone(stands)));
                Room(self.all.len() - 1)
            }
        };
        self.by_packet.insert(visit.packet, room);
        self.last = Some((visit.packet, room));
        room
    }

    /// The packet of this number is not looked for any more; its room is kept.
    pub(super) fn close(&mut self, packet: u64) -> Option<Room> {
        self.last = None;
        self.by_packet.remove(&packet)
    }

    /// A packet is known by another number from now on.
    pub(super) fn rename(&mut self, packet: u64, to: u64) {
        if let Some(room) = self.close(packet) {
            self.by_packet.insert(to, room);
        }
    }

    /// The room can be used again.
    pub(super) fn leave(&mut self, room: Room) {
        self.free.push(room);
    }

    /// Whether no room is in use.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_packet.is_empty() && self.free.len() == self.all.len()
    }
}

impl Index<Room> for Rooms {
    type Output = Open;

    fn index(&self, Room(at): Room) -> &Open {
        &self.all[at]
    }
}

impl IndexMut<Room> for Rooms {
    fn index_mut(&mut self, Room(at): Room) -> &mut Open {
        &mut self.all[at]
    }
}
