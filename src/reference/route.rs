//! The oracle of `route`: each step of [`crate::routing`] for the whole batch, one after another.

use std::cmp::Ordering;

use super::route_capacity::give_slots;
use crate::routing::{GroupLimit, GroupScore, MASKED, RouterConfig, ScoreFunction, Selection, WeightFunction};

/// Arguments of [`route`].
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The rule.
    pub config: &'a RouterConfig,
    /// `[T, E]`, zero experts included in E.
    pub router_logits: &'a [f64],
    /// That E.
    pub num_choices: usize,
    /// `[E]`.
    pub selection_bias: Option<&'a [f64]>,
    /// `None`: the batch is one sequence.
    pub tokens_per_sequence: Option<usize>,
}

/// Which experts each token goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// `[T, k]`.
    pub topk_ids: Vec<u32>,
    /// `[T, k]`.
    pub topk_weights: Vec<f64>,
}

/// One token's view of all experts.
pub(super) struct Token {
    logits: Vec<f64>,
    scores: Vec<f64>,
    /// Every expert that may be chosen, best first.
    pub(super) ranked: Vec<usize>,
    /// The score of the best.
    pub(super) best_score: f64,
}

impl Token {
    pub(super) fn score(&self, expert: usize) -> f64 {
        self.scores[expert]
    }
}

/// Routes `[T, E]` logits by a rule.
pub fn route(args: &Route<'_>) -> Routing {
    let config = args.config;
    let tokens: Vec<Token> = args.router_logits.chunks_exact(args.num_choices).map(|row| rank(args, row)).collect();
    let picked: Vec<Vec<usize>> = tokens.iter().map(|token| token.ranked[..config.top_k].to_vec()).collect();
    let kept: Vec<Vec<Option<usize>>> = match &config.capacity {
        Some(capacity) => give_slots(args, capacity, &tokens),
        None => picked.iter().map(|ids| ids.iter().copied().map(Some).collect()).collect(),
    };
    let mut routing = Routing { topk_ids: Vec::new(), topk_weights: Vec::new() };
    for ((token, picked), kept) in tokens.iter().zip(&picked).zip(&kept) {
        let weights = match config.selection {
            Selection::TopK => weigh(config, token, picked, kept),
            Selection::SparseMixer { jitter } => sparse_mixer(token, f64::from(jitter)),
        };
        routing.topk_ids.extend(kept.iter().map(|id| id.map_or(MASKED, |id| id as u32)));
        routing.topk_weights.extend(normalize(config, token, picked, kept, weights));
    }
    routing
}

/// Steps 1 to 4: logits, scores, choice, groups.
fn rank(args: &Route<'_>, row: &[f64]) -> Token {
    let config = args.config;
    let logits: Vec<f64> = row.iter().map(|&x| transform(config, x)).collect();
    let scores = score(config.score, &logits);
    let value = |by: &[f64], e: usize| {
        if logits[e].is_nan() { f64::NEG_INFINITY } else { by[e] + args.selection_bias.map_or(0.0, |b| b[e]) }
    };
    let by = if args.selection_bias.is_some() { &scores } else { &logits };
    let choice: Vec<f64> = (0..logits.len()).map(|e| nan_last(value(by, e))).collect();
    let mut ranked: Vec<usize> = (0..choice.len()).collect();
    if let Some(groups) = config.groups {
        let group_choice: Vec<f64> = match groups.score {
            GroupScore::Max => choice.clone(),
            GroupScore::SumTop2 => (0..choice.len()).map(|e| nan_last(value(&scores, e))).collect(),
        };
        let allowed = allowed_by_groups(groups, &group_choice);
        ranked.retain(|&e| allowed[e]);
    }
    ranked.sort_by(|&a, &b| descending(choice[a], choice[b]));
    let best_score = scores[ranked[0]];
    Token { logits, scores, ranked, best_score }
}

fn transform(config: &RouterConfig, logit: f64) -> f64 {
    let mut x = logit.clamp(f64::from(f32::MIN), f64::from(f32::MAX));
    if let Some(c) = config.logit_clip.map(f64::from) {
        x = x.clamp(-c, c);
    }
    if let Some(c) = config.logit_softcap.map(f64::from) {
        x = c * (x / c).tanh();
    }
    x
}

/// Of a NaN, 0.
fn score(function: ScoreFunction, logits: &[f64]) -> Vec<f64> {
    let each = |f: fn(f64) -> f64| logits.iter().map(|&x| if x.is_nan() { 0.0 } else { f(x) }).collect();
    match function {
        ScoreFunction::Logit => each(|x| x),
        ScoreFunction::Softmax => softmax(logits),
        ScoreFunction::Sigmoid => each(sigmoid),
        ScoreFunction::SqrtSoftplus => each(|x| softplus(x).sqrt()),
    }
}

