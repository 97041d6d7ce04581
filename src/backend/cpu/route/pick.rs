//! The experts of one token: scores, groups, the k best.

use super::Rule;
use super::math::{LANES, clamp, max, sigmoid, sqrt_softplus};
use super::select::{before, largest};
use super::weigh::{Softmax, transform};
use crate::backend::cpu::exp::exp_nonpositive;
use crate::backend::cpu::isa::Lanes;
use crate::routing::noise::{self, Stream};
use crate::routing::{GroupLimit, GroupScore, Noise, NoiseKind, ScoreFunction};

/// Rows of E elements, padded to whole blocks.
#[derive(Default)]
pub(super) struct Scratch {
    /// NaN in the padding.
    logits: Vec<f32>,
    /// NaN where the logit is.
    scores: Vec<f32>,
    /// Scores with the selection bias, where there is one.
    biased: Vec<f32>,
    /// What experts are chosen by, as an integer of the same order; 0 where an expert may not be chosen.
    order: Vec<u32>,
    /// Of groups, as `order`.
    groups: Vec<u32>,
    candidates: Vec<u32>,
    level_ids: Vec<u32>,
    level_weights: Vec<f32>,
}

impl Scratch {
    fn resize(&mut self, num_choices: usize, num_groups: usize) {
        let padded = num_choices.next_multiple_of(LANES);
        self.logits.resize(padded, f32::NAN);
        self.scores.resize(padded, f32::NAN);
        self.biased.resize(padded, f32::NAN);
        self.order.resize(padded, 0);
        self.groups.resize(num_groups.next_multiple_of(LANES), 0);
        self.candidates.resize(padded, 0);
    }

    /// Room for the groups of a hierarchical selection: their ids and weights.
    pub(super) fn levels(&mut self, topk_groups: usize) -> (&mut [u32], &mut [f32]) {
        self.level_ids.resize(topk_groups, 0);
        self.level_weights.resize(topk_groups, 0.0);
        (&mut self.level_ids, &mut self.level_weights)
    }

    /// What the last token's experts were chosen by.
    pub(super) fn order_keys(&self, num_choices: usize) -> &[u32] {
        &self.order[..num_choices]
    }

    /// The last token's scores, if its experts were chosen by them; NaN where the logit is.
    pub(super) fn scores(&self, rule: &Rule<'_>) -> Option<&[f32]> {
        rule.choice_needs_scores.then_some(&self.scores[..])
    }
}

/// An integer that orders as the float does, with NaN at −inf and −0 at 0; neither 0 nor the largest.
#[inline(always)]
pub(super) fn order_key(x: f32) -> u32 {
    let bits = (max(x, f32::NEG_INFINITY) + 0.0).to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// The float of an [`order_key`].
#[inline(always)]
fn float_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 0x8000_0000 } else { !key })
}

/// Writes the ids of a token's experts, best first.
#[inline(always)]
pub(super) fn pick(
    lanes: impl Lanes,
    rule: &Rule<'_>,
    token: usize,
    row: &[f32],
    scratch: &mut Scratch,
    ids: &mut [u32],
) -> Softmax {
    let softmax = rank(lanes, rule, row, scratch);
    if let Some(Noise { seed, kind: NoiseKind::GumbelSecond }) = rule.config.noise {
        let (first, others) = ids.split_at_mut(1);
        largest(lanes, scratch.order.as_chunks().0, &mut scratch.candidates, first);
        add_gumbel(rule, token, seed, first[0], scratch);
        largest(lanes, scratch.order.as_chunks().0, &mut scratch.candidates, others);
    } else {
        largest(lanes, scratch.order.as_chunks().0, &mut scratch.candidates, ids);
    }
    softmax
}

/// Leaves in the scratch what a token's experts are chosen by.
#[inline(always)]
pub(super) fn rank(lanes: impl Lanes, rule: &Rule<'_>, row: &[f32], scratch: &mut Scratch) -> Softmax {
    let softmax = softmax_of(rule, row, scratch);
    if rule.choice_needs_scores {
        score(rule.config.score, &softmax, &scratch.logits, &mut scratch.scores);
        if let Some(bias) = rule.selection_bias {
            let biased = scratch.scores.iter().zip(bias).map(|(score, bias)| score + bias);
            scratch.biased.iter_mut().zip(biased).for_each(|(out, x)| *out = x);
        }
    }
    let num_choices = row.len();
    let groups = rule.config.groups;
    let by_scores = rule.choice_from_scores() || groups.is_some_and(|groups| groups.score == GroupScore::SumTop2);
    make_order(rule, by_scores, num_choices, scratch);
    if let Some(groups) = groups {
        rank_groups(lanes, groups, num_choices, scratch);
        if by_scores != rule.choice_from_scores() {
            make_order(rule, false, num_choices, scratch);
        }
        keep_best_groups(lanes, groups, num_choices, scratch);
    }
    if rule.has_disabled {
        let disabled = (0..num_choices).filter(|&e| rule.config.is_disabled(e));
        disabled.for_each(|e| scratch.order[e] = 0);
    }
    softmax
}

/// A token's softmax, if the rule needs one; leaves its logits in the scratch.
#[inline(always)]
pub(super) fn softmax_of(rule: &Rule<'_>, row: &[f32], scratch: &mut Scratch) -> Softmax {
    scratch.resize(row.len(), rule.config.groups.map_or(0, |groups| groups.num_groups));
    load_logits(rule, row, &mut scratch.logits);
    if rule.needs_softmax { softmax(&scratch.logits) } else { Softmax::default() }
}

