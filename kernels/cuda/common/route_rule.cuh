// The rule of a router, from one token's logits to the experts picked and their weights; a warp works on a token. The common
// rules, over up to 256 experts, pick in registers: route_lanes.cuh.
//
// Per warp in shared memory, from a multiple of 16 bytes on: logits [E] f32, keys [E] u32, ids [max_slots] u32,
// group_keys [G] u32.
#pragma once
#include "math.cuh"
#include "order.cuh"
#include "params.cuh"
#include "philox.cuh"

enum Score : uint32_t { SCORE_LOGIT = 0, SCORE_SOFTMAX = 1, SCORE_SIGMOID = 2, SCORE_SQRT_SOFTPLUS = 3 };
enum Weight : uint32_t { WEIGHT_SCORE = 0, WEIGHT_SOFTMAX_OVER_SELECTED = 1, WEIGHT_SIGMOID = 2, WEIGHT_ONE = 3 };
enum Selection : uint32_t { SELECT_TOP_K = 0, SELECT_SPARSE_MIXER = 1, SELECT_HASH = 2, SELECT_LEVELS = 3, EXPERTS_SELECT = 4 };
enum Noise : uint32_t {
  NOISE_NONE = 0,
  NOISE_NORMAL = 1,
  NOISE_NORMAL_SOFTPLUS = 2,
  NOISE_GUMBEL_SECOND = 3,
  NOISE_RANDOM_SECOND = 4,
};
enum GroupScore : uint32_t { GROUPS_MAX = 0, GROUPS_SUM_TOP2 = 1 };

// A softmax over logits: e^(x - top) * inv_sum.
struct Softmax {
  float top;
  float inv_sum;

  __device__ __forceinline__ float of(float x) const { return expf(x - top) * inv_sum; }
};

// A warp's token.
struct Token {
  const RouteParams& p;
  uint32_t token;
  float* logits;
  // What experts are chosen by, as integers of the same order; 0 where an expert may not be chosen (any more).
  uint32_t* keys;
  uint32_t* ids;
  uint32_t* group_keys;
  // Where its slots lie among all, and how many it has.
  uint64_t first_slot;
  uint32_t num_slots;

  __device__ __forceinline__ Token(const RouteParams& params, uint32_t t, uint32_t* words) : p(params), token(t) {
    logits = reinterpret_cast<float*>(words);
    keys = words + p.num_choices;
    ids = keys + p.num_choices;
    group_keys = ids + p.max_slots;
    first_slot = static_cast<uint64_t>(token) * p.top_k;
    num_slots = p.top_k;
  }

  __device__ __forceinline__ bool is_disabled(uint32_t expert) const {
    return p.has_disabled && (p.disabled[expert / 32] >> (expert % 32) & 1u);
  }

  // A NaN stays one.
  __device__ __forceinline__ float clip(float x) const {
    return isnan(x) ? x : fminf(fmaxf(x, -p.logit_clip), p.logit_clip);
  }

  // The logit by which the token is routed: finite, or NaN.
  __device__ __forceinline__ float transform(float x) const {
    if (isnan(x)) return x;
    x = clip(x);
    return p.logit_softcap > 0.f ? p.logit_softcap * tanhf(x / p.logit_softcap) : x;
  }

  __device__ __forceinline__ float logit_noise(uint32_t expert) const {
    if (p.noise == NOISE_NORMAL) return draw_normal(p.noise_seed, STREAM_LOGIT, token, expert) * p.noise_scale;
    if (p.noise != NOISE_NORMAL_SOFTPLUS) return 0.f;
    const float width = at<const float>(p.noise_logits)[static_cast<uint64_t>(token) * p.num_choices + expert];
    return draw_normal(p.noise_seed, STREAM_LOGIT, token, expert) * softplus(width);
  }

