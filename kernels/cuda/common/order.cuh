// Floats as integers of the same order, so that the best of many is a maximum of integers.
#pragma once
#include "warp.cuh"

// NaN at -inf and -0 at 0; never 0, which is left to mean "may not be chosen".
__device__ __forceinline__ uint32_t order_key(float x) {
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0xff800000u;
  if (bits == 0x80000000u) bits = 0;
  return bits ^ (bits >= 0x80000000u ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float of_order_key(uint32_t key) {
  return __uint_as_float(key ^ (key >= 0x80000000u ? 0x80000000u : 0xffffffffu));
}

// A key and whose it is.
struct Best {
  uint32_t key;
  uint32_t id;
};

// The largest key of this lane's ids (lane, lane + 32, ...), the lowest id of equal ones.
__device__ __forceinline__ Best lane_best(const uint32_t* keys, uint32_t count) {
  Best best = {0, MASKED};
  for (uint32_t id = lane_id(); id < count; id += 32) {
    const uint32_t key = keys[id];
    if (key > best.key) best = {key, id};
  }
  return best;
}

// The largest key of all lanes', the lowest id of equal ones; MASKED where every key is 0.
__device__ __forceinline__ uint32_t warp_best(const Best& mine) {
  const uint32_t key = __reduce_max_sync(ALL_LANES, mine.key);
  return __reduce_min_sync(ALL_LANES, key != 0 && mine.key == key ? mine.id : MASKED);
}
