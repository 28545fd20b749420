//! How much room there is for what has not been taken yet.
#![forbid(unsafe_code)]

/// What each CPU may fill until the next look at the ring, with a reader that comes late.
const BYTES_PER_CPU: u64 = 16 << 20;
/// The part of the memory that the ring may have: the kernel takes all of it at once.
const PART_OF_MEMORY: u64 = 16;
/// One CPU alone can be in a hurry, too.
const USUAL: u64 = 32 << 20;
/// No host is so small that less would help it, and none so large that more would be read in time.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 256 << 20;

/// Bytes of the ring buffer on a host with so much memory and so many CPUs, a power of two.
pub(super) fn ring_bytes(memory_bytes: u64, cpus: u32) -> u32 {
    let wanted = (u64::from(cpus) * BYTES_PER_CPU).max(USUAL);
    let wanted = wanted.min(memory_bytes / PART_OF_MEMORY).clamp(LEAST, MOST);
    // Down, so that it stays below its part.
    1 << wanted.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_grows_with_cpus_as_far_as_memory_allows() {
        const M: u64 = 1 << 20;
        for (memory, cpus, expected) in
            [(64 * M, 1, 4 * M), (500 * M, 2, 16 * M), (900 * M, 1, 32 * M), (2048 * M, 64, 128 * M)]
        {
            assert_eq!(u64::from(ring_bytes(memory, cpus)), expected, "{memory} {cpus}");
        }
        assert_eq!(ring_bytes(u64::MAX, 5), 64 << 20);
        assert_eq!((ring_bytes(0, 0), ring_bytes(u64::MAX, u32::MAX)), (1 << 20, 256 << 20));
    }
}
