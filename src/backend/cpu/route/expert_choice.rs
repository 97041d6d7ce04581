//! Expert choice: experts take tokens, in parallel; then the slots are sorted by token.

use std::cell::Cell;

use rayon::prelude::*;

use super::Rule;
use super::pick::{self, Scratch as TokenScratch};
use super::tokens::with_scratch;
use super::weigh::{self, Basis, Softmax};
use crate::backend::cpu::isa::{Lanes, LanesTask};
use crate::routing::CapacityLimit;

/// Tokens that are ranked in one task.
const TOKENS: usize = 64;

/// What is written: see [`crate::ops::RouteArgs`].
pub(super) struct Slots<'s> {
    pub(super) topk_ids: &'s mut [u32],
    pub(super) topk_weights: &'s mut [f32],
    pub(super) token_offsets: &'s mut [u32],
    pub(super) slot_tokens: &'s mut [u32],
}

#[derive(Default)]
pub(super) struct Scratch {
    softmax: Vec<Softmax>,
    /// `[T, E]`: what tokens are taken by, as integers of the same order.
    order: Vec<u32>,
    /// Experts that take tokens.
    takers: Vec<u32>,
    /// `[takers, c]`: their tokens.
    taken: Vec<u32>,
}

thread_local! {
    static KEYS: Cell<Vec<u64>> = Cell::default();
}

pub(super) fn route(
    rule: &Rule<'_>,
    limit: CapacityLimit,
    router_logits: &[f32],
    slots: Slots<'_>,
    scratch: &mut Scratch,
) {
    let num_choices = rule.num_choices;
    let num_tokens = router_logits.len() / num_choices;
    let count = limit.slots(num_tokens, rule.config.top_k, num_choices);
    let Scratch { softmax, order, takers, taken } = scratch;
    softmax.resize(num_tokens, Softmax::default());
    order.resize(router_logits.len(), 0);
    let blocks = order.par_chunks_mut(TOKENS * num_choices).zip(softmax.par_chunks_mut(TOKENS));
    blocks.zip(router_logits.par_chunks(TOKENS * num_choices)).for_each(|((order, softmax), logits)| {
        with_scratch(|scratch| rule.isa.vectorize(Rank { rule, logits, order, softmax, scratch }));
    });
    takers.clear();
    takers.extend((0..num_choices as u32).filter(|&e| !rule.config.is_disabled(e as usize)));
    taken.resize(takers.len() * count, 0);
    if count > 0 {
        taken.par_chunks_mut(count).zip(&*takers).for_each(|(tokens, &e)| take(e as usize, order, num_choices, tokens));
    }
    let Slots { topk_ids, topk_weights, token_offsets, slot_tokens } = slots;
    place(takers, taken, count, topk_ids, token_offsets, slot_tokens);
    for (token, row) in router_logits.chunks_exact(num_choices).enumerate() {
        let slots = token_offsets[token] as usize..token_offsets[token + 1] as usize;
        let ids = &topk_ids[slots.clone()];
        let basis = Basis::of(rule, row, &softmax[token], ids);
        weigh::weigh(rule, row, &softmax[token], &basis, ids, &mut topk_weights[slots]);
    }
}

/// Some tokens' order keys and softmax.
struct Rank<'r> {
    rule: &'r Rule<'r>,
    logits: &'r [f32],
    order: &'r mut [u32],
    softmax: &'r mut [Softmax],
    scratch: &'r mut TokenScratch,
}

impl LanesTask for Rank<'_> {
    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let num_choices = self.rule.num_choices;
        let rows = self.order.chunks_exact_mut(num_choices).zip(self.logits.chunks_exact(num_choices));
        for ((order, row), softmax) in rows.zip(self.softmax) {
            *softmax = pick::rank(lanes, self.rule, row, self.scratch);
            order.copy_from_slice(self.scratch.order_keys(num_choices));
        }
    }
}

/// The best tokens of an expert, in no order.
fn take(expert: usize, order: &[u32], num_choices: usize, tokens: &mut [u32]) {
    let mut keys = KEYS.take();
    keys.clear();
    let column = order.iter().skip(expert).step_by(num_choices).enumerate();
    // Complemented: the smallest is the best, and equal ones go to the lowest token.
    keys.extend(column.map(|(token, &key)| (u64::from(!key) << 32) | token as u64));
    keys.select_nth_unstable(tokens.len() - 1);
    tokens.iter_mut().zip(&keys).for_each(|(token, &key)| *token = key as u32);
    KEYS.set(keys);
}

/// Sorts slots by token, a token's by expert: a counting sort with the offsets as counters, then as cursors.
fn place(
    takers: &[u32],
    taken: &[u32],
    count: usize,
    topk_ids: &mut [u32],
    token_offsets: &mut [u32],
    slot_tokens: &mut [u32],
) {
    let num_tokens = token_offsets.len() - 1;
    token_offsets.fill(0);
    taken.iter().for_each(|&token| token_offsets[token as usize] += 1);
    let mut slots = 0;
    for offset in token_offsets.iter_mut() {
        slots += std::mem::replace(offset, slots);
    }
    for (tokens, &expert) in taken.chunks_exact(count.max(1)).zip(takers) {
        for &token in tokens {
            let cursor = &mut token_offsets[token as usize];
            topk_ids[*cursor as usize] = expert;
            slot_tokens[*cursor as usize] = token;
            *cursor += 1;
        }
    }
    // Each cursor stands where the next token starts.
    token_offsets.copy_within(..num_tokens, 1);
    token_offsets[0] = 0;
}