  __device__ __forceinline__ void load_logits() {
    // Of two levels, the groups' logits come first.
    const uint32_t before = p.selection == SELECT_LEVELS ? p.num_groups : 0;
    const uint64_t start = static_cast<uint64_t>(token) * (before + p.num_choices) + before;
    const float* row = at<const float>(p.router_logits) + start;
    // All loads of a step are under way before the first is waited for.
    constexpr uint32_t STEP = 8;
    for (uint32_t first = lane_id(); first < p.num_choices; first += 32 * STEP) {
      float x[STEP];
#pragma unroll
      for (uint32_t i = 0; i < STEP; i++) x[i] = first + 32 * i < p.num_choices ? row[first + 32 * i] : 0.f;
#pragma unroll
      for (uint32_t i = 0; i < STEP; i++) {
        if (first + 32 * i < p.num_choices) logits[first + 32 * i] = x[i];
      }
    }
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      logits[e] = is_disabled(e) ? __int_as_float(0x7fc00000) : transform(logits[e]) + logit_noise(e);
    }
    __syncwarp();
  }

  // Over all experts whose logit is not NaN.
  __device__ __forceinline__ Softmax softmax_over_all() const {
    float top = -INFINITY;
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) top = fmaxf(top, logits[e]);
    top = warp_max(top);
    float sum = 0.f;
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      if (!isnan(logits[e])) sum += expf(logits[e] - top);
    }
    return {top, 1.f / warp_sum(sum)};
  }

  // Of a NaN, 0.
  __device__ __forceinline__ float score(float x, const Softmax& over_all) const {
    if (isnan(x)) return 0.f;
    switch (p.score) {
      case SCORE_SOFTMAX: return over_all.of(x);
      case SCORE_SIGMOID: return sigmoid(x);
      case SCORE_SQRT_SOFTPLUS: return sqrtf(softplus(x));
      default: return x;
    }
  }

  __device__ __forceinline__ uint32_t choice_key(uint32_t expert, const Softmax& over_all, bool by_score) const {
    const float x = logits[expert];
    if (isnan(x)) return order_key(x);
    const float bias = p.selection_bias != 0 ? at<const float>(p.selection_bias)[expert] : 0.f;
    return order_key((by_score ? score(x, over_all) : x) + bias);
  }

  // Fills `keys`: by the logits where a token chooses without a bias, as every score grows with its logit.
  __device__ __forceinline__ void make_keys(const Softmax& over_all) {
    const bool group_by_score = p.num_groups != 0 && p.group_score == GROUPS_SUM_TOP2;
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      keys[e] = choice_key(e, over_all, p.by_score || group_by_score);
    }
    __syncwarp();
    if (p.num_groups != 0 && p.selection != SELECT_LEVELS) keep_best_groups(over_all);
    if (!p.has_disabled) return;
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      if (is_disabled(e)) keys[e] = 0;
    }
    __syncwarp();
  }

  __device__ __forceinline__ uint32_t group_key(uint32_t group) const {
    const uint32_t size = p.num_choices / p.num_groups;
    uint32_t first = 0, second = 0;
    for (uint32_t e = group * size; e < (group + 1) * size; e++) {
      second = max(second, min(first, keys[e]));
      first = max(first, keys[e]);
    }
    return group_key_of(first, second);
  }

  // Of the largest two keys of the group.
  __device__ __forceinline__ uint32_t group_key_of(uint32_t first, uint32_t second) const {
    const bool sum = p.group_score == GROUPS_SUM_TOP2 && second != 0;
    return sum ? order_key(of_order_key(first) + of_order_key(second)) : first;
  }

  // Takes the experts outside the best groups out of the choice, and leaves the others' final keys.
  __device__ __forceinline__ void keep_best_groups(const Softmax& over_all) {
    const uint32_t size = p.num_choices / p.num_groups;
    for (uint32_t g = lane_id(); g < p.num_groups; g += 32) group_keys[g] = group_key(g);
    __syncwarp();
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      const uint32_t group = e / size, mine = group_keys[group];
      uint32_t ahead = 0;
      for (uint32_t g = 0; g < p.num_groups; g++) {
        ahead += group_keys[g] > mine || (group_keys[g] == mine && g < group);
      }
      if (ahead >= p.topk_groups) {
        keys[e] = 0;
      } else if (!p.by_score) {
        keys[e] = choice_key(e, over_all, false);
      }
    }
    __syncwarp();
  }

  // Leaves the ids of the best experts in `ids[first..end]`, best first, and takes them out of the choice.
  __device__ __forceinline__ void pick_best(uint32_t first, uint32_t end) {
    take_best_of(keys, p.num_choices, end - first, [&](uint32_t i, uint32_t id) { ids[first + i] = id; });
  }

  // The experts that the table has for the token's id; MASKED for one that may not be chosen.
  __device__ __forceinline__ void pick_from_table(uint32_t token_id) {
    const uint32_t* row = at<const uint32_t>(p.hash_table) + static_cast<uint64_t>(token_id) * p.top_k;
    for (uint32_t i = lane_id(); i < p.top_k; i += 32) {
      const uint32_t expert = token_id < p.hash_rows ? row[i] : MASKED;
      ids[i] = expert < p.num_choices && keys[expert] != 0 ? expert : MASKED;
    }
    __syncwarp();
  }

  // k different experts drawn for the token's id: the i-th is one of those that are left, counted by their ids.
  __device__ __forceinline__ void pick_by_draw(uint32_t token_id) {
    uint32_t left = 0;
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) left += keys[e] != 0;
    left = __reduce_add_sync(ALL_LANES, left);
    for (uint32_t i = 0; i < p.top_k; i++, left--) {
      uint32_t skip = draw_below(p.hash_seed, STREAM_HASH, token_id, i, left);
      for (uint32_t first = 0; first < p.num_choices; first += 32) {
        const uint32_t e = first + lane_id();
        const uint32_t there = __ballot_sync(ALL_LANES, e < p.num_choices && keys[e] != 0);
        const bool is_it = (there >> lane_id() & 1u) && __popc(there & ((1u << lane_id()) - 1)) == skip;
        if (is_it) {
          ids[i] = e;
          keys[e] = 0;
        }
        if (__any_sync(ALL_LANES, is_it)) break;
        skip -= __popc(there);
      }
      __syncwarp();
    }
  }

  // What experts after the first are chosen by: with noise. An expert out of the choice stays out.
  __device__ __forceinline__ void add_gumbel() {
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      if (keys[e] == 0) continue;
      keys[e] = order_key(of_order_key(keys[e]) + draw_gumbel(p.noise_seed, STREAM_GUMBEL, token, e));
    }
    __syncwarp();
  }

  // Drops choices after the first by chance, the likelier the smaller their share of the scores.
  __device__ __forceinline__ void keep_at_random(const Softmax& over_all) {
    if (p.noise != NOISE_RANDOM_SECOND) return;
    float sum = 0.f;
    for (uint32_t i = lane_id(); i < p.top_k; i += 32) sum += score(logits[ids[i]], over_all);
    sum = warp_sum(sum);
    for (uint32_t i = lane_id(); i < p.top_k; i += 32) {
      const float chance = score(logits[ids[i]], over_all) / sum * p.noise_scale;
      if (i > 0 && !(draw_uniform(p.noise_seed, STREAM_KEEP, token, i) < chance)) ids[i] = MASKED;
    }
    __syncwarp();
  }

  // Fills `ids`, best first; what is dropped by chance is still there.
  __device__ __forceinline__ void pick() {
    if (p.selection == EXPERTS_SELECT) return;
    if (p.selection != SELECT_HASH) {
      const bool gumbel = p.noise == NOISE_GUMBEL_SECOND;
      pick_best(0, gumbel ? 1 : p.top_k);
      if (gumbel) {
        add_gumbel();
        pick_best(1, p.top_k);
      }
      return;
    }
    const uint32_t token_id = at<const uint32_t>(p.token_ids)[token];
    if (p.hash_table != 0) return pick_from_table(token_id);
    pick_by_draw(token_id);
  }
};
