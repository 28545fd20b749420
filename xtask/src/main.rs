//! Build, test, virtual machines and measurements.
fn main() {}
