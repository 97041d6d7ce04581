// grouped_gemm on the tensor cores of sm_90a, where operands are multiplied out of shared memory by whole warpgroups.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   weight [E, N, K] or [E, K, N] and input [M, K]: both bf16 or both f16, rows of 16-byte multiples; sums are f32
//   output [R, n_out]: f32, bf16 or f16, n_out a multiple of 8
// Few rows per expert run in grouped_gemm_swap_ab_sm90.cu, other types and odd sizes in grouped_gemm_sm80.cu.
//
// Grid: persistent, one block per SM, tiles numbered over experts from offsets on the device (common/tiles.cuh).
// Tiles (rows x columns of the product), stages of 64 along K, and what each consumer multiplies:
//   128x256  4 stages of 48 KiB   64x256: 128 sums a thread   clusters of 2
//   128x128  6 stages of 32 KiB   64x128: 64 sums
//    64x256  5 stages of 40 KiB   64x128: 64 sums
// Blocks of a cluster take tiles of the same columns and neighbouring rows: each has the copy engine fetch half of the
// weights and write them to both. Where an expert's rows leave one tile over, they take two tiles of columns of it.
//
// Every sum runs along K in the same order in each of them: results do not depend on which is chosen. 64x256 is for callers
// who count on that when rows are few.
//
// Thread roles, one warpgroup each: a producer (40 registers) fills stages, two consumers (232) multiply them.
//   producer   gathers the tile's rows through the plan, 16 bytes a thread and cp.async; its first thread has the copy
//              engine fetch weights: boxes of 64 along K out of one 4-D tensor map, the expert a coordinate, gate and up
//              another; and rows, where they lie as the output's do. Rows past the expert's last and columns past K become
//              zeros, or do no harm; nothing is padded in memory.
//   consumers  wgmma on stage i while stage i - 1's products finish, then the epilogue out of registers.
// With a gate, a consumer's columns are half gate, half up projection of the same outputs, or take turns: one thread has
// both.
//
// Barriers are in common/wgmma_stage.cuh; a stage is empty when all warps of the cluster have multiplied it. What cp.async
// wrote is of the generic proxy, what wgmma reads of the async one: consumers fence between.
//
// Shared memory (dynamic): stages, as in common/wgmma_stage.cuh; full and empty barriers; tiles before each expert
// [E + 1] u32.
//
// A 128x256 stage is 2 * 128 * 256 * 64 = 4.2 MFLOP, 1024 cycles of an SM's tensor cores (4096 FLOP a cycle), and 32 KiB
// from the L2, 32 bytes a cycle (48 without the cluster). Registers: 384 threads at 168, a whole SM. Predicted for
// qwen3-30b-a3b (E 128, k 8, H 2048, I 768) at T = 8192, 512 rows an expert: 412 + 206 GFLOP, 0.77 ms at the 798 TFLOP/s of
// a dense product; with the epilogue's 5 to 10 % and the last rows' tiles half empty (a ninth of all), 0.95 ms.
#include "common/wgmma_epilogue.cuh"
#include "common/wgmma_stage.cuh"
#include "ptx/cluster.cuh"

namespace {

constexpr uint32_t CONSUMERS = 2;

extern __shared__ __align__(1024) uint8_t shared[];

template <typename T, Layout LAYOUT, uint32_t BM, uint32_t BN, uint32_t STAGES, uint32_t CLUSTER>
struct Wgmma {
  static constexpr uint32_t ROW_BYTES = BM * DEPTH * 2, WEIGHT_BYTES = BN * DEPTH * 2;
  static constexpr uint32_t STAGE_BYTES = ROW_BYTES + WEIGHT_BYTES;
  // Consumers lie side by side where a tile has rows for one only.
  static constexpr uint32_t CONSUMERS_M = BM / 64, CONSUMERS_N = CONSUMERS / CONSUMERS_M, WN = BN / CONSUMERS_N;
  // Parts of weights: for each consumer side by side gate and up, or the two halves of its columns.
  static constexpr uint32_t PARTS = 2 * CONSUMERS_N, PART = WN / 2, PART_BYTES = PART * DEPTH * 2;
  using Ring = Position<STAGES>;
  using Rows = RowCopies<T, BM, WARPGROUP>;
  static_assert(CLUSTER == 1 || CLUSTER == PARTS, "each block of a cluster fetches one part for all");

