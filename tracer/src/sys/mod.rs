//! The operating system, and all unsafe code of this crate.

pub mod guard;
pub mod kernel;
pub mod netns;
pub mod perf;
pub mod privilege;
pub mod sockopt;
pub mod tracefs;
