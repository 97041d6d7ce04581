// The second grouped_gemm of few rows and combine in one launch: expert_out stays in shared memory.
//
//   output[t] = sum over slots s of t: topk_weights[s] * (input[r] · weight[e] + bias[e]), r the row of s, e its expert
//             + what combine adds besides (common/token_sum.cuh)
//
//   weight [E, N, K] (decode_combine_*) or [E, K, N] (decode_combine_kn_*), rows on 16 bytes; input [R, K], R up to 128,
//   rows on 16 bytes for decode_combine_*; input, weight and output f32, bf16 or f16 each; everything is summed in f32
//
// Grid: x slabs of columns of the output. A block does its columns of all rows: weights are read once per 4 rows of their
// expert, no block waits for another, and no atomics decide an order.
//
// Thread roles: units of up to 4 rows of one expert, each a warp's; where there are fewer units than warps, several share
// one along K, and their sums are added in order. A warp has 8 columns and its lanes eights of K (decode_combine_*), or its
// lanes have eights of columns and every so many-th K (decode_combine_kn_*). In the end a thread is a token's column.
//
// Shared memory: units [128] of two words; (dynamic) sums [parts][rows][columns] f32.
//
// Prediction for one token of Qwen3-30B-A3B (H 2048, I 768, k 8, bf16): 8 * 2048 * 768 * 2 bytes = 25 MB in 256 blocks of 8
// warps, 8 loads of 16 bytes a lane on their way: 4 KB a warp, 32 KB a block, two blocks an SM; 3.35 TB/s over 132 SMs at
// 700 ns need 18 KB. Between the end of the launch before and the first weights' arrival memory would idle for some 2 of these 8
// us: blocks that find room meanwhile have their weights brought to the L2.
#include "common/block.cuh"
#include "common/stream.cuh"
#include "common/token_sum.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/prefetch.cuh"

namespace {

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32, MAX_UNITS = 128;

// Columns of a warp whose lanes have eights of K.
constexpr uint32_t COLUMNS = 8;

struct Unit {
  uint32_t expert;
  uint32_t row;
};

extern __shared__ float sums[];

// What there is to do, and how it is shared out.
struct Work {
  const Unit* units;
  uint32_t num_units;
  uint32_t num_rows;  // that an expert has
  uint32_t parts;     // of K

  // Calls `multiply(unit, rows, part)` for what is this warp's.
  template <typename Multiply>
  __device__ __forceinline__ void each(const GroupedGemmParams& p, Multiply multiply) const {
    for (uint32_t item = warp_id(); item < num_units * parts; item += WARPS) {
      const Unit unit = units[item % num_units];
      const uint32_t end = at<const uint32_t>(p.expert_offsets)[unit.expert + 1];
      multiply(rows_of(p, unit.expert, unit.row, end), item / num_units);
    }
  }
};

// Every thread of the block calls.
__device__ __forceinline__ Work find_work(const GroupedGemmParams& p, Unit* units) {
  __shared__ uint32_t words[WARPS];
  const uint32_t* offsets = at<const uint32_t>(p.expert_offsets);
  uint32_t before = 0;
  for (uint32_t first = 0; first < p.num_experts; first += THREADS) {
    const uint32_t e = first + threadIdx.x;
    const uint32_t row = e < p.num_experts ? offsets[e] : 0, end = e < p.num_experts ? offsets[e + 1] : 0;
    const uint32_t count = (end - row + ROWS - 1) / ROWS;
    const InclusiveSum sum = block_inclusive_sum(count, words);
    for (uint32_t i = 0; i < count; i++) units[before + sum.mine - count + i] = {e, row + i * ROWS};
    before += sum.all;
  }
  __syncthreads();
  return {units, before, offsets[p.num_experts], max(WARPS / max(before, 1u), 1u)};
}

// A sum of a row and one of the block's columns; the first part brings the bias.
__device__ __forceinline__ void write_sum(const DecodeCombineParams& p, const Work& work, const Rows& rows, uint32_t part,
                                          uint32_t r, uint32_t c, float sum) {
  const uint32_t column = blockIdx.x * p.columns + c;
  if (r >= rows.count || column >= p.gemm.n) return;
  if (part == 0) sum += bias_at(p.gemm, rows.expert, column);
  sums[(part * work.num_rows + rows.first + r) * p.columns + c] = sum;
}

// K is cut at multiples of `p.k_step`.
struct Span {
  uint32_t begin;
  uint32_t end;

