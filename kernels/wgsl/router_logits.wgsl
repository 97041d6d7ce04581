// router_logits: hidden_states · weightᵀ + bias in f32. A workgroup makes a block of tokens by experts, its lanes along
// H; a logit's sum has the same order whatever is beside it.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"

struct Params {
    num_tokens: u32,
    num_experts: u32,
    hidden_size: u32,
    hidden_states_at: u32,
    weight_at: u32,
    bias_at: u32,
    output_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> hidden_states: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

override HIDDEN_STATES_DTYPE: u32 = F32;
override WEIGHT_DTYPE: u32 = F32;
override HAS_BIAS: bool = false;
override TANH: bool = false;
/// Whether rows start on 16 bytes (8 in 16-bit types), and so hold whole quads.
override QUADS: bool = true;

const LANES: u32 = 64u;
const TOKENS: u32 = 4u;
const EXPERTS: u32 = 4u;

fn hidden_states_quad(row: u32, k: u32) -> vec4<f32> {
    let at = params.hidden_states_at + row * params.hidden_size + k;
    if QUADS {
        return widen_quad(hidden_states[word_of(at, HIDDEN_STATES_DTYPE) >> 2u], at, HIDDEN_STATES_DTYPE);
    }
    var quad = vec4<f32>();
    for (var i = 0u; i < min(4u, params.hidden_size - k); i++) {
        let word = word_of(at + i, HIDDEN_STATES_DTYPE);
        quad[i] = widen(hidden_states[word >> 2u][word & 3u], at + i, HIDDEN_STATES_DTYPE);
    }
    return quad;
}

fn weight_quad(row: u32, k: u32) -> vec4<f32> {
    let at = params.weight_at + row * params.hidden_size + k;
    if QUADS {
        return widen_quad(weight[word_of(at, WEIGHT_DTYPE) >> 2u], at, WEIGHT_DTYPE);
    }
    var quad = vec4<f32>();
    for (var i = 0u; i < min(4u, params.hidden_size - k); i++) {
        let word = word_of(at + i, WEIGHT_DTYPE);
        quad[i] = widen(weight[word >> 2u][word & 3u], at + i, WEIGHT_DTYPE);
    }
    return quad;
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let block = number_of(workgroup);
    let expert_blocks = (params.num_experts + EXPERTS - 1u) / EXPERTS;
    let first_token = block / expert_blocks * TOKENS;
    let first_expert = block % expert_blocks * EXPERTS;
    if first_token >= params.num_tokens {
        return;
    }
    var sums = array<vec4<f32>, TOKENS>();
    for (var k = lane.index * 4u; k < params.hidden_size; k += LANES * 4u) {
        var weights = array<vec4<f32>, EXPERTS>();
        for (var e = 0u; e < EXPERTS; e++) {
            weights[e] = weight_quad(min(first_expert + e, params.num_experts - 1u), k);
        }
        for (var t = 0u; t < TOKENS; t++) {
            if first_token + t < params.num_tokens {
                let x = hidden_states_quad(first_token + t, k);
                for (var e = 0u; e < EXPERTS; e++) {
                    sums[t][e] += dot(x, weights[e]);
                }
            }
        }
    }
    for (var t = 0u; t < min(TOKENS, params.num_tokens - first_token); t++) {
        for (var e = 0u; e < min(EXPERTS, params.num_experts - first_expert); e++) {
            var logit = reduce_sum(lane, sums[t][e]);
            if HAS_BIAS {
                logit += bias[params.bias_at + first_expert + e];
            }
            if TANH {
                logit = tanh_exact(logit);
            }
            if lane.index == 0u {
                output[params.output_at + (first_token + t) * params.num_experts + first_expert + e] = logit;
            }
        }
    }
}
