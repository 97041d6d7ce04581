// Scores of logits, and the order in which experts are chosen.

const SCORE_LOGIT: u32 = 0u;
const SCORE_SOFTMAX: u32 = 1u;
const SCORE_SIGMOID: u32 = 2u;
const SCORE_SQRT_SOFTPLUS: u32 = 3u;
override SCORE: u32 = SCORE_SOFTMAX;

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

/// Of a NaN, 0.
fn score(x: f32, over: Softmax) -> f32 {
    if is_nan(x) {
        return 0.0;
    }
    if SCORE == SCORE_SOFTMAX {
        return softmax_of(x, over);
    }
    if SCORE == SCORE_SIGMOID {
        return sigmoid(x);
    }
    if SCORE == SCORE_SQRT_SOFTPLUS {
        return sqrt(softplus(x));
    }
    return x;
}
