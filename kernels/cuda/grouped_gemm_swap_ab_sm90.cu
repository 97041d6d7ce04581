// grouped_gemm on the tensor cores of sm_90a where an expert has few rows: weights are wgmma's operand of 64 rows, and the
// rows its operand of 16, 32 or 64 columns ("swap AB"), so that hardly any product is of padding.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   weight [E, N, K] or [E, K, N] and input [M, K]: both bf16 or both f16, rows of 16-byte multiples; sums are f32
//   output [R, n_out]: f32, bf16 or f16, n_out a multiple of 8
//
// Grid: persistent, two blocks per SM, tiles numbered over experts from offsets on the device (common/tiles.cuh).
// Tiles (rows x columns of the product), and stages of 64 along K:
//   16x128  6 stages of 18 KiB    32x128  5 of 20 KiB    64x128  4 of 24 KiB
//
// Thread roles: one warpgroup multiplies, a warp behind it fills stages.
//   producer   gathers rows through the plan, 16 bytes a thread and cp.async, or has the copy engine bring them where they
//              lie as the output's do; two parts of 64 columns of weights by the copy engine (common/wgmma_stage.cuh).
//   consumers  64 columns x rows of both parts, wgmma on stage i while stage i - 1's products finish, then the epilogue.
// With a gate, one part is of the gate and the other the up projection's for the same outputs: one thread has both.
// Fences as in grouped_gemm_sm90.cu.
//
// Shared memory (dynamic): stages, each rows [BM][64] and weights [2][64][64]; full and empty barriers; tiles before each
// expert [E + 1] u32.
//
// What bounds it is memory: an SM has 15 bytes a cycle of it, so a stage's 16 KiB of weights take 1100 cycles; the products
// of 64x128 take 256 (2048 a cycle), of 16x128 a quarter of that. Under way are 2 x 4 to 6 stages, 128 to 192 KiB an SM, where
// 15 bytes a cycle for 1000 cycles of latency want 15. Tiles of 128 columns, half of those of grouped_gemm_sm90.cu, leave
// fewer SMs idle at the end: qwen3-30b-a3b (E 128, H 2048, I 768) at T = 64 has 12 + 16 of them for each expert,
// 1536 + 2048 for 264 blocks. Predicted there: 604 + 302 MB of weights, 0.30 ms at 3.0 TB/s; 0.33 ms with starts and ends.
#include "common/swap_ab_epilogue.cuh"
#include "common/wgmma_stage.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

constexpr uint32_t BN = 128, PART = 64, PART_BYTES = PART * DEPTH * 2, PRODUCERS = 32;

extern __shared__ __align__(1024) uint8_t shared[];

template <typename T, Layout LAYOUT, uint32_t BM, uint32_t STAGES>
struct SwapAb {
  static constexpr uint32_t ROW_BYTES = BM * DEPTH * 2, STAGE_BYTES = ROW_BYTES + 2 * PART_BYTES;
  using Ring = Position<STAGES>;
  using Rows = RowCopies<T, BM, PRODUCERS>;

  const GroupedGemmSm90Params& params;
  const GroupedGemmParams& p;
  Stages<STAGES, STAGE_BYTES> stages;

  __device__ __forceinline__ explicit SwapAb(const GroupedGemmSm90Params& all)
      : params(all), p(all.gemm), stages(shared) {}

  // What the copy engine brings of a stage.
  __device__ __forceinline__ void copy_boxes(const Tile& tile, uint32_t stage, uint32_t barrier, uint32_t k) const {
    ptx::mbarrier_arrive_expect_tx(barrier, 2 * PART_BYTES + (has_own_rows(p) ? ROW_BYTES : 0));
#pragma unroll
    for (uint32_t part = 0; part < 2; part++) {
      const uint32_t target = stage + ROW_BYTES + part * PART_BYTES;
      WeightPart<LAYOUT, PART>(p, tile, BN, part).copy(params.weight_map, target, barrier, k, 0);
    }
    if (has_own_rows(p)) ptx::tma_load_4d(stage, params.input_map, barrier, k, tile.row, 0, 0);
  }

