// jitter: the router's input times uniform noise. One lane per element.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/random.wgsl"

struct Params {
    num_tokens: u32,
    hidden_size: u32,
    hidden_states_at: u32,
    output_at: u32,
    hidden_states_dtype: u32,
    seed_low: u32,
    seed_high: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> hidden_states: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const LANES: u32 = 256u;

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let i = number_of(workgroup) * LANES + lane;
    if i >= params.num_tokens * params.hidden_size {
        return;
    }
    let at = params.hidden_states_at + i;
    let x = widen(hidden_states[word_of(at, params.hidden_states_dtype)], at, params.hidden_states_dtype);
    let seed = vec2<u32>(params.seed_low, params.seed_high);
    let draw = random_uniform(seed, STREAM_INPUT, i / params.hidden_size, i % params.hidden_size);
    output[params.output_at + i] = x * (1.0 + params.epsilon * (2.0 * draw - 1.0));
}
