//! What a launch did, in numbers a kernel author can use.

/// Counters of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Thread-instructions: one per lane and instruction.
    pub instructions: u64,
    /// Warp-level matrix instructions (`mma`, and `wgmma` per warp).
    pub mma: u64,
    /// Bytes that threads read from global memory.
    pub global_read: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written: u64,
    /// Bytes that threads read from shared memory.
    pub shared_read: u64,
    /// Bytes that threads wrote to shared memory.
    pub shared_written: u64,
    /// Bytes of local memory read and written: spills and indexed arrays.
    pub local: u64,
    /// Bytes moved by asynchronous copies.
    pub copied: u64,
    /// Times a warp waited at a block barrier.
    pub barrier_waits: u64,
    /// Failed polls of an mbarrier.
    pub mbarrier_polls: u64,
    /// Extra passes that shared loads and stores need because banks conflict (an estimate: 32 banks
    /// of 4 bytes; 8- and 16-byte accesses in halves and quarters of a warp).
    pub shared_conflicts: u64,
    /// The same for the 8-row phases of ldmatrix and stmatrix.
    pub ldmatrix_conflicts: u64,
}
