// Code of the toolkit's own libraries: CUB block algorithms, cuda::barrier, cuda::ptx, a function call.
#include <cooperative_groups.h>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/warp/warp_scan.cuh>
#include <cuda/barrier>
#include <cuda/ptx>

constexpr int THREADS = 128, ITEMS = 4;

extern "C" __global__ void __launch_bounds__(THREADS) block_scan(int* data) {
  using Scan = cub::BlockScan<int, THREADS>;
  __shared__ typename Scan::TempStorage temp;
  int v[ITEMS];
  for (int i = 0; i < ITEMS; i++) v[i] = data[threadIdx.x * ITEMS + i];
  int total;
  Scan(temp).ExclusiveSum(v, v, total);
  for (int i = 0; i < ITEMS; i++) data[threadIdx.x * ITEMS + i] = v[i];
  if (threadIdx.x == 0) data[THREADS * ITEMS] = total;
}

extern "C" __global__ void __launch_bounds__(THREADS) block_radix_sort(unsigned* keys, unsigned* values) {
  using Sort = cub::BlockRadixSort<unsigned, THREADS, ITEMS, unsigned>;
  __shared__ typename Sort::TempStorage temp;
  unsigned k[ITEMS], v[ITEMS];
  for (int i = 0; i < ITEMS; i++) {
    k[i] = keys[threadIdx.x * ITEMS + i];
    v[i] = threadIdx.x * ITEMS + i;
  }
  Sort(temp).Sort(k, v);
  for (int i = 0; i < ITEMS; i++) {
    keys[threadIdx.x * ITEMS + i] = k[i];
    values[threadIdx.x * ITEMS + i] = v[i];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) block_reduce(const float* in, float* out, int n) {
  using Reduce = cub::BlockReduce<float, THREADS>;
  __shared__ typename Reduce::TempStorage temp;
  float v = threadIdx.x < n ? in[threadIdx.x] : 0.f;
  float sum = Reduce(temp).Sum(v);
  if (threadIdx.x == 0) *out = sum;
}

// Each thread's value goes to its mirror image, through a cuda::barrier.
extern "C" __global__ void __launch_bounds__(THREADS) cuda_barrier(int* data) {
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  __shared__ int s[THREADS];
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  for (int round = 0; round < 3; round++) {
    s[threadIdx.x] = data[threadIdx.x];
    bar.arrive_and_wait();
    data[threadIdx.x] = s[THREADS - 1 - threadIdx.x] + 1;
    bar.arrive_and_wait();
  }
}

// The last block to finish sums what all have written (the pattern of threadfence reductions).
__device__ unsigned finished;
extern "C" __global__ void __launch_bounds__(32) last_block(const int* in, int* partial, int* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < 32; i++) sum += in[blockIdx.x * 32 + i];
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < gridDim.x; i++) sum += partial[i];
    *out = sum;
  }
}

// Blocks hand a value from one to the next: each waits for the one before.
extern "C" __global__ void __launch_bounds__(32) chain(int* flags, int* values) {
  if (threadIdx.x == 0) {
    int b = gridDim.x - 1 - blockIdx.x;  // the first block waits for the last
    if (b > 0) {
      while (cuda::atomic_ref<int, cuda::thread_scope_device>(flags[b - 1]).load(cuda::memory_order_acquire) == 0) {
      }
    }
    values[b] = b == 0 ? 1 : values[b - 1] * 2;
    cuda::atomic_ref<int, cuda::thread_scope_device>(flags[b]).store(1, cuda::memory_order_release);
  }
}

// Bulk copy into shared memory with the wrappers of cuda::ptx.
extern "C" __global__ void __launch_bounds__(64) cuda_ptx_bulk(const int* in, int* out) {
#if __CUDA_ARCH__ >= 900
  namespace ptx = cuda::ptx;
  __shared__ __align__(16) int tile[64];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&bar, 1);
    ptx::fence_proxy_async(ptx::space_shared);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, tile, in, sizeof(tile), &bar);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &bar, sizeof(tile));
  }
  while (!ptx::mbarrier_try_wait_parity(&bar, 0)) {
  }
  out[threadIdx.x] = tile[63 - threadIdx.x];
#endif
}

__device__ __noinline__ float power(float x, int n) {
  float r = 1.f;
  for (int i = 0; i < n; i++) r *= x;
  return r;
}
__device__ __noinline__ float2 sums(float a, float b, int n) {
  return n & 1 ? make_float2(power(a, n) + b, a) : make_float2(a + power(b, n), b);
}
extern "C" __global__ void calls(float* data) {
  float2 r = sums(data[threadIdx.x], 2.f, threadIdx.x % 5);
  data[threadIdx.x] = r.x + r.y;
}

__constant__ int table[4] = {3, 1, 4, 1};
extern "C" __global__ void local_and_constant(int* data, int n) {
  int a[8];
  for (int i = 0; i < 8; i++) a[i] = table[i & 3] * i;
  int sum = 0;
  for (int i = 0; i < n; i++) sum += a[(threadIdx.x + i) & 7];
  data[threadIdx.x] = sum;
}

// Values that no one synchronises: two blocks write one word.
extern "C" __global__ void block_race(int* data) { data[threadIdx.x] = blockIdx.x; }
