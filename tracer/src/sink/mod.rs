//! Where packets, steps and totals go: people, scripts, files.
