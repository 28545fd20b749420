//! Where steps come from.

pub mod ebpf;
