//! From the set of rules that matched to the way the packet took.
