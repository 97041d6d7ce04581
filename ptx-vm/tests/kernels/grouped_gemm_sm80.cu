// Grouped GEMM, bf16 in and out, f32 accumulate: C[row] = A[permuted_idx[row] / top_k] * B[expert]^T.
// Tiles of 64x64x32, 4 warps, two stages of cp.async, ldmatrix and mma.sync m16n8k16.
#include "ptx.cuh"

constexpr int BM = 64, BN = 64, BK = 32;
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;

// Byte offset of a 16-byte chunk in a tile of 64-byte rows, so that 8 rows of one chunk hit all banks.
__device__ __forceinline__ uint32_t swizzle(uint32_t row, uint32_t chunk) {
  return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4);
}

extern "C" __global__ void __launch_bounds__(128)
    grouped_gemm_sm80(const __nv_bfloat16* __restrict__ A, const __nv_bfloat16* __restrict__ B,
                      const int* __restrict__ expert_offsets, const int* __restrict__ permuted_idx, int top_k,
                      int num_experts, int N, int K, __nv_bfloat16* __restrict__ C) {
  extern __shared__ __align__(1024) uint8_t smem[];

  // blockIdx.y counts the row tiles of all experts.
  int tile = blockIdx.y, expert = 0, row_begin = 0, row_end = 0;
  for (; expert < num_experts; expert++) {
    int rows = expert_offsets[expert + 1] - expert_offsets[expert], tiles = (rows + BM - 1) / BM;
    if (tile < tiles) {
      row_begin = expert_offsets[expert] + tile * BM;
      row_end = expert_offsets[expert + 1];
      break;
    }
    tile -= tiles;
  }
  if (expert == num_experts) return;

  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int warp_m = warp & 1, warp_n = warp >> 1, n0 = blockIdx.x * BN;
  const uint32_t sbase = ptx::smem_u32(smem);
  const __nv_bfloat16* b_expert = B + (size_t)expert * N * K;

  // Each thread copies one 16-byte chunk of two rows of A and of B.
  const int load_row = tid >> 2, load_chunk = tid & 3;
  const __nv_bfloat16* a_row[2];
  int a_bytes[2];
#pragma unroll
  for (int p = 0; p < 2; p++) {
    int row = row_begin + load_row + p * 32;
    bool valid = row < row_end;
    a_row[p] = A + (size_t)(valid ? permuted_idx[row] / top_k : 0) * K;
    a_bytes[p] = valid ? 16 : 0;
  }
  auto load = [&](int stage, int k0) {
    uint32_t sa = sbase + stage * (A_BYTES + B_BYTES), sb = sa + A_BYTES;
#pragma unroll
    for (int p = 0; p < 2; p++) {
      int row = load_row + p * 32;
      ptx::cp_async_16(sa + swizzle(row, load_chunk), a_row[p] + k0 + load_chunk * 8, a_bytes[p]);
      ptx::cp_async_16(sb + swizzle(row, load_chunk), b_expert + (size_t)(n0 + row) * K + k0 + load_chunk * 8, 16);
    }
    ptx::cp_async_commit();
  };

  float acc[2][4][4] = {};
  const int num_k = K / BK;
  load(0, 0);
  for (int kt = 0; kt < num_k; kt++) {
    if (kt + 1 < num_k) {
      load((kt + 1) & 1, (kt + 1) * BK);
      ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();  // tile is there
    uint32_t sa = sbase + (kt & 1) * (A_BYTES + B_BYTES), sb = sa + A_BYTES;
#pragma unroll
    for (int ks = 0; ks < 2; ks++) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        ptx::ldmatrix_x4(a[i], sa + swizzle(warp_m * 32 + i * 16 + (lane & 15), ks * 2 + (lane >> 4)));
        ptx::ldmatrix_x4(b[i], sb + swizzle(warp_n * 32 + i * 16 + (lane & 7) + ((lane >> 4) << 3),
                                            ks * 2 + ((lane >> 3) & 1)));
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          ptx::mma_m16n8k16_bf16(acc[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
        }
      }
    }
    __syncthreads();  // tile may be overwritten
  }

#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int row = row_begin + warp_m * 32 + i * 16 + half * 8 + (lane >> 2);
        int col = n0 + warp_n * 32 + j * 8 + (lane & 3) * 2;
        if (row < row_end) {
          *reinterpret_cast<__nv_bfloat162*>(C + (size_t)row * N + col) =
              __floats2bfloat162_rn(acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
        }
      }
    }
  }
}
