// What the kernels of permute share: see permute.cu.
#pragma once
#include "block.cuh"
#include "params.cuh"

// Calls `place(slot, row)` for each slot of a chunk, row MASKED where the slot has no expert; `counters` are this warp's.
template <typename Place>
__device__ __forceinline__ void walk_chunk(const PermuteParams& p, uint32_t chunk, uint32_t* counters, Place place) {
  const uint32_t lane = lane_id(), lanes_before = (1u << lane) - 1;
  const uint32_t first = chunk * p.slots_per_chunk;
  for (uint32_t start = first; start < first + p.slots_per_chunk && start < p.num_slots; start += 32) {
    const uint32_t slot = start + lane;
    uint32_t expert = slot < p.num_slots ? at<const uint32_t>(p.topk_ids)[slot] : MASKED;
    if (expert >= p.num_experts) expert = MASKED;
    const uint32_t peers = __match_any_sync(ALL_LANES, expert);
    const uint32_t rank = __popc(peers & lanes_before);
    uint32_t before = 0;
    if (expert != MASKED) before = counters[expert];
    if (slot < p.num_slots) place(slot, expert == MASKED ? MASKED : before + rank);
    __syncwarp();
    if (expert != MASKED && rank == 0) counters[expert] = before + __popc(peers);
    __syncwarp();
  }
}

__device__ __forceinline__ void count_chunk(const PermuteParams& p, uint32_t chunk, uint32_t* counters) {
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) counters[e] = 0;
  __syncwarp();
  walk_chunk(p, chunk, counters, [](uint32_t, uint32_t) {});
}

// Counts to rows, in place: 32 experts at a time, each warp its range of chunks.
__device__ void scan_chunks(const PermuteParams& p, uint32_t* chunk_rows, uint32_t* sums) {
  const uint32_t lane = lane_id(), warp = warp_id(), per_warp = (p.num_chunks + num_warps() - 1) / num_warps();
  const uint32_t begin = warp * per_warp, end = min(begin + per_warp, p.num_chunks);
  uint32_t* expert_offsets = at<uint32_t>(p.expert_offsets);
  uint32_t rows_before = 0;
  for (uint32_t first = 0; first < p.num_experts; first += 32) {
    const uint32_t e = first + lane;
    const bool is_expert = e < p.num_experts;
    uint32_t mine = 0;
    for (uint32_t c = begin; is_expert && c < end; c++) mine += chunk_rows[c * p.num_experts + e];
    sums[warp * 32 + lane] = mine;
    __syncthreads();
    uint32_t before = 0, total = 0;
    for (uint32_t w = 0; w < num_warps(); w++) {
      const uint32_t sum = sums[w * 32 + lane];
      before += w < warp ? sum : 0;
      total += sum;
    }
    const uint32_t inclusive = warp_inclusive_sum(total);
    const uint32_t start = rows_before + inclusive - total;
    if (is_expert && warp == 0) expert_offsets[e] = start;
    uint32_t row = start + before;
    for (uint32_t c = begin; is_expert && c < end; c++) {
      const uint32_t count = chunk_rows[c * p.num_experts + e];
      chunk_rows[c * p.num_experts + e] = row;
      row += count;
    }
    rows_before += __shfl_sync(ALL_LANES, inclusive, 31);
    __syncthreads();
  }
  if (threadIdx.x == 0) expert_offsets[p.num_experts] = rows_before;
  __syncthreads();
}

// `counters` hold the rows where this chunk's slots of each expert start.
__device__ __forceinline__ void place_chunk(const PermuteParams& p, uint32_t chunk, uint32_t* counters) {
  const uint32_t num_rows = at<const uint32_t>(p.expert_offsets)[p.num_experts];
  uint32_t* permuted_idx = at<uint32_t>(p.permuted_idx);
  uint32_t* inv_permuted_idx = at<uint32_t>(p.inv_permuted_idx);
  walk_chunk(p, chunk, counters, [&](uint32_t slot, uint32_t row) {
    inv_permuted_idx[slot] = row;
    if (row != MASKED) permuted_idx[row] = slot;
    // What no row takes, at the end.
    if (slot >= num_rows) permuted_idx[slot] = MASKED;
  });
}

// All of it in one block with at least a warp per chunk; `shared` is [warps][E] and [warps][32] words.
__device__ __forceinline__ void permute_block(const PermuteParams& p, uint32_t* shared) {
  uint32_t* counters = shared + warp_id() * p.num_experts;
  count_chunk(p, warp_id(), counters);
  __syncthreads();
  scan_chunks(p, shared, shared + num_warps() * p.num_experts);
  place_chunk(p, warp_id(), counters);
}
