// grouped_gemm for few rows per expert: every weight is streamed once per 4 rows of its expert, with 16-byte loads, and
// gate, up and activation are one launch. No tiles to fill, no shared memory to go through: it runs at the speed of memory.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   weight [E, N, K] (decode_*) or [E, K, N] (decode_kn_*), rows on 16 bytes; input [M, K], rows on 16 bytes for
//   decode_*; input, weight and output f32, bf16 or f16 each; everything is summed in f32
//
// Grid: x slabs of columns, y rows. The block of a row whose place among its expert's rows is a multiple of 4 does that
// row and up to 3 after it; the others have nothing to do.
//
// Thread roles: decode_*: a warp has 4 columns of the product (with a gate, gate and up of 2 outputs), its lanes eights
// of K. decode_kn_*: a block has 64 columns; a thread has 8 of them and every 32nd K.
//
// Shared memory: decode_kn_* only, sums [8 warps][4 rows][64 columns] f32.
#include "common/expert_linear.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"

namespace {

constexpr uint32_t ROWS = 4, COLUMNS = 4, THREADS = 128;
constexpr uint32_t KN_COLUMNS = 64, KN_THREADS = 256, KN_PHASES = KN_THREADS / (KN_COLUMNS / 8);

// The rows of one block, all of one expert.
struct Rows {
  uint32_t expert;
  uint32_t first;
  uint32_t count;  // 0: nothing to do
  uint64_t input[ROWS];
};

// The expert of a row: as many as end at or before it. Every lane of the warp calls.
__device__ __forceinline__ uint32_t find_expert(const GroupedGemmParams& p, uint32_t row) {
  const uint32_t* ends = at<const uint32_t>(p.expert_offsets) + 1;
  uint32_t before = 0;
#pragma unroll 4
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) before += ends[e] <= row;
  return __reduce_add_sync(ALL_LANES, before);
}

__device__ __forceinline__ Rows find_rows(const GroupedGemmParams& p, uint32_t row) {
  Rows rows = {0, row, 0, {}};
  uint32_t start = 0, end = p.num_rows;
  if (p.expert_offsets != 0) {
    rows.expert = find_expert(p, row);
    if (rows.expert == p.num_experts) return rows;
    start = at<const uint32_t>(p.expert_offsets)[rows.expert];
    end = min(at<const uint32_t>(p.expert_offsets)[rows.expert + 1], p.num_rows);
  }
  rows.count = (row - start) % ROWS == 0 ? min(ROWS, end - row) : 0;
#pragma unroll
  for (uint32_t r = 0; r < ROWS; r++) rows.input[r] = r < rows.count ? input_row(p, row + r).row * p.k : 0;
  return rows;
}

// Bias, activation, and out: `gate` and `up` are sums, `up` 1 without a gate.
__device__ __forceinline__ void write_output(const GroupedGemmParams& p, uint32_t expert, uint32_t row, uint32_t output,
                                             float gate, float up) {
  const float scale = p.slot_scale != 0 ? input_row(p, row).scale : 1.f;
  gate = fmaf(scale, gate, bias_at(p, expert, weight_column(p, output, false)));
  if (p.gate != GATE_NONE) up = fmaf(scale, up, bias_at(p, expert, weight_column(p, output, true)));
  store(p.output, static_cast<uint64_t>(row) * p.n_out + output, p.output_dtype, activate(p, gate, up));
}

// Eight weights, read once and not kept.
template <typename T>
__device__ __forceinline__ Eight stream_eight(const T* weights) {
  if constexpr (sizeof(T) == 4) {
    const float4* quads = reinterpret_cast<const float4*>(weights);
    const float4 a = __ldcs(quads), b = __ldcs(quads + 1);
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
  } else {
    return widen_eight<T>(__ldcs(reinterpret_cast<const uint4*>(weights)));
  }
}

