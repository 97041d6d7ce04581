// route with experts balanced over the batch: Sinkhorn's iteration scales e^logits by rows to 1/T and by columns to 1/E, in
// turn. What it leaves is the logarithm of each expert's factor, which is added to the logits to choose by; a row's factor
// is the same for all its experts. One workgroup, for every iteration needs all of the one before.

// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"

struct Params {
    num_tokens: u32,
    num_experts: u32,
    router_logits_at: u32,
    max_iterations: u32,
    tolerance: f32,
    logit_clip: f32,
    /// 0: none.
    logit_softcap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> router_logits: array<f32>;
/// [T, E]: e^logits, each row up to a factor.
@group(0) @binding(2) var<storage, read_write> cost: array<f32>;
/// [T].
@group(0) @binding(3) var<storage, read_write> row_factors: array<f32>;
/// [E]: the experts' factors, in the end their logarithms.
@group(0) @binding(4) var<storage, read_write> factors: array<f32>;

const LANES: u32 = 64u;

var<workgroup> is_done: u32;

/// A sum, and what rounding has taken from it (Kahan).
struct Sum {
    value: f32,
    lost: f32,
}

fn add(sum: Sum, x: f32) -> Sum {
    let y = x - sum.lost;
    let value = sum.value + y;
    return Sum(value, (value - sum.value) - y);
}

fn logit(i: u32) -> f32 {
    return transform(router_logits[params.router_logits_at + i], params.logit_clip, params.logit_softcap);
}

fn fill_cost(token: u32) {
    let first = token * params.num_experts;
    var top = -3.40282347e38;
    for (var e = 0u; e < params.num_experts; e++) {
        let x = logit(first + e);
        if !is_nan(x) {
            top = max(top, x);
        }
    }
    for (var e = 0u; e < params.num_experts; e++) {
        let x = logit(first + e);
        var value = 0.0;
        if !is_nan(x) {
            value = exp_nonpositive(x - top);
        }
        cost[first + e] = value;
    }
}

fn scale_row(token: u32) {
    var sum = Sum(0.0, 0.0);
    for (var e = 0u; e < params.num_experts; e++) {
        sum = add(sum, cost[token * params.num_experts + e] * factors[e]);
    }
    var scale = 0.0;
    if sum.value > 0.0 {
        scale = 1.0 / (sum.value * f32(params.num_tokens));
    }
    row_factors[token] = scale;
}

fn next_factor(expert: u32) -> f32 {
    var sum = Sum(0.0, 0.0);
    for (var token = 0u; token < params.num_tokens; token++) {
        sum = add(sum, cost[token * params.num_experts + expert] * row_factors[token]);
    }
    if sum.value > 0.0 {
        return 1.0 / (sum.value * f32(params.num_experts));
    }
    return 1.0;
}

@compute @workgroup_size(LANES)
fn main(lane: Lane) {
    for (var token = lane.index; token < params.num_tokens; token += LANES) {
        fill_cost(token);
    }
    for (var e = lane.index; e < params.num_experts; e += LANES) {
        factors[e] = 1.0;
    }
    storageBarrier();
    for (var iteration = 0u; iteration < params.max_iterations; iteration++) {
        for (var token = lane.index; token < params.num_tokens; token += LANES) {
            scale_row(token);
        }
        storageBarrier();
        var change = 0.0;
        var total = 0.0;
        for (var e = lane.index; e < params.num_experts; e += LANES) {
            let next = next_factor(e);
            change += abs(next - factors[e]);
            total += next;
            factors[e] = next;
        }
        storageBarrier();
        change = reduce_sum(lane, change);
        total = reduce_sum(lane, total);
        if lane.index == 0u {
            is_done = u32(change <= params.tolerance * total);
        }
        if workgroupUniformLoad(&is_done) == 1u {
            break;
        }
    }
    for (var e = lane.index; e < params.num_experts; e += LANES) {
        factors[e] = ln(factors[e]);
    }
}
