// A router of two levels: the best groups, and in each its best experts. The logits are those of the groups, then those of
// the experts; an expert's weight is its group's probability times its own within the group.
#pragma once
#include "route_weigh.cuh"

// Of an expert or group without a logit, 0.
__device__ __forceinline__ float probability(const Softmax& over, float x) { return isnan(x) ? 0.f : over.of(x); }

__device__ __forceinline__ float group_logit(const Token& t, uint32_t group) {
  const uint64_t row = static_cast<uint64_t>(t.token) * (t.p.num_groups + t.p.num_choices);
  return t.transform(at<const float>(t.p.router_logits)[row + group]);
}

// Over `logit(0)..logit(count)`, NaN left out.
template <typename Logit>
__device__ __forceinline__ Softmax softmax_over(uint32_t count, Logit logit) {
  float top = -INFINITY, sum = 0.f;
  for (uint32_t i = lane_id(); i < count; i += 32) top = fmaxf(top, logit(i));
  top = warp_max(top);
  for (uint32_t i = lane_id(); i < count; i += 32) sum += isnan(logit(i)) ? 0.f : expf(logit(i) - top);
  return {top, 1.f / warp_sum(sum)};
}

// Leaves ids in `t.ids`, a group's together.
__device__ __forceinline__ void pick_by_level(Token& t) {
  const uint32_t size = t.p.num_choices / t.p.num_groups, per_group = t.p.top_k / t.p.topk_groups;
  for (uint32_t g = lane_id(); g < t.p.num_groups; g += 32) t.group_keys[g] = order_key(group_logit(t, g));
  __syncwarp();
  // A group stands where its first expert comes to stand.
  take_best_of(t.group_keys, t.p.num_groups, t.p.topk_groups, [&](uint32_t i, uint32_t group) {
    t.ids[i * per_group] = group;
  });
  for (uint32_t i = 0; i < t.p.top_k; i += per_group) {
    const uint32_t first = t.ids[i] * size;
    __syncwarp();
    take_best_of(t.keys + first, size, per_group, [&](uint32_t j, uint32_t expert) {
      t.ids[i + j] = expert == MASKED ? MASKED : first + expert;
    });
  }
}

// The weights of `t.ids`, in the memory of the keys, which are done with.
__device__ __forceinline__ float* weigh_by_level(Token& t) {
  const uint32_t size = t.p.num_choices / t.p.num_groups, per_group = t.p.top_k / t.p.topk_groups;
  float* weights = reinterpret_cast<float*>(t.keys);
  const Softmax over_groups = softmax_over(t.p.num_groups, [&](uint32_t g) { return group_logit(t, g); });
  float groups_sum = 0.f;
  for (uint32_t i = lane_id() * per_group; i < t.p.top_k; i += 32 * per_group) {
    groups_sum += probability(over_groups, group_logit(t, t.ids[i] / size));
  }
  groups_sum = t.p.renormalize_levels ? warp_sum(groups_sum) : 1.f;
  for (uint32_t i = 0; i < t.p.top_k; i += per_group) {
    const uint32_t group = t.ids[i] / size;
    const float* logits = t.logits + group * size;
    const Softmax within = softmax_over(size, [&](uint32_t e) { return logits[e]; });
    float sum = 0.f;
    for (uint32_t j = lane_id(); j < per_group; j += 32) sum += probability(within, t.logits[t.ids[i + j]]);
    sum = t.p.renormalize_levels ? warp_sum(sum) : 1.f;
    const float share = probability(over_groups, group_logit(t, group)) / groups_sum;
    for (uint32_t j = lane_id(); j < per_group; j += 32) {
      weights[i + j] = share * probability(within, t.logits[t.ids[i + j]]) / sum;
    }
  }
  __syncwarp();
  return weights;
}

// Writes ids and weights, the largest weight first.
__device__ __forceinline__ void route_by_level(Token& t) {
  pick_by_level(t);
  const float* weights = weigh_by_level(t);
  float by = 1.f;
  if (t.p.renormalize) {
    float sum = 0.f;
    for (uint32_t i = lane_id(); i < t.p.top_k; i += 32) sum += norm_term(t.p, weights[i]);
    by = denominator(t.p, warp_sum(sum));
  }
  uint32_t* topk_ids = at<uint32_t>(t.p.topk_ids) + static_cast<uint64_t>(t.token) * t.p.top_k;
  for (uint32_t i = lane_id(); i < t.p.top_k; i += 32) {
    const uint32_t mine = order_key(weights[i]);
    uint32_t place = 0;
    for (uint32_t j = 0; j < t.p.top_k; j++) {
      const uint32_t theirs = order_key(weights[j]);
      place += theirs > mine || (theirs == mine && t.ids[j] < t.ids[i]);
    }
    topk_ids[place] = t.ids[i];
    write_weight(t, place, weights[i] / by * t.p.scaling_factor);
  }
}
