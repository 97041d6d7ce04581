// From a warpgroup's sums in registers (ptx/wgmma.cuh says which thread has what) to the output of a grouped GEMM.
//
// With a gate, the first half of a thread's sums are gate columns and the second half the up projection's for the same
// outputs, so that both meet in one thread and nothing goes through shared memory. Where columns of gate and up take turns
// (PAIRS), so do a thread's sums. Outputs are whole eights of columns, and rows of the output start on 16 bytes: other
// shapes run in another kernel.
#pragma once
#include "expert_linear.cuh"
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

// Where a thread's sums lie in the output.
struct SumsPlace {
  uint32_t expert;
  uint32_t row;      // and row + 8
  uint32_t row_end;  // the expert's last row is before it
  uint32_t column;   // of the warpgroup's first output
};

// Which of N sums output i comes of, with a gate, and stays in; and the up projection's.
template <bool PAIRS>
__device__ __forceinline__ constexpr uint32_t gate_at(uint32_t i) {
  return PAIRS ? 2 * i : i;
}
template <bool PAIRS, uint32_t N>
__device__ __forceinline__ constexpr uint32_t up_at(uint32_t i) {
  return PAIRS ? 2 * i + 1 : N / 2 + i;
}

// Replaces x by f(x), or by f(x) times the up projection.
template <bool PAIRS, uint32_t N, typename F>
__device__ __forceinline__ void each_output(const GroupedGemmParams& p, float (&sums)[N], F f) {
  if (p.gate == GATE_NONE) {
#pragma unroll
    for (uint32_t i = 0; i < N; i++) sums[i] = f(sums[i]);
  } else {
#pragma unroll
    for (uint32_t i = 0; i < N / 2; i++) sums[gate_at<PAIRS>(i)] = f(sums[gate_at<PAIRS>(i)]) * sums[up_at<PAIRS, N>(i)];
  }
}

// `activate` of expert_linear.cuh, with the choice outside of the loop.
template <bool PAIRS, uint32_t N>
__device__ __forceinline__ void activate_sums(const GroupedGemmParams& p, float (&sums)[N]) {
  const auto each = [&](auto f) { each_output<PAIRS>(p, sums, f); };
  switch (p.activation) {
    case SILU: return each([](float x) { return x * fast_sigmoid(x); });
    case GELU: return each([](float x) { return fast_gelu(x); });
    case GELU_TANH:
      return each([](float x) { return x * fast_sigmoid(1.5957691f * x * fmaf(0.044715f * x, x, 1.f)); });
    case RELU: return each([](float x) { return fmaxf(x, 0.f); });
    case RELU_SQUARED: return each([](float x) { return fmaxf(x, 0.f) * fmaxf(x, 0.f); });
    case CLAMPED_SWIGLU:
#pragma unroll
      for (uint32_t i = 0; i < N / 2; i++) {
        const float x = fminf(sums[gate_at<PAIRS>(i)], p.limit), up = sums[up_at<PAIRS, N>(i)];
        const float linear = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
        sums[gate_at<PAIRS>(i)] = x * fast_sigmoid(p.alpha * x) * (linear + 1.f);
      }
      return;
    default:
      if (p.gate != GATE_NONE) each([](float x) { return x; });
  }
}

// Columns of the product between a warpgroup's first and that of sum i.
__device__ __forceinline__ uint32_t column_of(uint32_t i) { return i / 4 * 8 + lane_id() % 4 * 2 + i % 2; }

