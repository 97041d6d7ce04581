//! The figures of a routing: sums over blocks of tokens, which are added in order, so that threads do not matter.

use rayon::prelude::*;

use super::Rule;
use super::weigh::{Softmax, score, transform};
use crate::backend::cpu::exp::exp_nonpositive;
use crate::backend::host::slice_mut;
use crate::error::Result;
use crate::ops::FiguresMut;
use crate::routing::{Figures, MASKED, ScoreFunction, Selection};

/// Tokens whose sums are one task.
const TOKENS: usize = 64;

#[derive(Default)]
pub(super) struct Scratch {
    /// `[E]`: slots picked before capacity took any, and tokens by their first slot's expert.
    picked: Vec<u32>,
    first: Vec<u32>,
    /// `[blocks, E + 2]`: Σ probability, Σ z, Σ entropy.
    sums: Vec<f64>,
    importance: Vec<f64>,
}

/// What has come out.
pub(super) struct Outcome<'o> {
    pub(super) router_logits: &'o [f32],
    pub(super) topk_ids: &'o [u32],
    pub(super) topk_weights: &'o [f32],
    pub(super) token_offsets: Option<&'o [u32]>,
}

impl Scratch {
    /// Notes what was picked, before capacity changes it.
    pub(super) fn count(&mut self, rule: &Rule<'_>, ids: &[u32], token_offsets: Option<&[u32]>, wanted: bool) {
        if !wanted {
            return;
        }
        count(ids.iter().copied(), rule.num_choices, &mut self.picked);
        match token_offsets {
            Some(offsets) => {
                let firsts = offsets.windows(2).filter(|slots| slots[0] < slots[1]).map(|slots| ids[slots[0] as usize]);
                count(firsts, rule.num_choices, &mut self.first);
            }
            None => count(ids.iter().step_by(rule.config.top_k).copied(), rule.num_choices, &mut self.first),
        }
    }

    pub(super) fn write(&mut self, rule: &Rule<'_>, outcome: &Outcome<'_>, out: &mut FiguresMut<'_>) -> Result<()> {
        let num_experts = rule.num_choices;
        let num_tokens = outcome.router_logits.len() / rule.num_logits;
        self.add_tokens(rule, outcome.router_logits);
        let load: &mut [u32] = slice_mut("tokens_per_expert", &mut out.tokens_per_expert)?;
        load.fill(0);
        self.importance.clear();
        self.importance.resize(num_experts, 0.0);
        for (&id, &weight) in outcome.topk_ids.iter().zip(outcome.topk_weights) {
            if id != MASKED {
                load[id as usize] += 1;
                self.importance[id as usize] += f64::from(weight);
            }
        }
        let importance: &mut [f32] = slice_mut("importance", &mut out.importance)?;
        importance.iter_mut().zip(&self.importance).for_each(|(out, &x)| *out = x as f32);
        let mean = |i: usize| ratio(self.sums[i], num_tokens as f64);
        let loss = |counts: &[u32]| {
            let total = counts.iter().map(|&n| f64::from(n)).sum();
            counts.iter().enumerate().map(|(e, &n)| ratio(f64::from(n), total) * mean(e)).sum::<f64>()
        };
        let taken: f64 = load.iter().map(|&n| f64::from(n)).sum();
        let all_slots = outcome.topk_ids.len() as f64;
        let figures = Figures {
            importance_cv2: cv2(&self.importance),
            load_cv2: cv2(&load.iter().map(|&n| f64::from(n)).collect::<Vec<_>>()),
            switch_loss: num_experts as f64 * loss(&self.picked),
            gshard_loss: loss(&self.first) / num_experts as f64,
            z_loss: mean(num_experts),
            fraction_dropped: match outcome.token_offsets {
                Some(offsets) => {
                    ratio(offsets.windows(2).filter(|slots| slots[0] == slots[1]).count() as f64, num_tokens as f64)
                }
                None => ratio(all_slots - taken, all_slots),
            },
            entropy: mean(num_experts + 1),
            max_over_mean: ratio(f64::from(load.iter().copied().max().unwrap_or(0)) * num_experts as f64, taken),
            ..Figures::default()
        };
        let scalars: &mut [f32] = slice_mut("scalars", &mut out.scalars)?;
        scalars.iter_mut().zip(figures.scalars()).for_each(|(out, x)| *out = x as f32);
        Ok(())
    }

