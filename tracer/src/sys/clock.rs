//! Clocks.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CLOCK_MONOTONIC in nanoseconds, the clock of the kernel programs.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// What to add to [`monotonic_ns`] to get nanoseconds since the epoch, by the system's clock as it is set now.
pub fn epoch_ns() -> u64 {
    nanoseconds(ClockId::Realtime).wrapping_sub(monotonic_ns())
}

/// The processor time of this process, in the kernel as well.
pub fn spent() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ProcessCPUTime))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
