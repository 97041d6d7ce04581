//! e^x as plain code that each instruction set vectorises: no calls, no branches, no fused multiply-add; a NaN stays one.

/// Adding it leaves the nearest integer in the low bits, and taking it away again rounds.
const ROUND: f32 = 12_582_912.0;
/// The logarithm of the smallest normal number, rounded up.
const SMALLEST: f32 = -87.336_54;
/// Above it the result is no finite number.
const LARGEST: f32 = 88.722_84;

/// `(n, e^(x − n·ln 2))` for the n nearest to `x / ln 2`.
#[inline(always)]
fn split(x: f32) -> (i32, f32) {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Minimax on ±ln2/2 (Moshier, Cephes).
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32, p * (r * r) + r + 1.0)
}

/// e^x within 2 units in the last place, for results in the normal range; smaller ones are 0.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let (n, y) = split(x);
    // In two halves, so that neither leaves the normal range: n is within ±128 here, or y is not used.
    let half = n >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127).clamp(0, 254) as u32) << 23);
    let y = y * power(half) * power(n.wrapping_sub(half));
    let y = if x > LARGEST { f32::INFINITY } else { y };
    if x < SMALLEST { 0.0 } else { y }
}

/// [`exp`] for x ≤ 0, in fewer instructions.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    // The operand that survives a NaN is the second.
    let (n, y) = split(if SMALLEST > x { SMALLEST } else { x });
    let y = y * f32::from_bits((n.wrapping_add(127) << 23) as u32);
    if x < SMALLEST { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_close(actual: f32, x: f32) {
        let expected = f64::from(x).exp();
        assert!((f64::from(actual) - expected).abs() <= 2.4e-7 * expected, "e^{x}: {actual} for {expected}");
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -87_336..=88_722 {
            let x = i as f32 * 1e-3;
            is_close(exp(x), x);
        }
        is_close(exp(SMALLEST), SMALLEST);
        assert_eq!((exp(f32::INFINITY), exp(f32::NEG_INFINITY), exp(0.0)), (f32::INFINITY, 0.0, 1.0));
        assert_eq!((exp(89.0), exp(f32::MAX), exp(-88.0), exp(f32::MIN)), (f32::INFINITY, f32::INFINITY, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp_nonpositive_is_close_everywhere() {
        for i in 0..=87_336 {
            let x = i as f32 * -1e-3;
            is_close(exp_nonpositive(x), x);
        }
        is_close(exp_nonpositive(SMALLEST), SMALLEST);
        assert_eq!((exp_nonpositive(f32::NEG_INFINITY), exp_nonpositive(0.0)), (0.0, 1.0));
        assert_eq!((exp_nonpositive(-88.0), exp_nonpositive(f32::MIN)), (0.0, 0.0));
        assert!(exp_nonpositive(f32::NAN).is_nan());
    }
}
