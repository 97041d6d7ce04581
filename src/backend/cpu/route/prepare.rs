//! What is done to a whole batch of logits before tokens choose: noise, disabled experts, Sinkhorn's iteration.

use rayon::prelude::*;

use super::Rule;
use super::math::softplus;
use super::weigh::transform;
use crate::backend::cpu::exp::exp_nonpositive;
use crate::routing::NoiseKind;
use crate::routing::noise::{Stream, normal};

/// Whether the logits have to be written anew.
pub(super) fn is_needed(rule: &Rule<'_>) -> bool {
    let noisy = rule
        .config
        .noise
        .is_some_and(|noise| matches!(noise.kind, NoiseKind::NormalSoftplus | NoiseKind::Normal { .. }));
    noisy || rule.has_disabled
}

/// Logits transformed, with noise, NaN for disabled experts.
pub(super) fn logits(rule: &Rule<'_>, router_logits: &[f32], noise_logits: Option<&[f32]>, out: &mut Vec<f32>) {
    let config = rule.config;
    let num_groups = config.num_group_logits();
    out.resize(router_logits.len(), 0.0);
    let rows = out.par_chunks_mut(rule.num_logits).zip(router_logits.par_chunks(rule.num_logits));
    rows.enumerate().for_each(|(t, (out, row))| {
        for (column, (out, &x)) in out.iter_mut().zip(row).enumerate() {
            *out = transform(rule, x);
            let Some(e) = column.checked_sub(num_groups) else { continue };
            if rule.has_disabled && config.is_disabled(e) {
                *out = f32::NAN;
                continue;
            }
            let Some(noise) = config.noise else { continue };
            let scale = match (noise.kind, noise_logits) {
                (NoiseKind::NormalSoftplus, Some(logits)) => softplus(logits[t * rule.num_choices + e]),
                (NoiseKind::Normal { std }, _) => std,
                _ => continue,
            };
            *out += normal(noise.seed, Stream::Logit, t as u32, e as u32) * scale;
        }
    });
}

/// Sinkhorn's iteration: `e^logits` scaled by rows to 1/T and by columns to 1/E, in turn.
#[derive(Default)]
pub(super) struct Sinkhorn {
    /// `[T, E]`: each row up to a factor, which the row's scaling takes out again.
    cost: Vec<f32>,
    factors: Vec<f64>,
    sums: Vec<f64>,
    offsets: Vec<f32>,
}

impl Sinkhorn {
    /// The logarithm of each expert's factor. A row's factor is the same for all its experts and so is of no interest.
    pub(super) fn offsets(
        &mut self,
        rule: &Rule<'_>,
        router_logits: &[f32],
        tolerance: f32,
        max_iterations: usize,
    ) -> &[f32] {
        let num_experts = rule.num_choices;
        let num_tokens = router_logits.len() / num_experts;
        let Self { cost, factors, sums, offsets } = self;
        cost.resize(router_logits.len(), 0.0);
        for (cost, row) in cost.chunks_exact_mut(num_experts).zip(router_logits.chunks_exact(num_experts)) {
            let logits = || row.iter().map(|&x| transform(rule, x));
            let max = logits().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
            for (cost, x) in cost.iter_mut().zip(logits()) {
                *cost = if x.is_nan() { 0.0 } else { exp_nonpositive(x - max) };
            }
        }
        factors.clear();
        factors.resize(num_experts, 1.0);
        for _ in 0..max_iterations {
            sums.clear();
            sums.resize(num_experts, 0.0);
            for row in cost.chunks_exact(num_experts) {
                let sum: f64 = row.iter().zip(&*factors).map(|(&c, f)| f64::from(c) * f).sum();
                let scale = if sum > 0.0 { 1.0 / (sum * num_tokens as f64) } else { 0.0 };
                sums.iter_mut().zip(row).for_each(|(s, &c)| *s += f64::from(c) * scale);
            }
            let (mut change, mut total) = (0.0, 0.0);
            for (factor, &sum) in factors.iter_mut().zip(&*sums) {
                let next = if sum > 0.0 { 1.0 / (sum * num_experts as f64) } else { 1.0 };
                change += (next - *factor).abs();
                total += next;
                *factor = next;
            }
            if change <= f64::from(tolerance) * total {
                break;
            }
        }
        offsets.clear();
        offsets.extend(factors.iter().map(|factor| factor.ln() as f32));
        offsets
    }
}
