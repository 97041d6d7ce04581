// route, where what becomes of a token depends on others: picks, and says by what, for route_capacity or
// route_expert_choice to decide.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/random.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/route_rule.wgsl"

/// [T, k]: the scores of the experts picked, as integers of the same order; 0 where there is none.
@group(0) @binding(6) var<storage, read_write> score_keys: array<u32>;
/// [T, E]: what experts are chosen by, likewise; 0 where an expert may not be chosen.
@group(0) @binding(7) var<storage, read_write> choice_keys: array<u32>;
/// [T, k]: the experts picked, before any is dropped by chance.
@group(0) @binding(8) var<storage, read_write> picked_ids: array<u32>;

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let token = number_of(workgroup);
    if token >= params.num_tokens {
        return;
    }
    let over_all = softmax_of_scores(token, lane);
    make_keys(token, lane, over_all);
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        choice_keys[token * params.num_choices + e] = keys[e];
    }
    workgroupBarrier();
    pick(token, lane);
    let first = token * params.top_k;
    for (var i = lane.index; i < params.top_k; i += LANES) {
        picked_ids[first + i] = topk_ids[params.topk_ids_at + first + i];
    }
    keep_at_random(token, lane, over_all);
    for (var i = lane.index; i < params.top_k; i += LANES) {
        let id = topk_ids[params.topk_ids_at + first + i];
        var key = 0u;
        if id != MASKED {
            key = order_key(score(logit(token, id), over_all));
        }
        score_keys[first + i] = key;
    }
}
