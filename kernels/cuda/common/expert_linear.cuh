// What the kernels of grouped_gemm share: which row of the input a row reads, where gate and up lie, and the epilogue.
#pragma once
#include "math.cuh"
#include "params.cuh"
#include "types.cuh"

enum Gate : uint32_t { GATE_NONE = 0, GATE_THEN_UP = 1, UP_THEN_GATE = 2, INTERLEAVED = 3 };
enum Activation : uint32_t {
  ACTIVATION_NONE = 0,
  SILU = 1,
  GELU = 2,
  GELU_TANH = 3,
  RELU = 4,
  RELU_SQUARED = 5,
  CLAMPED_SWIGLU = 6,
};

// The row of the input that a row of the output reads, and what scales it. Scaling the product instead of the row is the
// same, for the bias comes later.
struct InputRow {
  uint64_t row;
  float scale;
};

__device__ __forceinline__ InputRow input_row(const GroupedGemmParams& p, uint32_t row) {
  uint32_t slot = row;
  if (p.permuted_idx != 0) {
    slot = at<const uint32_t>(p.permuted_idx)[row];
  } else if (p.top_k == 0 && p.slot_tokens == 0) {
    return {row, 1.f};
  }
  const uint64_t token = p.slot_tokens != 0 ? at<const uint32_t>(p.slot_tokens)[slot] : slot / p.top_k;
  return {token, p.slot_scale != 0 ? at<const float>(p.slot_scale)[slot] : 1.f};
}

// The column along N of the gate (`up` false) or up projection of output column `i`; without a gate, `i`.
__device__ __forceinline__ uint32_t weight_column(const GroupedGemmParams& p, uint32_t i, bool up) {
  switch (p.gate) {
    case GATE_THEN_UP: return up ? p.n_out + i : i;
    case UP_THEN_GATE: return up ? i : p.n_out + i;
    case INTERLEAVED: return 2 * i + up;
    default: return i;
  }
}

__device__ __forceinline__ float bias_at(const GroupedGemmParams& p, uint32_t expert, uint32_t column) {
  return p.bias != 0 ? at<const float>(p.bias)[static_cast<uint64_t>(expert) * p.n + column] : 0.f;
}

// `up` is 1 without a gate.
__device__ __forceinline__ float activate(const GroupedGemmParams& p, float gate, float up) {
  switch (p.activation) {
    case SILU: return gate * sigmoid(gate) * up;
    case GELU: return gelu(gate) * up;
    case GELU_TANH: return gelu_tanh(gate) * up;
    case RELU: return fmaxf(gate, 0.f) * up;
    case RELU_SQUARED: return fmaxf(gate, 0.f) * fmaxf(gate, 0.f) * up;
    case CLAMPED_SWIGLU: {
      const float x = fminf(gate, p.limit);
      const float linear = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
      return (linear + 1.f) * x * sigmoid(p.alpha * x);
    }
    default: return gate * up;
  }
}
