//! What the kernel programs and user space share.
//!
//! 1. Every type that crosses the boundary is plain `repr(C)`, without hidden padding, in the byte order of the
//!    machine; zerocopy's derives prove it when this crate is compiled, for the kernel side too.
//! 2. Records are filled completely before they are sent. Their length is a multiple of eight.
//! 3. No kernel layout is compiled in: [`offsets`] holds numbers that user space found in the running kernel's BTF.
//! 4. [`config`] is written once, before the programs are loaded, and is frozen from then on.
//! 5. What both sides decide, such as whether a packet matches, is decided by one function in [`filter`].
#![no_std]
#![forbid(unsafe_code)]

pub mod choice;
pub mod config;
pub mod count;
pub mod counter;
pub mod ending;
pub mod filter;
pub mod legacy;
pub mod nft;
pub mod offsets;
pub mod place;
pub mod sender;
pub mod throttle;
pub mod translated;
