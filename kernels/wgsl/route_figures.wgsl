// route's figures, behind everything but the expert map: sums over the batch, then the scalars.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/reduce.wgsl"

struct Params {
    num_tokens: u32,
    num_choices: u32,
    /// 0: tokens have different numbers of slots.
    top_k: u32,
    num_slots: u32,
    picked_ids_at: u32,
    topk_ids_at: u32,
    topk_weights_at: u32,
    token_offsets_at: u32,
    tokens_per_expert_at: u32,
    importance_at: u32,
    scalars_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
/// [T, E + 2]: probabilities, z-loss, entropy; then [3, E + 2]: their means, and of each expert the slots that picked it
/// and the tokens that picked it first.
@group(0) @binding(1) var<storage, read_write> work: array<f32>;
/// As topk_ids, before capacity took any.
@group(0) @binding(2) var<storage, read> picked_ids: array<u32>;
@group(0) @binding(3) var<storage, read> topk_ids: array<u32>;
@group(0) @binding(4) var<storage, read> topk_weights: array<f32>;
@group(0) @binding(5) var<storage, read> token_offsets: array<u32>;
@group(0) @binding(6) var<storage, read_write> tokens_per_expert: array<u32>;
@group(0) @binding(7) var<storage, read_write> importance: array<f32>;
@group(0) @binding(8) var<storage, read_write> scalars: array<f32>;

const LANES: u32 = 64u;

/// The place of a row behind the tokens'.
fn total_at(row: u32, column: u32) -> u32 {
    return (params.num_tokens + row) * (params.num_choices + 2u) + column;
}

/// 0 where there is nothing to divide by.
fn ratio(a: f32, b: f32) -> f32 {
    return select(a / b, 0.0, b == 0.0);
}

/// Where a token's slots start.
fn first_slot(token: u32) -> u32 {
    if params.top_k > 0u {
        return token * params.top_k;
    }
    return token_offsets[params.token_offsets_at + token];
}

/// Sums a column over the tokens, and what went to its expert over the slots. One workgroup per column.
@compute @workgroup_size(LANES)
fn sum_columns(workgroup: Workgroup, lane: Lane) {
    let e = number_of(workgroup);
    if e >= params.num_choices + 2u {
        return;
    }
    var sum = 0.0;
    var first = 0.0;
    for (var token = lane.index; token < params.num_tokens; token += LANES) {
        sum += work[token * (params.num_choices + 2u) + e];
        let slot = first_slot(token);
        if slot < first_slot(token + 1u) {
            first += f32(picked_ids[params.picked_ids_at + slot] == e);
        }
    }
    var load = 0.0;
    var picked = 0.0;
    var weight = 0.0;
    for (var slot = lane.index; slot < params.num_slots; slot += LANES) {
        let taken = topk_ids[params.topk_ids_at + slot] == e;
        load += f32(taken);
        weight += select(0.0, topk_weights[params.topk_weights_at + slot], taken);
        picked += f32(picked_ids[params.picked_ids_at + slot] == e);
    }
    sum = reduce_sum(lane, sum);
    first = reduce_sum(lane, first);
    load = reduce_sum(lane, load);
    picked = reduce_sum(lane, picked);
    weight = reduce_sum(lane, weight);
    if lane.index > 0u {
        return;
    }
    work[total_at(0u, e)] = ratio(sum, f32(params.num_tokens));
    work[total_at(1u, e)] = picked;
    work[total_at(2u, e)] = first;
    if e < params.num_choices {
        tokens_per_expert[params.tokens_per_expert_at + e] = u32(load);
        importance[params.importance_at + e] = weight;
    }
}

/// What the scalars are made of, of one expert.
fn value(which: u32, e: u32) -> f32 {
    if which == 0u {
        return importance[params.importance_at + e];
    }
    if which == 1u {
        return f32(tokens_per_expert[params.tokens_per_expert_at + e]);
    }
    return work[total_at(which - 1u, e)];
}

fn sum_of(lane: Lane, which: u32) -> f32 {
    var sum = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        sum += value(which, e);
    }
    return reduce_sum(lane, sum);
}

/// Variance over squared mean.
fn cv2(lane: Lane, which: u32) -> f32 {
    let mean = sum_of(lane, which) / f32(params.num_choices);
    var sum = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        let difference = value(which, e) - mean;
        sum += difference * difference;
    }
    return ratio(reduce_sum(lane, sum) / f32(params.num_choices), mean * mean);
}

/// Σ of the experts' shares times their mean probabilities.
fn loss(lane: Lane, which: u32) -> f32 {
    let total = sum_of(lane, which);
    var sum = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        sum += ratio(value(which, e), total) * work[total_at(0u, e)];
    }
    return reduce_sum(lane, sum);
}

/// Tokens without a slot.
fn without_slots(lane: Lane) -> f32 {
    var count = 0.0;
    for (var token = lane.index; token < params.num_tokens; token += LANES) {
        count += f32(first_slot(token) == first_slot(token + 1u));
    }
    return reduce_sum(lane, count);
}

@compute @workgroup_size(LANES)
fn write_scalars(lane: Lane) {
    let experts = f32(params.num_choices);
    let taken = sum_of(lane, 1u);
    var fullest = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        fullest = max(fullest, value(1u, e));
    }
    fullest = reduce_max(lane, fullest);
    var dropped = ratio(f32(params.num_slots) - taken, f32(params.num_slots));
    if params.top_k == 0u {
        dropped = ratio(without_slots(lane), f32(params.num_tokens));
    }
    // In the order of Figures' fields.
    let figures = array<f32, 8>(
        cv2(lane, 0u),
        cv2(lane, 1u),
        experts * loss(lane, 2u),
        loss(lane, 3u) / experts,
        work[total_at(0u, params.num_choices)],
        dropped,
        work[total_at(0u, params.num_choices + 1u)],
        ratio(fullest * experts, taken),
    );
    if lane.index == 0u {
        for (var i = 0u; i < 8u; i++) {
            scalars[params.scalars_at + i] = figures[i];
        }
    }
}
