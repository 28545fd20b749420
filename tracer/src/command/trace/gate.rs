//! How many of the packets that match are shown, where the kernel does not choose.
#![forbid(unsafe_code)]

use crate::cli::trace::TraceConfig;
use foldhash::fast::RandomState;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;
use tracer_common::throttle::{Admission, Throttle};

/// What of the packets that match is asked for; `None` for all of it.
pub(super) fn throttle(config: &TraceConfig) -> Option<Throttle> {
    let TraceConfig { sample, limit, max_cost_ppm, .. } = config;
    let asked = sample.is_some() || limit.is_some() || max_cost_ppm.is_some();
    asked.then(|| Throttle::new(sample.map_or(1, NonZeroU32::get), limit.map(NonZeroU32::get)))
}

/// Lets packets pass or leaves them out, and counts those.
pub(super) struct Gate {
    throttle: Option<Throttle>,
    random: RandomState,
    asked: u64,
    sampled_out: Option<u64>,
    limited_out: Option<u64>,
}

impl Gate {
    /// Has seen no packet yet.
    pub(super) fn new(config: &TraceConfig) -> Self {
        Self {
            throttle: throttle(config),
            random: RandomState::default(),
            asked: 0,
            sampled_out: config.sample.map(|_| 0),
            limited_out: config.limit.map(|_| 0),
        }
    }

    /// Whether a packet is to be shown.
    pub(super) fn admits(&mut self, now_ns: u64) -> bool {
        let Some(throttle) = &mut self.throttle else { return true };
        self.asked += 1;
        // Only the upper half: it depends on all of the number.
        let random = (self.random.hash_one(self.asked) >> 32) as u32;
        match throttle.judge(|| Some(random), || now_ns) {
            Admission::Taken => true,
            Admission::TakenIn(second) => {
                if throttle.second != second {
                    (throttle.second, throttle.taken) = (second, 0);
                }
                throttle.taken += 1;
                true
            }
            Admission::SampledOut => {
                self.sampled_out = self.sampled_out.map(|count| count + 1);
                false
            }
            Admission::LimitedOut => {
                self.limited_out = self.limited_out.map(|count| count + 1);
                false
            }
        }
    }

    /// Packets that were left out by chance, and those that were more than asked for in a second; `None` where that was
    /// not asked for.
    pub(super) fn left_out(&self) -> (Option<u64>, Option<u64>) {
        (self.sampled_out, self.limited_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(sample: u32, limit: u32) -> Gate {
        let (sample, limit) = (NonZeroU32::new(sample), NonZeroU32::new(limit));
        Gate::new(&TraceConfig { sample, limit, ..TraceConfig::default() })
    }

    #[test]
    fn all_pass_where_nothing_is_said() {
        let mut gate = gate(0, 0);
        assert!((0..1000).all(|now_ns| gate.admits(now_ns)));
        assert_eq!(gate.left_out(), (None, None));
    }

    #[test]
    fn a_second_has_room_for_so_many() {
        let mut gate = gate(0, 3);
        let passed = (0..20).filter(|tenth| gate.admits(tenth * 100_000_000)).count();
        assert_eq!((passed, gate.left_out()), (6, (None, Some(14))));
    }

    #[test]
    fn about_one_in_n_passes() {
        let mut gate = gate(10, 0);
        let passed = (0..100_000).filter(|_| gate.admits(0)).count() as u64;
        assert!((9_000..11_000).contains(&passed), "{passed}");
        assert_eq!(gate.left_out(), (Some(100_000 - passed), None));
    }
}
