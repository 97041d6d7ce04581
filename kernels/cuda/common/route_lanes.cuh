// The common rules over up to 256 experts, from the logits to the ids picked, in registers: a lane has eight neighbouring
// experts, and a group of experts is a number of lanes. route_rule.cuh has every rule, and what both share; the host says
// by `in_lanes` which it is.
#pragma once
#include "route_rule.cuh"

constexpr uint32_t PER_LANE = 8;

// What a lane has of a token.
struct Lane {
  const Token& t;
  // Its first expert.
  uint32_t first;
  // NaN past the last expert.
  float x[PER_LANE];
  uint32_t keys[PER_LANE];

  __device__ __forceinline__ explicit Lane(const Token& token) : t(token), first(lane_id() * PER_LANE) {}

  __device__ __forceinline__ bool has(uint32_t i) const { return first + i < t.p.num_choices; }

  // This lane's part of a row of E floats; `other` past the last expert.
  __device__ __forceinline__ void read(const float* row, float (&values)[PER_LANE], float other) const {
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) values[i] = other;
    const uint64_t bits = reinterpret_cast<uint64_t>(row) | t.p.num_choices * sizeof(float);
    if (bits % (PER_LANE * sizeof(float)) == 0) {
      if (!has(0)) return;
      const float4* pair = reinterpret_cast<const float4*>(row + first);
      const float4 low = pair[0], high = pair[1];
      values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
      values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
      return;
    }
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) {
      if (has(i)) values[i] = row[first + i];
    }
  }

  // To registers, and to shared memory, where weights look for the picked ones' behind `pick`. What is past the last expert
  // has the lowest key and the highest ids, and is never picked.
  __device__ __forceinline__ void load_logits() {
    const uint64_t start = static_cast<uint64_t>(t.token) * t.p.num_choices;
    read(at<const float>(t.p.router_logits) + start, x, __int_as_float(0x7fc00000));
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) x[i] = t.clip(x[i]);
    if (has(PER_LANE - 1)) {
      float4* pair = reinterpret_cast<float4*>(t.logits + first);
      pair[0] = make_float4(x[0], x[1], x[2], x[3]);
      pair[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < PER_LANE; i++) {
        if (has(i)) t.logits[first + i] = x[i];
      }
    }
  }

  __device__ __forceinline__ Softmax softmax() const {
    float top = x[0], sum = 0.f;
#pragma unroll
    for (uint32_t i = 1; i < PER_LANE; i++) top = fmaxf(top, x[i]);
    // As integers, of which a warp finds the largest in one instruction; a NaN is at -inf here and below, and adds nothing.
    top = of_order_key(__reduce_max_sync(ALL_LANES, order_key(top)));
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) sum += expf(fmaxf(x[i], -INFINITY) - top);
    return {top, 1.f / warp_sum(sum)};
  }

  __device__ __forceinline__ void make_keys(const Softmax& over_all, bool by_score) {
    float choice[PER_LANE];
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) choice[i] = x[i];
    if (by_score && t.p.score == SCORE_SOFTMAX) {
#pragma unroll
      for (uint32_t i = 0; i < PER_LANE; i++) choice[i] = over_all.of(x[i]);
    } else if (by_score && t.p.score == SCORE_SIGMOID) {
#pragma unroll
      for (uint32_t i = 0; i < PER_LANE; i++) choice[i] = sigmoid(x[i]);
    }
    if (t.p.selection_bias != 0) {
      float bias[PER_LANE];
      read(at<const float>(t.p.selection_bias), bias, 0.f);
#pragma unroll
      for (uint32_t i = 0; i < PER_LANE; i++) choice[i] += bias[i];
    }
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) keys[i] = order_key(choice[i]);
  }

  // Whether this lane's group of experts is one of the best.
  __device__ __forceinline__ bool is_in_best_groups() const {
    uint32_t best = 0, second = 0;
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) {
      second = max(second, min(best, keys[i]));
      best = max(best, keys[i]);
    }
    for (uint32_t distance = 1; distance < t.p.lanes_per_group; distance *= 2) {
      const uint32_t their_best = __shfl_xor_sync(ALL_LANES, best, distance);
      const uint32_t their_second = __shfl_xor_sync(ALL_LANES, second, distance);
      second = max(max(second, their_second), min(best, their_best));
      best = max(best, their_best);
    }
    const uint32_t mine = t.group_key_of(best, second), my_group = lane_id() & ~(t.p.lanes_per_group - 1);
    uint32_t ahead = 0;
#pragma unroll 4
    for (uint32_t g = 0; g < t.p.num_groups; g++) {
      const uint32_t group = g * t.p.lanes_per_group, theirs = __shfl_sync(ALL_LANES, mine, group);
      ahead += theirs > mine || (theirs == mine && group < my_group);
    }
    return ahead < t.p.topk_groups;
  }

  // Takes the experts outside the best groups out of the choice. Groups by score and experts by logits: as route_rule.cuh.
  __device__ __forceinline__ void keep_best_groups(const Softmax& over_all) {
    const bool stays = is_in_best_groups();
    if (!t.p.by_score) make_keys(over_all, false);
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) keys[i] = stays ? keys[i] : 0;
  }

  // Leaves the ids of the best experts in `t.ids`, best first.
  __device__ __forceinline__ void pick() const {
    uint32_t taken = 0;
    const auto look = [&] {
      BestTwo mine;
#pragma unroll
      for (uint32_t i = 0; i < PER_LANE; i++) mine.see(taken >> i & 1u ? 0 : keys[i], first + i);
      return mine;
    };
    take_best(
        t.p.top_k, look, [&](uint32_t id) { taken |= 1u << (id - first); },
        [&](uint32_t i, uint32_t id) { t.ids[i] = id; });
  }
};

// Leaves ids in `t.ids`; returns the softmax over all logits, where the rule has one.
__device__ __forceinline__ Softmax pick_in_lanes(const Token& t) {
  Lane lane(t);
  lane.load_logits();
  const Softmax over_all = t.p.score == SCORE_SOFTMAX ? lane.softmax() : Softmax{0.f, 1.f};
  const bool group_by_score = t.p.num_groups != 0 && t.p.group_score == GROUPS_SUM_TOP2;
  lane.make_keys(over_all, t.p.by_score || group_by_score);
  if (t.p.num_groups != 0) lane.keep_best_groups(over_all);
  lane.pick();
  return over_all;
}