    /// Leaves the sums over all tokens in the first block's.
    fn add_tokens(&mut self, rule: &Rule<'_>, router_logits: &[f32]) {
        let width = rule.num_choices + 2;
        let block = TOKENS * rule.num_logits;
        self.sums.clear();
        self.sums.resize(router_logits.len().div_ceil(block).max(1) * width, 0.0);
        self.sums.par_chunks_mut(width).zip(router_logits.par_chunks(block)).for_each(|(sums, logits)| {
            logits.chunks_exact(rule.num_logits).for_each(|row| add_token(rule, row, sums));
        });
        let (total, others) = self.sums.split_at_mut(width);
        for sums in others.chunks_exact(width) {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
}

fn add_token(rule: &Rule<'_>, row: &[f32], sums: &mut [f64]) {
    let (groups, logits) = row.split_at(rule.config.num_group_logits());
    let num_experts = logits.len();
    let softmax = softmax_of(rule, logits);
    let mut entropy = 0.0;
    let mut add = |e: usize, p: f32| {
        let p = f64::from(p);
        sums[e] += p;
        entropy -= if p > 0.0 { p * p.ln() } else { 0.0 };
    };
    if let Selection::Hierarchical { num_groups, .. } = rule.config.selection {
        let size = num_experts / num_groups;
        let outer = softmax_of(rule, groups);
        for (g, members) in logits.chunks_exact(size).enumerate() {
            let inner = softmax_of(rule, members);
            let group = probability(rule, groups[g], &outer);
            members.iter().enumerate().for_each(|(i, &x)| add(g * size + i, group * probability(rule, x, &inner)));
        }
    } else if matches!(rule.config.score, ScoreFunction::Logit | ScoreFunction::Softmax) {
        logits.iter().enumerate().for_each(|(e, &x)| add(e, probability(rule, x, &softmax)));
    } else {
        let score = |x: f32| score(rule, transform(rule, x), &softmax);
        let sum: f32 = logits.iter().map(|&x| score(x)).sum();
        let inverse = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        logits.iter().enumerate().for_each(|(e, &x)| add(e, score(x) * inverse));
    }
    sums[num_experts + 1] += entropy;
    if softmax.max > f32::NEG_INFINITY {
        sums[num_experts] += (f64::from(softmax.max) - f64::from(softmax.inv_sum).ln()).powi(2);
    }
}

fn softmax_of(rule: &Rule<'_>, logits: &[f32]) -> Softmax {
    let values = || logits.iter().map(|&x| transform(rule, x)).filter(|x| !x.is_nan());
    let max = values().fold(f32::NEG_INFINITY, f32::max);
    Softmax { max, inv_sum: 1.0 / values().map(|x| exp_nonpositive(x - max)).sum::<f32>() }
}

fn probability(rule: &Rule<'_>, logit: f32, softmax: &Softmax) -> f32 {
    let x = transform(rule, logit);
    if x.is_nan() { 0.0 } else { exp_nonpositive(x - softmax.max) * softmax.inv_sum }
}

fn count(ids: impl Iterator<Item = u32>, num_experts: usize, counts: &mut Vec<u32>) {
    counts.clear();
    counts.resize(num_experts, 0);
    ids.filter(|&id| id != MASKED).for_each(|id| counts[id as usize] += 1);
}

/// Variance over squared mean.
fn cv2(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    ratio(x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n, mean * mean)
}

/// 0 where there is nothing to divide by.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}
