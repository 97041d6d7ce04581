//! Which kernel and tile a grouped GEMM takes, as plain data.

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct GemmShape {
    /// R: rows over all experts.
    pub(super) rows: usize,
    /// The most rows that one expert can have.
    pub(super) max_rows_per_expert: usize,
    pub(super) num_experts: usize,
    pub(super) batch_invariant: bool,
    /// Weights are f16.
    pub(super) f16: bool,
}

/// What the adapter allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adapter {
    /// Lanes of a workgroup.
    pub(super) lanes: u32,
    /// Bytes of a workgroup's memory.
    pub(super) memory: u32,
    /// Whether there are matrix units of f16.
    pub(super) matrix_units: bool,
    /// Lanes of each subgroup, at least 8, where the adapter is emulated on the CPU.
    pub(super) emulated_subgroup: Option<u32>,
}

/// The kernel of a grouped GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GemmPath {
    /// Lanes along K, for this many rows at once: weights are read once, and nothing else costs.
    Matvec {
        /// 1, 2, 4 or 8.
        rows: u32,
    },
    /// Tiles in workgroup memory.
    Tiled(Tile),
    /// Tiles in the registers of one subgroup.
    Broadcast {
        /// Rows: 8, 16 or 32.
        m: u32,
        /// The subgroup's, each with 8 columns.
        lanes: u32,
    },
    /// As `Tiled` on matrix units, always 64 by 64.
    Cooperative,
}

/// A workgroup's tile of rows by columns of the product, and its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) lanes: u32,
}

impl Tile {
    const fn new(m: u32, n: u32) -> Self {
        // A lane has 4 rows by 8 columns.
        Self { m, n, lanes: m / 4 * (n / 8) }
    }

    /// Bytes of workgroup memory: both tiles of 16 along K, and what is known of each row.
    const fn memory(self) -> u32 {
        (self.m + self.n) * 16 * 4 + self.m * 8 + 16
    }

    fn fits(self, adapter: Adapter) -> bool {
        self.lanes <= adapter.lanes && self.memory() <= adapter.memory
    }
}

/// From small to large: tall tiles read weights less often, low ones waste less on experts of few rows.
const TILES: [Tile; 3] = [Tile::new(16, 64), Tile::new(32, 64), Tile::new(64, 64)];

/// Rows of a subgroup's tile. Weights are read once a tile; more rows than an expert has cost little beside that.
const BROADCAST_ROWS: [u32; 3] = [8, 16, 32];

/// Workgroup memory of the kernel for matrix units: both tiles of 32 along K in f16, the product, the rows.
const COOPERATIVE_MEMORY: u32 = 2 * 64 * 32 * 2 + 64 * 64 * 4 + 64 * 12 + 16;

/// Rows per expert, on average, up to which the matrix-vector kernel is taken.
const MATVEC_ROWS: usize = 4;

/// Rows that it takes at once at most.
const MATVEC_MAX_ROWS: usize = 8;

