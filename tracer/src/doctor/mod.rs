//! What works on this host, why something does not, and what to do about it.
