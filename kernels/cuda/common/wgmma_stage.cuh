// A stage of a grouped GEMM on sm_90: 64 along K of a tile's rows and of its weights, as wgmma reads them out of shared
// memory, and how both get there.
//
// Rows [ROWS][64], K running along 128 bytes; behind them the tile's parts of weights, each of 64 columns:
//   [E, N, K]  part [column][64], K running along 128 bytes
//   [E, K, N]  part [k][64], columns running along 128 bytes
// All swizzled as the copy engine does it: chunk c of 16 bytes of line l lies at c ^ l % 8.
#pragma once
#include "../ptx/cp_async.cuh"
#include "../ptx/mbarrier.cuh"
#include "../ptx/tma.cuh"
#include "../ptx/wgmma.cuh"
#include "expert_linear.cuh"
#include "tiles.cuh"

constexpr uint32_t DEPTH = 64, WARPGROUP = 128;

// Columns of a part of weights, and rows of the copy engine's boxes of rows; and the bytes of each in a stage.
constexpr uint32_t PART = 64, PART_BYTES = PART * DEPTH * 2;
constexpr uint32_t ROW_BOX = 16, ROW_BOX_BYTES = ROW_BOX * DEPTH * 2;

// How weights lie: [E, N, K], [E, K, N], or the latter with columns of gate and up that take turns, where no box has the
// ones without the others.
enum Layout { NK, KN, KN_PAIRS };

// A place in the ring of stages, and the parity of its filling.
template <uint32_t STAGES>
struct Position {
  uint32_t stage = 0, parity = 0;

  __device__ __forceinline__ void advance() {
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    parity ^= stage == 0;
  }
};

// Stages and their barriers in shared memory. `full` takes an arrival of each producer thread when its copies have landed, one
// with the number of bytes that the copy engine brings, and those bytes. `empty` takes one of each warp that multiplies. A
// thread that waits for the n-th filling waits for parity n % 2.
template <uint32_t STAGES, uint32_t STAGE_BYTES>
struct Stages {
  uint32_t base;

  __device__ __forceinline__ explicit Stages(const void* shared) : base(ptx::shared_address(shared)) {}

  __device__ __forceinline__ uint32_t stage(uint32_t i) const { return base + i * STAGE_BYTES; }
  __device__ __forceinline__ uint32_t full(uint32_t i) const { return base + STAGES * STAGE_BYTES + i * 8; }
  __device__ __forceinline__ uint32_t empty(uint32_t i) const { return full(STAGES + i); }

  // By one thread, before all others get there.
  __device__ __forceinline__ void init(uint32_t producers, uint32_t consumers) const {
    for (uint32_t i = 0; i < STAGES; i++) {
      ptx::mbarrier_init(full(i), producers + 1);
      ptx::mbarrier_init(empty(i), consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

// Whether row r of the output reads row r of the input, so that the copy engine can bring rows.
__device__ __forceinline__ bool has_own_rows(const GroupedGemmParams& p) {
  return p.top_k == 0 && p.slot_tokens == 0;
}

// What one of THREADS threads brings of ROWS rows through the plan: chunk `thread` % 8 of row `thread` / 8 of each
// THREADS / 8 rows. What lies past the expert's rows and past K becomes 0.
template <typename T, uint32_t ROWS, uint32_t THREADS>
struct RowCopies {
  static constexpr uint32_t COUNT = ROWS * 8 / THREADS;
  uint32_t rows[COUNT];

  __device__ __forceinline__ void find(const GroupedGemmParams& p, const Tile& tile, uint32_t thread) {
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
      const uint32_t row = tile.row + i * (THREADS / 8) + thread / 8;
      rows[i] = row < tile.row_end ? static_cast<uint32_t>(input_row(p, row).row) : MASKED;
    }
  }

  // The first `height` rows.
  __device__ __forceinline__ void copy(const GroupedGemmParams& p, uint32_t height, uint32_t stage, uint32_t k,
                                       uint32_t thread) const {
    const uint32_t row = thread / 8, chunk = thread % 8, column = k + chunk * 8;
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
      if (i * (THREADS / 8) >= height) break;
      const uint32_t line = i * (THREADS / 8) + row;
      const bool there = rows[i] != MASKED && column < p.k;
      const T* source = at<const T>(p.input) + (there ? static_cast<uint64_t>(rows[i]) * p.k + column : 0);
      ptx::cp_async_16(stage + line * 128 + ((chunk ^ line % 8) << 4), source, there ? 16 : 0);
    }
  }
};

// A part of a tile's weights: 64 columns of the product, or, with a gate, in turn columns of the gate and the up
// projection's for the same outputs.
template <Layout LAYOUT>
struct WeightPart {
  uint32_t column, half, expert;

  __device__ __forceinline__ WeightPart(const GroupedGemmParams& p, const Tile& tile, uint32_t columns, uint32_t part) {
    const bool halves = LAYOUT != KN_PAIRS && p.gate != GATE_NONE;
    column = tile.column_tile * (halves ? columns / 2 : columns) + (halves ? part / 2 : part) * PART;
    half = halves ? part % 2 ^ (p.gate == UP_THEN_GATE ? 1 : 0) : 0;
    expert = tile.expert;
  }

  // By one thread, to all blocks of the cluster.
  template <uint32_t CLUSTER>
  __device__ __forceinline__ void copy(const void* map, uint32_t target, uint32_t barrier, uint32_t k) const {
    const uint32_t x = LAYOUT == NK ? k : column, y = LAYOUT == NK ? column : k;
    if (CLUSTER == 1) return ptx::tma_load_4d(target, map, barrier, x, y, half, expert);
    ptx::tma_load_4d_multicast(target, map, barrier, (1 << CLUSTER) - 1, x, y, half, expert);
  }
};

// How much further 16 along K is in wgmma's operand of a part of weights.
template <Layout LAYOUT>
constexpr uint64_t WEIGHT_STEP = LAYOUT == NK ? 32 / 16 : 16 * 128 / 16;
