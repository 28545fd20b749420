//! The operating system, and all unsafe code of this crate.

pub mod clock;
pub mod kernel;
pub mod netns;
pub mod privilege;
pub mod ready;
pub mod sockopt;
