//! Hashing for what is looked up for each of very many rows. The standard hasher guards against keys that are chosen to
//! collide, which nobody does here, and in an emulated machine most of a comparison's time goes there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map without that guard.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Multiply>>;
/// A set without it.
pub type Set<K> = HashSet<K, BuildHasherDefault<Multiply>>;

/// Multiplies, and turns the best bits of the product to where the map looks for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Multiply(u64);

impl Multiply {
    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0xf135_7aea_2e62_a9c5).rotate_left(26);
    }
}

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.add(u64::from_ne_bytes(*word)));
        rest.iter().for_each(|byte| self.add((*byte).into()));
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(byte.into());
    }

    fn write_u16(&mut self, word: u16) {
        self.add(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.add(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }
}
