// Sums over the threads of a block, whole warps of them, in the same order every time. Every thread calls; `words` is
// shared memory of a word per warp, free again when a function returns.
#pragma once
#include "warp.cuh"

__device__ __forceinline__ uint32_t num_warps() { return blockDim.x / 32; }

__device__ __forceinline__ float block_sum(float x, float* words) {
  x = warp_sum(x);
  if (lane_id() == 0) words[warp_id()] = x;
  __syncthreads();
  float sum = 0.f;
  for (uint32_t w = 0; w < num_warps(); w++) sum += words[w];
  __syncthreads();
  return sum;
}

// A sum over the threads up to and including this one, and over all.
struct InclusiveSum {
  uint32_t mine;
  uint32_t all;
};

__device__ __forceinline__ InclusiveSum block_inclusive_sum(uint32_t x, uint32_t* words) {
  const uint32_t mine = warp_inclusive_sum(x);
  if (lane_id() == 31) words[warp_id()] = mine;
  __syncthreads();
  // Every warp adds up all warps' sums, a lane each.
  const uint32_t warps = warp_inclusive_sum(lane_id() < num_warps() ? words[lane_id()] : 0);
  __syncthreads();
  const uint32_t before = __shfl_sync(ALL_LANES, warps, max(warp_id(), 1u) - 1);
  return {mine + (warp_id() == 0 ? 0 : before), __shfl_sync(ALL_LANES, warps, 31)};
}
