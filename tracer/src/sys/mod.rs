//! The operating system, and all unsafe code of this crate.

pub mod netns;
pub mod sockopt;
