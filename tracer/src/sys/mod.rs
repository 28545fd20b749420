//! The operating system, and all unsafe code of this crate.
