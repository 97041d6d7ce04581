// route's figures, first: each token's probabilities, with its share of the z-loss and its entropy. One workgroup per
// token.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/random.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/route_rule.wgsl"

/// [T, E + 2].
@group(0) @binding(6) var<storage, read_write> probabilities: array<f32>;

/// A softmax's share; of a NaN, 0.
fn share(x: f32, over: Softmax) -> f32 {
    if is_nan(x) {
        return 0.0;
    }
    return softmax_of(x, over);
}

/// Writes the probabilities of experts `first..first + count`, `scale` times their softmax; this lane's entropy of them.
fn write_softmax(token: u32, lane: Lane, first: u32, count: u32, scale: f32) -> f32 {
    let over = softmax_over(token, lane, params.num_group_logits + first, count);
    var entropy = 0.0;
    for (var e = first + lane.index; e < first + count; e += LANES) {
        entropy += write(token, e, scale * share(logit(token, e), over));
    }
    return entropy;
}

/// Scores over their sum.
fn write_scores(token: u32, lane: Lane, over: Softmax) -> f32 {
    var sum = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        sum += score(logit(token, e), over);
    }
    sum = reduce_sum(lane, sum);
    var entropy = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        entropy += write(token, e, select(0.0, score(logit(token, e), over) / sum, sum > 0.0));
    }
    return entropy;
}

/// Writes a probability; what it adds to the entropy.
fn write(token: u32, expert: u32, p: f32) -> f32 {
    probabilities[token * (params.num_choices + 2u) + expert] = p;
    // Where p is no normal number, p·ln p is nothing.
    if p < 1.2e-38 {
        return 0.0;
    }
    return -p * ln(p);
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let token = number_of(workgroup);
    if token >= params.num_tokens {
        return;
    }
    let over_all = softmax_over(token, lane, params.num_group_logits, params.num_choices);
    var entropy = 0.0;
    if params.num_group_logits > 0u {
        let over_groups = softmax_over(token, lane, 0u, params.num_group_logits);
        let size = params.num_choices / params.num_group_logits;
        for (var g = 0u; g < params.num_group_logits; g++) {
            entropy += write_softmax(token, lane, g * size, size, share(column(token, g), over_groups));
        }
    } else if params.score == SCORE_LOGIT || params.score == SCORE_SOFTMAX {
        entropy = write_softmax(token, lane, 0u, params.num_choices, 1.0);
    } else {
        entropy = write_scores(token, lane, over_all);
    }
    entropy = reduce_sum(lane, entropy);
    if lane.index == 0u {
        let at = token * (params.num_choices + 2u) + params.num_choices;
        // The sum is infinite in its inverse where no logit is a number.
        let log_sum = over_all.top - ln(over_all.inv_sum);
        probabilities[at] = select(0.0, log_sum * log_sum, over_all.inv_sum < 2.0);
        probabilities[at + 1u] = entropy;
    }
}
