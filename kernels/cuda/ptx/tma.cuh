// The copy engine of sm_90: boxes of a tensor that a tensor map (cuTensorMapEncodeTiled) describes.
#pragma once
#include <cstdint>

namespace ptx {

// A box from global to shared memory; its bytes arrive at the barrier. Coordinates begin with the innermost dimension;
// what lies outside of the tensor is 0, and counts as bytes.
__device__ __forceinline__ void tma_load_4d(uint32_t target, const void* map, uint32_t barrier, uint32_t x, uint32_t y,
                                            uint32_t z, uint32_t w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// The same to every block of the cluster whose bit is set in `blocks`: to the same place, with the barrier there.
__device__ __forceinline__ void tma_load_4d_multicast(uint32_t target, const void* map, uint32_t barrier,
                                                      uint16_t blocks, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(target),
      "l"(map), "r"(barrier), "h"(blocks), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace ptx
