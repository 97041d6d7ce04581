// From a warpgroup's sums with operands swapped to the output of a grouped GEMM: rows of the products are columns of the
// weights, columns of the products are rows of the output.
//
// sums[part * N / 2 + 4 * j + 2 * h + c] of N of thread t (ptx/wgmma.cuh) is column t / 32 * 16 + t % 32 / 4 + 8 * h of 64
// of the part, and row 8 * j + t % 4 * 2 + c of the tile. With a gate, part 0 is of the gate and part 1 the up projection's
// for the same outputs, so that both meet in one thread. Where columns of gate and up take turns (PAIRS), lanes 4 apart have
// one each, and swap: even ones go on with h = 0, odd ones with h = 1.
//
// Then a warp's sums are sets of 8 columns x 8 rows: set 2 * part + h, with a gate h, with PAIRS the part. Each is
// transposed in registers, so that neighbouring columns meet in a lane, and stored by 16 bytes (f32: 8). Outputs are whole
// eights of columns, and rows of the output start on 16 bytes: other shapes run in another kernel.
#pragma once
#include "../ptx/movmatrix.cuh"
#include "expert_linear.cuh"
#include "tiles.cuh"
#include "vector.cuh"
#include "warp.cuh"

// Approximate: what goes into them is a sum of products of 16-bit numbers.
__device__ __forceinline__ float fast_sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

// erfc by Abramowitz and Stegun 7.1.26, to 1.5e-7.
__device__ __forceinline__ float fast_gelu(float x) {
  const float z = 0.70710678f * fabsf(x), t = __fdividef(1.f, fmaf(0.3275911f, z, 1.f));
  float e = fmaf(1.061405429f, t, -1.453152027f);
  e = fmaf(e, t, 1.421413741f);
  e = fmaf(e, t, -0.284496736f);
  e = 0.5f * t * fmaf(e, t, 0.254829592f) * __expf(-z * z);
  return x * (x < 0.f ? e : 1.f - e);
}

// Word s of lane t of four goes to word t of lane s.
__device__ __forceinline__ void transpose_4x4(uint32_t (&w)[4]) {
  const bool odd = lane_id() & 1u, high = lane_id() & 2u;
#pragma unroll
  for (uint32_t i = 0; i < 4; i += 2) {
    const uint32_t theirs = __shfl_xor_sync(ALL_LANES, odd ? w[i] : w[i + 1], 1);
    w[i] = odd ? theirs : w[i];
    w[i + 1] = odd ? w[i + 1] : theirs;
  }
#pragma unroll
  for (uint32_t i = 0; i < 2; i++) {
    const uint32_t theirs = __shfl_xor_sync(ALL_LANES, high ? w[i] : w[i + 2], 2);
    w[i] = high ? theirs : w[i];
    w[i + 2] = high ? w[i + 2] : theirs;
  }
}

template <bool PAIRS, bool GATED, uint32_t N>
class Epilogue {
 public:
  // `column`: of the warpgroup's first output. With a gate it has 64, without 128.
  __device__ __forceinline__ Epilogue(const GroupedGemmParams& params, const Tile& t, uint32_t column, float (&s)[N])
      : p(params), tile(t), rows(t.row_end - t.row), first_column(column + warp_id() % 4 * (PAIRS ? 8 : 16)), sums(s) {}

  __device__ __forceinline__ void write() const {
    if (PAIRS) swap_pairs();
    if (p.slot_scale != 0) scale();
    if (p.bias != 0) add_bias();
    activate();
    switch (p.output_dtype) {
      case F32: return store_f32();
      case BF16: return store_16<bf16>();
      default: return store_16<f16>();
    }
  }

 private:
  // Sets of 8 columns of the output, and how far behind its gate's sum the up projection's is.
  static constexpr uint32_t SETS = GATED ? 2 : 4, UP = PAIRS ? 2 : N / 2;
  // Of sets that are stored at a time: eights of rows.
  static constexpr uint32_t TOGETHER = 4 / SETS;

