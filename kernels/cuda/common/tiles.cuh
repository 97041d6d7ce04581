// Work of a persistent grouped GEMM: tiles of the output, numbered through over experts from offsets on the device, so
// that no count has to come to the host.
//
// Numbers: expert after expert; within one, groups of RASTER tiles of rows, in a group column after column, and in a
// column row after row: blocks that run together share weights and rows in the L2. An expert's rows are spread evenly over
// its tiles of rows, in eights.
#pragma once
#include "params.cuh"
#include "warp.cuh"

// Where a tile lies: rows `row..row_end` of one expert, and a tile of columns.
struct Tile {
  uint32_t expert;
  uint32_t row;
  uint32_t row_end;
  uint32_t column_tile;
};

__device__ __forceinline__ uint32_t eights(uint32_t count) { return (count + 7) & ~7u; }

template <uint32_t TILE_ROWS, uint32_t RASTER = 8>
class Tiles {
  static_assert(TILE_ROWS % 8 == 0, "tiles begin at eights of an expert's rows");

 public:
  // `before` is [E + 1] words of shared memory: tiles of rows before each expert. Every thread of the block calls.
  __device__ __forceinline__ Tiles(const GroupedGemmParams& params, uint32_t* before, uint32_t num_column_tiles)
      : p(params), row_tiles_before(before), column_tiles(num_column_tiles) {
    if (warp_id() == 0) count_row_tiles();
    __syncthreads();
  }

  __device__ __forceinline__ uint64_t count() const {
    return static_cast<uint64_t>(row_tiles_before[p.num_experts]) * column_tiles;
  }

  __device__ __forceinline__ Tile find(uint64_t number) const {
    // The last expert with no more than so many tiles of rows before it.
    const uint32_t row_tile = static_cast<uint32_t>(number / column_tiles);
    uint32_t low = 0, high = p.num_experts;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (row_tiles_before[middle] <= row_tile ? low : high) = middle;
    }
    const uint32_t first = row_tiles_before[low], num_row_tiles = row_tiles_before[low + 1] - first;
    const uint64_t within = number - static_cast<uint64_t>(first) * column_tiles;
    const uint32_t group = static_cast<uint32_t>(within / (RASTER * static_cast<uint64_t>(column_tiles))) * RASTER;
    const uint32_t in_group = static_cast<uint32_t>(within - static_cast<uint64_t>(group) * column_tiles);
    const uint32_t height = min(RASTER, num_row_tiles - group);
    const uint32_t end = offset(low + 1), rows = eights((end - offset(low) + num_row_tiles - 1) / num_row_tiles);
    const uint32_t row = offset(low) + (group + in_group % height) * rows;
    return {low, row, min(row + rows, end), in_group / height};
  }

 private:
  const GroupedGemmParams& p;
  uint32_t* row_tiles_before;
  uint32_t column_tiles;

  __device__ __forceinline__ uint32_t offset(uint32_t expert) const {
    if (p.expert_offsets == 0) return expert == 0 ? 0 : p.num_rows;
    return min(at<const uint32_t>(p.expert_offsets)[expert], p.num_rows);
  }

  __device__ __forceinline__ uint32_t row_tiles_of(uint32_t expert) const {
    if (expert >= p.num_experts) return 0;
    const uint32_t first = offset(expert);
    return (max(offset(expert + 1), first) - first + TILE_ROWS - 1) / TILE_ROWS;
  }

  // By one warp, 32 experts after another; the loads of several go out together.
  __device__ __forceinline__ void count_row_tiles() {
    constexpr uint32_t TOGETHER = 4;
    uint32_t before = 0;
    for (uint32_t first = lane_id(); first - lane_id() < p.num_experts; first += 32 * TOGETHER) {
      uint32_t tiles[TOGETHER];
#pragma unroll
      for (uint32_t i = 0; i < TOGETHER; i++) tiles[i] = row_tiles_of(first + i * 32);
#pragma unroll
      for (uint32_t i = 0; i < TOGETHER; i++) {
        const uint32_t expert = first + i * 32, inclusive = warp_inclusive_sum(tiles[i]);
        if (expert < p.num_experts) row_tiles_before[expert] = before + inclusive - tiles[i];
        before += __shfl_sync(ALL_LANES, inclusive, 31);
      }
    }
    if (lane_id() == 0) row_tiles_before[p.num_experts] = before;
  }
};
