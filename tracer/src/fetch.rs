//! The live ruleset of a network namespace, and which version of it a packet met.