/// The kernel for a shape on an adapter.
pub(super) fn choose(shape: &GemmShape, adapter: Adapter) -> GemmPath {
    // One tile for every call: a row's sum is then the same whatever is beside it.
    if shape.batch_invariant {
        let broadcast = |lanes| GemmPath::Broadcast { m: BROADCAST_ROWS[1], lanes };
        return adapter.emulated_subgroup.map_or(GemmPath::Tiled(TILES[0]), broadcast);
    }
    let rows_per_expert = shape.rows.div_ceil(shape.num_experts.max(1));
    if rows_per_expert <= MATVEC_ROWS || shape.max_rows_per_expert <= MATVEC_MAX_ROWS {
        let rows = shape.max_rows_per_expert.clamp(1, MATVEC_MAX_ROWS).next_power_of_two();
        return GemmPath::Matvec { rows: rows as u32 };
    }
    if let Some(lanes) = adapter.emulated_subgroup {
        let enough = BROADCAST_ROWS.into_iter().find(|&m| m as usize >= rows_per_expert);
        return GemmPath::Broadcast { m: enough.unwrap_or(BROADCAST_ROWS[2]), lanes };
    }
    let cooperative = adapter.matrix_units && adapter.memory >= COOPERATIVE_MEMORY && adapter.lanes >= 128;
    if shape.f16 && cooperative && rows_per_expert > 16 {
        return GemmPath::Cooperative;
    }
    let enough = |tile: &&Tile| tile.m as usize >= rows_per_expert;
    let tile = TILES.iter().find(enough).unwrap_or(&TILES[2]);
    let fitting = TILES.iter().rev().filter(|t| t.m <= tile.m).find(|t| t.fits(adapter));
    GemmPath::Tiled(*fitting.unwrap_or(&TILES[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Adapter = Adapter { lanes: 256, memory: 16384, matrix_units: false, emulated_subgroup: None };

    fn path(rows: usize, max_rows_per_expert: usize, num_experts: usize) -> GemmPath {
        choose(&GemmShape { rows, max_rows_per_expert, num_experts, batch_invariant: false, f16: false }, LIMITS)
    }

    #[test]
    fn decode_takes_the_matvec_kernel_with_as_many_rows_as_an_expert_can_have() {
        assert_eq!(path(8, 1, 128), GemmPath::Matvec { rows: 1 });
        assert_eq!(path(6 * 3, 3, 64), GemmPath::Matvec { rows: 4 });
        assert_eq!(path(16 * 8, 16, 128), GemmPath::Matvec { rows: 8 });
        // One expert for all rows: a shared expert.
        assert_eq!(path(8, 8, 1), GemmPath::Matvec { rows: 8 });
        assert_eq!(path(0, 0, 8), GemmPath::Matvec { rows: 1 });
    }

    #[test]
    fn prefill_takes_tiles_by_the_rows_of_an_expert() {
        assert_eq!(path(64 * 6, 64, 64), GemmPath::Tiled(TILES[0]));
        assert_eq!(path(2048, 1024, 64), GemmPath::Tiled(TILES[1]));
        assert_eq!(path(65536, 8192, 128), GemmPath::Tiled(TILES[2]));
    }

    #[test]
    fn small_adapters_get_small_tiles() {
        let shape =
            GemmShape { rows: 65536, max_rows_per_expert: 8192, num_experts: 8, batch_invariant: false, f16: false };
        let few_lanes = Adapter { lanes: 64, ..LIMITS };
        assert_eq!(choose(&shape, few_lanes), GemmPath::Tiled(TILES[1]));
        let little_memory = Adapter { memory: 6000, ..LIMITS };
        assert_eq!(choose(&shape, little_memory), GemmPath::Tiled(TILES[0]));
    }

    #[test]
    fn a_batch_invariant_call_has_one_path() {
        let of = |rows| {
            let shape =
                GemmShape { rows, max_rows_per_expert: rows, num_experts: 8, batch_invariant: true, f16: false };
            choose(&shape, LIMITS)
        };
        assert!([1, 8, 100, 100_000].iter().all(|&rows| of(rows) == of(1)));
    }

    #[test]
    fn adapters_emulated_on_the_cpu_keep_tiles_in_registers() {
        let adapter = Adapter { emulated_subgroup: Some(8), ..LIMITS };
        let of = |rows, batch_invariant| {
            let shape = GemmShape { rows, max_rows_per_expert: rows, num_experts: 4, batch_invariant, f16: false };
            choose(&shape, adapter)
        };
        let broadcast = |m| GemmPath::Broadcast { m, lanes: 8 };
        assert_eq!(of(4, false), GemmPath::Matvec { rows: 4 });
        assert_eq!([20, 33, 96, 100_000].map(|rows| of(rows, false)), [8, 16, 32, 32].map(broadcast));
        assert!([1, 8, 100, 100_000].iter().all(|&rows| of(rows, true) == broadcast(16)));
    }

    #[test]
    fn matrix_units_take_f16_weights_of_many_rows() {
        let limits = Adapter { memory: 32768, matrix_units: true, ..LIMITS };
        let shape =
            GemmShape { rows: 8192, max_rows_per_expert: 8192, num_experts: 8, batch_invariant: false, f16: true };
        assert_eq!(choose(&shape, limits), GemmPath::Cooperative);
        let tiled = GemmPath::Tiled(TILES[2]);
        assert_eq!(choose(&GemmShape { f16: false, ..shape }, limits), tiled);
        assert_eq!(choose(&shape, Adapter { matrix_units: false, ..limits }), tiled);
        assert_eq!(choose(&shape, Adapter { memory: 16384, ..limits }), tiled);
        assert_eq!(choose(&GemmShape { batch_invariant: true, ..shape }, limits), GemmPath::Tiled(TILES[0]));
    }

    #[test]
    fn every_tile_fits_the_smallest_adapter_of_webgpu() {
        assert!(TILES.iter().all(|tile| tile.fits(LIMITS) && tile.lanes * 32 == tile.m * tile.n));
    }
}
