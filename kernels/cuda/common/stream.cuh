// Products of few rows with weights that are read once: the speed is that of memory, and what counts is how many loads are
// on their way at a time.
#pragma once
#include "expert_linear.cuh"
#include "vector.cuh"
#include "warp.cuh"

// Rows of one expert that go through its weights together.
constexpr uint32_t ROWS = 4;

struct Rows {
  uint32_t expert;
  uint32_t first;
  uint32_t count;  // 0: nothing to do
  uint64_t input[ROWS];
};

__device__ __forceinline__ Rows rows_of(const GroupedGemmParams& p, uint32_t expert, uint32_t first, uint32_t end) {
  Rows rows = {expert, first, min(ROWS, end - first), {}};
#pragma unroll
  for (uint32_t r = 0; r < ROWS; r++) rows.input[r] = r < rows.count ? input_row(p, first + r).row * p.k : 0;
  return rows;
}

// Eight weights as they lie in memory, read once and not kept.
template <typename T>
struct RawEight {
  uint4 words[sizeof(T) / 2];
};

template <typename T>
__device__ __forceinline__ RawEight<T> stream_eight(const T* weights) {
  RawEight<T> raw;
#pragma unroll
  for (uint32_t i = 0; i < sizeof(T) / 2; i++) raw.words[i] = __ldcs(reinterpret_cast<const uint4*>(weights) + i);
  return raw;
}

template <typename T>
__device__ __forceinline__ Eight widen(const RawEight<T>& raw) {
  if constexpr (sizeof(T) == 4) {
    const uint4 a = raw.words[0], b = raw.words[1];
    return {{__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w),
             __uint_as_float(b.x), __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)}};
  } else {
    return widen_eight<T>(raw.words[0]);
  }
}

// Each of `x` summed over N neighbouring lanes, of which lane l gets sum l % N. N is a power of two.
template <uint32_t N>
__device__ __forceinline__ float warp_sums(const float (&x)[N]) {
  if constexpr (N > 1) {
    // Lanes N / 2 apart take half of the sums each.
    constexpr uint32_t HALF = N / 2;
    const bool is_high = lane_id() & HALF;
    float mine[HALF];
#pragma unroll
    for (uint32_t i = 0; i < HALF; i++) {
      const float given = is_high ? x[i] : x[i + HALF];
      mine[i] = (is_high ? x[i + HALF] : x[i]) + __shfl_xor_sync(ALL_LANES, given, HALF);
    }
    return warp_sums(mine);
  } else {
    return x[0];
  }
}

// Elements `begin..end` along K of COUNT rows times COLUMNS columns of [E, N, K] weights, by a warp whose lanes have eights
// of K. STEPS * COLUMNS loads of 16 bytes a lane go out before the first is used. Lane l gets the sum of row
// l / COLUMNS and column l % COLUMNS, both wrapped.
template <uint32_t COUNT, uint32_t STEPS, uint32_t COLUMNS, typename T>
__device__ __forceinline__ float multiply(const GroupedGemmParams& p, const Rows& rows, const T* const (&columns)[COLUMNS],
                                          uint32_t begin, uint32_t end) {
  float sums[COUNT * COLUMNS] = {};
  for (uint32_t k = begin + lane_id() * 8; k < end; k += 256 * STEPS) {
    RawEight<T> weights[STEPS][COLUMNS];
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++) {
#pragma unroll
      for (uint32_t c = 0; c < COLUMNS; c++) {
        if (s == 0 || k + s * 256 < end) weights[s][c] = stream_eight(columns[c] + k + s * 256);
      }
    }
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++) {
      if (s > 0 && k + s * 256 >= end) break;
      Eight input[COUNT];
#pragma unroll
      for (uint32_t r = 0; r < COUNT; r++) input[r] = load_eight(p.input, rows.input[r] + k + s * 256, p.input_dtype);
#pragma unroll
      for (uint32_t c = 0; c < COLUMNS; c++) {
        const Eight weight = widen<T>(weights[s][c]);
#pragma unroll
        for (uint32_t i = 0; i < COUNT * 8; i++) {
          float& sum = sums[i / 8 * COLUMNS + c];
          sum = fmaf(input[i / 8].x[i % 8], weight.x[i % 8], sum);
        }
      }
    }
  }
  float sum = warp_sums(sums);
#pragma unroll
  for (uint32_t distance = COUNT * COLUMNS; distance < 32; distance *= 2) {
    sum += __shfl_xor_sync(ALL_LANES, sum, distance);
  }
  return sum;
}

// One element along K of up to ROWS rows times eight neighbouring columns of [E, K, N] weights, for k = begin, begin +
// stride, ... below `end`. STEPS loads of 16 bytes a lane go out before the first is used.
template <uint32_t COUNT, uint32_t STEPS, typename T>
__device__ __forceinline__ void multiply_kn(const GroupedGemmParams& p, const Rows& rows, const T* column, uint32_t begin,
                                            uint32_t stride, uint32_t end, float (&sums)[ROWS][8]) {
  for (uint32_t k = begin; k < end; k += stride * STEPS) {
    RawEight<T> weights[STEPS];
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++) {
      const uint32_t at = k + s * stride;
      if (s == 0 || at < end) weights[s] = stream_eight(column + static_cast<uint64_t>(at) * p.n);
    }
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++) {
      const uint32_t at = k + s * stride;
      if (s > 0 && at >= end) break;
      const Eight weight = widen<T>(weights[s]);
#pragma unroll
      for (uint32_t r = 0; r < COUNT; r++) {
        const float input = load(p.input, rows.input[r] + at, p.input_dtype);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sums[r][i] = fmaf(input, weight.x[i], sums[r][i]);
      }
    }
  }
}
