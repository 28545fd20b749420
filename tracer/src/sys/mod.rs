//! The operating system, and all unsafe code of this crate.

pub mod clock;
pub mod guard;
pub mod kernel;
pub mod netns;
pub mod pcap;
pub mod perf;
pub mod privilege;
pub mod ready;
pub mod sockopt;
pub mod tracefs;
