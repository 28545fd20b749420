//! How many of the packets that match are traced: what user space says, and what the programs count.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The one element of the map, which user space may change while programs run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Throttle {
    /// A packet is taken when a random number of 32 bits is not above this one.
    pub threshold: u32,
    /// Packets that are taken in each second, 0 for any number.
    pub limit: u32,
    /// The second, of CLOCK_MONOTONIC, to which `taken` belongs.
    pub second: u64,
    /// Packets taken in it. Where several CPUs begin a second at once, each may take one more.
    pub taken: u64,
}

impl Throttle {
    /// Takes one packet in `one_in`, and no more than `limit` in a second.
    pub fn new(one_in: u32, limit: Option<u32>) -> Self {
        // A whole number of the 2^32 that there are, rounded to the nearest.
        let one_in = u64::from(one_in.max(1));
        let numbers = ((1_u64 << 32) + one_in / 2) / one_in;
        Self { threshold: (numbers.max(1) - 1) as u32, limit: limit.unwrap_or(0), second: 0, taken: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_lets_one_in_n_pass() {
        for one_in in [1, 2, 3, 10, 1000, u32::MAX] {
            let Throttle { threshold, .. } = Throttle::new(one_in, None);
            let share = (f64::from(threshold) + 1.0) / 2.0_f64.powi(32) * f64::from(one_in);
            assert!((0.999..1.001).contains(&share), "1/{one_in}: {share}");
        }
        assert_eq!((Throttle::new(0, Some(7)).threshold, Throttle::new(0, Some(7)).limit), (u32::MAX, 7));
    }
}
