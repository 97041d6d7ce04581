// permute: a stable counting sort of slots by expert. No atomics: order and result are the same in every run.
//
//   topk_ids [S] u32  ->  expert_offsets [E + 1], permuted_idx [S] (row -> slot), inv_permuted_idx [S] (slot -> row)
//
// Slots are cut into chunks of consecutive slots, one warp each, 32 slots at a time:
//   permute_count  each warp counts its chunk's slots per expert                       -> chunk_rows [chunks, E]
//   permute_scan   one block turns counts into the row where each (expert, chunk) starts, and into expert_offsets
//   permute_place  each warp goes through its chunk again and gives out the rows
//   permute_small  all three in one block, for few slots
//
// Thread roles: a lane is a slot. Lanes with the same expert find each other by match.any; the first of them moves the
// warp's counter of that expert on by their number. In the scan a lane is an expert and a warp a range of chunks.
//
// Shared memory (dynamic): counters [warps][E] u32, and in scan and small then sums [warps][32] u32.
#include "common/counting_sort.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

extern __shared__ uint32_t shared[];

}  // namespace

extern "C" __global__ void __launch_bounds__(1024) permute_small(const __grid_constant__ PermuteParams p) {
  ptx::follow_launches();
  permute_block(p, shared);
}

extern "C" __global__ void __launch_bounds__(256) permute_count(const __grid_constant__ PermuteParams p) {
  const uint32_t chunk = blockIdx.x * num_warps() + warp_id();
  if (chunk >= p.num_chunks) return;
  uint32_t* counters = shared + warp_id() * p.num_experts;
  count_chunk(p, chunk, counters);
  uint32_t* counts = at<uint32_t>(p.chunk_rows) + static_cast<uint64_t>(chunk) * p.num_experts;
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) counts[e] = counters[e];
}

extern "C" __global__ void __launch_bounds__(1024) permute_scan(const __grid_constant__ PermuteParams p) {
  scan_chunks(p, at<uint32_t>(p.chunk_rows), shared);
}

extern "C" __global__ void __launch_bounds__(256) permute_place(const __grid_constant__ PermuteParams p) {
  const uint32_t chunk = blockIdx.x * num_warps() + warp_id();
  if (chunk >= p.num_chunks) return;
  uint32_t* counters = shared + warp_id() * p.num_experts;
  const uint32_t* rows = at<const uint32_t>(p.chunk_rows) + static_cast<uint64_t>(chunk) * p.num_experts;
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) counters[e] = rows[e];
  __syncwarp();
  place_chunk(p, chunk, counters);
}