  const GroupedGemmParams& p;
  const Tile& tile;
  uint32_t rows, first_column;
  float (&sums)[N];

  // The sum of row 2 * (lane % 4) + c of eight j.
  __device__ __forceinline__ static constexpr uint32_t index(uint32_t set, uint32_t j, uint32_t c) {
    return (PAIRS ? set * (N / 2) : set / 2 * (N / 2) + set % 2 * 2) + 4 * j + c;
  }

  // The first column of the output in a set.
  __device__ __forceinline__ uint32_t column(uint32_t set) const {
    return first_column + (PAIRS ? set * 32 : set / 2 * 64 + set % 2 * 8);
  }

  // Calls `f` with each eight of rows in which the tile has one.
  template <typename F>
  __device__ __forceinline__ void each_eight(F f) const {
#pragma unroll
    for (uint32_t j = 0; j < N / 8; j++) {
      if (8 * j < rows) f(j);
    }
  }

  // Calls `f` with the set, the eight, and the row in it, of each of this thread's outputs.
  template <typename F>
  __device__ __forceinline__ void each(F f) const {
    each_eight([&](uint32_t j) {
#pragma unroll
      for (uint32_t i = 0; i < 2 * SETS; i++) f(i / 2, j, i % 2);
    });
  }

  __device__ __forceinline__ void swap_pairs() const {
    const bool odd = lane_id() & 4u;
    each([&](uint32_t set, uint32_t j, uint32_t c) {
      float &low = sums[index(set, j, c)], &high = sums[index(set, j, c) + UP];
      const float theirs = __shfl_xor_sync(ALL_LANES, odd ? low : high, 4);
      (odd ? low : high) = theirs;
    });
  }

  // By the weight of each row's slot.
  __device__ __forceinline__ void scale() const {
    each_eight([&](uint32_t j) {
#pragma unroll
      for (uint32_t c = 0; c < 2; c++) {
        const uint32_t row = tile.row + 8 * j + lane_id() % 4 * 2 + c;
        const float scale = row < tile.row_end ? input_row(p, row).scale : 0.f;
#pragma unroll
        for (uint32_t set = 0; set < SETS; set++) {
          sums[index(set, j, c)] *= scale;
          if (GATED) sums[index(set, j, c) + UP] *= scale;
        }
      }
    });
  }

  __device__ __forceinline__ void add_bias() const {
    const uint32_t lane = lane_id() / 4, within = PAIRS ? lane / 2 + lane % 2 * 4 : lane;
    float bias[SETS], up_bias[SETS];
#pragma unroll
    for (uint32_t set = 0; set < SETS; set++) {
      const bool there = column(set) < p.n_out;
      bias[set] = there ? bias_at(p, tile.expert, weight_column(p, column(set) + within, false)) : 0.f;
      up_bias[set] = there && GATED ? bias_at(p, tile.expert, weight_column(p, column(set) + within, true)) : 0.f;
    }
    each([&](uint32_t set, uint32_t j, uint32_t c) {
      sums[index(set, j, c)] += bias[set];
      if (GATED) sums[index(set, j, c) + UP] += up_bias[set];
    });
  }

  template <typename F>
  __device__ __forceinline__ void each_activated(F f) const {
    each([&](uint32_t set, uint32_t j, uint32_t c) {
      float& x = sums[index(set, j, c)];
      x = GATED ? f(x) * sums[index(set, j, c) + UP] : f(x);
    });
  }

