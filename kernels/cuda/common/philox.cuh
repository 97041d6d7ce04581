// The counter-based generator of src/routing/noise.rs: the same key gives the same bits as there.
#pragma once
#include <cmath>
#include <cstdint>

// What numbers are drawn for.
enum Stream : uint32_t { STREAM_LOGIT = 0, STREAM_GUMBEL = 2, STREAM_KEEP = 3, STREAM_HASH = 4 };

// 128 random bits: Philox 4x32-10 (Salmon et al. 2011) of the counter (a, b, stream, 0) under the key `seed`.
__device__ __forceinline__ uint4 philox(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b) {
  uint4 c = make_uint4(a, b, stream, 0);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint32_t left_high = __umulhi(c.x, 0xD2511F53u), left = c.x * 0xD2511F53u;
    const uint32_t right_high = __umulhi(c.z, 0xCD9E8D57u), right = c.z * 0xCD9E8D57u;
    c = make_uint4(right_high ^ c.y ^ key0, right, left_high ^ c.w ^ key1, left);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// Uniform in the open interval (0, 1).
__device__ __forceinline__ float draw_uniform(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b) {
  return (static_cast<float>(philox(seed, stream, a, b).x >> 8) + 0.5f) * (1.f / 16777216.f);
}

// Standard normal (Box-Muller). Logarithms near 1 are taken of the distance to 1, which is exact: f32 loses nothing.
__device__ __forceinline__ float draw_normal(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b) {
  constexpr float UNIT = 1.f / 4294967295.f;
  const uint4 bits = philox(seed, stream, a, b);
  const float x = (static_cast<float>(bits.x) + 0.5f) * UNIT;
  const float to_one = fmaxf((static_cast<float>(~bits.x) - 0.5f) * UNIT, 0.f);
  const float log_x = bits.x < 0x80000000u ? logf(x) : log1pf(-to_one);
  // A turn less is the same angle, and nearer to 0.
  const float turns = (static_cast<float>(static_cast<int32_t>(bits.y)) + 0.5f) * UNIT;
  return sqrtf(-2.f * log_x) * cospif(2.f * turns);
}

// Standard Gumbel, -ln(-ln u) of `draw_uniform`'s u.
__device__ __forceinline__ float draw_gumbel(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b) {
  constexpr float UNIT = 1.f / 16777216.f;
  const float steps = static_cast<float>(philox(seed, stream, a, b).x >> 8) + 0.5f;
  const float log_u = steps < 8388608.f ? logf(steps * UNIT) : log1pf(-((16777216.f - steps) * UNIT));
  return -logf(-log_u);
}

// A whole number below `n`.
__device__ __forceinline__ uint32_t draw_below(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b, uint32_t n) {
  return __umulhi(philox(seed, stream, a, b).x, n);
}
