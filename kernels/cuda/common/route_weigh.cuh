// From the experts picked for a token to their weights. `basis` are the experts over which weights are made comparable:
// those kept, or all that were picked.
#pragma once
#include "route_rule.cuh"

// Whether an expert takes part in a softmax over the selected.
__device__ __forceinline__ bool has_logit(const Token& t, uint32_t id) { return id != MASKED && !isnan(t.logits[id]); }

__device__ __forceinline__ Softmax softmax_over_selected(const Token& t, const uint32_t* basis) {
  float top = -INFINITY;
  for (uint32_t i = lane_id(); i < t.num_slots; i += 32) {
    if (has_logit(t, basis[i])) top = fmaxf(top, t.logits[basis[i]]);
  }
  top = warp_max(top);
  float sum = 0.f;
  for (uint32_t i = lane_id(); i < t.num_slots; i += 32) {
    if (has_logit(t, basis[i])) sum += expf(t.logits[basis[i]] - top);
  }
  return {top, 1.f / warp_sum(sum)};
}

// Before renormalisation; `over` is the softmax that the rule's weight reads.
__device__ __forceinline__ float raw_weight(const Token& t, uint32_t id, const Softmax& over) {
  const float x = t.logits[id];
  switch (t.p.weight) {
    case WEIGHT_SCORE: return t.score(x, over);
    case WEIGHT_ONE: return 1.f;
    case WEIGHT_SIGMOID: return isnan(x) ? 0.f : sigmoid(x);
    default: return isnan(x) ? 0.f : over.of(x);
  }
}

// Sparsemixer: an expert's share of the softmax over the logits near its own; `without` is out of it.
__device__ __forceinline__ float sparse_mixer(const Token& t, uint32_t expert, uint32_t without) {
  const float top = t.logits[expert];
  float sum = 0.f;
  for (uint32_t e = lane_id(); e < t.p.num_choices; e += 32) {
    const float x = t.logits[e];
    const bool near = !isnan(x) && (top - x) / fmaxf(fabsf(x), top) <= 2.f * t.p.jitter;
    if (e == expert || (near && e != without)) sum += expf(x - top);
  }
  return 1.f / warp_sum(sum);
}

// What a weight adds to the sum that weights are divided by.
__device__ __forceinline__ float norm_term(const RouteParams& p, float w) {
  return p.renormalize_p == 1.f ? w : powf(fabsf(w), p.renormalize_p);
}

__device__ __forceinline__ float denominator(const RouteParams& p, float sum) {
  const float norm = p.renormalize_p == 1.f ? sum : powf(sum, 1.f / p.renormalize_p);
  return fmaxf(norm + p.renormalize_add, p.renormalize_min);
}

__device__ __forceinline__ void write_weight(const Token& t, uint32_t i, float w) {
  const bool finite = (__float_as_uint(w) & 0x7f800000u) != 0x7f800000u;
  at<float>(t.p.topk_weights)[t.first_slot + i] = finite ? w : 0.f;
}

__device__ __forceinline__ void weigh_sparse_mixer(const Token& t) {
  const float first = sparse_mixer(t, t.ids[0], MASKED), second = sparse_mixer(t, t.ids[1], t.ids[0]);
  const float by = t.p.renormalize ? denominator(t.p, norm_term(t.p, first) + norm_term(t.p, second)) : 1.f;
  if (lane_id() == 0) write_weight(t, 0, first / by * t.p.scaling_factor);
  if (lane_id() == 1) write_weight(t, 1, second / by * t.p.scaling_factor);
}

// Writes the weights of `t.ids`.
__device__ __forceinline__ void weigh(const Token& t, const Softmax& over_all, const uint32_t* basis) {
  if (t.p.selection == SELECT_SPARSE_MIXER) return weigh_sparse_mixer(t);
  const Softmax over = t.p.weight == WEIGHT_SOFTMAX_OVER_SELECTED ? softmax_over_selected(t, basis) : over_all;
  float by = 1.f;
  if (t.p.renormalize) {
    float sum = 0.f;
    for (uint32_t i = lane_id(); i < t.num_slots; i += 32) {
      if (basis[i] != MASKED) sum += norm_term(t.p, raw_weight(t, basis[i], over));
    }
    by = denominator(t.p, warp_sum(sum));
  }
  for (uint32_t i = lane_id(); i < t.num_slots; i += 32) {
    const uint32_t id = t.ids[i];
    write_weight(t, i, id == MASKED ? 0.f : raw_weight(t, id, over) / by * t.p.scaling_factor);
  }
}
