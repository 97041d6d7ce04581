// From a warpgroup's sums with operands swapped to the output of a grouped GEMM: rows of the products are columns of the
// weights, columns of the products are rows of the output.
//
// sums[part][4j + 2h + c] of thread t (ptx/wgmma.cuh) is column t / 32 * 16 + t % 32 / 4 + 8h of the part, and row
// 8j + t % 4 * 2 + c of the tile. With a gate, part 0 is of the gate and part 1 the up projection's for the same outputs;
// where columns of both take turns, lanes 4 apart have one each, and swap: even ones go on with h = 0, odd ones with h = 1.
//
// A warp stores 8 columns of 4 rows at a time: pieces of 16 bytes, but a tile has a hundredth of what it reads to write.
#pragma once
#include "tiles.cuh"
#include "wgmma_epilogue.cuh"

// A thread's sums of COUNT columns, and the rows of each: [COUNT][ROWS], row i being 8 * (i / 2) + lane % 4 * 2 + i % 2.
template <uint32_t COUNT, uint32_t ROWS>
struct Swapped {
  float sums[COUNT * ROWS];
  uint32_t columns[COUNT];  // of the output

  __device__ __forceinline__ static uint32_t row(const Tile& tile, uint32_t i) {
    return tile.row + i / 2 * 8 + lane_id() % 4 * 2 + i % 2;
  }

  // Scales each row by its slot's weight, then adds the bias of each column. With a gate, the latter half of the columns are
  // the up projection's.
  __device__ __forceinline__ void scale_and_bias(const GroupedGemmParams& p, const Tile& tile) {
    if (p.slot_scale != 0) {
#pragma unroll
      for (uint32_t i = 0; i < ROWS; i++) {
        const float scale = row(tile, i) < tile.row_end ? input_row(p, row(tile, i)).scale : 0.f;
#pragma unroll
        for (uint32_t c = 0; c < COUNT; c++) sums[c * ROWS + i] *= scale;
      }
    }
    if (p.bias == 0) return;
#pragma unroll
    for (uint32_t c = 0; c < COUNT; c++) {
      if (columns[c] >= p.n_out) continue;
      const bool up = p.gate != GATE_NONE && c >= COUNT / 2;
      const float bias = bias_at(p, tile.expert, weight_column(p, columns[c], up));
#pragma unroll
      for (uint32_t i = 0; i < ROWS; i++) sums[c * ROWS + i] += bias;
    }
  }

  template <typename T, uint32_t STORED>
  __device__ __forceinline__ void store(const GroupedGemmParams& p, const Tile& tile) const {
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++) {
      if (row(tile, i) >= tile.row_end) continue;
      T* output = at<T>(p.output) + static_cast<uint64_t>(row(tile, i)) * p.n_out;
#pragma unroll
      for (uint32_t c = 0; c < STORED; c++) {
        if (columns[c] < p.n_out) output[columns[c]] = narrow<T>(sums[c * ROWS + i]);
      }
    }
  }

  template <uint32_t STORED>
  __device__ __forceinline__ void store_any(const GroupedGemmParams& p, const Tile& tile) const {
    switch (p.output_dtype) {
      case F32: return store<float, STORED>(p, tile);
      case BF16: return store<bf16, STORED>(p, tile);
      default: return store<f16, STORED>(p, tile);
    }
  }

  __device__ __forceinline__ void write(const GroupedGemmParams& p, const Tile& tile) {
    scale_and_bias(p, tile);
    activate_sums<false>(p, sums);
    if (p.gate == GATE_NONE) return store_any<COUNT>(p, tile);
    store_any<COUNT / 2>(p, tile);
  }
};

// The whole epilogue, of 2 * 64 columns. All lanes of a warp call.
template <bool PAIRS, uint32_t N>
__device__ __forceinline__ void write_swapped(const GroupedGemmParams& p, const Tile& tile, const float (&sums)[2][N]) {
  constexpr uint32_t ROWS = N / 2;
  const uint32_t within = warp_id() * 16 + lane_id() / 4, first = tile.column_tile * 128;
  Swapped<4, ROWS> all;
  if (PAIRS) {
    const bool odd = lane_id() & 4u;
#pragma unroll
    for (uint32_t part = 0; part < 2; part++) {
      // Columns 2c and 2c + 1 of the product make column c of the output: c = 4 * warp + lane / 8, and 4 further on.
      all.columns[part] = all.columns[part + 2] = (first + part * 64 + within - (odd ? 1 : 0) + (odd ? 8 : 0)) / 2;
#pragma unroll
      for (uint32_t i = 0; i < ROWS; i++) {
        const float low = sums[part][i / 2 * 4 + i % 2], high = sums[part][i / 2 * 4 + 2 + i % 2];
        const float theirs = __shfl_xor_sync(ALL_LANES, odd ? low : high, 4);
        all.sums[part * ROWS + i] = odd ? theirs : low;
        all.sums[(part + 2) * ROWS + i] = odd ? high : theirs;
      }
    }
  } else {
    const bool gated = p.gate != GATE_NONE;
#pragma unroll
    for (uint32_t c = 0; c < 4; c++) {
      all.columns[c] = (gated ? first / 2 : first + c / 2 * 64) + within + c % 2 * 8;
#pragma unroll
      for (uint32_t i = 0; i < ROWS; i++) all.sums[c * ROWS + i] = sums[c / 2][i / 2 * 4 + c % 2 * 2 + i % 2];
    }
  }
  all.write(p, tile);
}
