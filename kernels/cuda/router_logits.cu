// router_logits: hidden_states [T, H] times weight [E, H] transposed, plus bias [E], f32 whatever the inputs are.
//
//   hidden_states, weight: f32, bf16 or f16 each; bias, output [T, E]: f32; the output may go through a tanh
//
// Thread roles: a warp is 4 tokens by 4 experts, its lanes eights of columns of H (router_logits), or single columns
// where rows do not start on 16 bytes (router_logits_columns). The lanes' sums are added at the end, in the same order
// for every token, so that a token's logits do not depend on the others. 4 warps a block.
// Grid: x blocks of 16 experts, y blocks of 4 tokens, as far as y goes, then loops. No shared memory.
#include "common/params.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

constexpr uint32_t TOKENS = 4, EXPERTS = 4;

template <int WIDTH>
struct Columns {
  float x[WIDTH];
};

template <int WIDTH>
__device__ __forceinline__ Columns<WIDTH> load_columns(uint64_t tensor, uint64_t i, uint32_t dtype) {
  Columns<WIDTH> columns;
  if constexpr (WIDTH == 8) {
    const Eight eight = load_eight(tensor, i, dtype);
#pragma unroll
    for (int j = 0; j < 8; j++) columns.x[j] = eight.x[j];
  } else {
    columns.x[0] = load(tensor, i, dtype);
  }
  return columns;
}

__device__ __forceinline__ void write_logit(const RouterLogitsParams& p, uint32_t token, uint32_t expert, float x) {
  if (token >= p.num_tokens || expert >= p.num_experts) return;
  if (p.bias != 0) x += at<const float>(p.bias)[expert];
  at<float>(p.output)[static_cast<uint64_t>(token) * p.num_experts + expert] = p.tanh ? tanhf(x) : x;
}

template <int WIDTH>
__device__ __forceinline__ void logits(const RouterLogitsParams& p, uint32_t token, uint32_t expert) {
  float sums[TOKENS][EXPERTS] = {};
  for (uint32_t column = lane_id() * WIDTH; column < p.hidden_size; column += 32 * WIDTH) {
    Columns<WIDTH> weights[EXPERTS];
#pragma unroll
    for (uint32_t e = 0; e < EXPERTS; e++) {
      // Beyond the last expert or token the last one again: its sum is not written.
      const uint64_t row = min(expert + e, p.num_experts - 1);
      weights[e] = load_columns<WIDTH>(p.weight, row * p.hidden_size + column, p.weight_dtype);
    }
#pragma unroll
    for (uint32_t t = 0; t < TOKENS; t++) {
      const uint64_t row = min(token + t, p.num_tokens - 1);
      const auto hidden = load_columns<WIDTH>(p.hidden_states, row * p.hidden_size + column, p.hidden_states_dtype);
#pragma unroll
      for (uint32_t e = 0; e < EXPERTS; e++) {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sums[t][e] = fmaf(hidden.x[j], weights[e].x[j], sums[t][e]);
      }
    }
  }
  float mine = 0.f;
#pragma unroll
  for (uint32_t i = 0; i < TOKENS * EXPERTS; i++) {
    const float sum = warp_sum(sums[i / EXPERTS][i % EXPERTS]);
    if (lane_id() == i) mine = sum;
  }
  if (lane_id() < TOKENS * EXPERTS) write_logit(p, token + lane_id() / EXPERTS, expert + lane_id() % EXPERTS, mine);
}

template <int WIDTH>
__device__ __forceinline__ void all_logits(const RouterLogitsParams& p) {
  const uint32_t expert = (blockIdx.x * (blockDim.x / 32) + warp_id()) * EXPERTS;
  if (expert >= p.num_experts) return;
  for (uint64_t token = blockIdx.y * TOKENS; token < p.num_tokens; token += gridDim.y * TOKENS) {
    logits<WIDTH>(p, static_cast<uint32_t>(token), expert);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) router_logits(const __grid_constant__ RouterLogitsParams p) {
  ptx::follow_launches();
  all_logits<8>(p);
}

extern "C" __global__ void __launch_bounds__(128) router_logits_columns(const __grid_constant__ RouterLogitsParams p) {
  ptx::follow_launches();
  all_logits<1>(p);
}
