//! Which kernel a grouped GEMM runs in, and how it is cut up: plain data, decided on the host from what the host knows.

use super::driver::{Driver, Kernel};
use super::images::IMAGES;
use super::params::GroupedGemmParams;
use super::tuned::{self, Product, Table};
use crate::tensor::DType;

/// What decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct GemmShape {
    /// The device multiplies by warpgroups, and the build has kernels that do.
    pub(super) wgmma: bool,
    pub(super) num_sms: u32,
    /// Major and minor.
    pub(super) capability: (u32, u32),
    /// Rows of the output.
    pub(super) rows: u32,
    /// Columns of the product, and what they are sums over.
    pub(super) n: u32,
    pub(super) k: u32,
    /// E.
    pub(super) num_experts: u32,
    pub(super) input: DType,
    pub(super) weight: DType,
    /// Weights are `[E, K, N]`.
    pub(super) kn: bool,
    /// Columns of gate and up take turns.
    pub(super) interleaved: bool,
    /// Rows of the input are whole eights, and start on 16 bytes.
    pub(super) input_eights: bool,
    /// Rows of the input and runs of the weights are whole eights, and start on 16 bytes.
    pub(super) eights: bool,
    /// Rows of the output are, too.
    pub(super) output_eights: bool,
    /// Results may not depend on the number of rows.
    pub(super) batch_invariant: bool,
}

/// The way of a grouped GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GemmPath {
    /// Every weight once per few rows of its expert, by this kernel of decode.cu.
    Decode(Kernel),
    /// Tiles of rows and columns, taken one after another by as many blocks as run at a time.
    Tiled(Tiled),
}

/// A persistent kernel and its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiled {
    pub(super) kernel: Kernel,
    /// Rows of a tile.
    pub(super) rows: u32,
    /// Columns of the product.
    pub(super) columns: u32,
    pub(super) threads: u32,
    /// Bytes of shared memory, besides a word per expert.
    pub(super) shared_bytes: u32,
    /// Blocks that an SM runs at a time.
    pub(super) blocks_per_sm: u32,
    /// Blocks of a cluster: they work on so many tiles of rows together.
    pub(super) cluster: u32,
    /// The copy engine fetches its operands, by tensor maps.
    pub(super) tensor_maps: bool,
}

/// The kernel without tensor cores.
const SIMT: Tiled = Tiled {
    kernel: Kernel { file: "grouped_gemm_simt", name: "grouped_gemm_simt" },
    rows: 64,
    columns: 64,
    threads: 256,
    shared_bytes: 0,
    blocks_per_sm: 4,
    cluster: 1,
    tensor_maps: false,
};

/// Columns of a tile, and stages and their depth along K, as in grouped_gemm_sm80.cu.
const COLUMNS: u32 = 128;
const STAGES: u32 = 4;
const DEPTH: u32 = 32;

/// Rows up to which weights are streamed: in all, where an expert has this many, and however they are spread.
pub(super) const DECODE_ROWS: u32 = 128;
const DECODE_ROWS_PER_EXPERT: u32 = 2;
const DECODE_ROWS_ALWAYS: u32 = 8;

/// The path of a grouped GEMM.
///
/// Of the same types and layout, all tiled paths with tensor cores sum a row's products in the same order; that of few
/// rows does not, and is not taken where results may not depend on their number.
pub(super) fn choose(shape: &GemmShape) -> GemmPath {
    choose_by(tuned::table(), shape)
}

fn choose_by(table: &Table, shape: &GemmShape) -> GemmPath {
    let few = shape.rows <= DECODE_ROWS_ALWAYS
        || shape.rows <= DECODE_ROWS && shape.rows <= DECODE_ROWS_PER_EXPERT * shape.num_experts;
    if few && shape.eights && !shape.batch_invariant {
        return decode(shape);
    }
    let GemmShape { capability, n, k, .. } = *shape;
    let tuned = table.tile(&Product { capability, rows_per_expert: rows_per_expert(shape), n, k });
    GemmPath::Tiled(wgmma(shape, tuned).or_else(|| tensor_cores(shape, tuned)).unwrap_or(SIMT))
}

