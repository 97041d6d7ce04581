// Top-k of E logits by one warp per token, softmax over the chosen; ties go to the lower index. Also
// counts how often each expert is chosen, per block in shared memory first.
#include "ptx.cuh"

template <int E, int K>
__global__ void __launch_bounds__(128)
    topk_gate(const float* __restrict__ logits, int num_tokens, int* __restrict__ topk_ids,
              float* __restrict__ topk_weights, int* counts) {
  constexpr int PER_LANE = (E + 31) / 32;
  __shared__ int hist[E];
  for (int e = threadIdx.x; e < E; e += blockDim.x) hist[e] = 0;
  __syncthreads();

  const int lane = threadIdx.x & 31;
  const int token = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (token < num_tokens) {
    float v[PER_LANE];
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
      int e = j * 32 + lane;
      v[j] = e < E ? logits[(size_t)token * E + e] : -INFINITY;
    }
    float top = 0.f, sum = 0.f, my_weight = 0.f;
    int my_id = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
      float best = -INFINITY;
      int id = E;
#pragma unroll
      for (int j = 0; j < PER_LANE; j++) {
        if (v[j] > best) {
          best = v[j];
          id = j * 32 + lane;
        }
      }
#pragma unroll
      for (int offset = 16; offset; offset >>= 1) {
        float other = __shfl_xor_sync(0xffffffffu, best, offset);
        int other_id = __shfl_xor_sync(0xffffffffu, id, offset);
        if (other > best || (other == best && other_id < id)) {
          best = other;
          id = other_id;
        }
      }
      if (k == 0) top = best;
      float p = __expf(best - top);
      sum += p;
      if (lane == k) {
        my_weight = p;
        my_id = id;
      }
#pragma unroll
      for (int j = 0; j < PER_LANE; j++) {
        if (j * 32 + lane == id) v[j] = -INFINITY;
      }
    }
    if (lane < K) {
      topk_ids[token * K + lane] = my_id;
      topk_weights[token * K + lane] = __fdividef(my_weight, sum);
      atomicAdd(&hist[my_id], 1);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += blockDim.x) {
    if (hist[e]) atomicAdd(&counts[e], hist[e]);
  }
}

template __global__ void topk_gate<64, 4>(const float*, int, int*, float*, int*);
