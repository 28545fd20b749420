//! Where events come from.

pub mod ebpf;
pub mod log;
pub mod netlink;
