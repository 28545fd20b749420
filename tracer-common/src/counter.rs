//! Per-CPU event counters, by index into one per-CPU array of u64.

/// What is counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Records that did not fit into the ring buffer.
    Lost,
    /// Traversals that no probe saw, as far as the sequence count of x_tables tells.
    Missed,
    /// Frames thrown away because more traversals were open on one CPU than there are frames.
    Overflowed,
    /// Exits that belong to no open frame of the CPU they happened on.
    OrphanExits,
}

impl Counter {
    /// All counters, by index.
    pub const ALL: [Self; 4] = [Self::Lost, Self::Missed, Self::Overflowed, Self::OrphanExits];
}
