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
pub mod kfunc;
pub mod legacy;
pub mod nft;
pub mod offsets;
pub mod place;
pub mod sender;
pub mod throttle;
pub mod translated;

/// The kinds of records on the ring, by which user space tells one from another.
const RECORD_KINDS: [u32; 12] = [
    legacy::kind::TRAVERSAL,
    legacy::kind::LONG_TRAVERSAL,
    legacy::kind::REPLACED,
    legacy::kind::CHUNK,
    nft::kind::RUN,
    nft::kind::EVENT,
    nft::kind::TIMED_EVENT,
    ending::kind::FREED,
    ending::kind::REINJECTED,
    sender::kind::SENDER,
    choice::LINK,
    choice::TRACKED,
];

const _: () = assert!(are_unique(&RECORD_KINDS), "two kinds of records have the same number");

const fn are_unique(numbers: &[u32]) -> bool {
    let mut place = 0;
    while place < numbers.len() {
        let mut later = place + 1;
        while later < numbers.len() {
            if numbers[place] == numbers[later] {
                return false;
            }
            later += 1;
        }
        place += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::are_unique;

    #[test]
    fn a_number_that_is_there_twice_is_found() {
        assert!(are_unique(&[]) && are_unique(&[3, 1, 2]));
        assert!(!are_unique(&[3, 1, 3]) && !are_unique(&[1, 2, 2]));
    }
}
