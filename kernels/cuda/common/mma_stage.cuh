// Shared memory of the tensor-core kernels: one stage holds 32 columns of K of a tile's rows and of its weights, in
// chunks of 16 bytes that are swizzled so that neither copies nor fragment loads meet in a bank.
//
//   rows     [BM][32] of the weights' type (64-byte rows), or f32 (128-byte rows)
//   weights  [BN][32] (64-byte rows), or, of [E, K, N] weights, [32][BN]
#pragma once
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "types.cuh"

constexpr uint32_t DEPTH = 32;

// Where chunk `chunk` of a row lies: 64-byte rows, 128-byte rows of f32, rows along N.
__device__ __forceinline__ uint32_t swizzle_64(uint32_t row, uint32_t chunk) {
  return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}
__device__ __forceinline__ uint32_t swizzle_f32(uint32_t row, uint32_t chunk) {
  return row * 128 + ((chunk ^ (row & 3) << 1) << 4);
}
template <uint32_t BN>
__device__ __forceinline__ uint32_t swizzle_n(uint32_t row, uint32_t chunk) {
  return row * BN * 2 + ((chunk ^ (row & 7)) << 4);
}

// Copies one chunk, of whose elements the first `count` are there (none or all of them where `aligned`).
template <typename T>
__device__ __forceinline__ void copy_chunk(uint8_t* target, const T* source, uint32_t count, bool aligned) {
  constexpr uint32_t ELEMENTS = 16 / sizeof(T);
  if (aligned) {
    ptx::cp_async_16(ptx::shared_address(target), source, count == 0 ? 0 : 16);
    return;
  }
  union {
    T elements[ELEMENTS];
    uint4 words;
  } chunk;
#pragma unroll
  for (uint32_t i = 0; i < ELEMENTS; i++) chunk.elements[i] = i < count ? source[i] : narrow<T>(0.f);
  *reinterpret_cast<uint4*>(target) = chunk.words;
}
