// route and permute of few tokens in one launch: one block routes them, and then sorts their slots by expert.
//
//   router_logits [T, E] f32  ->  topk_ids, topk_weights [T, k], expert_offsets [E + 1], permuted_idx, inv_permuted_idx [S]
//
// Thread roles: a warp is a token, and the next one so many on (route.cu); then a warp is a chunk of slots (permute.cu).
//
// Shared memory (dynamic): per warp what either needs, one after the other: see common/route_rule.cuh and permute.cu.
#include "common/counting_sort.cuh"
#include "common/route_token.cuh"
#include "ptx/grid_dependency.cuh"

extern __shared__ uint32_t shared[];

extern "C" __global__ void __launch_bounds__(1024) route_permute(const __grid_constant__ RoutePermuteParams p) {
  ptx::follow_launches();
  uint32_t* words = shared + warp_id() * token_words(p.route);
  for (uint32_t token = warp_id(); token < p.route.num_tokens; token += num_warps()) {
    route_token(p.route, token, words);
    __syncwarp();
  }
  __syncthreads();
  permute_block(p.permute, shared);
}