  // What a block does of a cluster's tile.
  struct Part : Tile {
    bool shares_weights;
  };

  const GroupedGemmSm90Params& params;
  const GroupedGemmParams& p;
  Stages<STAGES, STAGE_BYTES> stages;

  __device__ __forceinline__ explicit Wgmma(const GroupedGemmSm90Params& all)
      : params(all), p(all.gemm), stages(shared) {}

  __device__ __forceinline__ void copy_part(const Part& tile, uint32_t part, uint32_t stage, uint32_t barrier, uint32_t k,
                                            uint16_t blocks) const {
    const uint32_t target = stage + ROW_BYTES + part * PART_BYTES;
    WeightPart<LAYOUT, PART>(p, tile, BN, part).copy(params.weight_map, target, barrier, k, blocks);
  }

  __device__ __forceinline__ void copy_weights(const Part& tile, uint32_t stage, uint32_t barrier, uint32_t k) const {
    constexpr uint16_t ALL = (1 << CLUSTER) - 1;
    if (tile.shares_weights) return copy_part(tile, ptx::cluster_rank(), stage, barrier, k, ALL);
#pragma unroll
    for (uint32_t part = 0; part < PARTS; part++) copy_part(tile, part, stage, barrier, k, 0);
  }

  // What the copy engine brings of a stage.
  __device__ __forceinline__ void copy_boxes(const Part& tile, uint32_t stage, uint32_t barrier, uint32_t k) const {
    ptx::mbarrier_arrive_expect_tx(barrier, WEIGHT_BYTES + (has_own_rows(p) ? ROW_BYTES : 0));
    copy_weights(tile, stage, barrier, k);
    if (has_own_rows(p)) ptx::tma_load_4d(stage, params.input_map, barrier, k, tile.row, 0, 0);
  }

  __device__ __forceinline__ void wait_until_empty(const Ring& at) const {
    // The first time round all stages are empty: they count as emptied before.
    const uint32_t barrier = stages.empty(at.stage), parity = at.parity ^ 1;
    if (CLUSTER == 1) return ptx::mbarrier_wait(barrier, parity);
    ptx::mbarrier_wait_cluster(barrier, parity);
  }

