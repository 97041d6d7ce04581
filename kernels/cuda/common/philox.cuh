// The counter-based generator of src/routing/noise.rs: the same key gives the same bits as there.
#pragma once
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

// Standard normal (Box-Muller), in f64 so that it rounds as on other devices.
__device__ __forceinline__ float draw_normal(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b) {
  const uint4 bits = philox(seed, stream, a, b);
  const double x = (bits.x + 0.5) / 4294967295.0, y = (bits.y + 0.5) / 4294967295.0;
  return static_cast<float>(sqrt(-2.0 * log(fmin(x, 1.0))) * cospi(2.0 * y));
}

// Standard Gumbel.
__device__ __forceinline__ float draw_gumbel(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b) {
  return -static_cast<float>(log(-log(static_cast<double>(draw_uniform(seed, stream, a, b)))));
}

// A whole number below `n`.
__device__ __forceinline__ uint32_t draw_below(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b, uint32_t n) {
  return __umulhi(philox(seed, stream, a, b).x, n);
}
