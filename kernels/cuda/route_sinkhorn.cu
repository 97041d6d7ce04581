// route with experts balanced over the batch: Sinkhorn's iteration scales e^logits by rows to 1/T and by columns to 1/E, in
// turn. What it leaves is the logarithm of each expert's factor, which is added to the logits to choose by; a row's factor
// is the same for all its experts.
//
//   router_logits [T, E] f32  ->  cost [T, E] f32  ->  offsets [E] f32
//
//   sinkhorn_cost     e^(logit - the token's largest); a warp is a token
//   sinkhorn_balance  one block, for every iteration needs all of the one before: a warp has every so many-th token, a lane
//                     every 32nd expert. Sums carry what rounding has taken from them (Kahan): the choice hangs on them.
//
// Shared memory (dynamic): sinkhorn_cost, see common/route_rule.cuh; sinkhorn_balance, the warps' sums [warps][E] of two
// f32, factors [E] f32, words [warps] f32.
#include "common/block.cuh"
#include "common/route_token.cuh"

namespace {

extern __shared__ uint32_t shared[];

// A sum, and what rounding has taken from it.
struct Sum {
  float value;
  float lost;

  __device__ __forceinline__ void add(float x) {
    const float y = x - lost, sum = value + y;
    lost = (sum - value) - y;
    value = sum;
  }
};

// Over the lanes.
__device__ __forceinline__ float warp_total(Sum sum) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float value = __shfl_xor_sync(ALL_LANES, sum.value, distance);
    const float lost = __shfl_xor_sync(ALL_LANES, sum.lost, distance);
    // The lower lane's first, so that both have the same.
    const bool is_low = (lane_id() & distance) == 0;
    Sum low = is_low ? sum : Sum{value, lost};
    low.lost += is_low ? lost : sum.lost;
    low.add(is_low ? value : sum.value);
    sum = low;
  }
  return sum.value;
}

// Scales a token's row by the experts' factors and by its own, and adds it to the warp's sums.
__device__ __forceinline__ void add_row(const SinkhornParams& p, uint32_t token, const float* factors, Sum* sums) {
  const float* row = at<const float>(p.cost) + static_cast<uint64_t>(token) * p.num_experts;
  Sum mine = {0.f, 0.f};
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) mine.add(row[e] * factors[e]);
  const float sum = warp_total(mine);
  if (!(sum > 0.f)) return;
  const float scale = 1.f / (sum * static_cast<float>(p.num_tokens));
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) sums[e].add(row[e] * scale);
}

__device__ __forceinline__ float next_factor(const SinkhornParams& p, uint32_t expert, const Sum* sums) {
  Sum sum = {0.f, 0.f};
  for (uint32_t w = 0; w < num_warps(); w++) sum.add(sums[w * p.num_experts + expert].value);
  return sum.value > 0.f ? 1.f / (sum.value * static_cast<float>(p.num_experts)) : 1.f;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) sinkhorn_cost(const __grid_constant__ RouteParams p) {
  const uint32_t token = blockIdx.x * num_warps() + warp_id();
  if (token >= p.num_tokens) return;
  Token t(p, token, shared + warp_id() * token_words(p));
  t.load_logits();
  const float top = t.softmax_over_all().top;
  float* row = at<float>(p.cost) + static_cast<uint64_t>(token) * p.num_choices;
  for (uint32_t e = lane_id(); e < p.num_choices; e += 32) row[e] = isnan(t.logits[e]) ? 0.f : expf(t.logits[e] - top);
}

extern "C" __global__ void __launch_bounds__(1024) sinkhorn_balance(const __grid_constant__ SinkhornParams p) {
  Sum* sums = reinterpret_cast<Sum*>(shared);
  Sum* mine = sums + warp_id() * p.num_experts;
  float* factors = reinterpret_cast<float*>(sums + num_warps() * p.num_experts);
  float* words = factors + p.num_experts;
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) factors[e] = 1.f;
  __syncthreads();
  for (uint32_t iteration = 0; iteration < p.max_iterations; iteration++) {
    for (uint32_t e = lane_id(); e < p.num_experts; e += 32) mine[e] = {0.f, 0.f};
    for (uint32_t token = warp_id(); token < p.num_tokens; token += num_warps()) add_row(p, token, factors, mine);
    __syncthreads();
    float change = 0.f, total = 0.f;
    for (uint32_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) {
      const float next = next_factor(p, e, sums);
      change += fabsf(next - factors[e]);
      total += next;
      factors[e] = next;
    }
    change = block_sum(change, words);
    total = block_sum(total, words);
    if (change <= p.tolerance * total) break;
  }
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) at<float>(p.offsets)[e] = logf(factors[e]);
}
