// Logits as tokens are routed by them, their scores, and the order in which experts are chosen. The kernel has the logits
// as `router_logits`, and `params` with what of the rule is needed here.

const SCORE_LOGIT: u32 = 0u;
const SCORE_SOFTMAX: u32 = 1u;
const SCORE_SIGMOID: u32 = 2u;
const SCORE_SQRT_SOFTPLUS: u32 = 3u;

/// An integer that orders as the float does, NaN at −inf and −0 at 0; never 0.
fn order_key(x: f32) -> u32 {
    var bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        bits = 0xff800000u;
    }
    if bits == 0x80000000u {
        bits = 0u;
    }
    return bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u);
}

fn of_order_key(key: u32) -> f32 {
    return bitcast<f32>(key ^ select(0xffffffffu, 0x80000000u, key >= 0x80000000u));
}

/// A softmax over logits: e^(x − top) · inv_sum.
struct Softmax {
    top: f32,
    inv_sum: f32,
}

const LOWEST: f32 = -3.40282347e38;

fn softmax_of(x: f32, over: Softmax) -> f32 {
    return exp_nonpositive(x - over.top) * over.inv_sum;
}

/// A logit by its column, those of groups first: finite, or NaN.
fn column(token: u32, column: u32) -> f32 {
    let num_logits = params.num_group_logits + params.num_choices;
    let x = router_logits[params.router_logits_at + token * num_logits + column];
    return transform(x, params.logit_clip, params.logit_softcap);
}

fn logit(token: u32, expert: u32) -> f32 {
    return column(token, params.num_group_logits + expert);
}

/// Over `count` columns from `first` on whose logit is not NaN.
fn softmax_over(token: u32, lane: Lane, first: u32, count: u32) -> Softmax {
    var top = LOWEST;
    for (var c = lane.index; c < count; c += LANES) {
        let x = column(token, first + c);
        if !is_nan(x) {
            top = max(top, x);
        }
    }
    top = reduce_max(lane, top);
    var sum = 0.0;
    for (var c = lane.index; c < count; c += LANES) {
        let x = column(token, first + c);
        if !is_nan(x) {
            sum += exp_nonpositive(x - top);
        }
    }
    return Softmax(top, 1.0 / reduce_sum(lane, sum));
}

/// Of a NaN, 0.
fn score(x: f32, over: Softmax) -> f32 {
    if is_nan(x) {
        return 0.0;
    }
    if params.score == SCORE_SOFTMAX {
        return softmax_of(x, over);
    }
    if params.score == SCORE_SIGMOID {
        return sigmoid(x);
    }
    if params.score == SCORE_SQRT_SOFTPLUS {
        return sqrt(softplus(x));
    }
    return x;
}
