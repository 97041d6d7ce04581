// Atomic operations in device memory.
#pragma once
#include <cstdint>

namespace ptx {

// Counts up to `most` and from there to 0; returns what was there. What threads wrote before they counted can be read by those
// that count later, and by whoever these share a barrier with: it is both release and acquire, for all of the device.
__device__ __forceinline__ uint32_t count_to(uint32_t* counter, uint32_t most) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(most) : "memory");
  return before;
}

}  // namespace ptx