fn allowed_by_groups(groups: GroupLimit, choice: &[f64]) -> Vec<bool> {
    let size = choice.len() / groups.num_groups;
    let group_scores: Vec<f64> = choice
        .chunks_exact(size)
        .map(|group| {
            let mut sorted = group.to_vec();
            sorted.sort_by(|&a, &b| descending(a, b));
            match groups.score {
                GroupScore::Max => sorted[0],
                GroupScore::SumTop2 => sorted.iter().take(2).sum(),
            }
        })
        .collect();
    let mut best: Vec<usize> = (0..groups.num_groups).collect();
    best.sort_by(|&a, &b| descending(group_scores[a], group_scores[b]));
    best.truncate(groups.topk_groups);
    (0..choice.len()).map(|e| best.contains(&(e / size))).collect()
}

/// Step 7: the weights of the kept experts; a softmax over the selected is one over `basis`.
fn weigh(config: &RouterConfig, token: &Token, picked: &[usize], kept: &[Option<usize>]) -> Vec<f64> {
    let logits: Vec<f64> = basis(config, picked, kept).into_iter().map(|e| token.logits[e]).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|x| (x - max).exp()).sum();
    let weight = |e: usize| match config.weight {
        WeightFunction::Score => token.scores[e],
        WeightFunction::One => 1.0,
        _ if token.logits[e].is_nan() => 0.0,
        WeightFunction::SoftmaxOverSelected => (token.logits[e] - max).exp() / sum,
        WeightFunction::Sigmoid => sigmoid(token.logits[e]),
    };
    kept.iter().map(|id| id.map_or(0.0, weight)).collect()
}

/// The experts over which weights are made comparable: all that were picked, or those that are left.
fn basis(config: &RouterConfig, picked: &[usize], kept: &[Option<usize>]) -> Vec<usize> {
    match config.capacity {
        Some(capacity) if capacity.normalize_before_dropping => picked.to_vec(),
        _ => kept.iter().copied().flatten().collect(),
    }
}

/// Step 8: renormalise, scale.
fn normalize(
    config: &RouterConfig,
    token: &Token,
    picked: &[usize],
    kept: &[Option<usize>],
    mut weights: Vec<f64>,
) -> Vec<f64> {
    if let Some(rule) = config.renormalize {
        let summed: Vec<f64> = match config.capacity {
            Some(capacity) if capacity.normalize_before_dropping => {
                let all: Vec<Option<usize>> = picked.iter().copied().map(Some).collect();
                weigh(config, token, picked, &all)
            }
            _ => weights.clone(),
        };
        let p = f64::from(rule.p);
        let norm = summed.iter().map(|w| w.abs().powf(p)).sum::<f64>().powf(1.0 / p);
        let norm = if rule.p == 1.0 { summed.iter().sum() } else { norm };
        let denominator = (norm + f64::from(rule.add)).max(f64::from(rule.min));
        weights.iter_mut().for_each(|w| *w /= denominator);
    }
    let scaled = weights.iter().zip(kept).map(|(w, id)| id.map_or(0.0, |_| w * f64::from(config.scaling_factor)));
    scaled.map(|w| if (w as f32).is_finite() { w } else { 0.0 }).collect()
}

/// The weights of the best two logits, each by the softmax over the logits near it.
fn sparse_mixer(token: &Token, jitter: f64) -> Vec<f64> {
    let logits = &token.logits;
    let mut taken = Vec::new();
    let mut weights = Vec::new();
    for &id in &token.ranked[..2] {
        let max = logits[id];
        let near = |&e: &usize| {
            let x = logits[e];
            !taken.contains(&e) && !x.is_nan() && (max - x) / x.abs().max(max) <= 2.0 * jitter || e == id
        };
        let sum: f64 = (0..logits.len()).filter(near).map(|e| (logits[e] - max).exp()).sum();
        weights.push(1.0 / sum);
        taken.push(id);
    }
    weights
}

fn nan_last(x: f64) -> f64 {
    if x.is_nan() { f64::NEG_INFINITY } else { x }
}

/// Largest first; NaN below everything. Sorts by it are stable, so ties keep the lowest id first.
pub(super) fn descending(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).expect("neither is NaN"),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    }
}

/// Over what is not NaN; of a NaN, 0.
fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| if v.is_nan() { 0.0 } else { (v - max).exp() }).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|v| if sum > 0.0 { v / sum } else { 0.0 }).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
