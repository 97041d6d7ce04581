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
  InclusiveSum sum = {warp_inclusive_sum(x), 0};
  if (lane_id() == 31) words[warp_id()] = sum.mine;
  __syncthreads();
  uint32_t before = 0;
  for (uint32_t w = 0; w < num_warps(); w++) {
    if (w == warp_id()) before = sum.all;
    sum.all += words[w];
  }
  __syncthreads();
  sum.mine += before;
  return sum;
}
