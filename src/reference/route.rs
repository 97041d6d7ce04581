//! The oracle of `route`: each step of [`crate::routing`] for the whole batch, one after another.

use super::route_capacity::give_slots;
use super::route_figures::figures;
use super::route_rank::{Token, rank, sinkhorn_offsets};
use super::route_select::{by_experts, by_hash, by_level, by_score, keep_at_random};
use super::route_weigh::{normalize, sparse_mixer, weigh};
use crate::routing::{Figures, MASKED, RouterConfig, Selection};

/// Arguments of [`route`].
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The rule.
    pub config: &'a RouterConfig,
    /// `[T, E]`, zero experts included in E; `[T, G + E]` where the selection is hierarchical.
    pub router_logits: &'a [f64],
    /// That E.
    pub num_choices: usize,
    /// `[E]`.
    pub selection_bias: Option<&'a [f64]>,
    /// `None`: the batch is one sequence.
    pub tokens_per_sequence: Option<usize>,
    /// `[T, E]`: x·W_noise, for noise `normal_softplus`.
    pub noise_logits: Option<&'a [f64]>,
    /// `[T]`, for selection `hash`.
    pub token_ids: Option<&'a [u32]>,
    /// `[V, k]`: the experts of each token id, for selection `hash`.
    pub hash_table: Option<&'a [u32]>,
}

impl<'a> Route<'a> {
    /// A rule over logits, with nothing besides.
    pub fn new(config: &'a RouterConfig, router_logits: &'a [f64], num_choices: usize) -> Self {
        Self {
            config,
            router_logits,
            num_choices,
            selection_bias: None,
            tokens_per_sequence: None,
            noise_logits: None,
            token_ids: None,
            hash_table: None,
        }
    }
}

/// Which experts each token goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// `[T, k]`, or `[S]` where tokens have different numbers of slots.
    pub topk_ids: Vec<u32>,
    /// As `topk_ids`.
    pub topk_weights: Vec<f64>,
    /// `[T + 1]`: where each token's slots start; `None`: every token has k.
    pub token_offsets: Option<Vec<u32>>,
}

/// What was picked for a token, and what is left of it; both in the order of its slots.
pub(super) struct Slots {
    pub(super) picked: Vec<usize>,
    pub(super) kept: Vec<Option<usize>>,
    /// Where the selection makes the weights itself.
    pub(super) weights: Option<Vec<f64>>,
}

impl Slots {
    pub(super) fn of(picked: Vec<usize>) -> Self {
        Self { kept: picked.iter().copied().map(Some).collect(), picked, weights: None }
    }
}

/// Routes logits by a rule.
pub fn route(args: &Route<'_>) -> Routing {
    route_with_figures(args).0
}

/// As [`route`], with the figures of the routing.
pub fn route_with_figures(args: &Route<'_>) -> (Routing, Figures) {
    let config = args.config;
    let offsets = sinkhorn_offsets(args);
    let rows = args.router_logits.chunks_exact(config.num_group_logits() + args.num_choices);
    let tokens: Vec<Token> = rows.enumerate().map(|(t, row)| rank(args, t, row, &offsets)).collect();
    let mut slots = select(args, &tokens);
    let wanted: Vec<Vec<Option<usize>>> = slots.iter().map(|slots| slots.kept.clone()).collect();
    if let Some(capacity) = &config.capacity {
        give_slots(args, capacity, &tokens, &mut slots);
    }
    let mut routing = Routing { topk_ids: Vec::new(), topk_weights: Vec::new(), token_offsets: None };
    let mut token_offsets = vec![0];
    for (token, slots) in tokens.iter().zip(&slots) {
        let weights = slots.weights.clone().unwrap_or_else(|| weigh(config, token, &slots.picked, &slots.kept));
        routing.topk_ids.extend(slots.kept.iter().map(|id| id.map_or(MASKED, |id| id as u32)));
        routing.topk_weights.extend(normalize(config, token, slots, weights));
        token_offsets.push(routing.topk_ids.len() as u32);
    }
    routing.token_offsets = config.is_ragged().then_some(token_offsets);
    let figures = figures(args, &tokens, &wanted, &slots, &routing);
    map_experts(config, &mut routing);
    (routing, figures)
}

/// Step 5.
fn select(args: &Route<'_>, tokens: &[Token]) -> Vec<Slots> {
    let config = args.config;
    let each = |select: &dyn Fn(usize, &Token) -> Slots| {
        tokens.iter().enumerate().map(|(t, token)| select(t, token)).collect::<Vec<_>>()
    };
    match config.selection {
        Selection::TopK | Selection::Sinkhorn { .. } => {
            each(&|t, token| keep_at_random(config, t, token, by_score(config, t, token)))
        }
        Selection::SparseMixer { jitter } => each(&|_, token| {
            let weights = Some(sparse_mixer(token, f64::from(jitter)));
            Slots { weights, ..Slots::of(token.ranked[..2].to_vec()) }
        }),
        Selection::Hash { seed } => each(&|t, token| by_hash(args, seed, t, token)),
        Selection::Hierarchical { num_groups, topk_groups, renormalize_levels } => {
            each(&|_, token| by_level(config, token, num_groups, topk_groups, renormalize_levels))
        }
        Selection::ExpertChoice { limit } => by_experts(args, limit, tokens),
    }
}

/// Step 9.
fn map_experts(config: &RouterConfig, routing: &mut Routing) {
    if config.expert_map.is_empty() {
        return;
    }
    for (id, weight) in routing.topk_ids.iter_mut().zip(&mut routing.topk_weights) {
        *id = config.expert_map.get(*id as usize).copied().flatten().unwrap_or(MASKED);
        if *id == MASKED {
            *weight = 0.0;
        }
    }
}
