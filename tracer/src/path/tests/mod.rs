//! Walks and views from scenario files, and walks against a simulated kernel.

mod kernel;
mod scenario;
mod views;
