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
// of K. Threads along y share K, where columns are too few to keep every SM busy: their sums are added in order.
// decode_kn_*: a block has 64 columns; a thread has 8 of them and every 32nd K.
//
// Shared memory: decode_*, sums [4 warps][16] f32; decode_kn_*, sums [8 warps][4 rows][64 columns] f32.
//
// Prediction for one token of Qwen3-30B-A3B (H 2048, I 768, k 8, bf16), gate and up: 8 * 1536 * 2048 * 2 bytes = 50 MB in
// 96 * 8 = 768 blocks of 4 warps, 8 loads of 16 bytes a lane on their way: 4 KB a warp. At 16 to 24 warps an SM that is 64
// to 96 KB, where 3.35 TB/s over 132 SMs at 700 ns need 18 KB.
#include "common/stream.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

constexpr uint32_t COLUMNS = 4, THREADS = 128;
constexpr uint32_t KN_COLUMNS = 64, KN_THREADS = 256, KN_PHASES = KN_THREADS / (KN_COLUMNS / 8);

// The expert of a row: as many as end at or before it. Every lane of the warp calls.
__device__ __forceinline__ uint32_t find_expert(const GroupedGemmParams& p, uint32_t row) {
  const uint32_t* ends = at<const uint32_t>(p.expert_offsets) + 1;
  uint32_t before = 0;
#pragma unroll 8
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) before += ends[e] <= row;
  return __reduce_add_sync(ALL_LANES, before);
}

__device__ __forceinline__ Rows find_rows(const GroupedGemmParams& p, uint32_t row) {
  uint32_t expert = 0, start = 0, end = p.num_rows;
  if (p.expert_offsets != 0) {
    expert = find_expert(p, row);
    if (expert == p.num_experts) return {};
    start = at<const uint32_t>(p.expert_offsets)[expert];
    end = min(at<const uint32_t>(p.expert_offsets)[expert + 1], p.num_rows);
  }
  if ((row - start) % ROWS != 0) return {};
  return rows_of(p, expert, row, end);
}

// Bias, activation, and out: `gate` and `up` are sums, `up` 1 without a gate.
__device__ __forceinline__ void write_output(const GroupedGemmParams& p, uint32_t expert, uint32_t row, uint32_t output,
                                             float gate, float up) {
  const float scale = p.slot_scale != 0 ? input_row(p, row).scale : 1.f;
  gate = fmaf(scale, gate, bias_at(p, expert, weight_column(p, output, false)));
  if (p.gate != GATE_NONE) up = fmaf(scale, up, bias_at(p, expert, weight_column(p, output, true)));
  store(p.output, static_cast<uint64_t>(row) * p.n_out + output, p.output_dtype, activate(p, gate, up));
}

// The sum over the threads along y, of which the first get it.
__device__ __forceinline__ float add_parts(float mine) {
  __shared__ float sums[THREADS / 32][ROWS * COLUMNS];
  const uint32_t groups = blockDim.x / 32;
  if (lane_id() < ROWS * COLUMNS) sums[threadIdx.y * groups + warp_id()][lane_id()] = mine;
  __syncthreads();
  float sum = 0.f;
  for (uint32_t y = 0; y < blockDim.y; y++) sum += sums[y * groups + warp_id()][lane_id() % (ROWS * COLUMNS)];
  return sum;
}

template <typename T>
__device__ __forceinline__ void decode(const GroupedGemmParams& p) {
  const Rows rows = find_rows(p, blockIdx.y);
  if (rows.count == 0) return;
  const bool gated = p.gate != GATE_NONE;
  const uint32_t outputs = gated ? COLUMNS / 2 : COLUMNS;
  const uint32_t first = (blockIdx.x * (blockDim.x / 32) + warp_id()) * outputs;
  const T* matrix = at<const T>(p.weight) + static_cast<uint64_t>(rows.expert) * p.n * p.k;
  const T* columns[COLUMNS];
#pragma unroll
  for (uint32_t c = 0; c < COLUMNS; c++) {
    // Behind the last output the last one again: it is not written.
    const uint32_t output = min(first + (gated ? c / 2 : c), p.n_out - 1);
    columns[c] = matrix + static_cast<uint64_t>(weight_column(p, output, gated && c % 2)) * p.k;
  }
  // The steps of K that are this part's.
  const uint32_t steps = (p.k + 255) / 256, per_part = (steps + blockDim.y - 1) / blockDim.y * 256;
  const uint32_t begin = min(threadIdx.y * per_part, p.k), end = min(begin + per_part, p.k);
  float mine = rows.count == 1 ? multiply<1, 2>(p, rows, columns, begin, end)
                               : multiply<ROWS, 2>(p, rows, columns, begin, end);
  if (blockDim.y > 1) mine = add_parts(mine);
  // With a gate, lanes of even columns have the gate's and the one after them the up sum.
  const float next = __shfl_down_sync(ALL_LANES, mine, 1);
  const uint32_t r = lane_id() / COLUMNS, c = lane_id() % COLUMNS, output = first + (gated ? c / 2 : c);
  if (threadIdx.y > 0 || r >= rows.count || output >= p.n_out || (gated && c % 2)) return;
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
    const uint32_t phase = threadIdx.x / (KN_COLUMNS / 8);
    if (rows.count == 1) {
      multiply_kn<1, 8>(p, rows, column, phase, KN_PHASES, p.k, mine);
    } else {
      multiply_kn<ROWS, 8>(p, rows, column, phase, KN_PHASES, p.k, mine);
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
    ptx::follow_launches();                                                                                         \
    decode<T>(p);                                                                                                   \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(KN_THREADS)                                                          \
      decode_kn_##NAME(const __grid_constant__ GroupedGemmParams p) {                                               \
    ptx::follow_launches();                                                                                         \
    decode_kn<T>(p);                                                                                                \
  }

KERNELS(bf16, bf16)
KERNELS(f16, f16)
KERNELS(f32, float)
