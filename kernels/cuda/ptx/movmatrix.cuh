// Transposes an 8x8 matrix of 16-bit elements across a warp (sm_75): lane l has elements (l / 4, l % 4 * 2 and the next), and
// gets elements (l % 4 * 2 and the next, l / 4).
#pragma once
#include <cstdint>

namespace ptx {

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

}  // namespace ptx
