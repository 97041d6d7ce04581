// route: scores, groups, the top_k best, their weights. One workgroup per token.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/random.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/route_rule.wgsl"
// #include "shared/weigh.wgsl"

@group(0) @binding(6) var<storage, read_write> topk_weights: array<f32>;

fn slots_of(token: u32) -> Slots {
    return Slots(token * params.top_k, params.top_k);
}

fn basis_id(token: u32, i: u32) -> u32 {
    return kept_id(token, i);
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let token = number_of(workgroup);
    if token >= params.num_tokens {
        return;
    }
    let over_all = softmax_of_scores(token, lane);
    make_keys(token, lane, over_all);
    pick(token, lane);
    keep_at_random(token, lane, over_all);
    weigh(token, lane, over_all);
}
