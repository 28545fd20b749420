//! How many of the packets that match are traced: what user space says, and what the programs count.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const NS_PER_S: u64 = 1_000_000_000;

/// What becomes of a packet that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is taken, and nothing is counted for it.
    Taken,
    /// It is taken as one of this second.
    TakenIn(u64),
    /// It is left out by chance.
    SampledOut,
    /// It is left out because its second has had enough.
    LimitedOut,
}

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

    /// Judges a packet. Of one that must not be judged by chance, because it may have been before, there is no random
    /// number. What is not needed is not asked for.
    #[inline(always)]
    pub fn judge(&self, random: impl FnOnce() -> Option<u32>, now_ns: impl FnOnce() -> u64) -> Admission {
        if self.threshold != u32::MAX && !matches!(random(), Some(random) if random <= self.threshold) {
            return Admission::SampledOut;
        }
        if self.limit == 0 {
            return Admission::Taken;
        }
        let second = now_ns() / NS_PER_S;
        if self.second == second && self.taken >= self.limit as u64 {
            return Admission::LimitedOut;
        }
        Admission::TakenIn(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_judged() {
        let all = Throttle::new(1, None);
        assert_eq!(all.judge(|| unreachable!(), || unreachable!()), Admission::Taken);
        let half = Throttle::new(2, None);
        assert_eq!(half.judge(|| Some(1 << 31), || unreachable!()), Admission::SampledOut);
        assert_eq!(half.judge(|| Some((1 << 31) - 1), || unreachable!()), Admission::Taken);
        assert_eq!(half.judge(|| None, || unreachable!()), Admission::SampledOut);
        let full = Throttle { second: 7, taken: 3, ..Throttle::new(1, Some(3)) };
        assert_eq!(full.judge(|| None, || 7_999_999_999), Admission::LimitedOut);
        assert_eq!(full.judge(|| None, || 8_000_000_000), Admission::TakenIn(8));
        let room = Throttle { taken: 2, ..full };
        assert_eq!(room.judge(|| None, || 7_000_000_000), Admission::TakenIn(7));
    }

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
