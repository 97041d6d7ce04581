//! Hierarchical selection: the best groups, in each its best experts.

use super::Rule;
use super::pick::{Scratch, order_key};
use super::weigh::{finish, transform};
use crate::backend::cpu::exp::exp_nonpositive;

/// [`Selection::Hierarchical`](crate::routing::Selection::Hierarchical).
#[derive(Clone, Copy)]
pub(super) struct Levels {
    pub(super) num_groups: usize,
    pub(super) topk_groups: usize,
    pub(super) renormalize: bool,
}

/// Writes a token's experts and weights, the largest weight first.
pub(super) fn pick(
    rule: &Rule<'_>,
    levels: Levels,
    row: &[f32],
    scratch: &mut Scratch,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    let (group_logits, logits) = row.split_at(levels.num_groups);
    let size = logits.len() / levels.num_groups;
    let (groups, group_weights) = scratch.levels(levels.topk_groups);
    top_of(rule, group_logits, groups, group_weights, levels.renormalize, |_| true);
    let per_group = ids.len() / levels.topk_groups;
    let members = ids.chunks_exact_mut(per_group).zip(weights.chunks_exact_mut(per_group));
    for ((ids, weights), (&g, &group_weight)) in members.zip(groups.iter().zip(&*group_weights)) {
        let first = g as usize * size;
        let enabled = |e: usize| !rule.config.is_disabled(first + e);
        top_of(rule, &logits[first..first + size], ids, weights, levels.renormalize, enabled);
        for (id, weight) in ids.iter_mut().zip(weights) {
            *id += first as u32;
            *weight *= group_weight;
        }
    }
    sort_by_weight(ids, weights);
    if let Some(renormalize) = rule.config.renormalize {
        let denominator = renormalize.denominator(weights.iter().copied());
        weights.iter_mut().for_each(|w| *w /= denominator);
    }
    weights.iter_mut().for_each(|w| *w *= rule.config.scaling_factor);
    finish(weights);
}

/// The best of some logits, and their softmax over all, or over the best themselves.
fn top_of(
    rule: &Rule<'_>,
    logits: &[f32],
    ids: &mut [u32],
    weights: &mut [f32],
    renormalize: bool,
    enabled: impl Fn(usize) -> bool,
) {
    for i in 0..ids.len() {
        let mut best = (0, 0);
        for (e, &x) in logits.iter().enumerate() {
            let key = order_key(transform(rule, x));
            if key > best.0 && enabled(e) && !ids[..i].contains(&(e as u32)) {
                best = (key, e as u32);
            }
        }
        ids[i] = best.1;
    }
    let values = || logits.iter().map(|&x| transform(rule, x)).filter(|x| !x.is_nan());
    let max = values().fold(f32::NEG_INFINITY, f32::max);
    let exp = |x: f32| if x.is_nan() { 0.0 } else { exp_nonpositive(x - max) };
    weights.iter_mut().zip(&*ids).for_each(|(w, &id)| *w = exp(transform(rule, logits[id as usize])));
    let sum: f32 = if renormalize { weights.iter().sum() } else { values().map(exp).sum() };
    weights.iter_mut().for_each(|w| *w /= sum);
}

/// Insertion sort: there are few. Equal weights in the order of ids.
fn sort_by_weight(ids: &mut [u32], weights: &mut [f32]) {
    for i in 1..ids.len() {
        let mut j = i;
        while j > 0 && (order_key(weights[j]), !ids[j]) > (order_key(weights[j - 1]), !ids[j - 1]) {
            ids.swap(j, j - 1);
            weights.swap(j, j - 1);
            j -= 1;
        }
    }
}