// Scales each row by its slot's weight, then adds the bias of each column.
template <bool PAIRS, uint32_t N>
__device__ __forceinline__ void scale_and_bias(const GroupedGemmParams& p, const SumsPlace& place, float (&sums)[N]) {
  if (p.slot_scale != 0) {
    float scale[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      scale[h] = place.row + 8 * h < place.row_end ? input_row(p, place.row + 8 * h).scale : 0.f;
    }
#pragma unroll
    for (uint32_t i = 0; i < N; i++) sums[i] *= scale[i / 2 % 2];
  }
  if (p.bias == 0) return;
#pragma unroll
  for (uint32_t i = 0; i < N; i++) {
    if (i / 2 % 2 != 0) continue;
    const bool up = PAIRS ? i % 2 : p.gate != GATE_NONE && i >= N / 2;
    const uint32_t column = place.column + (PAIRS ? column_of(i) / 2 : column_of(up ? i - N / 2 : i));
    if (column >= p.n_out) continue;
    const float bias = bias_at(p, place.expert, weight_column(p, column, up));
    sums[i] += bias;
    sums[i + 2] += bias;
  }
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

// 16-bit outputs: the four lanes of a row swap pairs of columns, so that each has eight neighbours for one store. With PAIRS
// a lane has every fourth output, and sorts what it got.
template <typename T, bool PAIRS, uint32_t COUNT, uint32_t N>
__device__ __forceinline__ void store_16(const GroupedGemmParams& p, const SumsPlace& place, const float (&sums)[N]) {
#pragma unroll
  for (uint32_t i = 0; i < COUNT; i += 16) {
    if (place.column + i * 2 >= p.n_out) break;
    const uint32_t column = place.column + i * 2 + lane_id() % 4 * 8;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      uint32_t w[4];
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const uint32_t first = i + j * 4 + (PAIRS ? h : h * 2), second = first + (PAIRS ? 2 : 1);
        w[j] = narrow_pair<T>(sums[gate_at<PAIRS>(first)], sums[gate_at<PAIRS>(second)]);
      }
      transpose_4x4(w);
      const uint4 sorted = make_uint4(__byte_perm(w[0], w[1], 0x5410), __byte_perm(w[2], w[3], 0x5410),
                                      __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x7632));
      const uint32_t row = place.row + 8 * h;
      if (row < place.row_end && column < p.n_out) {
        *reinterpret_cast<uint4*>(at<T>(p.output) + static_cast<uint64_t>(row) * p.n_out + column) =
            PAIRS ? sorted : make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
}

// f32 outputs: the four lanes of a row have 32 bytes side by side, or with PAIRS 16.
template <bool PAIRS, uint32_t COUNT, uint32_t N>
__device__ __forceinline__ void store_f32(const GroupedGemmParams& p, const SumsPlace& place, const float (&sums)[N]) {
#pragma unroll
  for (uint32_t i = 0; i < COUNT; i += PAIRS ? 1 : 2) {
    const uint32_t row = place.row + (PAIRS ? i : i / 2) % 2 * 8;
    const uint32_t column = place.column + (PAIRS ? i / 2 * 4 + lane_id() % 4 : i / 4 * 8 + lane_id() % 4 * 2);
    if (row >= place.row_end || column >= p.n_out) continue;
    float* target = at<float>(p.output) + static_cast<uint64_t>(row) * p.n_out + column;
    if (PAIRS) {
      *target = sums[gate_at<true>(i)];
    } else {
      *reinterpret_cast<float2*>(target) = make_float2(sums[i], sums[i + 1]);
    }
  }
}

template <bool PAIRS, uint32_t COUNT, uint32_t N>
__device__ __forceinline__ void store_sums(const GroupedGemmParams& p, const SumsPlace& place, const float (&sums)[N]) {
  switch (p.output_dtype) {
    case F32: return store_f32<PAIRS, COUNT>(p, place, sums);
    case BF16: return store_16<bf16, PAIRS, COUNT>(p, place, sums);
    default: return store_16<f16, PAIRS, COUNT>(p, place, sums);
  }
}

// The whole epilogue. All lanes of a warp call: each of them has rows of the expert, or none has.
template <bool PAIRS, uint32_t N>
__device__ __forceinline__ void write_sums(const GroupedGemmParams& p, const SumsPlace& place, float (&sums)[N]) {
  scale_and_bias<PAIRS>(p, place, sums);
  activate_sums<PAIRS>(p, sums);
  if (!PAIRS && p.gate == GATE_NONE) {
    store_sums<PAIRS, N>(p, place, sums);
  } else {
    store_sums<PAIRS, N / 2>(p, place, sums);
  }
}