fn decode(shape: &GemmShape) -> GemmPath {
    let name = match (shape.weight, shape.kn) {
        (DType::BF16, false) => "decode_bf16",
        (DType::BF16, true) => "decode_kn_bf16",
        (DType::F16, false) => "decode_f16",
        (DType::F16, true) => "decode_kn_f16",
        (_, false) => "decode_f32",
        (_, true) => "decode_kn_f32",
    };
    GemmPath::Decode(Kernel { file: "decode", name })
}

/// Rows of the tiles of grouped_gemm_sm80.cu.
const SM80_ROWS: [u32; 3] = [16, 64, 128];

/// The kernels of a kind, as SM80_ROWS.
macro_rules! sm80 {
    ($kind:literal) => {
        [
            concat!("grouped_gemm_sm80_", $kind, "_16"),
            concat!("grouped_gemm_sm80_", $kind, "_64"),
            concat!("grouped_gemm_sm80_", $kind, "_128"),
        ]
    };
}

/// `None` for types that no tensor core multiplies in one instruction.
fn tensor_cores(shape: &GemmShape, tuned: Option<(u32, u32)>) -> Option<Tiled> {
    let f32_rows = shape.input == DType::F32;
    if shape.weight == DType::F32 || !(f32_rows || shape.input == shape.weight) {
        return None;
    }
    let names = match (shape.weight, f32_rows, shape.kn) {
        (DType::BF16, false, false) => sm80!("bf16"),
        (DType::BF16, false, true) => sm80!("bf16_kn"),
        (DType::BF16, true, false) => sm80!("bf16_f32"),
        (DType::BF16, true, true) => sm80!("bf16_f32_kn"),
        (_, false, false) => sm80!("f16"),
        (_, false, true) => sm80!("f16_kn"),
        (_, true, false) => sm80!("f16_f32"),
        (_, true, true) => sm80!("f16_f32_kn"),
    };
    let choice = SM80_ROWS.iter().position(|&rows| tuned == Some((rows, COLUMNS)));
    let choice = choice.unwrap_or_else(|| match rows_per_expert(shape) {
        0..=16 => 0,
        17..=96 => 1,
        _ => 2,
    });
    let (rows, name) = (SM80_ROWS[choice], names[choice]);
    let (threads, blocks_per_sm) = match choice {
        0 => (128, 4),
        1 => (128, if f32_rows { 2 } else { 3 }),
        _ => (256, if f32_rows { 1 } else { 2 }),
    };
    let row_size = if f32_rows { 4 } else { 2 };
    let shared_bytes = STAGES * DEPTH * (rows * row_size + COLUMNS * 2);
    let kernel = Kernel { file: "grouped_gemm_sm80", name };
    Some(Tiled { kernel, rows, columns: COLUMNS, threads, shared_bytes, blocks_per_sm, cluster: 1, tensor_maps: false })
}

