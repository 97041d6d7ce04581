// A token's weighted sum of expert outputs, and what is added to it, in f32 and in the order of the slots.
#pragma once
#include "math.cuh"
#include "params.cuh"
#include "vector.cuh"

// What one thread sums: WIDTH neighbouring columns.
template <int WIDTH>
struct Columns {
  float x[WIDTH];

  __device__ __forceinline__ void add(float weight, uint64_t tensor, uint64_t i, uint32_t dtype) {
    if constexpr (WIDTH == 8) {
      const Eight values = load_eight(tensor, i, dtype);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = fmaf(weight, values.x[j], x[j]);
    } else {
      x[0] = fmaf(weight, load(tensor, i, dtype), x[0]);
    }
  }
};

// `add_row(sum, weight, row)` adds a row of the experts' output.
template <int WIDTH, typename AddRow>
__device__ __forceinline__ void add_slot(const CombineParams& p, Columns<WIDTH>& sum, uint32_t slot, uint64_t token,
                                         uint32_t column, AddRow add_row) {
  if (p.zero_ids != 0) {
    const uint32_t id = at<const uint32_t>(p.zero_ids)[slot];
    if (id >= p.first_zero_expert && id - p.first_zero_expert < p.num_zero_experts) {
      const float weight = at<const float>(p.zero_weights)[slot];
      sum.add(weight, p.hidden_states, token * p.hidden_size + column, p.hidden_states_dtype);
      return;
    }
  }
  const uint32_t row = p.inv_permuted_idx != 0 ? at<const uint32_t>(p.inv_permuted_idx)[slot] : slot;
  if (row == MASKED) return;
  const float weight = p.topk_weights != 0 ? at<const float>(p.topk_weights)[slot] : 1.f;
  add_row(sum, weight, row);
}

template <int WIDTH, typename AddRow>
__device__ __forceinline__ Columns<WIDTH> sum_token(const CombineParams& p, uint32_t token, uint32_t column,
                                                    AddRow add_row) {
  uint32_t slot = token * p.top_k, end = slot + p.top_k;
  if (p.token_offsets != 0) {
    slot = at<const uint32_t>(p.token_offsets)[token];
    end = at<const uint32_t>(p.token_offsets)[token + 1];
  }
  Columns<WIDTH> sum = {};
  for (; slot < end; slot++) add_slot(p, sum, slot, token, column, add_row);
  if (p.shared != 0) {
    const float gate = p.gate_logits != 0 ? sigmoid(at<const float>(p.gate_logits)[token]) : 1.f;
    sum.add(p.shared_scale * gate, p.shared, static_cast<uint64_t>(token) * p.hidden_size + column, p.shared_dtype);
  }
  return sum;
}
