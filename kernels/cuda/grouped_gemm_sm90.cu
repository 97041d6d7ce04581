// grouped_gemm on the tensor cores of sm_90a, where operands are multiplied out of shared memory by whole warpgroups.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   weight [E, N, K] or [E, K, N] and input [M, K]: both bf16 or both f16, rows of 16-byte multiples; sums are f32
//   output [R, n_out]: f32, bf16 or f16, n_out a multiple of 8
// Other types and odd sizes run in grouped_gemm_sm80.cu.
//
// Operands are swapped: weights are wgmma's operand of 64 rows, and the rows its operand of any multiple of 8 columns, so
// that a tile is as high as the rows need. An expert's rows are spread evenly over its tiles: 272 of them are two tiles of
// 136, not two of 128 and one, of 16, that has to fetch all weights again.
//
// Grid: persistent, tiles numbered over experts from offsets on the device (common/tiles.cuh).
// Tiles (most rows x columns of the product), and stages of 64 along K:
//    16x128  6 stages of 18 KiB    two blocks per SM, as the next two; products of as many rows as the tile's, always
//    32x128  5 stages of 20 KiB
//    64x128  4 stages of 24 KiB
//   160x256  4 stages of 52 KiB    one block per SM, clusters of 2; products of 64, 72, ... 160 rows
// Blocks of a cluster take half of its rows each, and the same columns: each has the copy engine fetch half of the weights
// and write them to both.
//
// Every sum runs along K in the same order in each of them: results do not depend on which is chosen.
//
// Thread roles: one warpgroup for each 128 columns multiplies; behind them a warp, or of the large tile a warpgroup, fills
// stages.
//   producer   gathers the tile's rows through the plan, 16 bytes a thread and cp.async; its first thread has the copy
//              engine fetch parts of 64 columns of the weights out of one 4-D tensor map, the expert a coordinate, gate and
//              up another; and rows, where they lie as the output's do. Rows past the expert's last and columns past K become
//              zeros, or do no harm; nothing is padded in memory.
//   consumers  wgmma of two parts on stage i while stage i - 1's products finish, then the epilogue out of registers.
// With a gate, one part is of the gate and the other the up projection's for the same outputs: one thread has both.
//
// Barriers are in common/wgmma_stage.cuh; a stage is empty when all warps of the cluster have multiplied it. What cp.async
// wrote is of the generic proxy, what wgmma reads of the async one: consumers fence between.
//
// Shared memory (dynamic): stages, as in common/wgmma_stage.cuh; full and empty barriers; tiles before each expert
// [E + 1] u32. Registers: of the large tile 384 threads at 168, a whole SM: 40 for producers, 232 for consumers, of which
// 160 are sums.
//
// What bounds few rows is memory: an SM has 15 bytes a cycle of it, so 16 KiB of weights, 128 columns of a stage, take 1100
// cycles; the products of 64 rows with them take 256 (2048 FLOP a cycle and block), of 16 rows a quarter of that. Under way
// are 2 x 4 to 6 stages, 128 to 192 KiB an SM, where 15 bytes a cycle for 1000 cycles of latency want 15. Predicted for
// qwen3-30b-a3b (E 128, k 8, H 2048, I 768) at T = 64: 604 + 302 MB of weights, 0.30 ms at 3.0 TB/s; 0.33 ms with starts and
// ends.
//
// The large tile, of 136 rows: a stage is 2 * 136 * 256 * 64 = 4.5 MFLOP, 1088 cycles of an SM's tensor cores (4096 FLOP a
// cycle), 16 KiB of weights and 17 of rows from the L2, 31 bytes a cycle, and 16 * (2 + 4.25) KiB that wgmma reads and 49 that
// copies write of shared memory, 1192 cycles at 128 bytes: less than the 1293 at which a dense product runs, at 798 TFLOP/s.
// Predicted for qwen3-30b-a3b at T = 8192, 512 rows an expert: 412 + 206 GFLOP, 0.77 ms at 798 TFLOP/s; 0.88 ms with
// epilogues and rows filled up to eights.
#include "common/wgmma_epilogue.cuh"
#include "common/wgmma_stage.cuh"
#include "ptx/cluster.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

// The fewest rows of a product where there is a choice: with fewer, wgmma waits for weights from shared memory.
constexpr uint32_t FEWEST_ROWS = 64;

extern __shared__ __align__(1024) uint8_t shared[];

