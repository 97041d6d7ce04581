// C[M,N] = A[M,K] * B[N,K]^T + bias. Tiles of 64x64x64: one warpgroup loads with TMA through a ring of
// three stages, the other multiplies with wgmma; bias by a bulk copy, C by bulk stores.
#include "ptx.cuh"

constexpr int BM = 64, BN = 64, BK = 64, STAGES = 3;
constexpr uint32_t A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr uint32_t C_AT = STAGES * STAGE_BYTES, BIAS_AT = C_AT + BM * BN * 2, BARS_AT = BIAS_AT + BN * 4;

extern "C" __global__ void __launch_bounds__(256, 1)
    gemm_sm90(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
              const float* __restrict__ bias, __nv_bfloat16* __restrict__ C, int M, int N, int K) {
  extern __shared__ __align__(1024) uint8_t smem[];
  const uint32_t s = ptx::smem_u32(smem), bars = s + BARS_AT;
  auto full = [&](int stage) { return bars + stage * 16; };
  auto empty = [&](int stage) { return bars + stage * 16 + 8; };
  const uint32_t bias_bar = bars + STAGES * 16;
  const int tid = threadIdx.x, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, num_k = K / BK;

  if (tid == 0) {
    for (int stage = 0; stage < STAGES; stage++) {
      ptx::mbar_init(full(stage), 1);
      ptx::mbar_init(empty(stage), 128);
    }
    ptx::mbar_init(bias_bar, 1);
    ptx::fence_mbar_init();
  }
  __syncthreads();

  if (tid >= 128) {  // producer
    ptx::setmaxnreg_dec<40>();
    if (tid == 128) {
      ptx::mbar_arrive_expect_tx(bias_bar, BN * 4);
      ptx::bulk_g2s(s + BIAS_AT, bias + n0, BN * 4, bias_bar);
      for (int kt = 0; kt < num_k; kt++) {
        int stage = kt % STAGES, phase = (kt / STAGES) & 1;
        ptx::mbar_wait(empty(stage), phase ^ 1);
        ptx::mbar_arrive_expect_tx(full(stage), STAGE_BYTES);
        ptx::tma_load_2d(s + stage * STAGE_BYTES, &map_a, full(stage), kt * BK, m0);
        ptx::tma_load_2d(s + stage * STAGE_BYTES + A_BYTES, &map_b, full(stage), kt * BK, n0);
      }
    }
  } else {  // consumer
    ptx::setmaxnreg_inc<232>();
    float d[32];
    for (int kt = 0; kt < num_k; kt++) {
      int stage = kt % STAGES, phase = (kt / STAGES) & 1;
      ptx::mbar_wait(full(stage), phase);
      uint64_t da = ptx::desc_k_sw128(s + stage * STAGE_BYTES);
      uint64_t db = ptx::desc_k_sw128(s + stage * STAGE_BYTES + A_BYTES);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK / 16; k++) ptx::wgmma_m64n64k16_bf16(d, da + k * 2, db + k * 2, (kt | k) != 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::mbar_arrive(empty(stage));
    }

    ptx::mbar_wait(bias_bar, 0);
    const float* s_bias = reinterpret_cast<const float*>(smem + BIAS_AT);
    __nv_bfloat16* s_c = reinterpret_cast<__nv_bfloat16*>(smem + C_AT);
    const int warp = tid >> 5, lane = tid & 31;
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      int row = warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8, col = (i >> 2) * 8 + (lane & 3) * 2;
      *reinterpret_cast<__nv_bfloat162*>(s_c + row * BN + col) =
          __floats2bfloat162_rn(d[i] + s_bias[col], d[i + 1] + s_bias[col + 1]);
    }
    ptx::fence_proxy_async();
    ptx::named_bar_sync(1, 128);
    if (tid < BM && m0 + tid < M) {
      ptx::bulk_s2g(C + (size_t)(m0 + tid) * N + n0, s + C_AT + tid * BN * 2, BN * 2);
    }
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
}
