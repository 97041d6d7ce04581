// Eight neighbouring elements in as few 16-byte accesses as their type allows.
#pragma once
#include "types.cuh"

struct Eight {
  float x[8];
};

template <typename T>
__device__ __forceinline__ Eight widen_eight(uint4 words) {
  const float2 a = widen_pair<T>(words.x), b = widen_pair<T>(words.y);
  const float2 c = widen_pair<T>(words.z), d = widen_pair<T>(words.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

// Elements `i..i + 8`, where `i` is a multiple of 8 and the tensor starts on 16 bytes.
__device__ __forceinline__ Eight load_eight(uint64_t tensor, uint64_t i, uint32_t dtype) {
  if (dtype == F32) {
    const float4* quads = reinterpret_cast<const float4*>(at<const float>(tensor) + i);
    const float4 a = quads[0], b = quads[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
  }
  const uint4 words = *reinterpret_cast<const uint4*>(at<const uint16_t>(tensor) + i);
  return dtype == BF16 ? widen_eight<bf16>(words) : widen_eight<f16>(words);
}

__device__ __forceinline__ void store_eight(uint64_t tensor, uint64_t i, uint32_t dtype, const Eight& v) {
  if (dtype == F32) {
    float4* quads = reinterpret_cast<float4*>(at<float>(tensor) + i);
    quads[0] = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    quads[1] = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
    return;
  }
  uint4 words;
  if (dtype == BF16) {
    words = make_uint4(narrow_pair<bf16>(v.x[0], v.x[1]), narrow_pair<bf16>(v.x[2], v.x[3]),
                       narrow_pair<bf16>(v.x[4], v.x[5]), narrow_pair<bf16>(v.x[6], v.x[7]));
  } else {
    words = make_uint4(narrow_pair<f16>(v.x[0], v.x[1]), narrow_pair<f16>(v.x[2], v.x[3]),
                       narrow_pair<f16>(v.x[4], v.x[5]), narrow_pair<f16>(v.x[6], v.x[7]));
  }
  *reinterpret_cast<uint4*>(at<uint16_t>(tensor) + i) = words;
}

// Elements `i..i + 4`, where `i` is a multiple of 4 and the tensor starts on 16 bytes.
__device__ __forceinline__ void store_quad(uint64_t tensor, uint64_t i, uint32_t dtype, const float (&v)[4]) {
  if (dtype == F32) {
    *reinterpret_cast<float4*>(at<float>(tensor) + i) = make_float4(v[0], v[1], v[2], v[3]);
  } else if (dtype == BF16) {
    const uint2 words = make_uint2(narrow_pair<bf16>(v[0], v[1]), narrow_pair<bf16>(v[2], v[3]));
    *reinterpret_cast<uint2*>(at<uint16_t>(tensor) + i) = words;
  } else {
    const uint2 words = make_uint2(narrow_pair<f16>(v[0], v[1]), narrow_pair<f16>(v[2], v[3]));
    *reinterpret_cast<uint2*>(at<uint16_t>(tensor) + i) = words;
  }
}