template <typename T, Layout LAYOUT, uint32_t ROWS, uint32_t CONSUMERS, uint32_t STAGES>
struct Wgmma {
  static constexpr uint32_t COLUMNS = CONSUMERS * 128, PARTS = CONSUMERS * 2, ROW_BYTES = ROWS * DEPTH * 2;
  static constexpr uint32_t STAGE_BYTES = ROW_BYTES + PARTS * PART_BYTES;
  // Each block of a cluster brings the weights of one consumer to all blocks.
  static constexpr uint32_t CLUSTER = CONSUMERS;
  static constexpr uint32_t FIRST_PRODUCER = CONSUMERS * WARPGROUP;
  static constexpr uint32_t PRODUCERS = CONSUMERS == 1 ? 32 : WARPGROUP, THREADS = FIRST_PRODUCER + PRODUCERS;
  using Ring = Position<STAGES>;
  using Rows = RowCopies<T, ROWS, PRODUCERS>;

  // What a block does of its cluster's tile, and rows of the products: those of the tile, filled up.
  struct Part : Tile {
    uint32_t height;
  };

  const GroupedGemmSm90Params& params;
  const GroupedGemmParams& p;
  Stages<STAGES, STAGE_BYTES> stages;

  __device__ __forceinline__ explicit Wgmma(const GroupedGemmSm90Params& all)
      : params(all), p(all.gemm), stages(shared) {}

  __device__ __forceinline__ void copy_weights(const Part& tile, uint32_t stage, uint32_t barrier, uint32_t k) const {
    constexpr uint32_t OWN = PARTS / CLUSTER;
    const uint32_t first = CLUSTER == 1 ? 0 : ptx::cluster_rank() * OWN;
#pragma unroll
    for (uint32_t part = first; part < first + OWN; part++) {
      const uint32_t target = stage + ROW_BYTES + part * PART_BYTES;
      WeightPart<LAYOUT>(p, tile, COLUMNS, part).template copy<CLUSTER>(params.weight_map, target, barrier, k);
    }
  }

  // What the copy engine brings of a stage.
  __device__ __forceinline__ void copy_boxes(const Part& tile, uint32_t stage, uint32_t barrier, uint32_t k) const {
    const uint32_t row_boxes = has_own_rows(p) ? (tile.height + ROW_BOX - 1) / ROW_BOX : 0;
    ptx::mbarrier_arrive_expect_tx(barrier, PARTS * PART_BYTES + row_boxes * ROW_BOX_BYTES);
    copy_weights(tile, stage, barrier, k);
    for (uint32_t i = 0; i < row_boxes; i++) {
      ptx::tma_load_4d(stage + i * ROW_BOX_BYTES, params.input_map, barrier, k, tile.row + i * ROW_BOX, 0, 0);
    }
  }