// sums[r][c] = input row r · weight column c.
template <typename T>
__device__ __forceinline__ void multiply(const GroupedGemmParams& p, const Rows& rows, const T* const (&columns)[COLUMNS],
                                         float (&sums)[ROWS][COLUMNS]) {
#pragma unroll 2
  for (uint32_t k = lane_id() * 8; k < p.k; k += 256) {
    Eight weights[COLUMNS];
#pragma unroll
    for (uint32_t c = 0; c < COLUMNS; c++) weights[c] = stream_eight(columns[c] + k);
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
      if (r >= rows.count) continue;
      const Eight input = load_eight(p.input, rows.input[r] + k, p.input_dtype);
#pragma unroll
      for (uint32_t c = 0; c < COLUMNS; c++) {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sums[r][c] = fmaf(input.x[i], weights[c].x[i], sums[r][c]);
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void decode(const GroupedGemmParams& p) {
  const Rows rows = find_rows(p, blockIdx.y);
  const bool gated = p.gate != GATE_NONE;
  const uint32_t outputs = gated ? COLUMNS / 2 : COLUMNS;
  const uint32_t first = (blockIdx.x * (THREADS / 32) + warp_id()) * outputs;
  if (rows.count == 0 || first >= p.n_out) return;
  const T* matrix = at<const T>(p.weight) + static_cast<uint64_t>(rows.expert) * p.n * p.k;
  const T* columns[COLUMNS];
#pragma unroll
  for (uint32_t c = 0; c < COLUMNS; c++) {
    // Behind the last output the last one again: it is not written.
    const uint32_t output = min(first + (gated ? c / 2 : c), p.n_out - 1);
    columns[c] = matrix + static_cast<uint64_t>(weight_column(p, output, gated && c % 2)) * p.k;
  }
  float sums[ROWS][COLUMNS] = {};
  multiply(p, rows, columns, sums);
  // Lane r * 4 + c gets sum r, c; with a gate, lanes of even c have the gate's and the one after them the up sum.
  float mine = 0.f;
#pragma unroll
  for (uint32_t i = 0; i < ROWS * COLUMNS; i++) {
    const float sum = warp_sum(sums[i / COLUMNS][i % COLUMNS]);
    if (lane_id() == i) mine = sum;
  }
  const float next = __shfl_down_sync(ALL_LANES, mine, 1);
  const uint32_t r = lane_id() / COLUMNS, c = lane_id() % COLUMNS, output = first + (gated ? c / 2 : c);
  if (r >= rows.count || output >= p.n_out || (gated && c % 2)) return;
  write_output(p, rows.expert, rows.first + r, output, mine, gated ? next : 1.f);
}

// Where the block's eight columns from `8 * chunk` on lie along N. With a gate, gate and up of the same outputs are in
// chunks 2q and 2q + 1, or, interleaved, side by side.
__device__ __forceinline__ uint32_t kn_column(const GroupedGemmParams& p, uint32_t chunk) {
  if (p.gate == GATE_NONE || p.gate == INTERLEAVED) {
    const uint32_t n = blockIdx.x * KN_COLUMNS + chunk * 8;
    return min(n, p.n);
  }
  const uint32_t output = blockIdx.x * (KN_COLUMNS / 2) + chunk / 2 * 8;
  return output < p.n_out ? weight_column(p, output, chunk % 2) : p.n;
}

// Outputs of the block out of the sums of its columns.
__device__ __forceinline__ void kn_write(const GroupedGemmParams& p, const Rows& rows,
                                         const float (*sums)[ROWS][KN_COLUMNS]) {
  const uint32_t r = threadIdx.x / KN_COLUMNS, i = threadIdx.x % KN_COLUMNS;
  const bool gated = p.gate != GATE_NONE;
  const uint32_t output = blockIdx.x * (gated ? KN_COLUMNS / 2 : KN_COLUMNS) + i;
  if (r >= rows.count || output >= p.n_out || (gated && i >= KN_COLUMNS / 2)) return;
  uint32_t gate = i, up = i;
  if (p.gate == INTERLEAVED) {
    gate = 2 * i;
    up = 2 * i + 1;
  } else if (gated) {
    gate = i / 8 * 16 + i % 8;
    up = gate + 8;
  }
  float gate_sum = 0.f, up_sum = gated ? 0.f : 1.f;
  for (uint32_t w = 0; w < KN_THREADS / 32; w++) {
    gate_sum += sums[w][r][gate];
    if (gated) up_sum += sums[w][r][up];
  }
  write_output(p, rows.expert, rows.first + r, output, gate_sum, up_sum);
}

template <typename T>
__device__ __forceinline__ void decode_kn(const GroupedGemmParams& p) {
  __shared__ float sums[KN_THREADS / 32][ROWS][KN_COLUMNS];
  const Rows rows = find_rows(p, blockIdx.y);
  if (rows.count == 0) return;
  const uint32_t chunk = threadIdx.x % (KN_COLUMNS / 8), n = kn_column(p, chunk);
  float mine[ROWS][8] = {};
  if (n < p.n) {
    const T* column = at<const T>(p.weight) + static_cast<uint64_t>(rows.expert) * p.n * p.k + n;
#pragma unroll 2
    for (uint32_t k = threadIdx.x / (KN_COLUMNS / 8); k < p.k; k += KN_PHASES) {
      const Eight weights = stream_eight(column + static_cast<uint64_t>(k) * p.n);
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        if (r >= rows.count) continue;
        const float input = load(p.input, rows.input[r] + k, p.input_dtype);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) mine[r][i] = fmaf(input, weights.x[i], mine[r][i]);
      }
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < ROWS * 8; i++) {
    // Lanes 8 and 16 apart have the same columns.
    float sum = mine[i / 8][i % 8];
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    sum += __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane_id() < 8) sums[warp_id()][i / 8][chunk * 8 + i % 8] = sum;
  }
  __syncthreads();
  kn_write(p, rows, sums);
}

}  // namespace

#define KERNELS(NAME, T)                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS) decode_##NAME(const __grid_constant__ GroupedGemmParams p) { \
    decode<T>(p);                                                                                                   \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(KN_THREADS)                                                          \
      decode_kn_##NAME(const __grid_constant__ GroupedGemmParams p) {                                               \
    decode_kn<T>(p);                                                                                                \
  }

KERNELS(bf16, bf16)
KERNELS(f16, f16)
KERNELS(f32, float)
