// Element types, the masked id, and loads and stores that widen to f32 and narrow from it.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bf16 = __nv_bfloat16;
using f16 = __half;

// The element type of a tensor, where a kernel takes several. `dtype_code` in params.rs gives the same numbers.
enum DType : uint32_t { F32 = 0, BF16 = 1, F16 = 2 };

// The id of a slot that no expert takes, and the row of a slot that has none.
constexpr uint32_t MASKED = 0xffffffffu;

constexpr uint32_t ALL_LANES = 0xffffffffu;

// A device pointer out of a parameter struct.
template <typename T>
__device__ __forceinline__ T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
  return __float2half_rn(x);
}

// Two neighbours in one 32-bit word, the first in the low half.
template <typename T>
__device__ __forceinline__ float2 widen_pair(uint32_t word);
template <>
__device__ __forceinline__ float2 widen_pair<bf16>(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 widen_pair<f16>(uint32_t word) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}

template <typename T>
__device__ __forceinline__ uint32_t narrow_pair(float x, float y);
template <>
__device__ __forceinline__ uint32_t narrow_pair<bf16>(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t narrow_pair<f16>(float x, float y) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Element `i` of a tensor whose type is known at run time.
__device__ __forceinline__ float load(uint64_t tensor, uint64_t i, uint32_t dtype) {
  switch (dtype) {
    case F32: return at<const float>(tensor)[i];
    case BF16: return widen(at<const bf16>(tensor)[i]);
    default: return widen(at<const f16>(tensor)[i]);
  }
}

__device__ __forceinline__ void store(uint64_t tensor, uint64_t i, uint32_t dtype, float x) {
  switch (dtype) {
    case F32: at<float>(tensor)[i] = x; break;
    case BF16: at<bf16>(tensor)[i] = narrow<bf16>(x); break;
    default: at<f16>(tensor)[i] = narrow<f16>(x); break;
  }
}