  __device__ __forceinline__ void produce(const Part& tile, Ring& at) const {
    Rows rows;
    if (!has_own_rows(p)) rows.find(p, tile, threadIdx.x);
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      wait_until_empty(at);
      const uint32_t stage = stages.stage(at.stage), barrier = stages.full(at.stage);
      if (threadIdx.x == 0) copy_boxes(tile, stage, barrier, k);
      if (!has_own_rows(p)) rows.copy(p, stage, k, threadIdx.x);
      ptx::cp_async_mbarrier_arrive(barrier);
    }
  }

  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane_id() >= CLUSTER) return;
    if (CLUSTER == 1) return ptx::mbarrier_arrive(stages.empty(stage));
    ptx::mbarrier_arrive_at(stages.empty(stage), lane_id());
  }

  __device__ __forceinline__ void multiply(float (&sums)[WN / 2], uint32_t consumer, Ring& at) const {
    const uint32_t rows = consumer % CONSUMERS_M * 64 * 128, weights = ROW_BYTES + consumer / CONSUMERS_M * WN * 128;
    uint32_t before = 0;
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      ptx::mbarrier_wait(stages.full(at.stage), at.parity);
      ptx::fence_proxy_async();
      const uint32_t stage = stages.stage(at.stage);
      const uint64_t a = ptx::wgmma_operand(stage + rows), b = weight_operand<LAYOUT>(stage + weights);
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < DEPTH / 16; step++) {
        ptx::wgmma<false, (LAYOUT != NK)>(T(), sums, a + step * 2, b + step * WEIGHT_STEP<LAYOUT>, (k | step) != 0);
      }
      ptx::wgmma_commit();
      // All products but these are done: the stage before is free.
      ptx::wgmma_wait<1>();
      if (k != 0) release(before);
      before = at.stage;
    }
    ptx::wgmma_wait<0>();
    release(before);
  }

  __device__ __forceinline__ void consume(const Part& tile, uint32_t consumer, Ring& at) const {
    float sums[WN / 2];
    multiply(sums, consumer, at);
    const uint32_t first_row = tile.row + consumer % CONSUMERS_M * 64 + warp_id() % 4 * 16;
    if (first_row >= tile.row_end) return;
    // Behind the last column, too, nothing is written.
    const uint32_t column = tile.column_tile * BN + consumer / CONSUMERS_M * WN;
    const SumsPlace place = {tile.expert, first_row + lane_id() / 4, tile.row_end,
                             p.gate == GATE_NONE ? column : column / 2};
    write_sums<LAYOUT == KN_PAIRS>(p, place, sums);
  }

  // Of the tile of CLUSTER * BM rows: this block's rows, or, of as few as one block's, this block's columns.
  __device__ __forceinline__ Part part_of(const Tile& tile) const {
    Part part = {tile, false};
    if (CLUSTER > 1 && tile.row_end - tile.row > BM) {
      part.row += ptx::cluster_rank() * BM;
      part.shares_weights = true;
    } else if (CLUSTER > 1) {
      part.column_tile = tile.column_tile * CLUSTER + ptx::cluster_rank();
    }
    return part;
  }

  // Calls `f` with this block's part of each of its cluster's tiles.
  template <typename F>
  __device__ __forceinline__ void each_tile(const Tiles<CLUSTER * BM>& tiles, F f) const {
    const uint32_t column_tiles = (p.n + BN - 1) / BN;
    for (uint64_t i = blockIdx.x / CLUSTER; i < tiles.count(); i += gridDim.x / CLUSTER) {
      const Part part = part_of(tiles.find(i));
      // All blocks of a cluster alike pass over a tile whose columns are done with another's.
      if (part.column_tile / CLUSTER * CLUSTER < column_tiles || part.shares_weights) f(part);
    }
  }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x == 0) {
      stages.init(WARPGROUP, CLUSTER * CONSUMERS * WARPGROUP / 32);
      ptx::prefetch_tensor_map(params.weight_map);
    }
    uint32_t* before = reinterpret_cast<uint32_t*>(shared + STAGES * (STAGE_BYTES + 16));
    const Tiles<CLUSTER * BM> tiles(p, before, (p.n + BN - 1) / BN);  // its barrier is for `stages` too
    if (CLUSTER > 1) ptx::cluster_sync();
    Ring at;
    if (threadIdx.x < WARPGROUP) {
      ptx::shrink_registers<40>();
      each_tile(tiles, [&](const Part& part) { produce(part, at); });
    } else {
      ptx::grow_registers<232>();
      const uint32_t consumer = threadIdx.x / WARPGROUP - 1;
      each_tile(tiles, [&](const Part& part) { consume(part, consumer, at); });
    }
    // A block's barriers are there until no other arrives at them.
    if (CLUSTER > 1) ptx::cluster_sync();
  }
};

}  // namespace

#define KERNEL(NAME, T, LAYOUT, BM, BN, STAGES, CLUSTER)                                                          \
  extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1) \
      grouped_gemm_sm90_##NAME##_##BM##x##BN(const __grid_constant__ GroupedGemmSm90Params p) {               \
    Wgmma<T, LAYOUT, BM, BN, STAGES, CLUSTER>(p).run();                                                           \
  }

#define TILES(NAME, T, LAYOUT)            \
  KERNEL(NAME, T, LAYOUT, 128, 256, 4, 2) \
  KERNEL(NAME, T, LAYOUT, 128, 128, 6, 1) \
  KERNEL(NAME, T, LAYOUT, 64, 256, 5, 1)

TILES(bf16, bf16, NK)
TILES(bf16_kn, bf16, KN)
TILES(bf16_kn_pairs, bf16, KN_PAIRS)
TILES(f16, f16, NK)
TILES(f16_kn, f16, KN)
TILES(f16_kn_pairs, f16, KN_PAIRS)
