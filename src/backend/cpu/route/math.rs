//! Functions of a float that vectorise: no calls, no fused multiply-add, a NaN stays one.

use crate::backend::cpu::exp::exp_nonpositive;

/// Lanes that the loops here are written in: the floats of an AVX-512 register.
pub(super) const LANES: usize = 16;

/// One instruction, unlike `f32::max`: where `a` is NaN, `b`.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `x` within `±limit`; a NaN stays one.
#[inline(always)]
pub(super) fn clamp(x: f32, limit: f32) -> f32 {
    // The operand that survives a NaN is the second.
    let below = if limit < x { limit } else { x };
    if -limit > below { -limit } else { below }
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
    fn sigmoid_is_exact_to_a_few_ulp() {
        for i in 0..200_000 {
            let x = -100.0 * i as f32 / 200_000.0;
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
