//! From picked experts to weights.

use super::Rule;
use super::math::{clamp, max, sigmoid, sqrt_softplus};
use crate::backend::cpu::exp::exp_nonpositive;
use crate::routing::{MASKED, Renormalize, ScoreFunction, Selection, WeightFunction};

/// A token's softmax over all experts: `e^(logit − max) · inv_sum`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Softmax {
    pub(super) max: f32,
    pub(super) inv_sum: f32,
}

/// What makes the weights of a token's experts comparable: a softmax over them, and the sum they are divided by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Basis {
    softmax: Softmax,
    factor: f32,
}

/// The logit by which a token is routed.
#[inline(always)]
pub(super) fn transform(rule: &Rule<'_>, logit: f32) -> f32 {
    let x = clamp(logit, rule.logit_clip);
    match rule.logit_softcap {
        Some(c) => c * (x / c).tanh(),
        None => x,
    }
}

/// A score; of a NaN, 0.
#[inline(always)]
pub(super) fn score(rule: &Rule<'_>, logit: f32, softmax: &Softmax) -> f32 {
    if logit.is_nan() {
        return 0.0;
    }
    match rule.config.score {
        ScoreFunction::Logit => logit,
        ScoreFunction::Softmax => exp_nonpositive(logit - softmax.max) * softmax.inv_sum,
        ScoreFunction::Sigmoid => sigmoid(logit),
        ScoreFunction::SqrtSoftplus => sqrt_softplus(logit),
    }
}

impl Basis {
    /// Over the experts `ids`, masked ones left out.
    #[inline(always)]
    pub(super) fn of(rule: &Rule<'_>, row: &[f32], softmax: &Softmax, ids: &[u32]) -> Self {
        let mut basis = Self::before_normalizing(rule, row, ids);
        if let Some(renormalize) = renormalize(rule) {
            let weights = ids.iter().filter(|&&id| id != MASKED).map(|&id| weight(rule, row, softmax, &basis, id));
            basis.factor = rule.config.scaling_factor / renormalize.denominator(weights);
        }
        basis
    }

    #[inline(always)]
    fn before_normalizing(rule: &Rule<'_>, row: &[f32], ids: &[u32]) -> Self {
        let config = rule.config;
        let mut basis =
            Self { softmax: Softmax { max: f32::NEG_INFINITY, inv_sum: 1.0 }, factor: config.scaling_factor };
        if config.weight == WeightFunction::SoftmaxOverSelected {
            let logits = || ids.iter().filter(|&&id| id != MASKED).map(|&id| transform(rule, row[id as usize]));
            let max = logits().fold(f32::NEG_INFINITY, |a, b| max(b, a));
            let sum: f32 = logits().filter(|x| !x.is_nan()).map(|x| exp_nonpositive(x - max)).sum();
            basis.softmax = Softmax { max, inv_sum: 1.0 / sum };
        }
        basis
    }
}

/// Sparsemixer renormalises by itself.
#[inline(always)]
fn renormalize(rule: &Rule<'_>) -> Option<Renormalize> {
    rule.config.renormalize.filter(|_| !matches!(rule.config.selection, Selection::SparseMixer { .. }))
}

/// Before renormalisation.
#[inline(always)]
fn weight(rule: &Rule<'_>, row: &[f32], softmax: &Softmax, basis: &Basis, id: u32) -> f32 {
    let logit = transform(rule, row[id as usize]);
    match rule.config.weight {
        WeightFunction::Score => score(rule, logit, softmax),
        WeightFunction::One => 1.0,
        _ if logit.is_nan() => 0.0,
        WeightFunction::SoftmaxOverSelected => exp_nonpositive(logit - basis.softmax.max) * basis.softmax.inv_sum,
        WeightFunction::Sigmoid => sigmoid(logit),
    }
}

/// [`weigh`] on the basis of these very experts, each of whose scores is computed once: here, or before, where all
/// `scores` are known.
#[inline(always)]
pub(super) fn weigh_once(
    rule: &Rule<'_>,
    row: &[f32],
    scores: Option<&[f32]>,
    softmax: &Softmax,
    ids: &[u32],
    weights: &mut [f32],
) {
    if let Selection::SparseMixer { .. } = rule.config.selection {
        return weigh(rule, row, softmax, &Basis::default(), ids, weights);
    }
    let basis = Basis::before_normalizing(rule, row, ids);
    let of = |id| weight(rule, row, softmax, &basis, id);
    let scores = scores.filter(|_| rule.config.weight == WeightFunction::Score);
    for (out, &id) in weights.iter_mut().zip(ids) {
        *out = match scores {
            _ if id == MASKED => 0.0,
            Some(scores) => Some(scores[id as usize]).filter(|score| !score.is_nan()).unwrap_or(0.0),
            None => of(id),
        };
    }
    let factor = match renormalize(rule) {
        Some(renormalize) => basis.factor / renormalize.denominator(weights.iter().copied()),
        None => basis.factor,
    };
    weights.iter_mut().for_each(|weight| *weight *= factor);
    finish(weights);
}

/// The weights of a token's experts.
pub(super) fn weigh(rule: &Rule<'_>, row: &[f32], softmax: &Softmax, basis: &Basis, ids: &[u32], weights: &mut [f32]) {
    if let Selection::SparseMixer { jitter } = rule.config.selection {
        sparse_mixer(rule, jitter, row, ids, weights);
    } else {
        for (out, &id) in weights.iter_mut().zip(ids) {
            *out = if id == MASKED { 0.0 } else { weight(rule, row, softmax, basis, id) * basis.factor };
        }
    }
    finish(weights);
}

/// What is not finite becomes 0.
pub(super) fn finish(weights: &mut [f32]) {
    for weight in weights {
        if !weight.is_finite() {
            *weight = 0.0;
        }
    }
}

/// Each of the two weighed by the softmax over the logits near it; the first is out of the second's.
fn sparse_mixer(rule: &Rule<'_>, jitter: f32, row: &[f32], ids: &[u32], weights: &mut [f32]) {
    let config = rule.config;
    for (i, &id) in ids.iter().enumerate() {
        let top = transform(rule, row[id as usize]);
        let mut sum = 0.0;
        for (e, &logit) in row.iter().enumerate() {
            let x = transform(rule, logit);
            let near = !x.is_nan() && (top - x) / max(x.abs(), top) <= 2.0 * jitter;
            if e as u32 == id || (near && !ids[..i].contains(&(e as u32))) {
                sum += exp_nonpositive(x - top);
            }
        }
        weights[i] = 1.0 / sum;
    }
    let factor = config.scaling_factor / config.renormalize.map_or(1.0, |r| r.denominator(weights.iter().copied()));
    weights.iter_mut().for_each(|w| *w *= factor);
}
