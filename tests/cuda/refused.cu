// Kernels that scripts/cuda-report must refuse: it compiles this file before the crate's, and fails if it finds nothing.

// More values at a time than 1024 threads have registers for.
extern "C" __global__ void __launch_bounds__(1024) spills(float* x) {
  float values[192];
#pragma unroll
  for (int i = 0; i < 192; i++) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 192; i++) x[(i + 1) * 1024 + threadIdx.x] = values[i] * values[191 - i] + values[(i + 77) % 192];
}

// An array whose index is not known to the compiler is on the stack.
extern "C" __global__ void has_a_stack(float* x, int index) {
  float values[64] = {};
  for (int i = 0; i < 999; i++) values[(i * index) % 64] += x[i];
  x[threadIdx.x] = values[threadIdx.x % 64];
}

#if __CUDA_ARCH_FEAT_SM90_ALL
// Accumulators that are touched before the product is waited for: ptxas serialises, and says so (C75xx).
extern "C" __global__ void __launch_bounds__(128) serialises(float* x, unsigned long long a, unsigned long long b) {
  float d[4] = {x[0], x[1], x[2], x[3]};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  for (int i = 0; i < 4; i++) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a + i), "l"(b + i));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    d[0] += 1.f;
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  x[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
#endif
