//! The oracle of `route`.

use std::cmp::Ordering;

use crate::routing::{GroupLimit, GroupScore, RouterConfig, ScoreFunction, Selection, WeightFunction};

/// Which experts each token goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// `[T, k]`.
    pub topk_ids: Vec<u32>,
    /// `[T, k]`.
    pub topk_weights: Vec<f64>,
}

/// Routes `[T, E]` logits by `config`.
pub fn route(config: &RouterConfig, router_logits: &[f64], num_choices: usize, bias: Option<&[f64]>) -> Routing {
    let mut routing = Routing { topk_ids: Vec::new(), topk_weights: Vec::new() };
    for logits in router_logits.chunks_exact(num_choices) {
        let (ids, weights) = match config.selection {
            Selection::TopK => top_k(config, logits, bias),
        };
        routing.topk_ids.extend(ids.iter().map(|&id| id as u32));
        routing.topk_weights.extend(weights);
    }
    routing
}

fn top_k(config: &RouterConfig, logits: &[f64], bias: Option<&[f64]>) -> (Vec<usize>, Vec<f64>) {
    let scores = score(config.score, logits);
    let choice: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + bias.map_or(0.0, |b| b[e])).collect();
    let allowed = match config.groups {
        Some(groups) => allowed_by_groups(groups, &choice),
        None => vec![true; choice.len()],
    };
    let mut ids: Vec<usize> = (0..choice.len()).filter(|&e| allowed[e]).collect();
    ids.sort_by(|&a, &b| descending(choice[a], choice[b]));
    ids.truncate(config.top_k);
    let mut weights = weigh(config.weight, &ids, logits, &scores);
    if let Some(rule) = config.renormalize {
        let sum = (weights.iter().sum::<f64>() + f64::from(rule.add)).max(f64::from(rule.min));
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights.iter_mut().for_each(|w| *w *= f64::from(config.scaling_factor));
    (ids, weights)
}

fn score(function: ScoreFunction, logits: &[f64]) -> Vec<f64> {
    match function {
        ScoreFunction::Logit => logits.to_vec(),
        ScoreFunction::Softmax => softmax(logits),
        ScoreFunction::Sigmoid => logits.iter().map(|&x| sigmoid(x)).collect(),
        ScoreFunction::SqrtSoftplus => logits.iter().map(|&x| softplus(x).sqrt()).collect(),
    }
}

fn weigh(function: WeightFunction, ids: &[usize], logits: &[f64], scores: &[f64]) -> Vec<f64> {
    let chosen: Vec<f64> = ids.iter().map(|&e| logits[e]).collect();
    match function {
        WeightFunction::Score => ids.iter().map(|&e| scores[e]).collect(),
        WeightFunction::SoftmaxOverSelected => softmax(&chosen),
        WeightFunction::Sigmoid => chosen.into_iter().map(sigmoid).collect(),
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

/// Largest first; NaN below everything. Sorts by it are stable, so ties keep the lowest id first.
fn descending(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).expect("neither is NaN"),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    }
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|v| v / sum).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
