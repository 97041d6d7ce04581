//! Functions of a float that vectorise: no calls, no fused multiply-add, a NaN stays one.

/// Lanes that the loops here are written in: the floats of an AVX-512 register.
pub(super) const LANES: usize = 16;

/// One instruction, unlike `f32::max`: where `a` is NaN, `b`.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// One instruction: where `a` is NaN, `b`.
#[inline(always)]
pub(super) fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// `x` within `±limit`; a NaN stays one.
#[inline(always)]
pub(super) fn clamp(x: f32, limit: f32) -> f32 {
    // The operand that survives a NaN is the second.
    let below = if limit < x { limit } else { x };
    if -limit > below { -limit } else { below }
}

/// e^x for x ≤ 0 to about one unit in the last place, 0 below the normal numbers.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    const SMALLEST: f32 = -87.0;
    // Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if SMALLEST > x { SMALLEST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Minimax on ±ln2/2 (Moshier, Cephes).
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let y = p * (r * r) + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let y = y * f32::from_bits(exponent);
    if x < SMALLEST { 0.0 } else { y }
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    let e = exp_nonpositive(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// ln(1 + e^x).
pub(super) fn softplus(x: f32) -> f32 {
    max(x, 0.0) + exp_nonpositive(-x.abs()).ln_1p()
}

/// √ln(1 + e^x).
pub(super) fn sqrt_softplus(x: f32) -> f32 {
    softplus(x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_sigmoid_are_exact_to_a_few_ulp() {
        for i in 0..200_000 {
            let x = -100.0 * i as f32 / 200_000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - expected).abs();
            assert!(error <= 3e-7 * expected || expected < 1.7e-38, "exp({x})");
            for x in [x, -x] {
                let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
                let error = (f64::from(sigmoid(x)) - expected).abs();
                assert!(error <= 4e-7 * expected || expected < 1.7e-38, "sigmoid({x})");
            }
        }
        assert!(sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(f32::MAX), sigmoid(f32::MIN)), (1.0, 0.0));
    }

    #[test]
    fn clamp_keeps_nan() {
        assert!(clamp(f32::NAN, 1.0).is_nan());
        assert_eq!((clamp(f32::INFINITY, 2.0), clamp(f32::NEG_INFINITY, 2.0), clamp(-0.5, 2.0)), (2.0, -2.0, -0.5));
    }
}
