// route, for rules with capacity: picks, and says by what, for route_capacity to decide which slots are kept.

// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/route_rule.wgsl"

/// [T, k]: the scores of the experts picked, as integers of the same order.
@group(0) @binding(4) var<storage, read_write> score_keys: array<u32>;
/// [T, E]: what experts are chosen by, likewise; 0 where an expert may not be chosen.
@group(0) @binding(5) var<storage, read_write> choice_keys: array<u32>;

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
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        choice_keys[token * params.num_choices + e] = keys[e];
    }
    workgroupBarrier();
    pick(token, lane);
    for (var i = lane.index; i < params.top_k; i += LANES) {
        let at = token * params.top_k + i;
        score_keys[at] = order_key(score(logit(token, topk_ids[params.topk_ids_at + at]), over_all));
    }
}
