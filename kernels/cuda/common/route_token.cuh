// One token's routing from end to end, where it does not depend on other tokens; a warp works on it.
#pragma once
#include "route_lanes.cuh"
#include "route_levels.cuh"

// Words of shared memory that a warp needs, a multiple of 16 bytes: see route_rule.cuh.
__device__ __forceinline__ uint32_t token_words(const RouteParams& p) {
  return (2 * p.num_choices + p.max_slots + p.num_groups + 3) & ~3u;
}

__device__ __forceinline__ Softmax load(Token& t) {
  t.load_logits();
  return t.p.score == SCORE_SOFTMAX ? t.softmax_over_all() : Softmax{0.f, 1.f};
}

// The token's part of a tensor over all slots.
__device__ __forceinline__ uint32_t* slots(const Token& t, uint64_t tensor) {
  return at<uint32_t>(tensor) + t.first_slot;
}

__device__ __forceinline__ void write_ids(const Token& t, uint64_t tensor) {
  for (uint32_t i = lane_id(); i < t.num_slots; i += 32) slots(t, tensor)[i] = t.ids[i];
}

__device__ __forceinline__ Softmax pick_by_any_rule(Token& t) {
  const Softmax over_all = load(t);
  t.make_keys(over_all);
  t.pick();
  t.keep_at_random(over_all);
  return over_all;
}

// Writes the token's ids and weights; `words` are the warp's. Returns the ids, in that memory and in any order.
__device__ __forceinline__ const uint32_t* route_token(const RouteParams& p, uint32_t token, uint32_t* words) {
  Token t(p, token, words);
  if (p.selection == SELECT_LEVELS) {
    t.make_keys(load(t));
    route_by_level(t);
    return t.ids;
  }
  const Softmax over_all = p.in_lanes ? pick_in_lanes(t) : pick_by_any_rule(t);
  write_ids(t, p.topk_ids);
  weigh(t, over_all, t.ids);
  return t.ids;
}
