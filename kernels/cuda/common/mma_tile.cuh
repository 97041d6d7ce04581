// One tile of a grouped GEMM on tensor cores: copies into a ring of stages, mma.sync, and the epilogue. The kernels are
// in grouped_gemm_sm80.cu, whose header has the layout.
#pragma once
#include "../ptx/mma.cuh"
#include "expert_linear.cuh"
#include "mma_stage.cuh"
#include "tiles.cuh"
#include "vector.cuh"

#include <type_traits>

// T: the weights' type; F32_ROWS: the input is f32 (tf32 products), else it is T; KN: weights are [E, K, N].
template <typename T, bool F32_ROWS, bool KN, uint32_t BM, uint32_t BN, uint32_t WARPS_M, uint32_t WARPS_N,
          uint32_t STAGES>
struct MmaTile {
  using Row = std::conditional_t<F32_ROWS, float, T>;
  static constexpr uint32_t THREADS = WARPS_M * WARPS_N * 32;
  static constexpr uint32_t WM = BM / WARPS_M, WN = BN / WARPS_N, MI = WM / 16, NI = WN / 8;
  static constexpr uint32_t ROW_BYTES = BM * DEPTH * sizeof(Row), STAGE_BYTES = ROW_BYTES + BN * DEPTH * 2;
  static constexpr uint32_t STAGES_BYTES = STAGES * STAGE_BYTES;
  // Chunks of 16 bytes of a stage, and those that one thread copies.
  static constexpr uint32_t ROW_CHUNKS = DEPTH * sizeof(Row) / 16, ROW_ELEMENTS = 16 / sizeof(Row);
  static constexpr uint32_t ROW_COPIES = (BM * ROW_CHUNKS + THREADS - 1) / THREADS;
  static constexpr uint32_t WEIGHT_COPIES = BN * DEPTH * 2 / 16 / THREADS;
  // Of a warp's 16 rows in the epilogue, in floats; 8 more than columns, so that fragments do not meet in a bank.
  static constexpr uint32_t OUT_STRIDE = WN + 8;
  static_assert(WM % 16 == 0 && WN % 16 == 0 && BN * 4 % THREADS == 0, "fragments and copies come out even");
  static_assert(THREADS / 32 * 16 * OUT_STRIDE * 4 <= STAGES_BYTES, "the epilogue uses the stages' memory");

  const GroupedGemmParams& p;
  uint8_t* shared;
  Tile tile;
  // What this thread copies: the start of each row or weight column, null where there is none.
  const Row* rows[ROW_COPIES];
  const T* weights[KN ? 1 : WEIGHT_COPIES];
  uint32_t weight_count;

  __device__ __forceinline__ MmaTile(const GroupedGemmParams& params, uint8_t* memory, const Tile& t)
      : p(params), shared(memory), tile(t) {
    find_rows();
    KN ? find_weight_run() : find_weight_rows();
  }

  __device__ __forceinline__ void find_rows() {
#pragma unroll
    for (uint32_t i = 0; i < ROW_COPIES; i++) {
      const uint32_t row = (threadIdx.x + i * THREADS) / ROW_CHUNKS;
      rows[i] = nullptr;
      if (row < BM && tile.row + row < tile.row_end) {
        rows[i] = at<const Row>(p.input) + input_row(p, tile.row + row).row * p.k;
      }
    }
  }

  // With a gate, columns 16q..16q + 8 of a tile are the gate's and the 8 after them the up projection's for outputs
  // 8q..8q + 8, so that one thread has both. Interleaved [E, K, N] weights stay as they are.
  __device__ __forceinline__ bool is_paired() const { return p.gate != GATE_NONE && !(KN && p.gate == INTERLEAVED); }

  // Where along N column `column` of the tile lies; n or more where there is none.
  __device__ __forceinline__ uint32_t column_of(uint32_t column) const {
    if (!is_paired()) return tile.column_tile * BN + column;
    const uint32_t i = tile.column_tile * (BN / 2) + column / 16 * 8 + column % 8;
    return i < p.n_out ? weight_column(p, i, column / 8 & 1u) : p.n;
  }

  __device__ __forceinline__ const T* matrix() const {
    return at<const T>(p.weight) + static_cast<uint64_t>(tile.expert) * p.n * p.k;
  }

  __device__ __forceinline__ void find_weight_rows() {
#pragma unroll
    for (uint32_t i = 0; i < WEIGHT_COPIES; i++) {
      const uint32_t n = column_of((threadIdx.x + i * THREADS) / 4);
      weights[i] = n < p.n ? matrix() + static_cast<uint64_t>(n) * p.k : nullptr;
    }
  }

  // Of [E, K, N] weights a thread copies the same 8 columns of several rows along K.
  __device__ __forceinline__ void find_weight_run() {
    const uint32_t first = threadIdx.x % (BN / 8) * 8, n = column_of(first);
    const uint32_t i = tile.column_tile * (BN / 2) + first / 16 * 8;
    const uint32_t left = is_paired() ? p.n_out - i : p.n - n;
    weights[0] = n < p.n ? matrix() + n : nullptr;
    weight_count = n < p.n ? min(8u, left) : 0;
  }

