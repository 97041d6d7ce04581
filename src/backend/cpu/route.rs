//! `route` on the CPU: tokens in parallel; what couples tokens (capacity, expert choice, Sinkhorn) in passes of its own.
//!
//! The code of a token is plain Rust over arrays of 16 lanes, compiled once per instruction set. It uses no fused
//! multiply-add, so that every instruction set gives the same bits.

mod capacity;
mod expert_choice;
mod figures;
mod level;
mod math;
mod pick;
mod prepare;
mod select;
mod tokens;
mod weigh;

use std::cell::Cell;

use super::isa::Isa;
use crate::backend::host::{slice, slice_mut};
use crate::error::Result;
use crate::ops::RouteArgs;
use crate::routing::{
    Capacity, GroupScore, MASKED, NoiseKind, Overflow, RouterConfig, ScoreFunction, Selection, WeightFunction,
};
use tokens::{Block, Record, pick_all};
use weigh::{Basis, Softmax};

/// A rule with what it says about this call.
struct Rule<'a> {
    isa: Isa,
    config: &'a RouterConfig,
    /// Columns of the logits.
    num_logits: usize,
    /// E, zero experts included.
    num_choices: usize,
    selection_bias: Option<&'a [f32]>,
    /// Added to the logits to choose by.
    sinkhorn: Option<&'a [f32]>,
    token_ids: &'a [u32],
    hash_table: Option<&'a [u32]>,
    logit_clip: f32,
    logit_softcap: Option<f32>,
    has_disabled: bool,
    /// Whether experts are chosen by something else than their logits.
    choice_needs_scores: bool,
    needs_softmax: bool,
}

impl<'a> Rule<'a> {
    fn new(isa: Isa, args: &RouteArgs<'a>) -> Result<Self> {
        let config = args.config;
        let num_logits = args.router_logits.dims()[1];
        let num_choices = num_logits - config.num_group_logits();
        let selection_bias = args.selection_bias.map(|bias| slice("selection_bias", bias)).transpose()?;
        let sum_top2 = config.groups.is_some_and(|groups| groups.score == GroupScore::SumTop2);
        let choice_needs_scores = selection_bias.is_some() || sum_top2 || config.is_ragged();
        let random_second = matches!(config.noise.map(|noise| noise.kind), Some(NoiseKind::RandomSecond { .. }));
        let needs_softmax = config.score == ScoreFunction::Softmax
            && (choice_needs_scores
                || random_second
                || config.weight == WeightFunction::Score
                || config.capacity.is_some());
        Ok(Self {
            isa,
            config,
            num_logits,
            num_choices,
            selection_bias,
            sinkhorn: None,
            token_ids: args.inputs.token_ids.map_or(Ok(&[][..]), |ids| slice("inputs.token_ids", ids))?,
            hash_table: args.inputs.hash_table.map(|table| slice("inputs.hash_table", table)).transpose()?,
            logit_clip: config.logit_clip.unwrap_or(f32::MAX),
            logit_softcap: config.logit_softcap,
            has_disabled: (0..num_choices).any(|e| config.is_disabled(e)),
            choice_needs_scores,
            needs_softmax,
        })
    }

    /// Whether the choice is made on scores: with a bias, or by experts. Otherwise on logits, which grow with them.
    fn choice_from_scores(&self) -> bool {
        self.selection_bias.is_some() || self.config.is_ragged()
    }
}

/// Memory of the passes over the batch, kept by the calling thread.
#[derive(Default)]
struct BatchScratch {
    /// Logits with noise, and with NaN for disabled experts.
    logits: Vec<f32>,
    sinkhorn: prepare::Sinkhorn,
    softmax: Vec<Softmax>,
    basis: Vec<Basis>,
    choice: Vec<u32>,
    capacity: capacity::Scratch,
    expert_choice: expert_choice::Scratch,
    figures: figures::Scratch,
}

thread_local! {
    // Taken and put back rather than borrowed: a thread that waits for a task may start another call meanwhile.
    static BATCH: Cell<BatchScratch> = Cell::default();
}

pub(super) fn route(isa: Isa, args: RouteArgs<'_>) -> Result<()> {
    let mut scratch = BATCH.take();
    let result = route_batch(isa, args, &mut scratch);
    BATCH.set(scratch);
    result
}

