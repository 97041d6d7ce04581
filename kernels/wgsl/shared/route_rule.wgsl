// What the kernels of route share: the rule, from logits to the experts picked. The rule lies in the parameters, not in
// constants, so that one pipeline serves every rule.

struct Params {
    num_tokens: u32,
    /// E, zero experts included.
    num_choices: u32,
    /// Columns of the logits before the experts': those of a hierarchical selection's groups.
    num_group_logits: u32,
    top_k: u32,
    num_groups: u32,
    topk_groups: u32,
    router_logits_at: u32,
    selection_bias_at: u32,
    topk_ids_at: u32,
    topk_weights_at: u32,
    token_offsets_at: u32,
    selection: u32,
    groups: u32,
    score: u32,
    weight: u32,
    /// Whether experts are chosen by their scores, not by their logits.
    by_score: u32,
    has_bias: u32,
    has_disabled: u32,
    renormalize: u32,
    /// Whether weights are made comparable over all experts picked, or over those kept.
    before_dropping: u32,
    /// Whether tokens have different numbers of slots.
    ragged: u32,
    /// Whether the picked groups, and the picked experts of each, sum to 1.
    renormalize_levels: u32,
    logit_clip: f32,
    /// 0: none.
    logit_softcap: f32,
    renormalize_add: f32,
    renormalize_min: f32,
    renormalize_p: f32,
    scaling_factor: f32,
    jitter: f32,
    /// Whether choices after the first are dropped by chance.
    keeps_at_random: u32,
    keep_scale: f32,
    seed_low: u32,
    seed_high: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> router_logits: array<f32>;
/// [E]: added to what experts are chosen by.
@group(0) @binding(2) var<storage, read> selection_bias: array<f32>;
/// [E]: 1 where an expert may not be chosen.
@group(0) @binding(3) var<storage, read> disabled: array<u32>;
/// [T, k]: the experts, where they are given; [T, E]: the bits of the noise of the choices after the first.
@group(0) @binding(4) var<storage, read> given: array<u32>;
@group(0) @binding(5) var<storage, read_write> topk_ids: array<u32>;

const SELECT_TOP_K: u32 = 0u;
const SELECT_GIVEN: u32 = 1u;
const SELECT_NOISY_SECOND: u32 = 2u;

const GROUPS_NONE: u32 = 0u;
const GROUPS_MAX: u32 = 1u;
const GROUPS_SUM_TOP2: u32 = 2u;

/// At least num_choices, and at least the number of groups.
override CHOICES: u32 = 256u;
override GROUP_SLOTS: u32 = 64u;

const LANES: u32 = 64u;

/// What experts are chosen by, as integers of the same order; 0 where an expert may not be chosen any more.
var<workgroup> keys: array<u32, CHOICES>;
var<workgroup> group_keys: array<u32, GROUP_SLOTS>;

fn is_disabled(expert: u32) -> bool {
    return params.has_disabled != 0u && disabled[expert] != 0u;
}

/// Over all experts, where scores are a softmax.
fn softmax_of_scores(token: u32, lane: Lane) -> Softmax {
    if params.score != SCORE_SOFTMAX {
        return Softmax(0.0, 1.0);
    }
    return softmax_over(token, lane, params.num_group_logits, params.num_choices);
}

fn choice_key(token: u32, expert: u32, over: Softmax, by_score: bool) -> u32 {
    let x = logit(token, expert);
    if is_nan(x) {
        return order_key(x);
    }
    var choice = x;
    if by_score {
        choice = score(x, over);
    }
    if params.has_bias != 0u {
        choice += selection_bias[params.selection_bias_at + expert];
    }
    return order_key(choice);
}

/// Fills `keys`.
fn make_keys(token: u32, lane: Lane, over: Softmax) {
    let by_score = params.by_score != 0u || params.groups == GROUPS_SUM_TOP2;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        keys[e] = choice_key(token, e, over, by_score);
    }
    workgroupBarrier();
    if params.groups != GROUPS_NONE {
        keep_best_groups(token, lane, over);
    }
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        if is_disabled(e) {
            keys[e] = 0u;
        }
    }
    workgroupBarrier();
}

fn group_key(group: u32) -> u32 {
    let size = params.num_choices / params.num_groups;
    var first = 0u;
    var second = 0u;
    for (var e = group * size; e < (group + 1u) * size; e++) {
        second = max(second, min(first, keys[e]));
        first = max(first, keys[e]);
    }
    if params.groups == GROUPS_SUM_TOP2 && second != 0u {
        return order_key(of_order_key(first) + of_order_key(second));
    }
    return first;
}

/// Takes the experts outside the best groups out of the choice.
fn keep_best_groups(token: u32, lane: Lane, over: Softmax) {
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
            } else if params.by_score == 0u {
                keys[e] = choice_key(token, e, over, false);
            }
        }
    }
    workgroupBarrier();
}

/// Writes the ids of slots `first..end` of a token: the best experts left, best first.
fn take(token: u32, lane: Lane, first: u32, end: u32) {
    for (var i = first; i < end; i++) {
        var best = vec2<u32>(0u, MASKED);
        for (var e = lane.index; e < params.num_choices; e += LANES) {
            best = better(best, vec2<u32>(keys[e], e));
        }
        best = reduce_best(lane, best);
        if lane.index == 0u {
            topk_ids[params.topk_ids_at + token * params.top_k + i] = best.y;
            keys[min(best.y, CHOICES - 1u)] = 0u;
        }
        workgroupBarrier();
    }
}

/// Writes the ids of a token's experts, out of `keys` or as they are given.
fn pick(token: u32, lane: Lane) {
    if params.selection == SELECT_GIVEN {
        for (var i = lane.index; i < params.top_k; i += LANES) {
            let at = token * params.top_k + i;
            topk_ids[params.topk_ids_at + at] = given[at];
        }
    } else if params.selection == SELECT_NOISY_SECOND {
        take(token, lane, 0u, 1u);
        for (var e = lane.index; e < params.num_choices; e += LANES) {
            if keys[e] != 0u {
                let noise = bitcast<f32>(given[token * params.num_choices + e]);
                keys[e] = order_key(of_order_key(keys[e]) + noise);
            }
        }
        workgroupBarrier();
        take(token, lane, 1u, params.top_k);
    } else {
        take(token, lane, 0u, params.top_k);
    }
    storageBarrier();
    workgroupBarrier();
}

/// Drops choices after the first by chance, the likelier the smaller their share of the scores.
fn keep_at_random(token: u32, lane: Lane, over: Softmax) {
    if params.keeps_at_random == 0u {
        return;
    }
    let first = params.topk_ids_at + token * params.top_k;
    var sum = 0.0;
    for (var i = 0u; i < params.top_k; i++) {
        sum += score(logit(token, topk_ids[first + i]), over);
    }
    storageBarrier();
    workgroupBarrier();
    for (var i = lane.index + 1u; i < params.top_k; i += LANES) {
        let keep = score(logit(token, topk_ids[first + i]), over) / sum * params.keep_scale;
        let draw = random_uniform(vec2<u32>(params.seed_low, params.seed_high), STREAM_KEEP, token, i);
        // By the order that puts a NaN at −inf: a share of nothing is not kept.
        if order_key(draw) >= order_key(keep) {
            topk_ids[first + i] = MASKED;
        }
    }
    storageBarrier();
    workgroupBarrier();
}
