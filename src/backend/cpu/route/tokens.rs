//! The tokens of a batch in parallel, each by the code for the backend's instruction set.

use std::cell::Cell;

use super::Rule;
use super::pick::{self, Scratch};
use super::weigh::{self, Basis, Softmax};
use super::{level, pick::order_key};
use crate::backend::cpu::isa::{Lanes, LanesTask};
use crate::routing::noise::{self, Stream};
use crate::routing::{MASKED, Noise, NoiseKind, Selection};

/// Logits that are worth a task of their own.
const TASK: usize = 1 << 14;

/// Some of the batch's tokens: `n` rows of each slice.
pub(super) struct Block<'b> {
    pub(super) first_token: usize,
    pub(super) router_logits: &'b [f32],
    pub(super) topk_ids: &'b mut [u32],
    pub(super) topk_weights: &'b mut [f32],
    pub(super) record: Option<Record<'b>>,
}

/// What is kept of each token for a later pass over the batch.
pub(super) struct Record<'b> {
    /// `[n]`.
    pub(super) softmax: &'b mut [Softmax],
    /// `[n]`, over all experts picked.
    pub(super) basis: &'b mut [Basis],
    /// `[n, E]`, or empty: see [`order_key`]; 0 for an expert that may not be chosen.
    pub(super) choice: &'b mut [u32],
}

impl Block<'_> {
    fn split_at(self, tokens: usize, rule: &Rule<'_>) -> (Self, Self) {
        let top_k = rule.config.top_k;
        let (logits, right_logits) = self.router_logits.split_at(tokens * rule.num_logits);
        let (ids, right_ids) = self.topk_ids.split_at_mut(tokens * top_k);
        let (weights, right_weights) = self.topk_weights.split_at_mut(tokens * top_k);
        let (record, right_record) = self.record.map(|record| record.split_at(tokens, rule.num_choices)).unzip();
        (
            Self { router_logits: logits, topk_ids: ids, topk_weights: weights, record, ..self },
            Self {
                first_token: self.first_token + tokens,
                router_logits: right_logits,
                topk_ids: right_ids,
                topk_weights: right_weights,
                record: right_record,
            },
        )
    }
}

impl Record<'_> {
    fn split_at(self, tokens: usize, num_choices: usize) -> (Self, Self) {
        let (softmax, right_softmax) = self.softmax.split_at_mut(tokens);
        let (basis, right_basis) = self.basis.split_at_mut(tokens);
        let choice_tokens = if self.choice.is_empty() { 0 } else { tokens };
        let (choice, right_choice) = self.choice.split_at_mut(choice_tokens * num_choices);
        (Self { softmax, basis, choice }, Self { softmax: right_softmax, basis: right_basis, choice: right_choice })
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Runs `work` with this thread's scratch, which it keeps for the next time.
pub(super) fn with_scratch(work: impl FnOnce(&mut Scratch)) {
    let mut scratch = SCRATCH.take();
    work(&mut scratch);
    SCRATCH.set(scratch);
}

/// Picks and weighs for every token of the block, in tasks of some tokens.
pub(super) fn pick_all(rule: &Rule<'_>, block: Block<'_>) {
    let num_tokens = block.router_logits.len() / rule.num_logits;
    if num_tokens * rule.num_logits <= TASK || num_tokens == 1 {
        return with_scratch(|scratch| pick_some(rule, block, scratch));
    }
    let (left, right) = block.split_at(num_tokens / 2, rule);
    rayon::join(|| pick_all(rule, left), || pick_all(rule, right));
}

/// [`pick_each`], compiled for the backend's instruction set.
fn pick_some(rule: &Rule<'_>, block: Block<'_>, scratch: &mut Scratch) {
    rule.isa.vectorize(Pick { rule, block, scratch });
}

struct Pick<'p> {
    rule: &'p Rule<'p>,
    block: Block<'p>,
    scratch: &'p mut Scratch,
}

impl LanesTask for Pick<'_> {
    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        pick_each(lanes, self.rule, self.block, self.scratch);
    }
}

#[inline(always)]
fn pick_each(lanes: impl Lanes, rule: &Rule<'_>, block: Block<'_>, scratch: &mut Scratch) {
    let top_k = rule.config.top_k;
    let Block { first_token, router_logits, topk_ids, topk_weights, mut record } = block;
    let outputs = topk_ids.chunks_exact_mut(top_k).zip(topk_weights.chunks_exact_mut(top_k));
    for (i, (row, (ids, weights))) in router_logits.chunks_exact(rule.num_logits).zip(outputs).enumerate() {
        let token = first_token + i;
        if let Selection::Hierarchical { num_groups, topk_groups, renormalize_levels } = rule.config.selection {
            let levels = level::Levels { num_groups, topk_groups, renormalize: renormalize_levels };
            level::pick(rule, levels, row, scratch, ids, weights);
            continue;
        }
        let (softmax, scores) = match rule.config.selection {
            Selection::Hash { seed } => {
                pick_by_hash(rule, seed, rule.token_ids[token], ids);
                (pick::softmax_of(rule, row, scratch), None)
            }
            _ => (pick::pick(lanes, rule, token, row, scratch, ids), scratch.scores(rule)),
        };
        if let Some(record) = &mut record {
            record.softmax[i] = softmax;
            record.basis[i] = Basis::of(rule, row, &softmax, ids);
            if !record.choice.is_empty() {
                let choice = &mut record.choice[i * rule.num_choices..][..rule.num_choices];
                choice.copy_from_slice(scratch.order_keys(rule.num_choices));
            }
        }
        keep_at_random(rule, token, row, &softmax, ids);
        weigh::weigh_once(rule, row, scores, &softmax, ids, weights);
    }
}

/// From the table, or drawn: the i-th expert of an id is one of those it does not have yet.
fn pick_by_hash(rule: &Rule<'_>, seed: u64, token_id: u32, ids: &mut [u32]) {
    let usable = |e: u32| (e as usize) < rule.num_choices && !rule.config.is_disabled(e as usize);
    if let Some(table) = rule.hash_table {
        let row = table.chunks_exact(ids.len()).nth(token_id as usize);
        for (i, id) in ids.iter_mut().enumerate() {
            *id = row.map(|row| row[i]).filter(|&e| usable(e)).unwrap_or(MASKED);
        }
        return;
    }
    let enabled = (0..rule.num_choices as u32).filter(|&e| usable(e)).count() as u32;
    for i in 0..ids.len() {
        let at = noise::below(seed, Stream::Hash, token_id, i as u32, enabled - i as u32);
        let left = (0..rule.num_choices as u32).filter(|&e| usable(e) && !ids[..i].contains(&e));
        ids[i] = left.clone().nth(at as usize).unwrap_or(MASKED);
    }
}

/// Drops choices after the first by chance, the likelier the smaller their share, where the rule does so.
fn keep_at_random(rule: &Rule<'_>, token: usize, row: &[f32], softmax: &Softmax, ids: &mut [u32]) {
    let Some(Noise { seed, kind: NoiseKind::RandomSecond { scale } }) = rule.config.noise else { return };
    let score = |id: u32| weigh::score(rule, weigh::transform(rule, row[id as usize]), softmax);
    let sum: f32 = ids.iter().map(|&id| score(id)).sum();
    for (i, id) in ids.iter_mut().enumerate().skip(1) {
        let keep = score(*id) / sum * scale;
        let draw = noise::uniform(seed, Stream::Keep, token as u32, i as u32);
        // By the order that puts a NaN at −inf: a share of nothing is not kept.
        if order_key(draw) >= order_key(keep) {
            *id = MASKED;
        }
    }
}
