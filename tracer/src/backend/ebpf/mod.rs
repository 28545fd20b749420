//! Steps from eBPF programs at the entry and the end of the table functions.

pub mod offsets;