  __device__ __forceinline__ void copy_rows(uint8_t* stage, uint32_t k) const {
#pragma unroll
    for (uint32_t i = 0; i < ROW_COPIES; i++) {
      const uint32_t index = threadIdx.x + i * THREADS, row = index / ROW_CHUNKS, chunk = index % ROW_CHUNKS;
      if (BM * ROW_CHUNKS % THREADS != 0 && row >= BM) break;
      const uint32_t column = k + chunk * ROW_ELEMENTS;
      const uint32_t count = rows[i] != nullptr && column < p.k ? min(ROW_ELEMENTS, p.k - column) : 0;
      uint8_t* target = stage + (F32_ROWS ? swizzle_f32(row, chunk) : swizzle_64(row, chunk));
      copy_chunk(target, count == 0 ? at<const Row>(p.input) : rows[i] + column, count, p.input_aligned);
    }
  }

  __device__ __forceinline__ void copy_weights(uint8_t* stage, uint32_t k) const {
#pragma unroll
    for (uint32_t i = 0; i < WEIGHT_COPIES; i++) {
      const uint32_t index = threadIdx.x + i * THREADS;
      const T* source = at<const T>(p.weight);
      uint32_t count = 0;
      if constexpr (KN) {
        const uint32_t row = index / (BN / 8);
        if (k + row < p.k) count = weight_count;
        if (count != 0) source = weights[0] + static_cast<uint64_t>(k + row) * p.n;
        copy_chunk(stage + swizzle_n<BN>(row, index % (BN / 8)), source, count, p.weight_aligned);
      } else {
        const uint32_t column = k + index % 4 * 8;
        if (weights[i] != nullptr && column < p.k) count = min(8u, p.k - column);
        if (count != 0) source = weights[i] + column;
        copy_chunk(stage + swizzle_64(index / 4, index % 4), source, count, p.weight_aligned);
      }
    }
  }

  // Columns k..k + DEPTH, as one group of copies; an empty one behind the end.
  __device__ __forceinline__ void copy_stage(uint32_t number) const {
    uint8_t* stage = shared + number % STAGES * STAGE_BYTES;
    if (number * DEPTH < p.k) {
      copy_rows(stage, number * DEPTH);
      copy_weights(stage + ROW_BYTES, number * DEPTH);
    }
    ptx::cp_async_commit();
  }

  // Two fragments of 8 columns each: b[0], b[1] are the first's K 0..8 and 8..16.
  __device__ __forceinline__ void load_weights(uint32_t (&b)[4], uint32_t stage, uint32_t column, uint32_t step) const {
    const uint32_t lane = lane_id();
    if constexpr (KN) {
      ptx::ldmatrix_x4_trans(b, stage + swizzle_n<BN>(step * 16 + (lane & 15), column / 8 + (lane >> 4)));
    } else {
      ptx::ldmatrix_x4(b, stage + swizzle_64(column + (lane & 7) + (lane >> 4 << 3), step * 2 + (lane >> 3 & 1)));
    }
  }