fn route_batch(isa: Isa, mut args: RouteArgs<'_>, scratch: &mut BatchScratch) -> Result<()> {
    let mut rule = Rule::new(isa, &args)?;
    let mut router_logits: &[f32] = slice("router_logits", args.router_logits)?;
    let noise_logits = args.inputs.noise_logits.map(|view| slice("inputs.noise_logits", view)).transpose()?;
    let BatchScratch { logits, sinkhorn, .. } = scratch;
    if prepare::is_needed(&rule) {
        prepare::logits(&rule, router_logits, noise_logits, logits);
        (router_logits, rule.logit_clip, rule.logit_softcap) = (logits, f32::MAX, None);
    }
    if let Selection::Sinkhorn { tolerance, max_iterations } = args.config.selection {
        rule.sinkhorn = Some(sinkhorn.offsets(&rule, router_logits, tolerance, max_iterations));
    }
    let topk_ids: &mut [u32] = slice_mut("topk_ids", &mut args.topk_ids)?;
    let topk_weights: &mut [f32] = slice_mut("topk_weights", &mut args.topk_weights)?;
    let want_figures = args.figures.is_some();
    let BatchScratch { softmax, basis, choice, capacity: counters, expert_choice, figures, .. } = scratch;
    let mut token_offsets = None;
    if let (Selection::ExpertChoice { limit }, Some(ragged)) = (args.config.selection, &mut args.ragged) {
        let slots = expert_choice::Slots {
            topk_ids: &mut *topk_ids,
            topk_weights: &mut *topk_weights,
            token_offsets: slice_mut("token_offsets", &mut ragged.token_offsets)?,
            slot_tokens: slice_mut("slot_tokens", &mut ragged.slot_tokens)?,
        };
        expert_choice::route(&rule, limit, router_logits, slots, expert_choice);
        token_offsets = Some(&*slice_mut("token_offsets", &mut ragged.token_offsets)?);
        figures.count(&rule, topk_ids, token_offsets, want_figures);
    } else {
        let num_tokens = router_logits.len() / rule.num_logits;
        let record = args.config.capacity.as_ref().map(|capacity| {
            softmax.resize(num_tokens, Softmax::default());
            basis.resize(num_tokens, Basis::default());
            choice.resize(if capacity.overflow == Overflow::NextBest { router_logits.len() } else { 0 }, 0);
            Record { softmax, basis, choice }
        });
        let (topk_ids, topk_weights) = (&mut *topk_ids, &mut *topk_weights);
        pick_all(&rule, Block { first_token: 0, router_logits, topk_ids, topk_weights, record });
        figures.count(&rule, topk_ids, None, want_figures);
        if let Some(capacity) = &args.config.capacity {
            let sequence = args.inputs.tokens_per_sequence.filter(|_| capacity.per_sequence);
            let batch = capacity::Batch { router_logits, softmax, choice };
            give_slots(&rule, capacity, batch, sequence.unwrap_or(num_tokens).max(1), topk_ids, counters);
            weigh_again(&rule, capacity, router_logits, softmax, basis, topk_ids, topk_weights);
        }
    }
    if let Some(out) = &mut args.figures {
        let outcome = figures::Outcome { router_logits, topk_ids, topk_weights, token_offsets };
        figures.write(&rule, &outcome, out)?;
    }
    map_experts(rule.config, topk_ids, topk_weights);
    Ok(())
}

fn give_slots(
    rule: &Rule<'_>,
    capacity: &Capacity,
    batch: capacity::Batch<'_>,
    sequence: usize,
    topk_ids: &mut [u32],
    scratch: &mut capacity::Scratch,
) {
    let top_k = rule.config.top_k;
    for (i, ids) in topk_ids.chunks_mut(sequence * top_k).enumerate() {
        let tokens = i * sequence..i * sequence + ids.len() / top_k;
        let batch = capacity::Batch {
            router_logits: &batch.router_logits[tokens.start * rule.num_choices..],
            softmax: &batch.softmax[tokens.clone()],
            choice: batch.choice.get(tokens.start * rule.num_choices..).unwrap_or_default(),
        };
        capacity::give_slots(rule, capacity, &batch, ids, scratch);
    }
}

/// The weights after slots were dropped or sent on.
fn weigh_again(
    rule: &Rule<'_>,
    capacity: &Capacity,
    router_logits: &[f32],
    softmax: &[Softmax],
    basis: &[Basis],
    topk_ids: &[u32],
    topk_weights: &mut [f32],
) {
    let top_k = rule.config.top_k;
    let rows = router_logits.chunks_exact(rule.num_choices);
    let outputs = topk_ids.chunks_exact(top_k).zip(topk_weights.chunks_exact_mut(top_k));
    for (((row, (ids, weights)), softmax), picked) in rows.zip(outputs).zip(softmax).zip(basis) {
        let basis = if capacity.normalize_before_dropping { *picked } else { Basis::of(rule, row, softmax, ids) };
        weigh::weigh(rule, row, softmax, &basis, ids, weights);
    }
}

/// Ids to those of this rank.
fn map_experts(config: &RouterConfig, topk_ids: &mut [u32], topk_weights: &mut [f32]) {
    if config.expert_map.is_empty() {
        return;
    }
    for (id, weight) in topk_ids.iter_mut().zip(topk_weights) {
        *id = config.expert_map.get(*id as usize).copied().flatten().unwrap_or(MASKED);
        if *id == MASKED {
            *weight = 0.0;
        }
    }
}