  __device__ __forceinline__ void produce(const Tile& tile, Ring& at) const {
    Rows rows;
    if (!has_own_rows(p)) rows.find(p, tile, lane_id());
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      // The first time round all stages are empty: they count as emptied before.
      ptx::mbarrier_wait(stages.empty(at.stage), at.parity ^ 1);
      const uint32_t stage = stages.stage(at.stage), barrier = stages.full(at.stage);
      if (lane_id() == 0) copy_boxes(tile, stage, barrier, k);
      if (!has_own_rows(p)) rows.copy(p, stage, k, lane_id());
      ptx::cp_async_mbarrier_arrive(barrier);
    }
  }

  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane_id() == 0) ptx::mbarrier_arrive(stages.empty(stage));
  }

  __device__ __forceinline__ void multiply(float (&sums)[2][BM / 2], Ring& at) const {
    uint32_t before = 0;
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      ptx::mbarrier_wait(stages.full(at.stage), at.parity);
      ptx::fence_proxy_async();
      const uint32_t stage = stages.stage(at.stage);
      const uint64_t rows = ptx::wgmma_operand(stage), weights = weight_operand<LAYOUT>(stage + ROW_BYTES);
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < DEPTH / 16; step++) {
#pragma unroll
        for (uint32_t part = 0; part < 2; part++) {
          const uint64_t a = weights + part * (PART_BYTES / 16) + step * WEIGHT_STEP<LAYOUT>;
          ptx::wgmma<(LAYOUT != NK), false>(T(), sums[part], a, rows + step * 2, (k | step) != 0);
        }
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

  __device__ __forceinline__ void consume(const Tile& tile, Ring& at) const {
    float sums[2][BM / 2];
    multiply(sums, at);
    write_swapped<LAYOUT == KN_PAIRS>(p, tile, sums);
  }

  template <typename F>
  __device__ __forceinline__ void each_tile(const Tiles<BM>& tiles, F f) const {
    for (uint64_t i = blockIdx.x; i < tiles.count(); i += gridDim.x) f(tiles.find(i));
  }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x == 0) {
      stages.init(PRODUCERS, WARPGROUP / 32);
      ptx::prefetch_tensor_map(params.weight_map);
    }
    ptx::follow_launches();
    uint32_t* before = reinterpret_cast<uint32_t*>(shared + STAGES * (STAGE_BYTES + 16));
    const Tiles<BM> tiles(p, before, (p.n + BN - 1) / BN);  // its barrier is for `stages` too
    Ring at;
    if (threadIdx.x < WARPGROUP) {
      each_tile(tiles, [&](const Tile& tile) { consume(tile, at); });
    } else {
      each_tile(tiles, [&](const Tile& tile) { produce(tile, at); });
    }
  }
};

}  // namespace

#define KERNEL(NAME, T, LAYOUT, BM, STAGES)                                                          \
  extern "C" __global__ void __launch_bounds__(WARPGROUP + PRODUCERS, 2)                         \
      grouped_gemm_swap_ab_##NAME##_##BM##x128(const __grid_constant__ GroupedGemmSm90Params p) { \
    SwapAb<T, LAYOUT, BM, STAGES>(p).run();                                                          \
  }

#define TILES(NAME, T, LAYOUT)    \
  KERNEL(NAME, T, LAYOUT, 16, 6) \
  KERNEL(NAME, T, LAYOUT, 32, 5) \
  KERNEL(NAME, T, LAYOUT, 64, 4)

TILES(bf16, bf16, NK)
TILES(bf16_kn, bf16, KN)
TILES(bf16_kn_pairs, bf16, KN_PAIRS)
TILES(f16, f16, NK)
TILES(f16_kn, f16, KN)
TILES(f16_kn_pairs, f16, KN_PAIRS)
