//! `route` on the CPU: tokens in parallel; what couples tokens (capacity) in one pass over their slots.
//!
//! The code of a token is plain Rust over arrays of 16 lanes, compiled once per instruction set. It uses no fused
//! multiply-add, so that every instruction set gives the same bits.

mod capacity;
mod math;
mod pick;
mod weigh;

use std::cell::Cell;

use crate::backend::host::{slice, slice_mut};
use crate::error::Result;
use crate::ops::RouteArgs;
use crate::routing::{Capacity, GroupScore, Overflow, RouterConfig, ScoreFunction, WeightFunction};
use pick::Scratch;
use weigh::{Basis, Softmax};

/// Logits that are worth a task of their own.
const TASK: usize = 1 << 14;

/// A rule with what it says about this call.
struct Rule<'a> {
    config: &'a RouterConfig,
    /// E, zero experts included.
    num_choices: usize,
    selection_bias: Option<&'a [f32]>,
    /// Whether experts are chosen by something else than their logits.
    choice_needs_scores: bool,
    needs_softmax: bool,
}

impl<'a> Rule<'a> {
    fn new(config: &'a RouterConfig, num_choices: usize, selection_bias: Option<&'a [f32]>) -> Self {
        let sum_top2 = config.groups.is_some_and(|groups| groups.score == GroupScore::SumTop2);
        let choice_needs_scores = selection_bias.is_some() || sum_top2;
        let weight_is_score = config.weight == WeightFunction::Score;
        let needs_softmax = config.score == ScoreFunction::Softmax
            && (choice_needs_scores || weight_is_score || config.capacity.is_some());
        Self { config, num_choices, selection_bias, choice_needs_scores, needs_softmax }
    }
}

/// Some of the batch's tokens: `n` rows of each slice.
struct Block<'b> {
    router_logits: &'b [f32],
    topk_ids: &'b mut [u32],
    topk_weights: &'b mut [f32],
    record: Option<Record<'b>>,
}

/// What is kept of each token for a later pass over the batch.
struct Record<'b> {
    /// `[n]`.
    softmax: &'b mut [Softmax],
    /// `[n]`, over all experts picked.
    basis: &'b mut [Basis],
    /// `[n, E]`, or empty: see [`pick::order_key`]; 0 for an expert that may not be chosen.
    choice: &'b mut [u32],
}

impl<'b> Block<'b> {
    fn split_at(self, tokens: usize, rule: &Rule<'_>) -> (Self, Self) {
        let top_k = rule.config.top_k;
        let (logits, right_logits) = self.router_logits.split_at(tokens * rule.num_choices);
        let (ids, right_ids) = self.topk_ids.split_at_mut(tokens * top_k);
        let (weights, right_weights) = self.topk_weights.split_at_mut(tokens * top_k);
        let (record, right_record) = self.record.map(|record| record.split_at(tokens, rule.num_choices)).unzip();
        (
            Self { router_logits: logits, topk_ids: ids, topk_weights: weights, record },
            Self {
                router_logits: right_logits,
                topk_ids: right_ids,
                topk_weights: right_weights,
                record: right_record,
            },
        )
    }
}

impl<'b> Record<'b> {
    fn split_at(self, tokens: usize, num_choices: usize) -> (Self, Self) {
        let (softmax, right_softmax) = self.softmax.split_at_mut(tokens);
        let (basis, right_basis) = self.basis.split_at_mut(tokens);
        let choice_tokens = if self.choice.is_empty() { 0 } else { tokens };
        let (choice, right_choice) = self.choice.split_at_mut(choice_tokens * num_choices);
        (Self { softmax, basis, choice }, Self { softmax: right_softmax, basis: right_basis, choice: right_choice })
    }
}

/// Memory of the passes over the batch, kept by the calling thread.
#[derive(Default)]
struct BatchScratch {
    softmax: Vec<Softmax>,
    basis: Vec<Basis>,
    choice: Vec<u32>,
    capacity: capacity::Scratch,
}

thread_local! {
    // Taken and put back rather than borrowed: a thread that waits for a task may start another call meanwhile.
    static SCRATCH: Cell<Scratch> = Cell::default();
    static BATCH: Cell<BatchScratch> = Cell::default();
}

pub(super) fn route(mut args: RouteArgs<'_>) -> Result<()> {
    let num_choices = args.router_logits.dims()[1];
    let bias = args.selection_bias.map(|bias| slice("selection_bias", bias)).transpose()?;
    let rule = Rule::new(args.config, num_choices, bias);
    let block = Block {
        router_logits: slice("router_logits", args.router_logits)?,
        topk_ids: slice_mut("topk_ids", &mut args.topk_ids)?,
        topk_weights: slice_mut("topk_weights", &mut args.topk_weights)?,
        record: None,
    };
    match &args.config.capacity {
        None => pick_all(&rule, block),
        Some(capacity) => with_capacity(&rule, capacity, block, args.inputs.tokens_per_sequence),
    }
    Ok(())
}

