// route: scores, groups, the top_k best, their weights. One workgroup per token.

// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/route_rule.wgsl"
// #include "shared/weigh.wgsl"

@group(0) @binding(4) var<storage, read_write> topk_weights: array<f32>;

fn kept_id(token: u32, i: u32) -> u32 {
    return topk_ids[params.topk_ids_at + token * params.top_k + i];
}

fn basis_id(token: u32, i: u32) -> u32 {
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
    make_keys(token, lane, over_all);
    pick(token, lane);
    weigh(token, lane, over_all);
}
