//! Waiting for something to become true; never for a fixed time.

use std::thread;
use std::time::{Duration, Instant};

/// How long until the next look.
const STEP: Duration = Duration::from_millis(5);

/// Looks until there is an answer, or gives up.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = look() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(STEP);
    }
}

/// Looks until the same value came `times` times in a row; false if it went on changing.
pub fn until_steady<T: PartialEq>(limit: Duration, times: u32, mut look: impl FnMut() -> T) -> bool {
    let (mut last, mut same) = (look(), 0);
    until(limit, || {
        let now = look();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same >= times).then_some(())
    })
    .is_some()
}
