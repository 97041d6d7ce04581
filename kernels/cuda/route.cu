// route: scores, groups, the top_k best, their weights, in one launch where a token chooses without regard to others.
//
//   router_logits [T, E] f32, selection_bias [E] f32  ->  topk_ids [T, k] u32, topk_weights [T, k] f32
//
// Thread roles: a warp is a token, a lane every 32nd expert (any E, any k). The k best are found one after another: each
// lane knows the best of its own, two reductions over integers find the best of those, and only its owner looks again.
// Ids are unique and in range whatever the logits are: a NaN orders as -inf, and a picked expert leaves the choice.
//
// With two levels of groups and experts: common/route_levels.cuh.
// With capacity, what one token gets depends on the others: route_pick picks and says by what, route_capacity.cu decides
// which slots are kept, and route_weigh weighs those.
//
// Shared memory (dynamic), per warp: see common/route_rule.cuh.
#include "common/route_levels.cuh"

namespace {

extern __shared__ uint32_t shared[];

__device__ __forceinline__ Token warps_token(const RouteParams& p) {
  const uint32_t token = blockIdx.x * (blockDim.x / 32) + warp_id();
  return Token(p, token, shared + warp_id() * (2 * p.num_choices + p.top_k + p.num_groups));
}

__device__ __forceinline__ Softmax load(Token& t) {
  t.load_logits();
  return t.p.score == SCORE_SOFTMAX ? t.softmax_over_all() : Softmax{0.f, 1.f};
}

// The token's row of a [T, k] tensor.
__device__ __forceinline__ uint32_t* slots(const Token& t, uint64_t tensor) {
  return at<uint32_t>(tensor) + static_cast<uint64_t>(t.token) * t.p.top_k;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) route(const __grid_constant__ RouteParams p) {
  Token t = warps_token(p);
  if (t.token >= p.num_tokens) return;
  const Softmax over_all = load(t);
  t.make_keys(over_all);
  if (p.selection == SELECT_LEVELS) return route_by_level(t);
  t.pick(over_all);
  for (uint32_t i = lane_id(); i < p.top_k; i += 32) slots(t, p.topk_ids)[i] = t.ids[i];
  weigh(t, over_all, t.ids);
}

extern "C" __global__ void __launch_bounds__(128) route_pick(const __grid_constant__ RouteParams p) {
  Token t = warps_token(p);
  if (t.token >= p.num_tokens) return;
  const Softmax over_all = load(t);
  t.make_keys(over_all);
  uint32_t* choice_keys = at<uint32_t>(p.choice_keys) + static_cast<uint64_t>(t.token) * p.num_choices;
  for (uint32_t e = lane_id(); e < p.num_choices; e += 32) choice_keys[e] = t.keys[e];
  __syncwarp();
  t.pick(over_all);
  for (uint32_t i = lane_id(); i < p.top_k; i += 32) {
    const uint32_t id = t.ids[i];
    slots(t, p.picked_ids)[i] = id;
    // A slot without an expert comes last.
    slots(t, p.score_keys)[i] = id == MASKED ? 0 : order_key(t.score(t.logits[id], over_all));
  }
}

extern "C" __global__ void __launch_bounds__(128) route_weigh(const __grid_constant__ RouteParams p) {
  Token t = warps_token(p);
  if (t.token >= p.num_tokens) return;
  const Softmax over_all = load(t);
  for (uint32_t i = lane_id(); i < p.top_k; i += 32) t.ids[i] = slots(t, p.topk_ids)[i];
  __syncwarp();
  weigh(t, over_all, p.picked_ids != 0 ? slots(t, p.picked_ids) : t.ids);
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
