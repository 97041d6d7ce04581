// route: scores, groups, the top_k best, their weights, in one launch where a token chooses without regard to others.
//
//   router_logits [T, E] f32, selection_bias [E] f32  ->  topk_ids [T, k] u32, topk_weights [T, k] f32
//
// Thread roles: a warp is a token, a lane every 32nd expert (any E, any k). The k best are found one after another: each
// lane knows the two best of its own, two reductions over integers find the best of those, and only a lane that has lost
// both looks again. Ids are unique and in range whatever the logits are: a NaN orders as -inf, and a picked expert leaves
// the choice.
//
// The common rules do this in registers, 640 instructions a token of 256 experts: common/route_lanes.cuh. With two levels
// of groups and experts: common/route_levels.cuh. With permute, in one launch or two, as a layer has it: route_permute.cu.
// With capacity, or where experts choose, what one token gets depends on the others: route_pick picks and says by what,
// route_capacity.cu or route_expert_choice.cu decides which slots there are, and route_weigh weighs those.
//
// Shared memory (dynamic), per warp: see common/route_rule.cuh.
#include "common/route_token.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

extern __shared__ __align__(16) uint32_t shared[];

__device__ __forceinline__ Token warps_token(const RouteParams& p) {
  const uint32_t token = blockIdx.x * (blockDim.x / 32) + warp_id();
  return Token(p, token, shared + warp_id() * token_words(p));
}

// By tokens, or, where experts choose, by experts, which then go through their tokens.
__device__ __forceinline__ void write_choice_keys(const Token& t) {
  const bool by_experts = t.p.selection == EXPERTS_SELECT;
  const uint64_t stride = by_experts ? t.p.num_tokens : 1;
  uint32_t* keys = at<uint32_t>(t.p.choice_keys) + t.token * (by_experts ? 1ull : t.p.num_choices);
  for (uint32_t e = lane_id(); e < t.p.num_choices; e += 32) keys[e * stride] = t.keys[e];
  __syncwarp();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) route(const __grid_constant__ RouteParams p) {
  ptx::follow_launches();
  const uint32_t token = blockIdx.x * (blockDim.x / 32) + warp_id();
  if (token < p.num_tokens) route_token(p, token, shared + warp_id() * token_words(p));
}

extern "C" __global__ void __launch_bounds__(128) route_pick(const __grid_constant__ RouteParams p) {
  Token t = warps_token(p);
  if (t.token >= p.num_tokens) return;
  const Softmax over_all = load(t);
  t.make_keys(over_all);
  write_choice_keys(t);
  t.pick();
  if (p.basis_ids != 0) write_ids(t, p.basis_ids);
  t.keep_at_random(over_all);
  for (uint32_t i = lane_id(); i < t.num_slots; i += 32) {
    const uint32_t id = t.ids[i];
    slots(t, p.picked_ids)[i] = id;
    // A slot without an expert comes last.
    slots(t, p.score_keys)[i] = id == MASKED ? 0 : order_key(t.score(t.logits[id], over_all));
  }
}

extern "C" __global__ void __launch_bounds__(128) route_weigh(const __grid_constant__ RouteParams p) {
  Token t = warps_token(p);
  if (t.token >= p.num_tokens) return;
  if (p.token_offsets != 0) {
    const uint32_t* offsets = at<const uint32_t>(p.token_offsets) + t.token;
    t.first_slot = offsets[0];
    t.num_slots = offsets[1] - offsets[0];
  }
  const Softmax over_all = load(t);
  for (uint32_t i = lane_id(); i < t.num_slots; i += 32) t.ids[i] = slots(t, p.topk_ids)[i];
  __syncwarp();
  weigh(t, over_all, p.basis_ids != 0 ? slots(t, p.basis_ids) : t.ids);
}

// Expert parallelism: ids become those of this rank; a slot whose expert is on another has no expert and no weight.
extern "C" __global__ void __launch_bounds__(256) route_map(const __grid_constant__ ExpertMapParams p) {
  const uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x;
  if (slot >= p.num_slots) return;
  uint32_t* id = at<uint32_t>(p.topk_ids) + slot;
  const uint32_t here = *id < p.num_choices ? p.ids[*id] : 0xffffu;
  *id = here == 0xffffu ? MASKED : here;
  if (here == 0xffffu) at<float>(p.topk_weights)[slot] = 0.f;
}
