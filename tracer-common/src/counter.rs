//! Per-CPU event counters, by index into one per-CPU array of u64.

/// What is counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Records that did not fit into the ring buffer.
    Lost,
    /// Traversals that no probe saw, as far as the sequence count of x_tables tells.
    Missed,
    /// Traversals left out because their program interrupted another one at work on its CPU; none of them is `Missed`.
    LeftOut,
    /// Runs of nftables left out for the same reason.
    RunsLeftOut,
    /// Traversals of traced packets whose end no program saw.
    Unended,
    /// Frames thrown away because more traversals were open on one CPU than there are frames.
    Overflowed,
    /// Exits that belong to no open frame of the CPU they happened on.
    OrphanExits,
    /// Packets that matched and were left out by chance, as was asked for.
    SampledOut,
    /// Packets that matched and were left out because there were enough in their second.
    LimitedOut,
    /// What found no room in the map of counts, or could not be told apart.
    Uncounted,
    /// Traversals whose rules are in doubt and were not counted.
    Doubtful,
}

impl Counter {
    /// All counters, by index.
    pub const ALL: [Self; 11] = [
        Self::Lost,
        Self::Missed,
        Self::LeftOut,
        Self::RunsLeftOut,
        Self::Unended,
        Self::Overflowed,
        Self::OrphanExits,
        Self::SampledOut,
        Self::LimitedOut,
        Self::Uncounted,
        Self::Doubtful,
    ];
}
