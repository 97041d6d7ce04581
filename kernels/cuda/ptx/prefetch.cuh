// Hints to bring memory closer, ahead of what orders reading it.
#pragma once
#include <cstdint>

namespace ptx {

// `bytes` from `address` on go to the L2; both are multiples of 16. Nothing before sm_90.
__device__ __forceinline__ void prefetch_l2(const void* address, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  const uint64_t global = __cvta_generic_to_global(address);
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#endif
}

// A word that another launch may be writing: what was there, or what will be. It leaves nothing in the L1.
__device__ __forceinline__ uint32_t peek(const uint32_t* address) {
  uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(__cvta_generic_to_global(address)));
  return word;
}

}  // namespace ptx
