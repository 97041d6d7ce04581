// route, for rules with capacity: weighs the slots that were kept.

// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/route_rule.wgsl"
// #include "shared/weigh.wgsl"

@group(0) @binding(4) var<storage, read_write> topk_weights: array<f32>;
/// [T, k]: the experts that were picked before slots were dropped.
@group(0) @binding(5) var<storage, read> picked_ids: array<u32>;

/// Whether weights are made comparable over all experts picked, or over those kept.
override BEFORE_DROPPING: bool = false;

fn kept_id(token: u32, i: u32) -> u32 {
    return topk_ids[params.topk_ids_at + token * params.top_k + i];
}

fn basis_id(token: u32, i: u32) -> u32 {
    if BEFORE_DROPPING {
        return picked_ids[token * params.top_k + i];
    }
    return kept_id(token, i);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    lane: Lane,
) {
    let token = workgroup.y * workgroups.x + workgroup.x;
    if token >= params.num_tokens {
        return;
    }
    var over_all = Softmax(0.0, 1.0);
    if SCORE == SCORE_SOFTMAX {
        over_all = softmax(token, lane);
    }
    weigh(token, lane, over_all);
}
