// grouped_gemm on tensor cores, for every GPU from sm_80 on.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   weight [E, N, K] or [E, K, N]: bf16 or f16
//   input [M, K]: the weights' type (m16n8k16), or f32 (m16n8k8, each product tf32, which holds both 16-bit types exactly)
//   output [R, n_out]: f32, bf16 or f16; sums are f32
//
// Grid: persistent, tiles numbered over experts from offsets on the device (common/tiles.cuh). Rows are gathered in the
// copies; what is beyond an expert's last row, K or N is filled with zeros, and nothing is padded in memory. Rows that do
// not start on 16 bytes are copied element by element, everything else with cp.async.
//
// Tiles (rows x columns of the product, 32 of K a stage, 4 stages) and warps (rows x columns):
//   16x128, 1x4 warps     64x128, 2x2 warps     128x128, 2x4 warps
// Every sum runs along K in the same order in each of them, so that results do not depend on which is chosen.
//
// Thread roles: all threads copy the stage 3 ahead (16 bytes each), then each warp multiplies its part of the current
// one. With a gate, a tile's columns are eights of gate and up in turn (common/mma_tile.cuh).
//
// Shared memory (dynamic): 4 stages (common/mma_stage.cuh), whose memory the epilogue uses again; tiles before each
// expert [E + 1] u32.
#include "common/mma_tile.cuh"

namespace {

extern __shared__ __align__(128) uint8_t shared[];

template <typename Mma, uint32_t BM, uint32_t BN>
__device__ __forceinline__ void all_tiles(const GroupedGemmParams& p) {
  const Tiles<BM> tiles(p, reinterpret_cast<uint32_t*>(shared + Mma::STAGES_BYTES), (p.n + BN - 1) / BN);
  for (uint64_t number = blockIdx.x; number < tiles.count(); number += gridDim.x) {
    Mma(p, shared, tiles.find(number)).run();
  }
}

}  // namespace

// The last number is how many blocks share an SM: what registers are limited by.
#define KERNEL(NAME, T, F32_ROWS, KN, BM, WARPS_M, WARPS_N, BLOCKS)                                               \
  extern "C" __global__ void __launch_bounds__(WARPS_M * WARPS_N * 32, BLOCKS)                                    \
      grouped_gemm_sm80_##NAME(const __grid_constant__ GroupedGemmParams p) {                                     \
    all_tiles<MmaTile<T, F32_ROWS, KN, BM, 128, WARPS_M, WARPS_N, 4>, BM, 128>(p);                                \
  }

#define TILES(NAME, T, F32_ROWS, KN)                          \
  KERNEL(NAME##_16, T, F32_ROWS, KN, 16, 1, 4, 4)             \
  KERNEL(NAME##_64, T, F32_ROWS, KN, 64, 2, 2, F32_ROWS ? 2 : 3) \
  KERNEL(NAME##_128, T, F32_ROWS, KN, 128, 2, 4, F32_ROWS ? 1 : 2)

TILES(bf16, bf16, false, false)
TILES(bf16_kn, bf16, false, true)
TILES(bf16_f32, bf16, true, false)
TILES(bf16_f32_kn, bf16, true, true)
TILES(f16, f16, false, false)
TILES(f16_kn, f16, false, true)
TILES(f16_f32, f16, true, false)
TILES(f16_f32_kn, f16, true, true)
