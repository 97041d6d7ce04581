//! The oracle of `combine`.

use crate::routing::MASKED;

/// A weighted sum of expert outputs per token.
#[derive(Clone, Debug)]
pub struct Combine<'a> {
    /// `[R, H]`.
    pub expert_out: &'a [f64],
    /// H.
    pub hidden_size: usize,
    /// `[S]`, slot → row.
    pub inv_permuted_idx: &'a [u32],
    /// `[S]`.
    pub topk_weights: Option<&'a [f64]>,
    /// `[T + 1]`: where each token's slots start.
    pub token_offsets: &'a [u32],
    /// The identity experts' part.
    pub zero_experts: Option<Zero<'a>>,
    /// The shared expert's part.
    pub shared: Option<Shared<'a>>,
}

/// The identity experts' part of a [`Combine`].
#[derive(Clone, Debug)]
pub struct Zero<'a> {
    /// `[S]`: whether a slot's expert is one.
    pub is_zero: &'a [bool],
    /// `[S]`.
    pub weights: &'a [f64],
    /// `[T, H]`: what they return.
    pub hidden_states: &'a [f64],
}

/// The shared expert's part of a [`Combine`].
#[derive(Clone, Debug)]
pub struct Shared<'a> {
    /// `[T, H]`.
    pub output: &'a [f64],
    /// `[T]`: scales a token's row by its sigmoid.
    pub gate_logits: Option<&'a [f64]>,
    /// Multiplies it.
    pub scale: f64,
}

/// `[T, H]`.
pub fn combine(op: &Combine<'_>) -> Vec<f64> {
    let mut output = Vec::new();
    for (token, slots) in op.token_offsets.windows(2).enumerate() {
        for h in 0..op.hidden_size {
            let at = token * op.hidden_size + h;
            let routed: f64 = (slots[0] as usize..slots[1] as usize).map(|slot| slot_value(op, slot, token, h)).sum();
            let shared = op.shared.as_ref().map_or(0.0, |shared| {
                let gate = shared.gate_logits.map_or(1.0, |logits| 1.0 / (1.0 + (-logits[token]).exp()));
                shared.scale * gate * shared.output[at]
            });
            output.push(routed + shared);
        }
    }
    output
}

fn slot_value(op: &Combine<'_>, slot: usize, token: usize, h: usize) -> f64 {
    if let Some(zero) = &op.zero_experts
        && zero.is_zero[slot]
    {
        return zero.weights[slot] * zero.hidden_states[token * op.hidden_size + h];
    }
    match op.inv_permuted_idx[slot] {
        MASKED => 0.0,
        row => op.topk_weights.map_or(1.0, |w| w[slot]) * op.expert_out[row as usize * op.hidden_size + h],
    }
}
