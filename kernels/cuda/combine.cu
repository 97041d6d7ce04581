// combine: a token's weighted sum of expert outputs, and what is added to it, in f32 and in the order of the slots.
//
//   output[t] = sum over slots s of t: topk_weights[s] * expert_out[inv_permuted_idx[s]]
//             + zero experts: zero_weights[s] * hidden_states[t]  +  shared_scale * sigmoid(gate_logits[t]) * shared[t]
//
//   expert_out [R, H], hidden_states, shared, output [T, H]: f32, bf16 or f16 each; everything else f32 and u32
//
// Thread roles: a thread is 8 neighbouring columns of one token (combine), or one (combine_columns, where rows do not
// start on 16 bytes). Grid: x tokens, y blocks of columns. No shared memory.
// Few tokens have it in the launch that makes expert_out: decode_combine.cu.
#include "common/token_sum.cuh"
#include "ptx/grid_dependency.cuh"

namespace {

template <int WIDTH>
__device__ __forceinline__ void combine_token(const CombineParams& p) {
  const uint32_t token = blockIdx.x, column = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
  if (column >= p.hidden_size) return;
  const auto sum = sum_token<WIDTH>(p, token, column, [&](Columns<WIDTH>& sum, float weight, uint32_t row) {
    sum.add(weight, p.expert_out, static_cast<uint64_t>(row) * p.hidden_size + column, p.expert_out_dtype);
  });
  const uint64_t i = static_cast<uint64_t>(token) * p.hidden_size + column;
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
  ptx::follow_launches();
  combine_token<8>(p);
}

extern "C" __global__ void __launch_bounds__(128) combine_columns(const __grid_constant__ CombineParams p) {
  ptx::follow_launches();
  combine_token<1>(p);
}
