// Small kernels that each show one part of sm_90a.
#include <cuda_fp16.h>
#include "ptx.cuh"

__device__ __forceinline__ void init_barrier(uint32_t bar, int count) {
  if (threadIdx.x == 0) {
    ptx::mbar_init(bar, count);
    ptx::fence_mbar_init();
  }
  __syncthreads();
}

// Copies a box of a 3-D f32 tensor to shared memory and back to another tensor, plus one on the way.
extern "C" __global__ void __launch_bounds__(64)
    tensor_3d(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out, int x, int y, int z,
              int floats) {
  __shared__ __align__(1024) float tile[1024];
  __shared__ __align__(8) uint64_t bar_storage;
  const uint32_t s = ptx::smem_u32(tile), bar = ptx::smem_u32(&bar_storage);
  init_barrier(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbar_arrive_expect_tx(bar, floats * 4);
    ptx::tma_load_3d(s, &in, bar, x, y, z);
  }
  ptx::mbar_wait(bar, 0);
  for (int i = threadIdx.x; i < floats; i += 64) tile[i] += 1.f;
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::tma_store_3d(&out, s, x, y, z);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
}

// Loads a vector with a 1-D tensor copy and adds it to another by a reducing bulk copy.
extern "C" __global__ void __launch_bounds__(32) tensor_1d(const __grid_constant__ CUtensorMap in, float* out) {
  __shared__ __align__(128) float tile[64];
  __shared__ __align__(8) uint64_t bar_storage;
  const uint32_t s = ptx::smem_u32(tile), bar = ptx::smem_u32(&bar_storage);
  init_barrier(bar, 1);
  ptx::grid_dependency_wait();
  if (threadIdx.x == 0) {
    ptx::mbar_arrive_expect_tx(bar, 256);
    ptx::tma_load_1d(s, &in, bar, blockIdx.x * 64);
  }
  ptx::mbar_wait(bar, 0);
  ptx::grid_launch_dependents();
  if (threadIdx.x == 0) {
    ptx::bulk_reduce_add_f32(out, s, 256);
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
}

// C[64,16] = A[64,K] * B[16,K]^T with A (f16) from registers and B through 64-byte swizzled tiles.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_rs(const __half* A, const __grid_constant__ CUtensorMap map_b, float* C, int K) {
  __shared__ __align__(1024) __half tile[16 * 32];
  __shared__ __align__(8) uint64_t bar_storage;
  const uint32_t s = ptx::smem_u32(tile), bar = ptx::smem_u32(&bar_storage);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * 16 + lane / 4;
  init_barrier(bar, 1);
  float d[8];
  for (int kt = 0; kt < K / 32; kt++) {
    if (threadIdx.x == 0) {
      ptx::mbar_arrive_expect_tx(bar, sizeof(tile));
      ptx::tma_load_2d(s, &map_b, bar, kt * 32, 0);
    }
    ptx::mbar_wait(bar, kt & 1);
    uint32_t a[2][4];
    for (int k = 0; k < 2; k++) {
      for (int i = 0; i < 4; i++) {
        int r = row + (i & 1) * 8, c = kt * 32 + k * 16 + (lane & 3) * 2 + (i >> 1) * 8;
        a[k][i] = *reinterpret_cast<const uint32_t*>(A + r * K + c);
      }
    }
    ptx::wgmma_fence();
    for (int k = 0; k < 2; k++) ptx::wgmma_m64n16k16_f16_rs(d, a[k], ptx::desc(s + k * 32, 16, 512, 2), kt + k);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    __syncthreads();
  }
  for (int i = 0; i < 8; i++) {
    C[(row + (i >> 1 & 1) * 8) * 16 + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = d[i];
  }
}

// C[64,16] = A^T * B with A[16,64] and B[16,16] as they lie: both operands MN-major. A through a 128-byte
// swizzled tile, B through a 32-byte swizzled one.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_mn_major(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, float* C) {
  __shared__ __align__(1024) __nv_bfloat16 a[16 * 64];
  __shared__ __align__(1024) __nv_bfloat16 b[16 * 16];
  __shared__ __align__(8) uint64_t bar_storage;
  const uint32_t sa = ptx::smem_u32(a), sb = ptx::smem_u32(b), bar = ptx::smem_u32(&bar_storage);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * 16 + lane / 4;
  init_barrier(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbar_arrive_expect_tx(bar, sizeof(a) + sizeof(b));
    ptx::tma_load_2d(sa, &map_a, bar, 0, 0);
    ptx::tma_load_2d(sb, &map_b, bar, 0, 0);
  }
  ptx::mbar_wait(bar, 0);
  float d[8];
  ptx::wgmma_fence();
  ptx::wgmma_m64n16k16_bf16_ss<1, 1>(d, ptx::desc(sa, 2048, 1024, 1), ptx::desc(sb, 512, 256, 3), 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  for (int i = 0; i < 8; i++) {
    C[(row + (i >> 1 & 1) * 8) * 16 + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = d[i];
  }
}

// Two blocks: rank 0 loads one tile for both; each block then reads the other's copy and tells the owner by
// an arrival from afar that it may leave.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(64)
    cluster_multicast(const __grid_constant__ CUtensorMap in, uint32_t* out) {
  __shared__ __align__(128) uint32_t tile[64];
  __shared__ __align__(8) uint64_t bars[2];
  const uint32_t s = ptx::smem_u32(tile), full = ptx::smem_u32(bars), read = full + 8;
  const uint32_t rank = ptx::cluster_rank(), peer = rank ^ 1;
  if (threadIdx.x == 0) {
    ptx::mbar_init(full, 1);
    ptx::mbar_init(read, 64);
    ptx::fence_mbar_init();
  }
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    ptx::mbar_arrive_expect_tx(full, sizeof(tile));
  }
  ptx::cluster_sync();
  if (threadIdx.x == 0 && rank == 0) ptx::tma_load_2d_multicast(s, &in, full, 3, 0, blockIdx.x / 2);
  ptx::mbar_wait(full, 0);
  uint32_t own = tile[threadIdx.x];
  ptx::cluster_sync();
  uint32_t theirs = ptx::ld_cluster(ptx::mapa(s, peer) + (63 - threadIdx.x) * 4);
  ptx::mbar_arrive_cluster(ptx::mapa(read, peer));
  out[blockIdx.x * 64 + threadIdx.x] = own * 1000 + theirs;
  ptx::mbar_wait_cluster(read, 0);
}

// The same as `cluster_multicast` without waiting for the other's read: the block may be gone.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(32) cluster_leaves_early(uint32_t* out) {
  __shared__ uint32_t tile[32];
  tile[threadIdx.x] = threadIdx.x;
  ptx::cluster_sync();
  if (ptx::cluster_rank() == 0) {
    uint32_t sum = 0;
    for (int i = 0; i < 32; i++) sum += ptx::ld_cluster(ptx::mapa(ptx::smem_u32(tile), 1) + i * 4);
    out[threadIdx.x] = sum;
  }
}

// Copies with cp.async that arrive at an mbarrier when they are done.
extern "C" __global__ void __launch_bounds__(64) cp_async_mbarrier(const uint4* in, uint4* out) {
  __shared__ __align__(16) uint4 tile[64];
  __shared__ __align__(8) uint64_t bar_storage;
  const uint32_t bar = ptx::smem_u32(&bar_storage);
  init_barrier(bar, 64);
  ptx::cp_async_16(ptx::smem_u32(tile + threadIdx.x), in + threadIdx.x, 16);
  ptx::cp_async_mbar_arrive_noinc(bar);
  ptx::mbar_wait(bar, 0);
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
