//! Keeps a trace below a share of the machine's processor time, by sampling more and more, or by ending it.
#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// What is spent is judged so often.
const INTERVAL: Duration = Duration::from_secs(1);
/// The least part of the packets that is traced: where one in so many is too much, the trace ends.
const FEWEST: u32 = 1024;

/// `1.25 %`
#[derive(Clone, Copy, Debug)]
pub(super) struct Percent(pub(super) f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} %", self.0 * 100.0)
    }
}

/// What a trace has to do about what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Order {
    /// Nothing.
    GoOn,
    /// Trace only one in so many packets; it has taken this share of all processors.
    Sample(u32, f64),
    /// End: it has taken this share, and cannot trace fewer packets.
    End(f64),
}

/// Judges what is spent.
#[derive(Debug)]
pub(super) struct Governor {
    /// The largest share.
    most: f64,
    cpus: f64,
    one_in: u32,
    /// When what has been spent was last looked at, and how much it was.
    last: Option<(Duration, Duration)>,
    /// What waits has still to be read: that is not of the smaller sample.
    waits: bool,
}

impl Governor {
    /// At most so many millionths of so many processors; one in `sample` packets is traced.
    pub(super) fn new(most_ppm: NonZeroU32, cpus: usize, sample: u32) -> Self {
        let most = f64::from(most_ppm.get()) / 1e6;
        Self { most, cpus: cpus.max(1) as f64, one_in: sample.max(1), last: None, waits: false }
    }

    /// Whether it is time to say what has been spent.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.last.is_none_or(|(then, _)| now.saturating_sub(then) >= INTERVAL)
    }

    /// Judges what has been spent in all until now.
    pub(super) fn judge(&mut self, now: Duration, spent: Duration) -> Order {
        let Some((then, before)) = self.last.replace((now, spent)) else { return Order::GoOn };
        if std::mem::take(&mut self.waits) {
            return Order::GoOn;
        }
        let passed = now.saturating_sub(then).as_secs_f64() * self.cpus;
        let share = spent.saturating_sub(before).as_secs_f64() / passed.max(f64::MIN_POSITIVE);
        if share <= self.most {
            return Order::GoOn;
        }
        if self.one_in >= FEWEST {
            return Order::End(share);
        }
        // As many fewer as it is too much, in powers of two.
        let times = (share / self.most).ceil().min(f64::from(FEWEST)) as u32;
        self.one_in = self.one_in.saturating_mul(times.max(2).next_power_of_two()).min(FEWEST);
        self.waits = true;
        Order::Sample(self.one_in, share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn governor(sample: u32) -> Governor {
        // A hundredth of two processors.
        Governor::new(NonZeroU32::new(10_000).unwrap(), 2, sample)
    }

    /// Judges after each second, in which so many milliseconds were spent.
    fn judge(governor: &mut Governor, spent_ms: &[u64]) -> Vec<Order> {
        let mut spent = Duration::from_secs(5);
        governor.judge(Duration::from_secs(100), spent);
        let seconds = spent_ms.iter().zip(101..);
        let orders = seconds.map(|(spent_ms, second)| {
            spent += Duration::from_millis(*spent_ms);
            governor.judge(Duration::from_secs(second), spent)
        });
        orders.collect()
    }

    #[test]
    fn what_is_little_goes_on() {
        assert_eq!(judge(&mut governor(1), &[0, 20, 10]), [Order::GoOn; 3]);
    }

    #[test]
    fn what_is_too_much_is_sampled() {
        let orders = judge(&mut governor(3), &[50, 500, 25, 500, 10]);
        let [Order::Sample(12, first), Order::GoOn, Order::Sample(24, second), Order::GoOn, Order::GoOn] =
            orders[..]
        else {
            panic!("{orders:?}");
        };
        assert_eq!((first, second), (0.025, 0.0125));
    }

    #[test]
    fn the_smallest_sample_is_the_last() {
        let orders = judge(&mut governor(1), &[2000, 0, 200]);
        assert_eq!(orders, [Order::Sample(128, 1.0), Order::GoOn, Order::Sample(1024, 0.1)]);
        assert_eq!(judge(&mut governor(2000), &[21]), [Order::End(0.0105)]);
    }

    #[test]
    fn it_is_due_each_second() {
        let mut governor = governor(1);
        assert!(governor.is_due(Duration::ZERO));
        governor.judge(Duration::from_secs(7), Duration::ZERO);
        assert!(!governor.is_due(Duration::from_millis(7_999)) && governor.is_due(Duration::from_secs(8)));
    }
}
