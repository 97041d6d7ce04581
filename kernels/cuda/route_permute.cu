// route with permute, where each token is routed on its own.
//
//   router_logits [T, E] f32  ->  topk_ids, topk_weights [T, k], expert_offsets [E + 1], permuted_idx, inv_permuted_idx [S]
//
//   route_permute  few tokens: blocks route them, and the last that is done sorts all slots as permute_small does
//   route_count    many: a block routes a chunk of them, and counts how many slots each expert has of it; permute_place
//                  (permute.cu) is the second launch
//
// Which block is the last, a counter says (src/backend/cuda/tickets.rs). No block waits for another, so they need not be on
// the device at the same time. Up to 16 tokens are one block's, without a counter. A cluster of eight blocks would need none
// at all, but has eight multiprocessors: 256 tokens are 32 each, which is 32 · 640 / 4 = 5100 cycles of issuing instructions
// where two tokens on each of 128 take 2000; and sm_80 has no clusters.
//
// Thread roles: a warp is a token, and the next one so many on (route.cu); warps that route nothing wait for the permutation
// (permute.cu), where a warp is a part of the slots.
//
// Shared memory (dynamic): per routing warp as in common/route_rule.cuh; then route_permute, in the same memory, as
// permute_small; route_count beside it, counts [E] u32.
//
// Predicted for an H100 at 1.7 GHz, E = 256, k = 8, in cycles; nothing of it is measured:
//                                                                      T = 1       64      256
//   logits out of L2, two 16-byte loads a lane under way together        400      400      400
//   a token: 640 instructions of a warp alone on its scheduler          1600     1600     1600
//   counter: fence, atomic, barriers                                       0     1000     1000
//   ids out of L2 and counted: 1, 1, 2 steps of 32 slots a warp          350      350      450
//   scan: an expert's counters of 1, 16, 32 warps, twice                 250      450      700
//   rows given out: 1, 1, 2 steps                                        150      150      250
//   together                                                            2750     3950     4400
//   in µs                                                                1.6      2.3      2.6   and 2 to 2.5 for the launch
// T = 8192: route_count has 63 tokens on each multiprocessor, 63 · 640 instructions by four schedulers, 0.7 a cycle each:
// 14400 cycles, 8.5 µs (with DeepSeek-V3's groups and sigmoids 930 instructions, 12.3 µs). With permute_place's 2.9, two
// launches' 2.5 and 0.7 µs: 15 µs (18). Instructions are PTX's, as ptx-vm counts them; tests/cuda/routing.rs holds them.
#include "common/counting_sort.cuh"
#include "common/route_token.cuh"
#include "ptx/atomic.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

extern __shared__ __align__(16) uint32_t shared[];

// Routes the block's tokens, a warp each, and calls `see` with each one's ids.
template <typename See>
__device__ __forceinline__ void route_tokens(const RoutePermuteParams& p, See see) {
  if (warp_id() >= p.routing_warps) return;
  uint32_t* words = shared + warp_id() * token_words(p.route);
  const uint32_t first = blockIdx.x * p.tokens_per_block, end = min(first + p.tokens_per_block, p.route.num_tokens);
  for (uint32_t token = first + warp_id(); token < end; token += p.routing_warps) {
    see(route_token(p.route, token, words));
    __syncwarp();
  }
}

// Whether all other blocks are done; what they wrote can then be read. Every thread calls.
__device__ __forceinline__ bool is_last_block(uint64_t ticket) {
  bool is_last = true;
  __syncthreads();
  if (ticket != 0 && threadIdx.x == 0) {
    is_last = ptx::count_to(at<uint32_t>(ticket), gridDim.x - 1) == gridDim.x - 1;
  }
  return __syncthreads_and(is_last);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1024) route_permute(const __grid_constant__ RoutePermuteParams p) {
  ptx::follow_launches();
  route_tokens(p, [](const uint32_t*) {});
  if (is_last_block(p.ticket)) permute_block(p.permute, shared);
}

extern "C" __global__ void __launch_bounds__(1024) route_count(const __grid_constant__ RoutePermuteParams p) {
  ptx::follow_launches();
  uint32_t* slots = shared + p.routing_warps * token_words(p.route);
  for (uint32_t e = threadIdx.x; e < p.permute.num_experts; e += blockDim.x) slots[e] = 0;
  __syncthreads();
  route_tokens(p, [&](const uint32_t* ids) {
    for (uint32_t i = lane_id(); i < p.route.top_k; i += 32) {
      if (ids[i] < p.permute.num_experts) atomicAdd(slots + ids[i], 1);
    }
  });
  __syncthreads();
  write_chunk_slots(p.permute, blockIdx.x, slots);
}
