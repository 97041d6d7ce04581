//! The experts of one token: scores, groups, the k best.

use super::Rule;
use super::math::{LANES, clamp, max, min, sigmoid, sqrt_softplus};
use super::weigh::{Softmax, transform};
use crate::backend::cpu::exp::exp_nonpositive;
use crate::routing::noise::{self, Stream};
use crate::routing::{GroupLimit, GroupScore, Noise, NoiseKind, ScoreFunction};

/// Rows of E elements, padded to whole lanes.
#[derive(Default)]
pub(super) struct Scratch {
    /// NaN in the padding.
    logits: Vec<f32>,
    /// NaN where the logit is.
    scores: Vec<f32>,
    /// What experts are chosen by, as an integer of the same order; 0 where an expert may not be chosen.
    order: Vec<u32>,
    /// `order` above, the complement of the id below: unique, and equal values go to the lowest id.
    keys: Vec<u64>,
    /// The largest of each `LANES` keys.
    block_max: Vec<u64>,
    /// Of groups, as `keys`.
    group_keys: Vec<u64>,
    level_ids: Vec<u32>,
    level_weights: Vec<f32>,
}

impl Scratch {
    fn resize(&mut self, num_choices: usize, num_groups: usize) {
        let padded = num_choices.next_multiple_of(LANES);
        self.logits.resize(padded, f32::NAN);
        self.scores.resize(padded, f32::NAN);
        self.order.resize(padded, 0);
        self.keys.resize(padded, 0);
        self.block_max.resize(padded / LANES, 0);
        self.group_keys.resize(num_groups.next_multiple_of(LANES), 0);
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
}

/// An integer that orders as the float does, with NaN at −inf and −0 at 0; never 0.
#[inline(always)]
pub(super) fn order_key(x: f32) -> u32 {
    let bits = (max(x, f32::NEG_INFINITY) + 0.0).to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// Writes the ids of a token's experts, best first.
#[inline(always)]
pub(super) fn pick(rule: &Rule<'_>, token: usize, row: &[f32], scratch: &mut Scratch, ids: &mut [u32]) -> Softmax {
    let softmax = rank(rule, row, scratch);
    make_keys(&scratch.order, &mut scratch.keys, &mut scratch.block_max);
    if let Some(Noise { seed, kind: NoiseKind::GumbelSecond }) = rule.config.noise {
        let (first, others) = ids.split_at_mut(1);
        take_largest(&scratch.keys, &mut scratch.block_max, first.iter_mut());
        add_gumbel(rule, token, seed, first[0], scratch);
        make_keys(&scratch.order, &mut scratch.keys, &mut scratch.block_max);
        take_largest(&scratch.keys, &mut scratch.block_max, others.iter_mut());
    } else {
        take_largest(&scratch.keys, &mut scratch.block_max, ids.iter_mut());
    }
    softmax
}

/// Leaves in the scratch what a token's experts are chosen by.
#[inline(always)]
pub(super) fn rank(rule: &Rule<'_>, row: &[f32], scratch: &mut Scratch) -> Softmax {
    let softmax = softmax_of(rule, row, scratch);
    if rule.choice_needs_scores {
        score(rule.config.score, &softmax, &scratch.logits, &mut scratch.scores);
        if let Some(bias) = rule.selection_bias {
            scratch.scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
    }
    let choice = if rule.choice_from_scores() { &scratch.scores } else { &scratch.logits };
    match rule.sinkhorn {
        Some(offsets) => {
            let sums = choice.iter().zip(offsets).map(|(x, offset)| x + offset);
            scratch.order.iter_mut().zip(sums).for_each(|(order, x)| *order = order_key(x));
        }
        None => scratch.order.iter_mut().zip(choice).for_each(|(order, &x)| *order = order_key(x)),
    }
    scratch.order[row.len()..].fill(0);
    if let Some(groups) = rule.config.groups {
        keep_best_groups(groups, row.len(), scratch);
    }
    if rule.has_disabled {
        let disabled = (0..row.len()).filter(|&e| rule.config.is_disabled(e));
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

/// The choice of the experts after the first: with noise.
fn add_gumbel(rule: &Rule<'_>, token: usize, seed: u64, first: u32, scratch: &mut Scratch) {
    let choice = if rule.choice_from_scores() { &scratch.scores } else { &scratch.logits };
    for (e, (order, x)) in scratch.order.iter_mut().zip(choice).enumerate() {
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

/// Takes the experts outside the best groups out of the choice.
#[inline(always)]
fn keep_best_groups(groups: GroupLimit, num_choices: usize, scratch: &mut Scratch) {
    let Scratch { scores, order, group_keys, .. } = scratch;
    let size = num_choices / groups.num_groups;
    group_keys.fill(0);
    for (g, key) in group_keys[..groups.num_groups].iter_mut().enumerate() {
        let members = g * size..(g + 1) * size;
        let order = match groups.score {
            GroupScore::Max => order[members].iter().copied().max().unwrap_or(0),
            GroupScore::SumTop2 => order_key(sum_of_top2(&scores[members])),
        };
        *key = key_of(order, g);
    }
    // Keys are unique: the last of the best groups is the one with so many at or above it.
    let mut last = u64::MAX;
    for _ in 0..groups.topk_groups {
        last = group_keys.iter().map(|&key| if key < last { key } else { 0 }).fold(0, u64::max);
    }
    for (members, &key) in order.chunks_exact_mut(size).zip(group_keys.iter()) {
        if key < last {
            members.fill(0);
        }
    }
}

/// The two largest of a group, added; a group of one is its own sum.
#[inline(always)]
fn sum_of_top2(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut first = [f32::NEG_INFINITY; LANES];
    let mut second = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for lane in 0..LANES {
            let x = max(block[lane], f32::NEG_INFINITY);
            second[lane] = max(second[lane], min(first[lane], x));
            first[lane] = max(first[lane], x);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        let x = max(x, f32::NEG_INFINITY);
        second[lane] = max(second[lane], min(first[lane], x));
        first[lane] = max(first[lane], x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let low = min(first[lane], first[lane + width]);
            second[lane] = max(low, max(second[lane], second[lane + width]));
            first[lane] = max(first[lane], first[lane + width]);
        }
        width /= 2;
    }
    if values.len() == 1 { first[0] } else { first[0] + second[0] }
}

#[inline(always)]
fn key_of(order: u32, id: usize) -> u64 {
    if order == 0 { 0 } else { (u64::from(order) << 32) | u64::from(!(id as u32)) }
}

#[inline(always)]
fn make_keys(order: &[u32], keys: &mut [u64], block_max: &mut [u64]) {
    let blocks = order.as_chunks::<LANES>().0.iter().zip(keys.as_chunks_mut::<LANES>().0);
    for (b, ((order, keys), largest)) in blocks.zip(block_max).enumerate() {
        for lane in 0..LANES {
            keys[lane] = key_of(order[lane], b * LANES + lane);
        }
        *largest = max_key(keys);
    }
}

#[inline(always)]
fn max_key(keys: &[u64; LANES]) -> u64 {
    let mut half: [u64; LANES / 2] = std::array::from_fn(|i| keys[i].max(keys[i + LANES / 2]));
    let mut width = LANES / 4;
    while width > 0 {
        for i in 0..width {
            half[i] = half[i].max(half[i + width]);
        }
        width /= 2;
    }
    half[0]
}

/// The ids of the largest keys, one after another. There are at least as many keys as ids; `block_max` is used up.
///
/// Nothing is stored where a vector is about to be loaded: what is taken is left behind by looking for smaller keys.
#[inline(always)]
fn take_largest<'i>(keys: &[u64], block_max: &mut [u64], ids: impl Iterator<Item = &'i mut u32>) {
    for id in ids {
        let best = block_max.iter().copied().fold(0, u64::max);
        *id = !(best as u32);
        let block = *id as usize / LANES;
        let next = max_key(&keys.as_chunks::<LANES>().0[block].map(|key| if key < best { key } else { 0 }));
        for (b, largest) in block_max.iter_mut().enumerate() {
            *largest = if b == block { next } else { *largest };
        }
    }
}