  // `activate` of expert_linear.cuh, with the choice outside of the loop.
  __device__ __forceinline__ void activate() const {
    switch (p.activation) {
      case SILU: return each_activated([](float x) { return x * fast_sigmoid(x); });
      case GELU: return each_activated([](float x) { return fast_gelu(x); });
      case GELU_TANH:
        return each_activated([](float x) { return x * fast_sigmoid(1.5957691f * x * fmaf(0.044715f * x, x, 1.f)); });
      case RELU: return each_activated([](float x) { return fmaxf(x, 0.f); });
      case RELU_SQUARED: return each_activated([](float x) { return fmaxf(x, 0.f) * fmaxf(x, 0.f); });
      case CLAMPED_SWIGLU:
        if (!GATED) return;
        return each([&](uint32_t set, uint32_t j, uint32_t c) {
          float& sum = sums[index(set, j, c)];
          const float x = fminf(sum, p.limit), up = sums[index(set, j, c) + UP];
          const float linear = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
          sum = x * fast_sigmoid(p.alpha * x) * (linear + 1.f);
        });
      default:
        if (GATED) each_activated([](float x) { return x; });
    }
  }

  // Of four sets, or of two in two eights of rows, each of the four lanes of a row stores one. With PAIRS a lane has every
  // fourth column, and sorts what it got.
  template <typename T>
  __device__ __forceinline__ void store_16() const {
    const uint32_t mine = lane_id() % 4, stored_column = column(mine % SETS);
#pragma unroll
    for (uint32_t j = 0; j < N / 8; j += TOGETHER) {
      if (8 * j >= rows) continue;
      uint32_t w[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) {
        const uint32_t set = i % SETS, eight = j + i / SETS;
        const uint32_t pair = narrow_pair<T>(sums[index(set, eight, 0)], sums[index(set, eight, 1)]);
        w[i] = ptx::transpose_8x8(8 * eight < rows ? pair : 0);
      }
      transpose_4x4(w);
      const uint4 sorted = make_uint4(__byte_perm(w[0], w[1], 0x5410), __byte_perm(w[2], w[3], 0x5410),
                                      __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x7632));
      const uint32_t row = tile.row + 8 * (j + mine / SETS) + lane_id() / 4;
      if (row < tile.row_end && stored_column < p.n_out) {
        *reinterpret_cast<uint4*>(at<T>(p.output) + static_cast<uint64_t>(row) * p.n_out + stored_column) =
            PAIRS ? sorted : make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }

  // The halves of a sum are transposed apart.
  __device__ __forceinline__ void store_f32() const {
    each_eight([&](uint32_t j) {
      const uint32_t row = tile.row + 8 * j + lane_id() / 4, lane = lane_id() % 4;
#pragma unroll
      for (uint32_t set = 0; set < SETS; set++) {
        const uint32_t x = __float_as_uint(sums[index(set, j, 0)]), y = __float_as_uint(sums[index(set, j, 1)]);
        const uint32_t low = ptx::transpose_8x8(__byte_perm(x, y, 0x5410));
        const uint32_t high = ptx::transpose_8x8(__byte_perm(x, y, 0x7632));
        const float left = __uint_as_float(__byte_perm(low, high, 0x5410));
        const float right = __uint_as_float(__byte_perm(low, high, 0x7632));
        if (row >= tile.row_end || column(set) >= p.n_out) continue;
        float* target = at<float>(p.output) + static_cast<uint64_t>(row) * p.n_out + column(set);
        if (PAIRS) {
          target[lane] = left;
          target[lane + 4] = right;
        } else {
          reinterpret_cast<float2*>(target)[lane] = make_float2(left, right);
        }
      }
    });
  }
};

// The whole epilogue, of a tile that has rows. All lanes of a warpgroup call.
template <bool PAIRS, uint32_t N>
__device__ __forceinline__ void write_sums(const GroupedGemmParams& p, const Tile& tile, uint32_t column, float (&sums)[N]) {
  if (PAIRS || p.gate != GATE_NONE) return Epilogue<PAIRS, true, N>(p, tile, column, sums).write();
  if constexpr (!PAIRS) Epilogue<false, false, N>(p, tile, column, sums).write();
}
