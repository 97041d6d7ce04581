// route by levels: the best groups, in each its best experts, weighed by the product of both levels. One workgroup per
// token.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/random.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/route_rule.wgsl"
// #include "shared/weigh.wgsl"

@group(0) @binding(6) var<storage, read_write> topk_weights: array<f32>;

var<workgroup> best_groups: array<u32, GROUP_SLOTS>;
/// Of each expert that is picked; −1 of the others.
var<workgroup> weights: array<f32, CHOICES>;

fn slots_of(token: u32) -> Slots {
    return Slots(token * params.top_k, params.top_k);
}

fn basis_id(token: u32, i: u32) -> u32 {
    return kept_id(token, i);
}

/// e^(x − top); of a NaN, 0.
fn exp_of(x: f32, top: f32) -> f32 {
    if is_nan(x) {
        return 0.0;
    }
    return exp_nonpositive(x - top);
}

/// Fills `best_groups`; what their weights are divided by.
fn pick_groups(token: u32, lane: Lane, over: Softmax) -> f32 {
    for (var g = lane.index; g < params.num_groups; g += LANES) {
        group_keys[g] = order_key(column(token, g));
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < params.topk_groups; i++) {
        var best = vec2<u32>(0u, MASKED);
        for (var g = lane.index; g < params.num_groups; g += LANES) {
            best = better(best, vec2<u32>(group_keys[g], g));
        }
        best = reduce_best(lane, best);
        sum += exp_of(column(token, best.y), over.top);
        if lane.index == 0u {
            best_groups[i] = best.y;
            group_keys[min(best.y, GROUP_SLOTS - 1u)] = 0u;
        }
        workgroupBarrier();
    }
    return select(1.0 / over.inv_sum, sum, params.renormalize_levels != 0u);
}

/// Leaves `keys` and `weights` of a group's best experts.
fn pick_members(token: u32, lane: Lane, group: u32, group_weight: f32) {
    let size = params.num_choices / params.num_groups;
    let first = group * size;
    for (var e = first + lane.index; e < first + size; e += LANES) {
        keys[e] = select(order_key(logit(token, e)), 0u, is_disabled(e));
    }
    let over = softmax_over(token, lane, params.num_group_logits + first, size);
    var sum = 0.0;
    for (var i = 0u; i < params.top_k / params.topk_groups; i++) {
        var best = vec2<u32>(0u, MASKED);
        for (var e = first + lane.index; e < first + size; e += LANES) {
            best = better(best, vec2<u32>(keys[e], e));
        }
        best = reduce_best(lane, best);
        let value = exp_of(logit(token, best.y), over.top);
        sum += value;
        if lane.index == 0u {
            keys[min(best.y, CHOICES - 1u)] = 0u;
            weights[min(best.y, CHOICES - 1u)] = value;
        }
        workgroupBarrier();
    }
    let denominator = select(1.0 / over.inv_sum, sum, params.renormalize_levels != 0u);
    for (var e = first + lane.index; e < first + size; e += LANES) {
        keys[e] = 0u;
        if weights[e] >= 0.0 {
            weights[e] = weights[e] / denominator * group_weight;
            keys[e] = order_key(weights[e]);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let token = number_of(workgroup);
    if token >= params.num_tokens {
        return;
    }
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        keys[e] = 0u;
        weights[e] = -1.0;
    }
    let over_groups = softmax_over(token, lane, 0u, params.num_groups);
    let groups_sum = pick_groups(token, lane, over_groups);
    for (var i = 0u; i < params.topk_groups; i++) {
        let group = best_groups[i];
        pick_members(token, lane, group, exp_of(column(token, group), over_groups.top) / groups_sum);
    }
    pick(token, lane);
    var sum = 0.0;
    for (var i = lane.index; i < params.top_k; i += LANES) {
        sum += norm_term(weights[kept_id(token, i)]);
    }
    sum = reduce_sum(lane, sum);
    let by = select(params.scaling_factor, factor(sum), params.renormalize != 0u);
    for (var i = lane.index; i < params.top_k; i += LANES) {
        write_weight(token, i, weights[kept_id(token, i)] * by);
    }
}
