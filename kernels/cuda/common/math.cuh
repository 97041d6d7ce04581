// Functions of a float, good to a few units in the last place for every argument.
#pragma once
#include <cmath>
#include <cstdint>

__device__ __forceinline__ float sigmoid(float x) {
  // e^-|x| cannot overflow, and the small half is not a difference.
  const float e = expf(-fabsf(x));
  // By the reciprocal's approximation, which is good for what lies between 1 and 2.
  return __fdividef(x < 0.f ? e : 1.f, 1.f + e);
}

__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

// x·Φ(x), by erfc, so that nothing cancels for x < 0.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * erfcf(-0.70710678f * x); }

// x·(1 + tanh(z))/2 is x·sigmoid(2z), where nothing cancels for x < 0.
__device__ __forceinline__ float gelu_tanh(float x) {
  return x * sigmoid(1.5957691f * x * fmaf(0.044715f * x, x, 1.f));
}
