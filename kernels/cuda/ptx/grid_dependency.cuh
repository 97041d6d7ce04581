// Programmatic dependent launch: a kernel may start while the one before it on the stream still runs.
#pragma once

namespace ptx {

// Waits until every launch before this one is done and what it wrote can be read; then lets the next one start, whose
// blocks find room when all of this one's have begun. In every block, before anything that matters: the launch before has
// itself waited, and so all before it are done too. build/nvcc.rs finds this in a kernel's PTX, and the driver then
// launches the kernel so; from sm_90 on.
__device__ __forceinline__ void follow_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace ptx
