// route by expert choice, after route_pick has said what tokens are taken by: each expert takes its best tokens, ties to
// the lowest; then the slots are put in the order of tokens, a token's in that of experts.
//
//   choice_keys [E, T] u32  ->  token_offsets [T + 1], topk_ids [S], slot_tokens [S] u32
//
//   choice_thresholds  finds what an expert takes: all above a key, and of those with that very key the first so many
//   choice_count       counts each token's slots                                          -> token_offsets
//   choice_scan        turns counts into offsets, in place
//   choice_place       writes each token's slots
//
// Thread roles: choice_thresholds: a block is an expert, its threads tokens: every blockDim.x-th while the key is found, two
// bits at a time, so that loads are side by side; then neighbours, as ties go by their order. choice_scan: one block, a
// thread has neighbours. choice_count, choice_place: a thread is a token, and goes through the experts.
//
// Shared memory: choice_thresholds, counts of the warps [2][3][32] u32, of one step and of the next.
#include "common/block.cuh"
#include "common/params.cuh"

namespace {

// What an expert takes: keys above `key`, and those equal to it of tokens before `end`.
struct Threshold {
  uint32_t key;
  uint32_t end;

  __device__ __forceinline__ bool takes(uint32_t token_key, uint32_t token) const {
    return token_key > key || (token_key == key && token < end);
  }
};

__device__ __forceinline__ uint32_t* expert_keys(const ExpertChoiceParams& p, uint32_t expert) {
  return at<uint32_t>(p.choice_keys) + static_cast<uint64_t>(expert) * p.num_tokens;
}

__device__ __forceinline__ Threshold threshold(const ExpertChoiceParams& p, uint32_t expert) {
  const uint32_t* words = at<const uint32_t>(p.thresholds) + 2 * expert;
  return {words[0], words[1]};
}

// The largest key that enough tokens reach.
__device__ __forceinline__ uint32_t find_key(const ExpertChoiceParams& p, const uint32_t* keys, uint32_t* words) {
  uint32_t key = 0;
  for (int shift = 30; shift >= 0; shift -= 2) {
    uint32_t counts[3] = {};
#pragma unroll 4
    for (uint32_t token = threadIdx.x; token < p.num_tokens; token += blockDim.x) {
      const uint32_t mine = keys[token];
#pragma unroll
      for (uint32_t i = 0; i < 3; i++) counts[i] += mine >= (key | (i + 1) << shift);
    }
    // The next step writes the other half, and is past its barrier only when all have read this one.
    uint32_t* sums = words + shift / 2 % 2 * 96;
#pragma unroll
    for (uint32_t i = 0; i < 3; i++) {
      const uint32_t sum = __reduce_add_sync(ALL_LANES, counts[i]);
      if (lane_id() == 0) sums[i * 32 + warp_id()] = sum;
    }
    __syncthreads();
    uint32_t digit = 0;
#pragma unroll
    for (uint32_t i = 0; i < 3; i++) {
      const uint32_t sum = lane_id() < num_warps() ? sums[i * 32 + lane_id()] : 0;
      // The larger the digit, the fewer reach it.
      digit += __reduce_add_sync(ALL_LANES, sum) >= p.tokens_per_expert;
    }
    key |= digit << shift;
  }
  __syncthreads();
  return key;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024) choice_thresholds(const __grid_constant__ ExpertChoiceParams p) {
  __shared__ uint32_t words[192];
  const uint32_t* keys = expert_keys(p, blockIdx.x);
  uint32_t* out = at<uint32_t>(p.thresholds) + 2 * blockIdx.x;
  const uint32_t key = find_key(p, keys, words);
  // No key is the largest number, and 0 is that of a disabled expert.
  if (p.tokens_per_expert == 0 || key == 0) {
    if (threadIdx.x == 0) out[0] = 0xffffffffu, out[1] = 0;
    return;
  }
  const uint32_t first = min(threadIdx.x * p.tokens_per_thread, p.num_tokens);
  const uint32_t end = min(first + p.tokens_per_thread, p.num_tokens);
  uint32_t above = 0, same = 0;
  for (uint32_t token = first; token < end; token++) {
    above += keys[token] > key;
    same += keys[token] == key;
  }
  const uint32_t left = p.tokens_per_expert - block_inclusive_sum(above, words).all;
  const uint32_t reached = block_inclusive_sum(same, words).mine;
  if (reached < left || reached - same >= left) return;
  // The last one taken is among this thread's.
  uint32_t seen = reached - same, token = first;
  for (; token < end; token++) {
    seen += keys[token] == key;
    if (seen == left) break;
  }
  out[0] = key;
  out[1] = token + 1;
}

extern "C" __global__ void __launch_bounds__(128) choice_count(const __grid_constant__ ExpertChoiceParams p) {
  const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= p.num_tokens) return;
  uint32_t count = 0;
#pragma unroll 4
  for (uint32_t e = 0; e < p.num_choices; e++) count += threshold(p, e).takes(expert_keys(p, e)[token], token);
  at<uint32_t>(p.token_offsets)[token] = count;
}

extern "C" __global__ void __launch_bounds__(1024) choice_scan(const __grid_constant__ ExpertChoiceParams p) {
  __shared__ uint32_t words[32];
  uint32_t* offsets = at<uint32_t>(p.token_offsets);
  const uint32_t first = min(threadIdx.x * p.tokens_per_thread, p.num_tokens);
  const uint32_t end = min(first + p.tokens_per_thread, p.num_tokens);
  uint32_t mine = 0;
  for (uint32_t token = first; token < end; token++) mine += offsets[token];
  const InclusiveSum sum = block_inclusive_sum(mine, words);
  uint32_t slot = sum.mine - mine;
  for (uint32_t token = first; token < end; token++) {
    const uint32_t count = offsets[token];
    offsets[token] = slot;
    slot += count;
  }
  if (threadIdx.x == 0) offsets[p.num_tokens] = sum.all;
}

extern "C" __global__ void __launch_bounds__(128) choice_place(const __grid_constant__ ExpertChoiceParams p) {
  const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= p.num_tokens) return;
  uint32_t slot = at<const uint32_t>(p.token_offsets)[token];
#pragma unroll 4
  for (uint32_t e = 0; e < p.num_choices; e++) {
    if (!threshold(p, e).takes(expert_keys(p, e)[token], token)) continue;
    at<uint32_t>(p.topk_ids)[slot] = e;
    at<uint32_t>(p.slot_tokens)[slot] = token;
    slot++;
  }
}
