// What the kernels of route share: the rule, from logits to the experts picked.

struct Params {
    num_tokens: u32,
    /// E, zero experts included.
    num_choices: u32,
    top_k: u32,
    num_groups: u32,
    topk_groups: u32,
    router_logits_at: u32,
    selection_bias_at: u32,
    topk_ids_at: u32,
    topk_weights_at: u32,
    logit_clip: f32,
    /// 0: none.
    logit_softcap: f32,
    renormalize_add: f32,
    renormalize_min: f32,
    renormalize_p: f32,
    scaling_factor: f32,
    jitter: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> router_logits: array<f32>;
@group(0) @binding(2) var<storage, read> selection_bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> topk_ids: array<u32>;

const GROUPS_NONE: u32 = 0u;
const GROUPS_MAX: u32 = 1u;
const GROUPS_SUM_TOP2: u32 = 2u;
override GROUPS: u32 = GROUPS_NONE;

override HAS_BIAS: bool = false;
/// At least num_choices, and num_groups.
override CHOICES: u32 = 256u;
override GROUP_SLOTS: u32 = 1u;

const LANES: u32 = 64u;

/// What experts are chosen by, as integers of the same order; 0 where an expert may not be chosen any more.
var<workgroup> keys: array<u32, CHOICES>;
var<workgroup> group_keys: array<u32, GROUP_SLOTS>;

/// The logit by which a token is routed: finite, or NaN.
fn logit(token: u32, expert: u32) -> f32 {
    let x = router_logits[params.router_logits_at + token * params.num_choices + expert];
    if is_nan(x) {
        return x;
    }
    let clipped = clamp(x, -params.logit_clip, params.logit_clip);
    if params.logit_softcap > 0.0 {
        return params.logit_softcap * tanh_exact(clipped / params.logit_softcap);
    }
    return clipped;
}

/// Over all experts whose logit is not NaN.
fn softmax(token: u32, lane: Lane) -> Softmax {
    var top = LOWEST;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        let x = logit(token, e);
        if !is_nan(x) {
            top = max(top, x);
        }
    }
    top = reduce_max(lane, top);
    var sum = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        let x = logit(token, e);
        if !is_nan(x) {
            sum += exp_nonpositive(x - top);
        }
    }
    return Softmax(top, 1.0 / reduce_sum(lane, sum));
}

fn biased_score_key(token: u32, expert: u32, over: Softmax) -> u32 {
    let x = logit(token, expert);
    if is_nan(x) {
        return order_key(x);
    }
    var choice = score(x, over);
    if HAS_BIAS {
        choice += selection_bias[params.selection_bias_at + expert];
    }
    return order_key(choice);
}

/// Fills `keys`: by score and bias where there is a bias, else by the logits, as every score grows with its logit.
fn make_keys(token: u32, lane: Lane, over: Softmax) {
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        if HAS_BIAS || GROUPS == GROUPS_SUM_TOP2 {
            keys[e] = biased_score_key(token, e, over);
        } else {
            keys[e] = order_key(logit(token, e));
        }
    }
    workgroupBarrier();
    if GROUPS != GROUPS_NONE {
        keep_best_groups(token, lane);
    }
}

fn group_key(group: u32) -> u32 {
    let size = params.num_choices / params.num_groups;
    var first = 0u;
    var second = 0u;
    for (var e = group * size; e < (group + 1u) * size; e++) {
        second = max(second, min(first, keys[e]));
        first = max(first, keys[e]);
    }
    if GROUPS == GROUPS_SUM_TOP2 && second != 0u {
        return order_key(of_order_key(first) + of_order_key(second));
    }
    return first;
}

/// Takes the experts outside the best groups out of the choice.
fn keep_best_groups(token: u32, lane: Lane) {
    for (var g = lane.index; g < params.num_groups; g += LANES) {
        group_keys[g] = group_key(g);
    }
    workgroupBarrier();
    let size = params.num_choices / params.num_groups;
    for (var g = lane.index; g < params.num_groups; g += LANES) {
        var rank = 0u;
        for (var other = 0u; other < params.num_groups; other++) {
            let ahead = group_keys[other] > group_keys[g] || (group_keys[other] == group_keys[g] && other < g);
            rank += u32(ahead);
        }
        for (var e = g * size; e < (g + 1u) * size; e++) {
            if rank >= params.topk_groups {
                keys[e] = 0u;
            } else if !HAS_BIAS {
                keys[e] = order_key(logit(token, e));
            }
        }
    }
    workgroupBarrier();
}

/// Writes the ids of the best experts, best first.
fn pick(token: u32, lane: Lane) {
    for (var i = 0u; i < params.top_k; i++) {
        var best = vec2<u32>(0u, MASKED);
        for (var e = lane.index; e < params.num_choices; e += LANES) {
            best = better(best, vec2<u32>(keys[e], e));
        }
        best = reduce_best(lane, best);
        if lane.index == 0u {
            topk_ids[params.topk_ids_at + token * params.top_k + i] = best.y;
            keys[best.y] = 0u;
        }
        workgroupBarrier();
    }
    storageBarrier();
}
