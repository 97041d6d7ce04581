// permute: a stable counting sort of slots by expert. No atomics decide an order: order and result are the same in every run.
//
//   topk_ids [S] u32  ->  expert_offsets [E + 1], permuted_idx [S] (row -> slot), inv_permuted_idx [S] (slot -> row)
//
// One block sorts a chunk of consecutive slots; within, a warp has consecutive slots, 32 at a time:
//   permute_small  one chunk is all slots
//   permute_count  how many of a chunk's slots each expert has, a block per chunk          -> chunk_slots [chunks, E]
//   permute_place  each block adds up what its experts have in all chunks and in those before its own, and sorts its chunk
// Where tokens are routed on their own, route_count (route_permute.cu) takes the place of permute_count. Adding up in each
// block reads chunks · E counts from L2 for each chunk, and saves a launch of one block in between.
//
// Thread roles: a lane is a slot. Lanes with the same expert find each other by match.any; the first of them moves the
// warp's counter of that expert on by their number. Between counting and placing a thread is an expert.
//
// Predicted for permute_place on an H100 at 1.7 GHz, T = 8192, E = 256, k = 8, nothing of it measured: 131 blocks read 131 · 256
// counts of 16 bits each, 8.8 MB out of L2 at 5.5 TB/s: 1.6 µs; a step of counting 350 cycles, the scan of 16 warps' counters
// 450, a step of placing 150, first loads and barriers 1200: 1.3 µs. Together 2.9 µs.
//
// Shared memory (dynamic), in words: count [E]; small [warps] + [warps that have slots][E]; place the same and then [2][E].
#include "common/counting_sort.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

extern __shared__ uint32_t shared[];

// Of each expert, the slots in the chunks before this block's and in all; as many threads an expert as there are.
__device__ __forceinline__ void add_up_chunks(const PermuteParams& p, uint32_t* before, uint32_t* all) {
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) before[e] = all[e] = 0;
  __syncthreads();
  const uint32_t experts = min((p.num_experts + 31) / 32 * 32, blockDim.x), parts = blockDim.x / experts;
  const uint32_t part = threadIdx.x / experts;
  const uint16_t* chunk_slots = at<const uint16_t>(p.chunk_slots);
  for (uint32_t e = threadIdx.x % experts; part < parts && e < p.num_experts; e += experts) {
    uint32_t mine = 0, others = 0;
#pragma unroll 16
    for (uint32_t chunk = part; chunk < gridDim.x; chunk += parts) {
      const uint32_t slots = chunk_slots[static_cast<uint64_t>(chunk) * p.num_experts + e];
      mine += chunk < blockIdx.x ? slots : 0;
      others += slots;
    }
    atomicAdd(before + e, mine);
    atomicAdd(all + e, others);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024) permute_small(const __grid_constant__ PermuteParams p) {
  ptx::follow_launches();
  permute_block(p, shared);
}

extern "C" __global__ void __launch_bounds__(1024) permute_count(const __grid_constant__ PermuteParams p) {
  ptx::follow_launches();
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) shared[e] = 0;
  __syncthreads();
  const Slots chunk = chunk_of(p, blockIdx.x);
  for (uint32_t slot = chunk.begin + threadIdx.x; slot < chunk.end; slot += blockDim.x) {
    const uint32_t expert = expert_of(p, chunk, slot);
    if (expert != MASKED) atomicAdd(shared + expert, 1);
  }
  __syncthreads();
  write_chunk_slots(p, blockIdx.x, shared);
}

extern "C" __global__ void __launch_bounds__(1024) permute_place(const __grid_constant__ PermuteParams p) {
  ptx::follow_launches();
  uint32_t* counters = shared + num_warps();
  uint32_t* before = counters + warps_of_chunk(p) * p.num_experts;
  uint32_t* all = before + p.num_experts;
  // In place before the barrier behind counting.
  add_up_chunks(p, before, all);
  const auto slots_of = [&](uint32_t e) { return ExpertSlots{before[e], all[e]}; };
  sort_chunk(p, blockIdx.x, counters, shared, blockIdx.x == 0, slots_of);
}
