//! The oracle of `grouped_gemm`, and of the activations.

use crate::config::{Activation, GateUpLayout, WeightLayout};
use crate::ops::Epilogue;

/// A grouped GEMM over rows that are already gathered and scaled.
#[derive(Clone, Debug)]
pub struct GroupedGemm<'a> {
    /// `[R, K]`.
    pub input: &'a [f64],
    /// K.
    pub k: usize,
    /// N.
    pub n: usize,
    /// `[E + 1]`.
    pub expert_offsets: &'a [u32],
    /// `[E, N, K]` or `[E, K, N]`.
    pub weight: &'a [f64],
    /// Which of the two.
    pub weight_layout: WeightLayout,
    /// `[E, N]`.
    pub bias: Option<&'a [f64]>,
    /// What happens to the product.
    pub epilogue: Epilogue,
}

/// `[R', N]` or `[R', N/2]`, with R' = `expert_offsets[E]`.
pub fn grouped_gemm(op: &GroupedGemm<'_>) -> Vec<f64> {
    let mut output = Vec::new();
    for (expert, rows) in op.expert_offsets.windows(2).enumerate() {
        for row in rows[0] as usize..rows[1] as usize {
            let input = &op.input[row * op.k..][..op.k];
            let product: Vec<f64> = (0..op.n).map(|n| product(op, expert, n, input)).collect();
            output.extend(apply(op.epilogue, &product));
        }
    }
    output
}

fn product(op: &GroupedGemm<'_>, expert: usize, n: usize, input: &[f64]) -> f64 {
    let matrix = &op.weight[expert * op.n * op.k..][..op.n * op.k];
    let weight = |k: usize| match op.weight_layout {
        WeightLayout::Nk => matrix[n * op.k + k],
        WeightLayout::Kn => matrix[k * op.n + n],
    };
    let dot: f64 = input.iter().enumerate().map(|(k, x)| x * weight(k)).sum();
    dot + op.bias.map_or(0.0, |bias| bias[expert * op.n + n])
}

fn apply(epilogue: Epilogue, product: &[f64]) -> Vec<f64> {
    match epilogue {
        Epilogue::None => product.to_vec(),
        Epilogue::Activation(activation) => product.iter().map(|&y| activate(activation, y, None)).collect(),
        Epilogue::Gated { activation, layout } => gated(activation, layout, product),
    }
}

fn gated(activation: Activation, layout: GateUpLayout, product: &[f64]) -> Vec<f64> {
    let intermediate_size = product.len() / 2;
    (0..intermediate_size)
        .map(|i| {
            let (gate, up) = layout.columns(i, intermediate_size);
            activate(activation, product[gate], Some(product[up]))
        })
        .collect()
}

/// `act(gate) · up`, or `act(gate)` where there is no `up`.
pub fn activate(activation: Activation, gate: f64, up: Option<f64>) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let activated = match activation {
        Activation::Silu => gate * sigmoid(gate),
        Activation::Gelu => 0.5 * gate * (1.0 + libm::erf(gate / 2f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh())
        }
        Activation::Relu => gate.max(0.0),
        Activation::ReluSquared => gate.max(0.0).powi(2),
        Activation::ClampedSwiglu { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let gate = gate.min(limit);
            let up = up.map_or(0.0, |up| up.clamp(-limit, limit));
            return (up + 1.0) * gate * sigmoid(alpha * gate);
        }
    };
    activated * up.unwrap_or(1.0)
}