/// What orders the experts: scores, with the bias if there is one, or logits.
#[inline(always)]
fn choice<'s>(rule: &Rule<'_>, by_scores: bool, scratch: &'s mut Scratch) -> (&'s [f32], &'s mut [u32]) {
    let choice = match (by_scores, rule.selection_bias) {
        (false, _) => &scratch.logits,
        (true, None) => &scratch.scores,
        (true, Some(_)) => &scratch.biased,
    };
    (choice, &mut scratch.order)
}

#[inline(always)]
fn make_order(rule: &Rule<'_>, by_scores: bool, num_choices: usize, scratch: &mut Scratch) {
    let (choice, order) = choice(rule, by_scores, scratch);
    match rule.sinkhorn.filter(|_| !by_scores) {
        Some(offsets) => {
            let sums = choice.iter().zip(offsets).map(|(x, offset)| x + offset);
            order.iter_mut().zip(sums).for_each(|(order, x)| *order = order_key(x));
        }
        None => order.iter_mut().zip(choice).for_each(|(order, &x)| *order = order_key(x)),
    }
    order[num_choices..].fill(0);
}

/// The choice of the experts after the first: with noise.
fn add_gumbel(rule: &Rule<'_>, token: usize, seed: u64, first: u32, scratch: &mut Scratch) {
    let (choice, order) = choice(rule, rule.choice_from_scores(), scratch);
    for (e, (order, x)) in order.iter_mut().zip(choice).enumerate() {
        if *order != 0 {
            *order = order_key(x + noise::gumbel(seed, Stream::Gumbel, token as u32, e as u32));
        }
    }
    scratch.order[first as usize] = 0;
}

#[inline(always)]
fn load_logits(rule: &Rule<'_>, row: &[f32], logits: &mut [f32]) {
    let (logits, padding) = logits.split_at_mut(row.len());
    padding.fill(f32::NAN);
    if rule.logit_softcap.is_some() {
        logits.iter_mut().zip(row).for_each(|(out, &x)| *out = transform(rule, x));
    } else {
        logits.iter_mut().zip(row).for_each(|(out, &x)| *out = clamp(x, rule.logit_clip));
    }
}

/// Over what is not NaN.
#[inline(always)]
fn softmax(logits: &[f32]) -> Softmax {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in logits.as_chunks::<LANES>().0 {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = max(x, *lane);
        }
    }
    let top = lanes.into_iter().fold(f32::NEG_INFINITY, max);
    let mut sums = [0.0f32; LANES];
    for block in logits.as_chunks::<LANES>().0 {
        for (sum, &x) in sums.iter_mut().zip(block) {
            let e = exp_nonpositive(x - top);
            // 0 for a NaN.
            *sum += max(e, 0.0);
        }
    }
    Softmax { max: top, inv_sum: 1.0 / sums.iter().sum::<f32>() }
}

#[inline(always)]
fn score(function: ScoreFunction, softmax: &Softmax, logits: &[f32], scores: &mut [f32]) {
    let pairs = scores.iter_mut().zip(logits);
    match function {
        ScoreFunction::Logit => pairs.for_each(|(score, &x)| *score = x),
        ScoreFunction::Softmax => {
            pairs.for_each(|(score, &x)| *score = exp_nonpositive(x - softmax.max) * softmax.inv_sum);
        }
        ScoreFunction::Sigmoid => pairs.for_each(|(score, &x)| *score = sigmoid(x)),
        ScoreFunction::SqrtSoftplus => pairs.for_each(|(score, &x)| *score = sqrt_softplus(x)),
    }
}

/// Leaves in the scratch what groups are chosen by.
#[inline(always)]
fn rank_groups(lanes: impl Lanes, groups: GroupLimit, num_choices: usize, scratch: &mut Scratch) {
    let members = scratch.order[..num_choices].chunks_exact(num_choices / groups.num_groups);
    for (key, members) in scratch.groups.iter_mut().zip(members) {
        let [first, second] = top2(lanes, members);
        *key = match groups.score {
            GroupScore::SumTop2 if second != 0 => order_key(float_of(first) + float_of(second)),
            _ => first,
        };
    }
    scratch.groups[groups.num_groups..].fill(0);
}

/// The two largest of any number; 0 for what is not there.
#[inline(always)]
fn top2(lanes: impl Lanes, values: &[u32]) -> [u32; 2] {
    let (blocks, rest) = values.as_chunks();
    let [first, second] = lanes.top2(blocks);
    if rest.is_empty() {
        return [first, second];
    }
    let mut block = [0; LANES];
    block[..rest.len()].copy_from_slice(rest);
    let [other, another] = lanes.top2(&[block]);
    [first.max(other), first.min(other).max(second).max(another)]
}

/// Takes the experts outside the best groups out of the choice.
#[inline(always)]
fn keep_best_groups(lanes: impl Lanes, groups: GroupLimit, num_choices: usize, scratch: &mut Scratch) {
    let Scratch { order, groups: keys, .. } = scratch;
    let members = order[..num_choices].chunks_exact_mut(num_choices / groups.num_groups);
    for (group, members) in members.enumerate() {
        let is_kept = before(lanes, keys.as_chunks().0, group) < groups.topk_groups;
        // No branch: which groups are kept cannot be foretold.
        let kept = if is_kept { u32::MAX } else { 0 };
        members.iter_mut().for_each(|order| *order &= kept);
    }
}