fn with_capacity(rule: &Rule<'_>, capacity: &Capacity, block: Block<'_>, tokens_per_sequence: Option<usize>) {
    let num_tokens = block.router_logits.len() / rule.num_choices;
    let mut scratch = BATCH.take();
    let BatchScratch { softmax, basis, choice, capacity: counters } = &mut scratch;
    softmax.resize(num_tokens, Softmax::default());
    basis.resize(num_tokens, Basis::default());
    choice.resize(if capacity.overflow == Overflow::NextBest { block.router_logits.len() } else { 0 }, 0);
    let Block { router_logits, topk_ids, topk_weights, .. } = block;
    pick_all(
        rule,
        Block {
            router_logits,
            topk_ids: &mut *topk_ids,
            topk_weights: &mut *topk_weights,
            record: Some(Record { softmax, basis, choice }),
        },
    );
    let sequence = tokens_per_sequence.filter(|_| capacity.per_sequence).unwrap_or(num_tokens).max(1);
    let top_k = rule.config.top_k;
    for (i, ids) in topk_ids.chunks_mut(sequence * top_k).enumerate() {
        let tokens = i * sequence..i * sequence + ids.len() / top_k;
        let batch = capacity::Batch {
            router_logits: &router_logits[tokens.start * rule.num_choices..],
            softmax: &softmax[tokens.clone()],
            choice: choice.get(tokens.start * rule.num_choices..).unwrap_or_default(),
        };
        capacity::give_slots(rule, capacity, &batch, ids, counters);
    }
    let rows = router_logits.chunks_exact(rule.num_choices);
    let outputs = topk_ids.chunks_exact(top_k).zip(topk_weights.chunks_exact_mut(top_k));
    for (((row, (ids, weights)), softmax), basis) in rows.zip(outputs).zip(softmax).zip(basis) {
        if !capacity.normalize_before_dropping {
            *basis = Basis::of(rule, row, softmax, ids);
        }
        weigh::weigh(rule, row, softmax, basis, ids, weights);
    }
    BATCH.set(scratch);
}

/// Picks and weighs for every token of the block, in tasks of some tokens.
fn pick_all(rule: &Rule<'_>, block: Block<'_>) {
    let num_tokens = block.router_logits.len() / rule.num_choices;
    if num_tokens * rule.num_choices <= TASK || num_tokens == 1 {
        let mut scratch = SCRATCH.take();
        pick_some(rule, block, &mut scratch);
        SCRATCH.set(scratch);
        return;
    }
    let (left, right) = block.split_at(num_tokens / 2, rule);
    rayon::join(|| pick_all(rule, left), || pick_all(rule, right));
}

/// [`pick_each`], compiled for this machine.
fn pick_some(rule: &Rule<'_>, block: Block<'_>, scratch: &mut Scratch) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            // SAFETY: the features it is compiled for were just detected.
            return unsafe { pick_each_avx512(rule, block, scratch) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature it is compiled for was just detected.
            return unsafe { pick_each_avx2(rule, block, scratch) };
        }
    }
    pick_each(rule, block, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn pick_each_avx512(rule: &Rule<'_>, block: Block<'_>, scratch: &mut Scratch) {
    pick_each(rule, block, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pick_each_avx2(rule: &Rule<'_>, block: Block<'_>, scratch: &mut Scratch) {
    pick_each(rule, block, scratch);
}

#[inline(always)]
fn pick_each(rule: &Rule<'_>, block: Block<'_>, scratch: &mut Scratch) {
    let top_k = rule.config.top_k;
    let Block { router_logits, topk_ids, topk_weights, mut record } = block;
    let outputs = topk_ids.chunks_exact_mut(top_k).zip(topk_weights.chunks_exact_mut(top_k));
    for (token, (row, (ids, weights))) in router_logits.chunks_exact(rule.num_choices).zip(outputs).enumerate() {
        let softmax = pick::pick(rule, row, scratch, ids);
        let basis = Basis::of(rule, row, &softmax, ids);
        weigh::weigh(rule, row, &softmax, &basis, ids, weights);
        if let Some(record) = &mut record {
            record.softmax[token] = softmax;
            record.basis[token] = basis;
            if !record.choice.is_empty() {
                let choice = &mut record.choice[token * rule.num_choices..][..rule.num_choices];
                choice.copy_from_slice(scratch.order_keys(rule.num_choices));
            }
        }
    }
}
