// Stable counting sort of slots by expert: one block of 8 warps, each warp ranks its own range.
#include "ptx.cuh"

template <int E>
__global__ void __launch_bounds__(256)
    permute_scan(const int* __restrict__ topk_ids, int num_slots, int* __restrict__ expert_offsets,
                 int* __restrict__ inv_permuted_idx, int* __restrict__ permuted_idx) {
  static_assert(E <= 256, "one thread scans one expert");
  constexpr int WARPS = 8;
  __shared__ int hist[WARPS * E];
  __shared__ int warp_sum[WARPS];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  for (int i = tid; i < WARPS * E; i += 256) hist[i] = 0;
  __syncthreads();

  // How many slots each warp has for each expert: the first of a group of equal ids adds.
  const int per_warp = ((num_slots + WARPS - 1) / WARPS + 31) / 32 * 32;
  const int begin = warp * per_warp, end = min(num_slots, begin + per_warp);
  for (int base = begin; base < end; base += 32) {
    int slot = base + lane;
    bool valid = slot < end;
    int id = valid ? topk_ids[slot] : -1 - lane;
    unsigned same = __match_any_sync(0xffffffffu, id);
    if (valid && (same & ptx::lanemask_lt()) == 0) hist[warp * E + id] += __popc(same);
    __syncwarp();  // pass 1
  }
  __syncthreads();  // counts

  // Exclusive scan over the experts, then over the warps of each expert.
  int total = 0;
  if (tid < E) {
    for (int w = 0; w < WARPS; w++) total += hist[w * E + tid];
  }
  int scan = total;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    int below = __shfl_up_sync(0xffffffffu, scan, offset);
    if (lane >= offset) scan += below;
  }
  if (lane == 31) warp_sum[warp] = scan;
  __syncthreads();
  int start = scan - total;
  for (int w = 0; w < warp; w++) start += warp_sum[w];
  if (tid < E) {
    expert_offsets[tid] = start;
    if (tid == E - 1) expert_offsets[E] = start + total;
    for (int w = 0, row = start; w < WARPS; w++) {
      int count = hist[w * E + tid];
      hist[w * E + tid] = row;
      row += count;
    }
  }
  __syncthreads();  // starts

  for (int base = begin; base < end; base += 32) {
    int slot = base + lane;
    bool valid = slot < end;
    int id = valid ? topk_ids[slot] : -1 - lane;
    unsigned same = __match_any_sync(0xffffffffu, id);
    int row = valid ? hist[warp * E + id] + __popc(same & ptx::lanemask_lt()) : 0;
    __syncwarp();  // pass 2, all have read
    if (valid) {
      inv_permuted_idx[slot] = row;
      permuted_idx[row] = slot;
      if ((same & ptx::lanemask_lt()) == 0) hist[warp * E + id] += __popc(same);
    }
    __syncwarp();
  }
}

template __global__ void permute_scan<64>(const int*, int, int*, int*, int*);
