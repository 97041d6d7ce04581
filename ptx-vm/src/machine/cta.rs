//! A resident thread block.

use std::collections::BTreeMap;

use super::{SharedClock, Warp};
use crate::isa::cluster::ClusterBarrier;
use crate::isa::mbarrier::Mbarrier;
use crate::mem::bytes::Bytes;
use crate::mem::clock::Clock;
use crate::mem::shadow::{Shadow, Stamp};

/// A `bar`/`barrier` resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamedBarrier {
    /// Threads that have arrived.
    pub arrived: u32,
    /// Threads it waits for; `None` for all that still run.
    pub expected: Option<u32>,
    /// What the arrived threads knew.
    pub clock: Clock,
    /// Who arrived first, and where.
    pub first: Stamp,
    /// Votes of a `barrier.red`: and, or, count.
    pub votes: [u32; 3],
}

pub(crate) struct Cta {
    /// Linear index in the grid.
    pub id: u32,
    pub index: [u32; 3],
    /// Rank in the cluster.
    pub rank: u32,
    pub shared: Bytes,
    pub shadow: Shadow,
    pub warps: Vec<Warp>,
    pub barriers: [NamedBarrier; 16],
    /// Result of the last completed `barrier.red` of each barrier.
    pub reductions: [[u32; 3]; 16],
    /// What the threads of the last completion of each barrier knew together.
    pub last_clock: [SharedClock; 16],
    /// Live mbarriers by offset in shared memory.
    pub mbarriers: BTreeMap<usize, Mbarrier>,
    /// The barrier of the cluster; that of rank 0 counts.
    pub cluster_barrier: ClusterBarrier,
    /// Registers that `setmaxnreg.dec` gave back, per thread and summed over warps.
    pub free_registers: u32,
}

impl Cta {
    /// Threads that have not exited.
    pub fn running(&self) -> u32 {
        self.warps.iter().map(|w| w.alive().count_ones()).sum()
    }

    /// Gives lanes of a warp the knowledge in `clock`, which includes what they knew.
    pub fn set_clock(&mut self, warp: usize, lanes: u32, clock: &SharedClock) {
        for lane in super::lanes(lanes) {
            self.warps[warp].clocks[lane] = clock.clone();
        }
    }
}