  __device__ __forceinline__ Span(const DecodeCombineParams& p, const Work& work, uint32_t part) {
    const uint32_t steps = (p.gemm.k + p.k_step - 1) / p.k_step;
    const uint32_t per_part = (steps + work.parts - 1) / work.parts * p.k_step;
    begin = min(part * per_part, p.gemm.k);
    end = min(begin + per_part, p.gemm.k);
  }
};

// COUNT rows times WIDTH of the block's columns from `first` on.
template <uint32_t COUNT, uint32_t WIDTH, typename T>
__device__ __forceinline__ void multiply_columns(const DecodeCombineParams& p, const Work& work, const Rows& rows,
                                                 uint32_t part, uint32_t first) {
  const T* matrix = at<const T>(p.gemm.weight) + static_cast<uint64_t>(rows.expert) * p.gemm.n * p.gemm.k;
  const T* columns[WIDTH];
#pragma unroll
  for (uint32_t c = 0; c < WIDTH; c++) {
    // Behind the last column the last one again: it is not written.
    columns[c] = matrix + static_cast<uint64_t>(min(blockIdx.x * COLUMNS + first + c, p.gemm.n - 1)) * p.gemm.k;
  }
  const Span span(p, work, part);
  const float sum = multiply<COUNT, 8 / WIDTH>(p.gemm, rows, columns, span.begin, span.end);
  if (lane_id() < COUNT * WIDTH) write_sum(p, work, rows, part, lane_id() / WIDTH, first + lane_id() % WIDTH, sum);
}

template <typename T>
__device__ __forceinline__ void multiply_rows(const DecodeCombineParams& p, const Work& work) {
  work.each(p.gemm, [&](const Rows& rows, uint32_t part) {
    if (rows.count == 1) {
      multiply_columns<1, COLUMNS, T>(p, work, rows, part, 0);
      return;
    }
    // Half the columns at a time, for the registers of four rows.
    for (uint32_t first = 0; first < COLUMNS; first += COLUMNS / 2) {
      multiply_columns<ROWS, COLUMNS / 2, T>(p, work, rows, part, first);
    }
  });
}

template <typename T>
__device__ __forceinline__ void multiply_rows_kn(const DecodeCombineParams& p, const Work& work) {
  const uint32_t chunks = p.columns / 8, phases = 32 / chunks, chunk = lane_id() % chunks, phase = lane_id() / chunks;
  const uint32_t column = blockIdx.x * p.columns + chunk * 8;
  work.each(p.gemm, [&](const Rows& rows, uint32_t part) {
    float mine[ROWS][8] = {};
    const Span span(p, work, part);
    if (column < p.gemm.n) {
      const T* weights = at<const T>(p.gemm.weight) + static_cast<uint64_t>(rows.expert) * p.gemm.n * p.gemm.k + column;
      if (rows.count == 1) {
        multiply_kn<1, 8>(p.gemm, rows, weights, span.begin + phase, phases, span.end, mine);
      } else {
        multiply_kn<ROWS, 8>(p.gemm, rows, weights, span.begin + phase, phases, span.end, mine);
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < ROWS * 8; i++) {
      float sum = mine[i / 8][i % 8];
      for (uint32_t distance = chunks; distance < 32; distance *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
      if (phase == 0) write_sum(p, work, rows, part, i / 8, chunk * 8 + i % 8, sum);
    }
  });
}

// The L2 gets the first weights of the block's columns before the launch before is over, where rows are so few that its end and
// this one's start count. In a layer the plan is there by then: the launch before has waited for it. Elsewhere it may still be
// in the making, and other experts' weights are brought, which does no harm.
template <typename T>
__device__ __forceinline__ void prefetch_weights(const GroupedGemmParams& p) {
  constexpr uint32_t MOST_ROWS = 16, MOST_BYTES = 8192;
  if (p.num_rows > MOST_ROWS) return;
  const uint32_t first = blockIdx.x * COLUMNS, columns = min(COLUMNS, p.n - first);
  const uint64_t bytes = static_cast<uint64_t>(columns) * p.k * sizeof(T);
  const uint32_t* offsets = at<const uint32_t>(p.expert_offsets);
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += THREADS) {
    if (ptx::peek(offsets + e) == ptx::peek(offsets + e + 1)) continue;
    const T* weights = at<const T>(p.weight) + (static_cast<uint64_t>(e) * p.n + first) * p.k;
    ptx::prefetch_l2(weights, bytes < MOST_BYTES ? bytes : MOST_BYTES);
  }
}

// The block's columns of every token.
__device__ __forceinline__ void combine_tokens(const DecodeCombineParams& p, const Work& work) {
  for (uint32_t i = threadIdx.x; i < p.combine.num_tokens * p.columns; i += THREADS) {
    const uint32_t token = i / p.columns, c = i % p.columns, column = blockIdx.x * p.columns + c;
    if (column >= p.gemm.n) continue;
    const auto add_row = [&](Columns<1>& sum, float weight, uint32_t row) {
      float x = 0.f;
      for (uint32_t part = 0; part < work.parts; part++) x += sums[(part * work.num_rows + row) * p.columns + c];
      sum.x[0] = fmaf(weight, x, sum.x[0]);
    };
    const float sum = sum_token<1>(p.combine, token, column, add_row).x[0];
    store(p.combine.output, static_cast<uint64_t>(token) * p.combine.hidden_size + column, p.combine.output_dtype, sum);
  }
}

template <typename T, bool KN>
__device__ __forceinline__ void decode_combine(const DecodeCombineParams& p) {
  __shared__ Unit units[MAX_UNITS];
  if (!KN) prefetch_weights<T>(p.gemm);
  ptx::follow_launches();
  const Work work = find_work(p.gemm, units);
  if constexpr (KN) {
    multiply_rows_kn<T>(p, work);
  } else {
    multiply_rows<T>(p, work);
  }
  __syncthreads();
  combine_tokens(p, work);
}

}  // namespace

#define KERNELS(NAME, T, BLOCKS)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                   \
      decode_combine_##NAME(const __grid_constant__ DecodeCombineParams p) {      \
    decode_combine<T, false>(p);                                                  \
  }                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                   \
      decode_combine_kn_##NAME(const __grid_constant__ DecodeCombineParams p) {   \
    decode_combine<T, true>(p);                                                   \
  }

// f32 has twice the words on their way, and so room for half the blocks.
KERNELS(bf16, bf16, 2)
KERNELS(f16, f16, 2)
KERNELS(f32, float, 1)
