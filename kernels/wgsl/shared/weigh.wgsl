// From the experts picked to their weights. The kernel says which slots a token has (`slots_of`), and which experts make
// the weights comparable (`basis_id`, MASKED where a slot has none).

struct Slots {
    first: u32,
    count: u32,
}

const WEIGHT_SCORE: u32 = 0u;
const WEIGHT_SOFTMAX_OVER_SELECTED: u32 = 1u;
const WEIGHT_SIGMOID: u32 = 2u;
const WEIGHT_ONE: u32 = 3u;
const WEIGHT_SPARSE_MIXER: u32 = 4u;

/// The expert of a token's slot, or MASKED.
fn kept_id(token: u32, i: u32) -> u32 {
    return topk_ids[params.topk_ids_at + slots_of(token).first + i];
}

/// Whether a slot takes part in making the weights comparable, with a logit.
fn has_basis(token: u32, i: u32) -> bool {
    let expert = basis_id(token, i);
    if expert == MASKED {
        return false;
    }
    return !is_nan(logit(token, expert));
}

/// Over the experts that make the weights comparable.
fn softmax_over_selected(token: u32, lane: Lane) -> Softmax {
    var top = LOWEST;
    for (var i = lane.index; i < slots_of(token).count; i += LANES) {
        if has_basis(token, i) {
            let x = logit(token, basis_id(token, i));
            top = max(top, x);
        }
    }
    top = reduce_max(lane, top);
    var sum = 0.0;
    for (var i = lane.index; i < slots_of(token).count; i += LANES) {
        if has_basis(token, i) {
            let x = logit(token, basis_id(token, i));
            sum += exp_nonpositive(x - top);
        }
    }
    return Softmax(top, 1.0 / reduce_sum(lane, sum));
}

/// Before renormalisation.
fn weight(x: f32, over_all: Softmax, over_selected: Softmax) -> f32 {
    if params.weight == WEIGHT_SCORE {
        return score(x, over_all);
    }
    if params.weight == WEIGHT_ONE {
        return 1.0;
    }
    if is_nan(x) {
        return 0.0;
    }
    if params.weight == WEIGHT_SIGMOID {
        return sigmoid(x);
    }
    return softmax_of(x, over_selected);
}

/// Sparsemixer: an expert's share of the softmax over the logits near its own; `without` is out of it.
fn sparse_mixer(token: u32, lane: Lane, expert: u32, without: u32) -> f32 {
    let top = logit(token, expert);
    var sum = 0.0;
    for (var e = lane.index; e < params.num_choices; e += LANES) {
        let x = logit(token, e);
        let near = !is_nan(x) && (top - x) / max(abs(x), top) <= 2.0 * params.jitter;
        if e == expert || (near && e != without) {
            sum += exp_nonpositive(x - top);
        }
    }
    return 1.0 / reduce_sum(lane, sum);
}

/// What a weight adds to the sum that weights are divided by.
fn norm_term(w: f32) -> f32 {
    if params.renormalize_p == 1.0 {
        return w;
    }
    return pow(abs(w), params.renormalize_p);
}

fn factor(sum: f32) -> f32 {
    var norm = sum;
    if params.renormalize_p != 1.0 {
        norm = pow(sum, 1.0 / params.renormalize_p);
    }
    return params.scaling_factor / max(norm + params.renormalize_add, params.renormalize_min);
}

fn write_weight(token: u32, i: u32, w: f32) {
    let finite = (bitcast<u32>(w) & 0x7f800000u) != 0x7f800000u;
    topk_weights[params.topk_weights_at + slots_of(token).first + i] = select(0.0, w, finite);
}

fn weigh(token: u32, lane: Lane, over_all: Softmax) {
    if params.weight == WEIGHT_SPARSE_MIXER {
        let first = sparse_mixer(token, lane, kept_id(token, 0u), MASKED);
        let second = sparse_mixer(token, lane, kept_id(token, 1u), kept_id(token, 0u));
        let by = select(params.scaling_factor, factor(norm_term(first) + norm_term(second)), params.renormalize != 0u);
        if lane.index == 0u {
            write_weight(token, 0u, first * by);
            write_weight(token, 1u, second * by);
        }
        return;
    }
    var over_selected = over_all;
    if params.weight == WEIGHT_SOFTMAX_OVER_SELECTED {
        over_selected = softmax_over_selected(token, lane);
    }
    var by = params.scaling_factor;
    if params.renormalize != 0u {
        var sum = 0.0;
        for (var i = lane.index; i < slots_of(token).count; i += LANES) {
            if basis_id(token, i) != MASKED {
                sum += norm_term(weight(logit(token, basis_id(token, i)), over_all, over_selected));
            }
        }
        by = factor(reduce_sum(lane, sum));
    }
    for (var i = lane.index; i < slots_of(token).count; i += LANES) {
        let expert = kept_id(token, i);
        var w = 0.0;
        if expert != MASKED {
            w = by * weight(logit(token, expert), over_all, over_selected);
        }
        write_weight(token, i, w);
    }
}
