//! The tests that run inside a guest kernel.
fn main() {}
