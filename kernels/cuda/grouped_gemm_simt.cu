// grouped_gemm without tensor cores: every combination of types, layouts and alignments, in f32 throughout. It is the
// path of f32 weights, of mixed types, and of rows that do not start on 16 bytes.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   input [M, K], weight [E, N, K] or [E, K, N], output [R, n_out]: f32, bf16 or f16 each
//
// Tile: 64 rows by 64 columns of the product, 16 of K at a time. With a gate, column 2j of a tile is the gate's and column
// 2j + 1 the up projection's for output j, so that one thread has both. The grid is persistent: see common/tiles.cuh.
//
// Thread roles: 256 threads; thread (x, y) = (tid % 16, tid / 16) has rows 4y..4y + 4 and columns 4x..4x + 4. Every
// element is summed along K in order, whatever is beside it: results do not depend on the other rows.
//
// Shared memory: rows [16][68] f32 and columns [16][68] f32, both K-major; input rows [64] and their scales; dynamic:
// tiles before each expert [E + 1] u32.
#include "common/expert_linear.cuh"
#include "common/tiles.cuh"

namespace {

constexpr uint32_t TILE = 64, DEPTH = 16, PADDED = TILE + 4, THREADS = 256;

extern __shared__ uint32_t shared[];

struct Buffers {
  float rows[DEPTH][PADDED];
  float columns[DEPTH][PADDED];
  uint64_t input_rows[TILE];
  float scales[TILE];
};

// Of a tile's column, its column along N; n or more where there is none.
__device__ __forceinline__ uint32_t column_of(const GroupedGemmParams& p, uint32_t column_tile, uint32_t column) {
  const uint32_t i = column_tile * TILE + column;
  if (p.gate == GATE_NONE) return i;
  return i / 2 < p.n_out ? weight_column(p, i / 2, i & 1u) : p.n;
}

__device__ __forceinline__ void load_input(const GroupedGemmParams& p, const Tile& tile, Buffers& s, uint32_t first_k) {
  for (uint32_t i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
    const uint32_t row = i / DEPTH, k = first_k + i % DEPTH;
    const bool there = tile.row + row < tile.row_end && k < p.k;
    s.rows[i % DEPTH][row] = there ? load(p.input, s.input_rows[row] * p.k + k, p.input_dtype) : 0.f;
  }
}

__device__ __forceinline__ void load_weight(const GroupedGemmParams& p, const Tile& tile, Buffers& s, uint32_t first_k) {
  const uint64_t matrix = static_cast<uint64_t>(tile.expert) * p.n * p.k;
  for (uint32_t i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
    // Neighbouring threads read what lies side by side.
    const uint32_t column = p.kn ? i % TILE : i / DEPTH, depth = p.kn ? i / TILE : i % DEPTH;
    const uint32_t n = column_of(p, tile.column_tile, column), k = first_k + depth;
    const uint64_t element = p.kn ? static_cast<uint64_t>(k) * p.n + n : static_cast<uint64_t>(n) * p.k + k;
    s.columns[depth][column] = n < p.n && k < p.k ? load(p.weight, matrix + element, p.weight_dtype) : 0.f;
  }
}

__device__ __forceinline__ void multiply(const Buffers& s, float (&sums)[4][4]) {
  const uint32_t x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
#pragma unroll
  for (uint32_t k = 0; k < DEPTH; k++) {
    const float4 rows = *reinterpret_cast<const float4*>(&s.rows[k][y]);
    const float4 columns = *reinterpret_cast<const float4*>(&s.columns[k][x]);
    const float a[4] = {rows.x, rows.y, rows.z, rows.w}, b[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
    }
  }
}

// Scale, bias, activation, and out.
__device__ __forceinline__ void write_row(const GroupedGemmParams& p, const Tile& tile, uint32_t row, float scale,
                                          const float (&sums)[4]) {
  const uint32_t first = threadIdx.x % 16 * 4;
  const uint64_t start = static_cast<uint64_t>(row) * p.n_out;
  float y[4];
#pragma unroll
  for (uint32_t j = 0; j < 4; j++) {
    const uint32_t n = column_of(p, tile.column_tile, first + j);
    y[j] = fmaf(scale, sums[j], n < p.n ? bias_at(p, tile.expert, n) : 0.f);
  }
  const uint32_t column = tile.column_tile * TILE + first;
#pragma unroll
  for (uint32_t j = 0; j < 4; j++) {
    if (p.gate == GATE_NONE) {
      if (column + j < p.n) store(p.output, start + column + j, p.output_dtype, activate(p, y[j], 1.f));
    } else if (j % 2 == 0 && (column + j) / 2 < p.n_out) {
      store(p.output, start + (column + j) / 2, p.output_dtype, activate(p, y[j], y[j + 1]));
    }
  }
}

__device__ __forceinline__ void compute_tile(const GroupedGemmParams& p, const Tile& tile, Buffers& s) {
  if (threadIdx.x < TILE && tile.row + threadIdx.x < tile.row_end) {
    const InputRow row = input_row(p, tile.row + threadIdx.x);
    s.input_rows[threadIdx.x] = row.row;
    s.scales[threadIdx.x] = row.scale;
  }
  float sums[4][4] = {};
  for (uint32_t k = 0; k < p.k; k += DEPTH) {
    __syncthreads();
    load_input(p, tile, s, k);
    load_weight(p, tile, s, k);
    __syncthreads();
    multiply(s, sums);
  }
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t row = threadIdx.x / 16 * 4 + i;
    if (tile.row + row < tile.row_end) write_row(p, tile, tile.row + row, s.scales[row], sums[i]);
  }
  // The next tile's rows overwrite this one's.
  __syncthreads();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) grouped_gemm_simt(const __grid_constant__ GroupedGemmParams p) {
  __shared__ Buffers buffers;
  const Tiles<TILE> tiles(p, shared, (p.n + TILE - 1) / TILE);
  for (uint64_t number = blockIdx.x; number < tiles.count(); number += gridDim.x) {
    compute_tile(p, tiles.find(number), buffers);
  }
}
