// Floats as integers of the same order, so that the best of many is a maximum of integers.
#pragma once
#include <cmath>

#include "warp.cuh"

// NaN at -inf and -0 at 0; never 0, which is left to mean "may not be chosen".
__device__ __forceinline__ uint32_t order_key(float x) {
  // The larger of a NaN and a number is the number; -0 + 0 is 0.
  const uint32_t bits = __float_as_uint(fmaxf(x, -INFINITY) + 0.f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

__device__ __forceinline__ float of_order_key(uint32_t key) {
  return __uint_as_float(key ^ (key >= 0x80000000u ? 0x80000000u : 0xffffffffu));
}

// A key and whose it is.
struct Best {
  uint32_t key;
  uint32_t id;
};

// The two largest keys of a lane, of equal ones those of the lowest ids.
struct BestTwo {
  Best first = {0, MASKED};
  Best second = {0, MASKED};

  // Ids come in rising order. No branches.
  __device__ __forceinline__ void see(uint32_t key, uint32_t id) {
    const bool is_first = key > first.key, is_second = key > second.key;
    second.id = is_first ? first.id : is_second ? id : second.id;
    second.key = max(second.key, min(first.key, key));
    first.id = is_first ? id : first.id;
    first.key = max(first.key, key);
  }
};

// The largest key of all lanes', the lowest id of equal ones; MASKED where every key is 0.
__device__ __forceinline__ uint32_t warp_best(const Best& mine) {
  const uint32_t key = __reduce_max_sync(ALL_LANES, mine.key);
  return __reduce_min_sync(ALL_LANES, key != 0 && mine.key == key ? mine.id : MASKED);
}

// Lane 0 calls `put(i, id)` for the `wanted` best of all lanes', best first; MASKED where none is left. `look` finds a lane's
// best two of those that are left, of which `take` takes one away. Looking is what costs, and few lanes have three of them.
template <typename Look, typename Take, typename Put>
__device__ __forceinline__ void take_best(uint32_t wanted, Look look, Take take, Put put) {
  BestTwo mine = look();
  for (uint32_t i = 0; i < wanted; i++) {
    const uint32_t best = warp_best(mine.first);
    if (lane_id() == 0) put(i, best);
    if (best != MASKED && best == mine.first.id) {
      take(best);
      mine.first = mine.second;
      mine.second = {0, MASKED};
      if (mine.first.key == 0) mine = look();
    }
  }
  __syncwarp();
}

// The same of keys in shared memory, where lane, lane + 32, ... are a lane's; those that are taken become 0.
template <typename Put>
__device__ __forceinline__ void take_best_of(uint32_t* keys, uint32_t count, uint32_t wanted, Put put) {
  const auto look = [&] {
    BestTwo mine;
    for (uint32_t id = lane_id(); id < count; id += 32) mine.see(keys[id], id);
    return mine;
  };
  take_best(wanted, look, [&](uint32_t id) { keys[id] = 0; }, put);
}