/// A kernel of grouped_gemm_sm90.cu: its tile, and how it is launched.
struct Wgmma {
    /// For bf16 and f16, each for `[E, N, K]`, `[E, K, N]`, and the latter with columns of gate and up that take turns.
    names: [[&'static str; 3]; 2],
    rows: u32,
    columns: u32,
    stages: u32,
    threads: u32,
    blocks_per_sm: u32,
    cluster: u32,
}

/// The kernels of a tile, as [`Wgmma::names`].
macro_rules! sm90 {
    ($tile:literal) => {
        [
            [
                concat!("grouped_gemm_sm90_bf16_", $tile),
                concat!("grouped_gemm_sm90_bf16_kn_", $tile),
                concat!("grouped_gemm_sm90_bf16_kn_pairs_", $tile),
            ],
            [
                concat!("grouped_gemm_sm90_f16_", $tile),
                concat!("grouped_gemm_sm90_f16_kn_", $tile),
                concat!("grouped_gemm_sm90_f16_kn_pairs_", $tile),
            ],
        ]
    };
}

const LARGE: Wgmma =
    Wgmma { names: sm90!("160x256"), rows: 160, columns: 256, stages: 4, threads: 384, blocks_per_sm: 1, cluster: 2 };
const ROWS_64: Wgmma =
    Wgmma { names: sm90!("64x128"), rows: 64, columns: 128, stages: 4, threads: 160, blocks_per_sm: 2, cluster: 1 };
const ROWS_32: Wgmma = Wgmma { names: sm90!("32x128"), rows: 32, stages: 5, ..ROWS_64 };
const ROWS_16: Wgmma = Wgmma { names: sm90!("16x128"), rows: 16, stages: 6, ..ROWS_64 };

const WGMMA: [Wgmma; 4] = [ROWS_16, ROWS_32, ROWS_64, LARGE];

impl Wgmma {
    /// Besides a word per expert. Of each stage: 64 of K, and two barriers.
    const fn shared_bytes(&self) -> u32 {
        self.stages * ((self.rows + self.columns) * 128 + 16)
    }
}

/// Whether a device multiplies by warpgroups, and the build has kernels that do: `FUSED_MOE_CUDA_ARCHS` leaves some out.
pub(super) fn has_wgmma(driver: &dyn Driver) -> bool {
    driver.compute_capability() == (9, 0) && IMAGES.iter().any(|image| image.file == "grouped_gemm_sm90")
}

/// The path of sm_90a: `None` for other devices, and for types and layouts that its kernels do not take.
fn wgmma(shape: &GemmShape, tuned: Option<(u32, u32)>) -> Option<Tiled> {
    let types = shape.weight != DType::F32 && shape.input == shape.weight;
    let takes = types && shape.eights && shape.input_eights && shape.output_eights;
    if !shape.wgmma || !takes || shape.n == 0 || shape.k == 0 || shape.num_experts == 0 {
        return None;
    }
    // The large tile reads least from the L2 for what it computes, but leaves SMs idle where it makes few blocks. The others
    // have room for what an expert may have beyond its share.
    let experts = shape.num_experts.min(shape.rows);
    let row_blocks = (shape.rows / LARGE.rows).max(LARGE.cluster * experts);
    let large = u64::from(row_blocks) * u64::from(shape.n.div_ceil(LARGE.columns));
    let rule = match rows_per_expert(shape) {
        0..=6 => &ROWS_16,
        7..=20 => &ROWS_32,
        21..=48 => &ROWS_64,
        _ if large < u64::from(shape.num_sms / 2) => &ROWS_64,
        _ => &LARGE,
    };
    let tile = WGMMA.iter().find(|tile| tuned == Some((tile.rows, tile.columns))).unwrap_or(rule);
    let layout = usize::from(shape.kn) + usize::from(shape.kn && shape.interleaved);
    let name = tile.names[usize::from(shape.weight == DType::F16)][layout];
    Some(Tiled {
        kernel: Kernel { file: "grouped_gemm_sm90", name },
        rows: tile.rows,
        columns: tile.columns,
        threads: tile.threads,
        shared_bytes: tile.shared_bytes(),
        blocks_per_sm: tile.blocks_per_sm,
        cluster: tile.cluster,
        tensor_maps: true,
    })
}

/// Rows and columns of every tile that a table may name for a device.
pub(super) fn tiles(capability: (u32, u32)) -> Vec<(u32, u32)> {
    let hopper = WGMMA.iter().filter(|_| capability == (9, 0)).map(|tile| (tile.rows, tile.columns));
    let mut tiles: Vec<_> = SM80_ROWS.iter().map(|&rows| (rows, COLUMNS)).chain(hopper).collect();
    tiles.sort_unstable();
    tiles.dedup();
    tiles
}

/// Rows of an expert, were they spread evenly over as many experts as they can be.
fn rows_per_expert(shape: &GemmShape) -> u32 {
    shape.rows.div_ceil(shape.num_experts.clamp(1, shape.rows.max(1)))
}

/// As many blocks as the device runs at a time, or as there can be tiles, however rows are spread over experts.
pub(super) fn num_blocks(params: &GroupedGemmParams, path: &Tiled, num_sms: u32) -> u32 {
    if params.num_rows == 0 {
        return 0;
    }
    let experts = u64::from(params.num_experts.min(params.num_rows));
    let row_tiles = u64::from(params.num_rows / (path.rows * path.cluster)) + experts;
    let tiles = row_tiles * u64::from(params.n.div_ceil(path.columns));
    tiles.min(u64::from(path.blocks_per_sm * num_sms / path.cluster)) as u32 * path.cluster
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    const SHAPE: GemmShape = GemmShape {
        wgmma: false,
        num_sms: 132,
        capability: (9, 0),
        rows: 200,
        n: 1536,
        k: 2048,
        num_experts: 80,
        input: DType::BF16,
        weight: DType::BF16,
        kn: false,
        interleaved: false,
        input_eights: true,
        eights: true,
        output_eights: true,
        batch_invariant: false,
    };

    fn name(shape: GemmShape) -> &'static str {
        match choose_by(&Table::default(), &shape) {
            GemmPath::Decode(kernel) => kernel.name,
            GemmPath::Tiled(path) => path.kernel.name,
        }
    }

    #[test]
    fn tiles_grow_with_the_rows_of_an_expert() {
        for (rows, tile) in [(129, 16), (1280, 16), (1281, 64), (7680, 64), (7681, 128), (1 << 31, 128)] {
            let path = tensor_cores(&GemmShape { rows, ..SHAPE }, None).unwrap();
            assert_eq!(path.rows, tile, "{rows}");
            assert_eq!(choose_by(&Table::default(), &GemmShape { rows, ..SHAPE }), GemmPath::Tiled(path));
        }
    }

    #[test]
    fn few_rows_are_decoded() {
        for (rows, num_experts, decoded) in [
            (0, 1, true),
            (8, 1, true),
            (9, 1, false),
            (16, 8, true),
            (17, 8, false),
            (128, 256, true),
            (129, 256, false),
        ] {
            let shape = GemmShape { rows, num_experts, ..SHAPE };
            assert_eq!(name(shape) == "decode_bf16", decoded, "{shape:?}");
            assert_ne!(name(GemmShape { batch_invariant: true, ..shape }), "decode_bf16");
            assert_ne!(name(GemmShape { eights: false, ..shape }), "decode_bf16");
        }
        assert_eq!(name(GemmShape { rows: 1, weight: DType::F32, kn: true, ..SHAPE }), "decode_kn_f32");
    }

    #[test]
    fn types_have_their_kernels() {
        let f16 = GemmShape { input: DType::F16, weight: DType::F16, ..SHAPE };
        assert_eq!(name(SHAPE), "grouped_gemm_sm80_bf16_16");
        assert_eq!(name(GemmShape { kn: true, ..SHAPE }), "grouped_gemm_sm80_bf16_kn_16");
        assert_eq!(name(GemmShape { input: DType::F32, ..SHAPE }), "grouped_gemm_sm80_bf16_f32_16");
        assert_eq!(name(GemmShape { rows: 9999, ..f16 }), "grouped_gemm_sm80_f16_128");
        assert_eq!(name(GemmShape { weight: DType::BF16, ..f16 }), "grouped_gemm_simt");
        assert_eq!(name(GemmShape { weight: DType::F32, ..SHAPE }), "grouped_gemm_simt");
    }

    #[test]
    fn hopper_multiplies_by_warpgroups() {
        let shape = GemmShape { wgmma: true, ..SHAPE };
        for (rows, tile) in [
            (480, "16x128"),
            (481, "32x128"),
            (1600, "32x128"),
            (1601, "64x128"),
            (3840, "64x128"),
            (3841, "160x256"),
            (65536, "160x256"),
        ] {
            for batch_invariant in [false, true] {
                let shape = GemmShape { rows, batch_invariant, ..shape };
                assert_eq!(name(shape), format!("grouped_gemm_sm90_bf16_{tile}"), "{rows}");
            }
        }
        assert_eq!(name(GemmShape { rows: 65536, kn: true, ..shape }), "grouped_gemm_sm90_bf16_kn_160x256");
        // 2 x 8 x 4 blocks are fewer than half of the SMs.
        let few = GemmShape { rows: 1024, num_experts: 8, n: 1024, ..shape };
        assert_eq!(name(few), "grouped_gemm_sm90_bf16_64x128");
        let f16 = GemmShape { input: DType::F16, weight: DType::F16, kn: true, ..shape };
        assert_eq!(name(f16), "grouped_gemm_sm90_f16_kn_16x128");
        let pairs = GemmShape { kn: true, interleaved: true, ..shape };
        assert_eq!(name(pairs), "grouped_gemm_sm90_bf16_kn_pairs_16x128");
        assert_eq!(name(GemmShape { kn: false, ..pairs }), "grouped_gemm_sm90_bf16_16x128");
        for other in [
            GemmShape { input: DType::F32, ..shape },
            GemmShape { input_eights: false, ..shape },
            GemmShape { eights: false, ..shape },
            GemmShape { output_eights: false, ..shape },
            GemmShape { k: 0, ..shape },
            SHAPE,
        ] {
            assert!(name(other).starts_with("grouped_gemm_sm80_"), "{other:?}");
        }
        for tile in WGMMA {
            // With a word for each of 4096 experts a block has room; with 512 and what the driver takes, so many.
            assert!(tile.shared_bytes() + 4 * 4097 <= 227 << 10, "{:?}", tile.names);
            assert!(tile.blocks_per_sm * (tile.shared_bytes() + 4 * 513 + 1024) <= 228 << 10, "{:?}", tile.names);
        }
    }

    #[test]
    fn shared_memory_is_what_devices_have() {
        for rows in [80, 1600, 99999] {
            for input in [DType::BF16, DType::F32] {
                let path = tensor_cores(&GemmShape { rows, input, ..SHAPE }, None).unwrap();
                // sm_86 and sm_89 have the least: 99 KiB.
                assert!(path.shared_bytes + 4 * 513 <= 99 << 10, "{path:?}");
            }
        }
    }

    #[test]
    fn a_grid_is_no_larger_than_the_work_or_the_device() {
        let blocks = |num_rows, num_experts, n| {
            num_blocks(&GroupedGemmParams { num_rows, num_experts, n, ..GroupedGemmParams::zeroed() }, &SIMT, 100)
        };
        assert_eq!(blocks(0, 8, 4096), 0);
        let clusters = Tiled { rows: 128, columns: 256, blocks_per_sm: 1, cluster: 2, ..SIMT };
        let params = GroupedGemmParams { num_rows: 256, num_experts: 1, n: 512, ..GroupedGemmParams::zeroed() };
        assert_eq!(num_blocks(&params, &clusters, 132), 8);
        assert_eq!(num_blocks(&params, &clusters, 7), 6);
        // One row: whichever expert has it, one tile of rows.
        assert_eq!(blocks(1, 8, 4096), 64);
        assert_eq!(blocks(65, 1, 64), 2);
        assert_eq!(blocks(1 << 31, 4096, 1 << 24), 400);
    }

    #[test]
    fn a_table_decides_where_a_kernel_has_its_tile_and_rules_everywhere_else() {
        let table = |tile: &str| Table::parse(&format!(r#"{{"tiles": [{{"tile": {tile}}}]}}"#)).unwrap();
        let path = |shape: &GemmShape, table: &Table| match choose_by(table, shape) {
            GemmPath::Tiled(path) => path,
            GemmPath::Decode(_) => panic!("{shape:?} is decoded"),
        };
        let shape = GemmShape { rows: 65536, ..SHAPE };
        for wgmma in [false, true] {
            for input in [DType::BF16, DType::F32, DType::F16] {
                let shape = GemmShape { wgmma, input, ..shape };
                let by_rule = path(&shape, &Table::default());
                for tile in tiles((9, 0)) {
                    let chosen = path(&shape, &table(&format!("[{}, {}]", tile.0, tile.1)));
                    // Its own kernels' tile, or the rule's.
                    assert!((chosen.rows, chosen.columns) == tile || chosen == by_rule, "{shape:?} {tile:?}");
                }
                assert_eq!(path(&shape, &table("[7, 9]")), by_rule);
            }
        }
        assert_eq!(path(&GemmShape { wgmma: true, ..shape }, &table("[64, 128]")).rows, 64);
        assert_eq!(path(&shape, &table("[16, 128]")).kernel.name, "grouped_gemm_sm80_bf16_16");
        // Few rows are decoded whatever the table says.
        assert!(matches!(choose_by(&table("[64, 128]"), &GemmShape { rows: 4, ..shape }), GemmPath::Decode(_)));
    }

    #[test]
    fn rules_answer_every_shape() {
        for rows in (0..32).map(|power| 1 << power) {
            for num_experts in [1, 8, 60, 256, 4096] {
                for n in [0, 8, 1408, 28672] {
                    for wgmma in [false, true] {
                        let shape = GemmShape { rows, num_experts, n, wgmma, ..SHAPE };
                        if let GemmPath::Tiled(path) = choose_by(&Table::default(), &shape) {
                            assert!(path.rows > 0 && path.columns > 0 && path.threads > 0, "{shape:?}");
                        }
                    }
                }
            }
        }
    }
}
