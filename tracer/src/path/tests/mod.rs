//! Walks and views from scenario files, and walks against a simulated kernel.

mod kernel;
pub(super) mod scenario;
mod track;
mod views;
