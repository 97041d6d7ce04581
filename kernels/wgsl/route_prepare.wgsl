// route, before everything else: logits with noise on them, and NaN where an expert may not be chosen. One lane per logit.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"

struct Params {
    num_tokens: u32,
    num_choices: u32,
    num_group_logits: u32,
    router_logits_at: u32,
    noise_logits_at: u32,
    noise: u32,
    has_disabled: u32,
    logit_clip: f32,
    /// 0: none.
    logit_softcap: f32,
    noise_std: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> router_logits: array<f32>;
@group(0) @binding(2) var<storage, read> noise_logits: array<f32>;
/// [T, E]: standard normal, drawn by the host: they are the same bits for every backend, in f64 until the last step.
@group(0) @binding(3) var<storage, read> normals: array<f32>;
@group(0) @binding(4) var<storage, read> disabled: array<u32>;
/// [T, G + E]: bits, as WGSL has no literal for NaN.
@group(0) @binding(5) var<storage, read_write> prepared: array<u32>;

const NOISE_NONE: u32 = 0u;
const NOISE_NORMAL: u32 = 1u;
const NOISE_NORMAL_SOFTPLUS: u32 = 2u;

const LANES: u32 = 256u;

const NAN: u32 = 0x7fc00000u;

/// What the noise of a logit is multiplied by.
fn noise_scale(i: u32) -> f32 {
    if params.noise == NOISE_NORMAL_SOFTPLUS {
        return softplus(noise_logits[params.noise_logits_at + i]);
    }
    return params.noise_std;
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let i = number_of(workgroup) * LANES + lane;
    let num_logits = params.num_group_logits + params.num_choices;
    if i >= params.num_tokens * num_logits {
        return;
    }
    let x = transform(router_logits[params.router_logits_at + i], params.logit_clip, params.logit_softcap);
    var bits = bitcast<u32>(x);
    if i % num_logits >= params.num_group_logits {
        let expert = i % num_logits - params.num_group_logits;
        if params.noise != NOISE_NONE {
            let at = i / num_logits * params.num_choices + expert;
            bits = bitcast<u32>(x + normals[at] * noise_scale(at));
        }
        if params.has_disabled != 0u && disabled[expert] != 0u {
            bits = NAN;
        }
    }
    prepared[i] = bits;
}
