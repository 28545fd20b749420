//! Where steps come from.