  __device__ __forceinline__ void produce(const Part& tile, Ring& at) const {
    const uint32_t thread = threadIdx.x - FIRST_PRODUCER;
    Rows rows;
    if (!has_own_rows(p)) rows.find(p, tile, thread);
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      // The first time round all stages are empty: they count as emptied before.
      ptx::mbarrier_wait(stages.empty(at.stage), at.parity ^ 1);
      const uint32_t stage = stages.stage(at.stage), barrier = stages.full(at.stage);
      if (thread == 0) copy_boxes(tile, stage, barrier, k);
      if (!has_own_rows(p)) rows.copy(p, tile.height, stage, k, thread);
      ptx::cp_async_mbarrier_arrive(barrier);
    }
  }

  // A stage has been multiplied by this warp: in this block, and where its weights came from.
  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane_id() < CLUSTER) ptx::mbarrier_arrive_at(stages.empty(stage), lane_id());
  }

  // Adds products of as many rows as the tile needs, out of N, N + 8, ... ROWS. The last stage of them is still under way, and
  // returned.
  template <uint32_t N = (ROWS < FEWEST_ROWS ? ROWS : FEWEST_ROWS)>
  __device__ __forceinline__ uint32_t multiply(const Part& tile, uint32_t consumer, float (&sums)[ROWS], Ring& at) const {
    if constexpr (N < ROWS) {
      if (tile.height > N) return multiply<N + 8>(tile, consumer, sums, at);
    }
    const uint32_t weights = ROW_BYTES + consumer * 2 * PART_BYTES;
    uint32_t before = 0;
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      ptx::mbarrier_wait(stages.full(at.stage), at.parity);
      ptx::fence_proxy_async();
      const uint32_t stage = stages.stage(at.stage);
      const uint64_t a = ptx::wgmma_operand(stage + weights), b = ptx::wgmma_operand(stage);
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < DEPTH / 16; step++) {
#pragma unroll
        for (uint32_t part = 0; part < 2; part++) {
          float(&d)[N / 2] = reinterpret_cast<float(&)[N / 2]>(sums[part * ROWS / 2]);
          ptx::wgmma<(LAYOUT != NK)>(T(), d, a + part * (PART_BYTES / 16) + step * WEIGHT_STEP<LAYOUT>, b + step * 2);
        }
      }
      ptx::wgmma_commit();
      // All products but these are done: the stage before is free.
      ptx::wgmma_wait<1>();
      if (k != 0) release(before);
      before = at.stage;
    }
    return before;
  }

  __device__ __forceinline__ void consume(const Part& tile, Ring& at) const {
    const uint32_t consumer = threadIdx.x / WARPGROUP;
    // Zeros and not a first product without them: ptxas serialises the latter where it has a choice of products.
    float sums[ROWS] = {};
    const uint32_t last = multiply(tile, consumer, sums, at);
    ptx::wgmma_wait_for(sums);
    release(last);
    // A cluster's second block has no rows where the first has room for all.
    if (tile.row >= tile.row_end) return;
    const uint32_t column = tile.column_tile * COLUMNS + consumer * 128;
    write_sums<LAYOUT == KN_PAIRS>(p, tile, p.gate == GATE_NONE ? column : column / 2, sums);
  }

  // Of a cluster's tile, this block's rows.
  __device__ __forceinline__ Part part_of(const Tile& tile) const {
    Part part = {tile, ROWS};
    if (CLUSTER > 1) {
      const uint32_t rows = eights((tile.row_end - tile.row + CLUSTER - 1) / CLUSTER);
      part.row += ptx::cluster_rank() * rows;
      part.row_end = min(part.row + rows, tile.row_end);
      part.height = max(rows, FEWEST_ROWS);
    }
    return part;
  }

  // Calls `f` with this block's part of each of its cluster's tiles.
  template <typename F>
  __device__ __forceinline__ void each_tile(const Tiles<CLUSTER * ROWS>& tiles, F f) const {
    for (uint64_t i = blockIdx.x / CLUSTER; i < tiles.count(); i += gridDim.x / CLUSTER) f(part_of(tiles.find(i)));
  }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x == 0) {
      stages.init(PRODUCERS, CLUSTER * CONSUMERS * WARPGROUP / 32);
      ptx::prefetch_tensor_map(params.weight_map);
    }
    ptx::follow_launches();
    uint32_t* before = reinterpret_cast<uint32_t*>(shared + STAGES * (STAGE_BYTES + 16));
    const Tiles<CLUSTER * ROWS> tiles(p, before, (p.n + COLUMNS - 1) / COLUMNS);  // its barrier is for `stages` too
    if (CLUSTER > 1) ptx::cluster_sync();
    Ring at;
    if (threadIdx.x < FIRST_PRODUCER) {
      if (CONSUMERS > 1) ptx::grow_registers<232>();
      each_tile(tiles, [&](const Part& part) { consume(part, at); });
    } else {
      if (CONSUMERS > 1) ptx::shrink_registers<40>();
      each_tile(tiles, [&](const Part& part) { produce(part, at); });
    }
    // A block's barriers are there until no other arrives at them.
    if (CLUSTER > 1) ptx::cluster_sync();
  }
};

}  // namespace

#define KERNEL(NAME, T, LAYOUT, ROWS, COLUMNS, STAGES)                                                      \
  extern "C" __global__ void __cluster_dims__(COLUMNS / 128, 1, 1)                                          \
      __launch_bounds__(Wgmma<T, LAYOUT, ROWS, COLUMNS / 128, STAGES>::THREADS, 256 / COLUMNS)              \
          grouped_gemm_sm90_##NAME##_##ROWS##x##COLUMNS(const __grid_constant__ GroupedGemmSm90Params p) { \
    Wgmma<T, LAYOUT, ROWS, COLUMNS / 128, STAGES>(p).run();                                                 \
  }

#define TILES(NAME, T, LAYOUT)         \
  KERNEL(NAME, T, LAYOUT, 16, 128, 6)  \
  KERNEL(NAME, T, LAYOUT, 32, 128, 5)  \
  KERNEL(NAME, T, LAYOUT, 64, 128, 4)  \
  KERNEL(NAME, T, LAYOUT, 160, 256, 4)

TILES(bf16, bf16, NK)
TILES(bf16_kn, bf16, KN)
TILES(bf16_kn_pairs, bf16, KN_PAIRS)
TILES(f16, f16, NK)
TILES(f16_kn, f16, KN)
TILES(f16_kn_pairs, f16, KN_PAIRS)