  __device__ __forceinline__ void multiply_16(float (&sums)[MI][NI][4], const uint8_t* stage, uint32_t step) const {
    const uint32_t warp = warp_id(), lane = lane_id(), base = ptx::shared_address(stage);
    uint32_t a[MI][4];
#pragma unroll
    for (uint32_t i = 0; i < MI; i++) {
      const uint32_t row = warp % WARPS_M * WM + i * 16 + (lane & 15);
      ptx::ldmatrix_x4(a[i], base + swizzle_64(row, step * 2 + (lane >> 4)));
    }
#pragma unroll
    for (uint32_t j = 0; j < NI; j += 2) {
      uint32_t b[4];
      load_weights(b, base + ROW_BYTES, warp / WARPS_M * WN + j * 8, step);
#pragma unroll
      for (uint32_t i = 0; i < MI; i++) {
        ptx::mma_m16n8k16<T>(sums[i][j], a[i], b[0], b[1]);
        ptx::mma_m16n8k16<T>(sums[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }

  // K is multiplied in another order than it lies in, for both sides alike: slot t of eight is column 2t and slot t + 4
  // column 2t + 1, which are neighbours in the rows (one 8-byte load) and in ldmatrix's registers.
  __device__ __forceinline__ void multiply_tf32(float (&sums)[MI][NI][4], const uint8_t* stage, uint32_t step) const {
    const uint32_t warp = warp_id(), lane = lane_id(), base = ptx::shared_address(stage);
    uint32_t a[2][MI][4];
#pragma unroll
    for (uint32_t i = 0; i < MI * 4; i++) {
      const uint32_t half = i / 2 % 2, lower = i % 2;
      const uint32_t row = warp % WARPS_M * WM + i / 4 * 16 + lower * 8 + lane / 4;
      const uint32_t chunk = step * 4 + half * 2 + (lane >> 1 & 1);
      const float2 x = *reinterpret_cast<const float2*>(stage + swizzle_f32(row, chunk) + (lane & 1) * 8);
      a[half][i / 4][lower] = ptx::to_tf32(x.x);
      a[half][i / 4][2 + lower] = ptx::to_tf32(x.y);
    }
#pragma unroll
    for (uint32_t j = 0; j < NI; j += 2) {
      uint32_t b[4];
      load_weights(b, base + ROW_BYTES, warp / WARPS_M * WN + j * 8, step);
#pragma unroll
      for (uint32_t half = 0; half < 2; half++) {
        const float2 b0 = widen_pair<T>(b[half]), b1 = widen_pair<T>(b[2 + half]);
#pragma unroll
        for (uint32_t i = 0; i < MI; i++) {
          ptx::mma_m16n8k8_tf32(sums[i][j], a[half][i], __float_as_uint(b0.x), __float_as_uint(b0.y));
          ptx::mma_m16n8k8_tf32(sums[i][j + 1], a[half][i], __float_as_uint(b1.x), __float_as_uint(b1.y));
        }
      }
    }
  }

  __device__ __forceinline__ void run() const {
    float sums[MI][NI][4] = {};
    const uint32_t count = (p.k + DEPTH - 1) / DEPTH;
    for (uint32_t i = 0; i < STAGES - 1; i++) copy_stage(i);
    for (uint32_t i = 0; i < count; i++) {
      ptx::cp_async_wait<STAGES - 2>();
      // Stage i is there for all, and all have done with the stage that is filled next.
      __syncthreads();
      copy_stage(i + STAGES - 1);
      const uint8_t* stage = shared + i % STAGES * STAGE_BYTES;
#pragma unroll
      for (uint32_t step = 0; step < DEPTH / 16; step++) {
        F32_ROWS ? multiply_tf32(sums, stage, step) : multiply_16(sums, stage, step);
      }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    write(sums);
    // The next tile's copies overwrite what the epilogue used.
    __syncthreads();
  }

  // Sixteen rows at a time through the warp's part of shared memory, where gate and up meet.
  __device__ __forceinline__ void write(const float (&sums)[MI][NI][4]) const {
    float* out = reinterpret_cast<float*>(shared) + warp_id() * 16 * OUT_STRIDE;
    const uint32_t lane = lane_id();
#pragma unroll
    for (uint32_t i = 0; i < MI; i++) {
      const uint32_t row = tile.row + warp_id() % WARPS_M * WM + i * 16;
#pragma unroll
      for (uint32_t j = 0; j < NI; j++) {
        float* target = out + lane / 4 * OUT_STRIDE + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(target) = make_float2(sums[i][j][0], sums[i][j][1]);
        *reinterpret_cast<float2*>(target + 8 * OUT_STRIDE) = make_float2(sums[i][j][2], sums[i][j][3]);
      }
      __syncwarp();
      if (row < tile.row_end) write_rows(out, row, min(16u, tile.row_end - row));
      __syncwarp();
    }
  }

  // Four outputs a lane.
  __device__ __forceinline__ void write_rows(const float* sums, uint32_t first_row, uint32_t num_rows) const {
    const uint32_t outputs = p.gate == GATE_NONE ? WN : WN / 2, quads = outputs / 4;
    const uint32_t first = tile.column_tile * (p.gate == GATE_NONE ? BN : BN / 2) + warp_id() / WARPS_M * outputs;
    for (uint32_t index = lane_id(); index < num_rows * quads; index += 32) {
      const uint32_t row = index / quads, quad = index % quads * 4;
      if (first + quad < p.n_out) write_quad(sums + row * OUT_STRIDE, first_row + row, first + quad, quad);
    }
  }

  __device__ __forceinline__ void write_quad(const float* sums, uint32_t row, uint32_t column, uint32_t quad) const {
    const float scale = p.slot_scale != 0 ? input_row(p, row).scale : 1.f;
    float y[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t output = min(column + i, p.n_out - 1);
      const uint32_t gate = p.gate == GATE_NONE ? quad + i : is_paired() ? quad / 8 * 16 + quad % 8 + i : 2 * (quad + i);
      float up = 1.f;
      if (p.gate != GATE_NONE) {
        const float sum = sums[gate + (is_paired() ? 8 : 1)];
        up = fmaf(scale, sum, bias_at(p, tile.expert, weight_column(p, output, true)));
      }
      const float bias = bias_at(p, tile.expert, weight_column(p, output, false));
      y[i] = activate(p, fmaf(scale, sums[gate], bias), up);
    }
    const uint64_t start = static_cast<uint64_t>(row) * p.n_out + column;
    if (p.n_out % 4 == 0 && p.output % 16 == 0) {
      store_quad(p.output, start, p.output_dtype, y);
    } else {
  #pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        if (column + i < p.n_out) store(p.output, start + i, p.output_dtype, y[i]);
      }
    }
  }
};
