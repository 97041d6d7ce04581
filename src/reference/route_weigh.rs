//! The oracle of routing, steps 7 and 8: the weights.

use super::route::Slots;
use super::route_rank::{Token, sigmoid};
use crate::routing::{RouterConfig, WeightFunction};

/// The weights of the kept experts; a softmax over the selected is one over [`basis`].
pub(super) fn weigh(config: &RouterConfig, token: &Token, picked: &[usize], kept: &[Option<usize>]) -> Vec<f64> {
    let logits: Vec<f64> = basis(config, picked, kept).into_iter().map(|e| token.logits[e]).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|x| (x - max).exp()).sum();
    let weight = |e: usize| match config.weight {
        WeightFunction::Score => token.scores[e],
        WeightFunction::One => 1.0,
        _ if token.logits[e].is_nan() => 0.0,
        WeightFunction::SoftmaxOverSelected => (token.logits[e] - max).exp() / sum,
        WeightFunction::Sigmoid => sigmoid(token.logits[e]),
    };
    kept.iter().map(|id| id.map_or(0.0, weight)).collect()
}

/// The experts over which weights are made comparable: all that were picked, or those that are left.
fn basis(config: &RouterConfig, picked: &[usize], kept: &[Option<usize>]) -> Vec<usize> {
    match config.capacity {
        Some(capacity) if capacity.normalize_before_dropping => picked.to_vec(),
        _ => kept.iter().copied().flatten().collect(),
    }
}

/// Step 8: renormalise, scale.
pub(super) fn normalize(config: &RouterConfig, token: &Token, slots: &Slots, mut weights: Vec<f64>) -> Vec<f64> {
    let Slots { picked, kept, .. } = slots;
    if let Some(rule) = config.renormalize {
        let summed: Vec<f64> = match config.capacity {
            Some(capacity) if capacity.normalize_before_dropping => {
                let all: Vec<Option<usize>> = picked.iter().copied().map(Some).collect();
                weigh(config, token, picked, &all)
            }
            _ => weights.clone(),
        };
        let p = f64::from(rule.p);
        let norm = summed.iter().map(|w| w.abs().powf(p)).sum::<f64>().powf(1.0 / p);
        let norm = if rule.p == 1.0 { summed.iter().sum() } else { norm };
        let denominator = (norm + f64::from(rule.add)).max(f64::from(rule.min));
        weights.iter_mut().for_each(|w| *w /= denominator);
    }
    let scaled = weights.iter().zip(kept).map(|(w, id)| id.map_or(0.0, |_| w * f64::from(config.scaling_factor)));
    scaled.map(|w| if (w as f32).is_finite() { w } else { 0.0 }).collect()
}

/// The weights of the best two logits, each by the softmax over the logits near it.
pub(super) fn sparse_mixer(token: &Token, jitter: f64) -> Vec<f64> {
    let logits = &token.logits;
    let mut taken = Vec::new();
    let mut weights = Vec::new();
    for &id in &token.ranked[..2] {
        let max = logits[id];
        let near = |&e: &usize| {
            let x = logits[e];
            let is_near = !x.is_nan() && (max - x) / x.abs().max(max) <= 2.0 * jitter;
            e == id || (is_near && !taken.contains(&e))
        };
        let sum: f64 = (0..logits.len()).filter(near).map(|e| (logits[e] - max).exp()).sum();
        weights.push(1.0 / sum);
        taken.push(id);
    }
    weights
}
