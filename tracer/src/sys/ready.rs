//! Waiting for a descriptor without reading from it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the event loop.
pub fn register<T: AsFd + AsRawFd>(source: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    #[expect(unsafe_code, reason = "tokio cannot know that the raw descriptor belongs to the source")]
    // SAFETY: `AsFd` lends the descriptor for as long as the source lives, and the `AsyncFd` owns the source.
    unsafe {
        AsyncFd::register_with_interest(source, interest).map_err(Into::into)
    }
}
