// combine: a token's weighted sum of expert outputs, and what is added to it, in f32 and in the order of the slots.
//
//   output[t] = sum over slots s of t: topk_weights[s] * expert_out[inv_permuted_idx[s]]
//             + zero experts: zero_weights[s] * hidden_states[t]  +  shared_scale * sigmoid(gate_logits[t]) * shared[t]
//
//   expert_out [R, H], hidden_states, shared, output [T, H]: f32, bf16 or f16 each; everything else f32 and u32
//
// Thread roles: a thread is 8 neighbouring columns of one token (combine), or one (combine_columns, where rows do not
// start on 16 bytes). Grid: x tokens, y blocks of columns. No shared memory.
#include "common/math.cuh"
#include "common/params.cuh"
#include "common/vector.cuh"

namespace {

// What one thread sums: WIDTH columns.
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

template <int WIDTH>
__device__ __forceinline__ void add_slot(const CombineParams& p, Columns<WIDTH>& sum, uint32_t slot, uint64_t token,
                                         uint32_t column) {
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
  sum.add(weight, p.expert_out, static_cast<uint64_t>(row) * p.hidden_size + column, p.expert_out_dtype);
}

template <int WIDTH>
__device__ __forceinline__ void combine_token(const CombineParams& p) {
  const uint64_t token = blockIdx.x;
  const uint32_t column = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
  if (column >= p.hidden_size) return;
  uint32_t slot = blockIdx.x * p.top_k, end = slot + p.top_k;
  if (p.token_offsets != 0) {
    slot = at<const uint32_t>(p.token_offsets)[token];
    end = at<const uint32_t>(p.token_offsets)[token + 1];
  }
  Columns<WIDTH> sum = {};
  for (; slot < end; slot++) add_slot(p, sum, slot, token, column);
  const uint64_t i = token * p.hidden_size + column;
  if (p.shared != 0) {
    const float gate = p.gate_logits != 0 ? sigmoid(at<const float>(p.gate_logits)[token]) : 1.f;
    sum.add(p.shared_scale * gate, p.shared, i, p.shared_dtype);
  }
  if constexpr (WIDTH == 8) {
    Eight values;
#pragma unroll
    for (int j = 0; j < 8; j++) values.x[j] = sum.x[j];
    store_eight(p.output, i, p.output_dtype, values);
  } else {
    store(p.output, i, p.output_dtype, sum.x[0]);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) combine(const __grid_constant__ CombineParams p) {
  combine_token<8>(p);
}

extern "C" __global__ void __launch_bounds__(128) combine_columns(const __grid_constant__ CombineParams p) {
  combine_token<1>(p);
}
