//! Setting up a grid: geometry, special registers, blocks as they become resident.

use super::{Cta, Machine, Warp, lanes};
use crate::counters::Counters;
use crate::gpu::Config;
use crate::ir::{Kernel, LaneMask, Special};
use crate::mem::bytes::Bytes;
use crate::mem::global::Global;
use crate::mem::shadow::Shadow;
use crate::report::Fault;
use crate::rng::Rng;

/// The shape of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
}

/// What differs from warp to warp when special registers are filled.
struct WarpPlace {
    block: [u32; 3],
    warp: u32,
    shared_bytes: u32,
}

fn volume(v: [u32; 3]) -> u32 {
    v[0] * v[1] * v[2]
}

fn unflatten(i: u32, dims: [u32; 3]) -> [u32; 3] {
    [i % dims[0], i / dims[0] % dims[1], i / dims[0] / dims[1]]
}

impl Geometry {
    pub fn blocks(&self) -> u32 {
        volume(self.grid)
    }

    pub fn threads(&self) -> u32 {
        volume(self.block)
    }

    pub fn cluster_blocks(&self) -> u32 {
        volume(self.cluster)
    }

    pub fn block_index(&self, id: u32) -> [u32; 3] {
        unflatten(id, self.grid)
    }

    pub fn thread(&self, i: u32) -> [u32; 3] {
        unflatten(i, self.block)
    }

    /// The `rank`-th block of the `n`-th cluster.
    pub fn cluster_member(&self, n: u32, rank: u32) -> [u32; 3] {
        let clusters = std::array::from_fn(|i| self.grid[i] / self.cluster[i]);
        let (outer, inner) = (unflatten(n, clusters), unflatten(rank, self.cluster));
        std::array::from_fn(|i| outer[i] * self.cluster[i] + inner[i])
    }

    fn linear(&self, index: [u32; 3]) -> u32 {
        index[0] + self.grid[0] * (index[1] + self.grid[1] * index[2])
    }

    /// Rank of a block in its cluster.
    pub fn cluster_rank(&self, index: [u32; 3]) -> u32 {
        let inner: [u32; 3] = std::array::from_fn(|i| index[i] % self.cluster[i]);
        inner[0] + self.cluster[0] * (inner[1] + self.cluster[1] * inner[2])
    }

    fn special(&self, special: Special, place: &WarpPlace, lane: u32) -> u64 {
        let thread = place.warp * 32 + lane;
        let value = match special {
            Special::Tid(i) => self.thread(thread)[i],
            Special::Ntid(i) => self.block[i],
            Special::Ctaid(i) => place.block[i],
            Special::Nctaid(i) => self.grid[i],
            Special::Lane => lane,
            Special::WarpId => place.warp,
            Special::NumWarps => self.threads().div_ceil(32),
            Special::LaneMask(mask) => lane_mask(mask, lane),
            Special::SmId => self.linear(place.block) % 132,
            Special::NumSms => 132,
            Special::GridId => 1,
            Special::ClusterId(i) => place.block[i] / self.cluster[i],
            Special::NumClusters(i) => self.grid[i] / self.cluster[i],
            Special::ClusterCtaid(i) => place.block[i] % self.cluster[i],
            Special::ClusterNctaid(i) => self.cluster[i],
            Special::ClusterCtaRank => self.cluster_rank(place.block),
            Special::ClusterNctaRank => self.cluster_blocks(),
            Special::IsExplicitCluster => (self.cluster_blocks() > 1) as u32,
            Special::DynamicSharedBytes => self.dynamic_shared,
            Special::TotalSharedBytes => place.shared_bytes,
        };
        value as u64
    }
}

fn lane_mask(mask: LaneMask, lane: u32) -> u32 {
    let eq = 1u32 << lane;
    match mask {
        LaneMask::Eq => eq,
        LaneMask::Lt => eq - 1,
        LaneMask::Le => eq | (eq - 1),
        LaneMask::Gt => !(eq | (eq - 1)),
        LaneMask::Ge => !(eq - 1),
    }
}

/// Runs a launch that was validated.
pub(crate) fn run(
    kernel: &Kernel,
    global: &mut Global,
    config: &Config,
    seed: u64,
    geometry: Geometry,
    params: Vec<u8>,
) -> (Counters, Result<(), Box<Fault>>) {
    global.clear_history();
    let mut machine = Machine {
        kernel,
        constants: kernel.constants.iter().map(|&v| [v; 32]).collect(),
        global,
        params,
        geometry,
        ctas: vec![],
        checks: config.checks,
        rng: Rng::new(seed),
        counters: Counters::default(),
        progress: 0,
        budget: config.max_instructions,
        locations: Default::default(),
        async_ops: vec![],
    };
    let result = machine.run();
    (machine.counters, result)
}

impl Machine<'_> {
    /// Whether more blocks may become resident while others wait.
    pub fn has_room(&self) -> bool {
        (self.ctas.len() as u32) < 132 * 2
    }

    /// Makes the blocks of the next cluster resident. Returns whether there was one.
    pub fn admit(&mut self, next: &mut u32) -> Result<bool, Box<Fault>> {
        let size = self.geometry.cluster_blocks();
        if *next * size >= self.geometry.blocks() {
            return Ok(false);
        }
        for rank in 0..size {
            let index = self.geometry.cluster_member(*next, rank);
            let cta = self.new_cta(index);
            self.ctas.push(cta);
        }
        *next += 1;
        Ok(true)
    }

    fn new_cta(&mut self, index: [u32; 3]) -> Cta {
        let kernel = self.kernel;
        let bytes = match self.geometry.dynamic_shared {
            0 => kernel.static_shared_end,
            n => kernel.dynamic_shared + n as usize,
        };
        let threads = self.geometry.threads();
        let warps = (0..threads.div_ceil(32)).map(|w| {
            let mine = (threads - 32 * w).min(32);
            let mask = if mine == 32 { u32::MAX } else { (1 << mine) - 1 };
            let mut warp = Warp::new(kernel.num_regs, kernel.num_preds, mask, kernel.local_bytes);
            let place = WarpPlace { block: index, warp: w, shared_bytes: bytes as u32 };
            for &(reg, special) in &kernel.specials {
                let mut values = [0; 32];
                for lane in lanes(mask) {
                    values[lane] = self.geometry.special(special, &place, lane as u32);
                }
                warp.write(reg, u32::MAX, &values, 0);
            }
            warp.max_registers = crate::isa::setmaxnreg::initial(kernel, threads);
            warp.priority = u64::MAX / 2 + self.rng.below(1 << 32);
            warp
        });
        Cta {
            id: self.geometry.linear(index),
            index,
            rank: self.geometry.cluster_rank(index),
            mbarriers: Default::default(),
            cluster_barrier: Default::default(),
            free_registers: 0,
            warps: warps.collect(),
            shared: Bytes::poisoned(bytes),
            shadow: Shadow::new(bytes),
            barriers: Default::default(),
            reductions: Default::default(),
            last_clock: Default::default(),
        }
    }
}
