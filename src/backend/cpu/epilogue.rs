//! Bias and activation on rows of products: scalar code without branches, which each instruction set vectorises.

use super::exp::exp;
use super::kernel::{ProductRow, WIDTH};
use crate::config::{Activation, GateUpLayout};
use crate::ops::Epilogue;

/// Output columns that one task makes, and the columns of the product that it makes them of.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The first output column.
    pub(super) first: usize,
    /// How many.
    pub(super) count: usize,
    /// First column in N and first column in the product row, of one or two runs. Gate comes before up.
    pub(super) runs: [Option<(usize, usize)>; 2],
    /// Columns in each run.
    pub(super) run_len: usize,
}

impl Block {
    /// Output columns of the widest block.
    pub(super) fn max_count(epilogue: Epilogue) -> usize {
        match epilogue {
            Epilogue::Gated { .. } => WIDTH / 2,
            Epilogue::None | Epilogue::Activation(_) => WIDTH,
        }
    }

    /// The block of `count` output columns from `first` on, of an expert with `n` columns.
    pub(super) fn new(epilogue: Epilogue, n: usize, first: usize, count: usize) -> Self {
        let half = n / 2;
        let (runs, run_len) = match epilogue {
            Epilogue::None | Epilogue::Activation(_) => ([Some((first, 0)), None], count),
            Epilogue::Gated { layout: GateUpLayout::GateThenUp, .. } => {
                ([Some((first, 0)), Some((half + first, WIDTH / 2))], count)
            }
            Epilogue::Gated { layout: GateUpLayout::UpThenGate, .. } => {
                ([Some((half + first, 0)), Some((first, WIDTH / 2))], count)
            }
            Epilogue::Gated { layout: GateUpLayout::Interleaved, .. } => ([Some((2 * first, 0)), None], 2 * count),
        };
        Self { first, count, runs, run_len }
    }
}

/// Turns a row of products into a row of outputs: bias, then the epilogue; returns the buffer's leading
/// [`Block::count`] elements as the output.
#[inline(always)]
pub(super) fn finish(epilogue: Epilogue, block: &Block, bias: Option<&[f32]>, product: &mut ProductRow) {
    if let Some(bias) = bias {
        for (first, column) in block.runs.into_iter().flatten() {
            let product = &mut product[column..column + block.run_len];
            product.iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
        }
    }
    match epilogue {
        Epilogue::None => {}
        Epilogue::Activation(activation) => {
            // No up: what leaves `act(gate) · up` as it is.
            let neutral = if matches!(activation, Activation::ClampedSwiglu { .. }) { 0.0 } else { 1.0 };
            apply(activation, product, &[neutral; WIDTH]);
        }
        Epilogue::Gated { activation, layout } => {
            if layout == GateUpLayout::Interleaved {
                separate(product);
            }
            let (gate, up) = product.split_at_mut(WIDTH / 2);
            apply(activation, gate, up);
        }
    }
}

/// gate, up, gate, up, … to all gate, then all up.
#[inline(always)]
fn separate(product: &mut ProductRow) {
    let interleaved = *product;
    let (gate, up) = product.split_at_mut(WIDTH / 2);
    for ((pair, gate), up) in interleaved.chunks_exact(2).zip(gate).zip(up) {
        (*gate, *up) = (pair[0], pair[1]);
    }
}

/// `gate = act(gate) · up`. Columns past the block's are computed too, and not used.
#[inline(always)]
fn apply(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => each(gate, up, |g, u| silu(g, 1.0) * u),
        Activation::Gelu => each(gate, up, |g, u| gelu(g) * u),
        Activation::GeluTanh => each(gate, up, |g, u| gelu_tanh(g) * u),
        Activation::Relu => each(gate, up, |g, u| relu(g) * u),
        Activation::ReluSquared => each(gate, up, |g, u| relu(g) * relu(g) * u),
        Activation::ClampedSwiglu { alpha, limit } => {
            // Comparisons, not `min` and `max`: NaN stays NaN.
            let below = |x: f32| if x > limit { limit } else { x };
            let above = |x: f32| if x < -limit { -limit } else { x };
            each(gate, up, |g, u| silu(below(g), alpha) * (above(below(u)) + 1.0));
        }
    }
}

#[inline(always)]
fn each(gate: &mut [f32], up: &[f32], f: impl Fn(f32, f32) -> f32) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = f(*g, *u);
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `x·sigmoid(alpha·x)`.
#[inline(always)]
fn silu(x: f32, alpha: f32) -> f32 {
    x / (1.0 + exp(-alpha * x))
}

/// `x/2·(1 + tanh(inner)) = x·sigmoid(2·inner)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let inner = TWO_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
    x / (1.0 + exp(-inner))
}

/// `x·Φ(x)`.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Abramowitz and Stegun 7.1.26: within 1.5e-7.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let polynomial = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    (1.0 - polynomial * exp(-x * x)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::activate;

    const GATED: [Activation; 6] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
    ];

    #[test]
    fn activations_are_the_oracles() {
        for activation in GATED {
            for i in -30_000..30_000 {
                let (gate, up) = (i as f32 * 1e-3, (i % 97) as f32 * 0.1);
                let mut y = [gate];
                apply(activation, &mut y, &[up]);
                let expected = activate(activation, f64::from(gate), Some(f64::from(up)));
                let error = (f64::from(y[0]) - expected).abs();
                let tolerance = 1e-6 * (1.0 + expected.abs()) + 2e-7 * f64::from(gate * up).abs();
                assert!(error <= tolerance, "{activation:?} {gate} {up}: {} {expected}", y[0]);
            }
        }
    }

    #[test]
    fn extremes_stay_what_they_are() {
        for activation in GATED {
            for (gate, is_expected) in
                [(f32::NAN, f32::is_nan as fn(f32) -> bool), (1e4, |y| y.is_finite() && y > 0.0), (-1e4, |y| y == 0.0)]
            {
                let mut y = [gate];
                apply(activation, &mut y, &[1.0]);
                assert!(is_expected(y[0]), "{activation:?} {gate}: {}", y[0]);
            }
        }
    }
}
