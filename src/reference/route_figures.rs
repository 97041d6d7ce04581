//! The oracle of routing: the figures, each from its definition in [`Figures`].

use super::route::{Route, Routing, Slots};
use super::route_rank::{Token, softmax};
use crate::routing::{Figures, MASKED, ScoreFunction, Selection};

pub(super) fn figures(
    args: &Route<'_>,
    tokens: &[Token],
    wanted: &[Vec<Option<usize>>],
    slots: &[Slots],
    routing: &Routing,
) -> Figures {
    let num_experts = args.num_choices;
    let count = |ids: &mut dyn Iterator<Item = usize>| {
        let mut counts = vec![0u32; num_experts];
        ids.for_each(|e| counts[e] += 1);
        counts
    };
    let mut importance = vec![0.0; num_experts];
    for (&id, weight) in routing.topk_ids.iter().zip(&routing.topk_weights) {
        if id != MASKED {
            importance[id as usize] += weight;
        }
    }
    let load = count(&mut slots.iter().flat_map(|s| s.kept.iter().copied().flatten()));
    let picked = count(&mut wanted.iter().flat_map(|wanted| wanted.iter().copied().flatten()));
    let first = count(&mut wanted.iter().filter_map(|wanted| wanted.first().copied().flatten()));
    let probabilities: Vec<Vec<f64>> = tokens.iter().map(|token| probabilities(args, token)).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| ratio(values.sum(), tokens.len() as f64);
    let mean_probability = |e: usize| mean(&mut probabilities.iter().map(|p| p[e]));
    let loss = |counts: &[u32]| {
        let total: u32 = counts.iter().sum();
        (0..num_experts).map(|e| ratio(f64::from(counts[e]), f64::from(total)) * mean_probability(e)).sum::<f64>()
    };
    let load_f64: Vec<f64> = load.iter().map(|&n| f64::from(n)).collect();
    let taken = load_f64.iter().sum::<f64>();
    let without = slots.iter().filter(|slots| slots.kept.is_empty()).count() as f64;
    let all_slots = routing.topk_ids.len() as f64;
    let fraction_dropped =
        if args.config.is_ragged() { ratio(without, tokens.len() as f64) } else { ratio(all_slots - taken, all_slots) };
    Figures {
        importance_cv2: cv2(&importance),
        load_cv2: cv2(&load_f64),
        switch_loss: num_experts as f64 * loss(&picked),
        gshard_loss: loss(&first) / num_experts as f64,
        z_loss: mean(&mut tokens.iter().map(|token| log_sum_exp(&token.logits).powi(2))),
        fraction_dropped,
        entropy: mean(&mut probabilities.iter().map(|p| entropy(p))),
        max_over_mean: ratio(load_f64.iter().copied().fold(0.0, f64::max) * num_experts as f64, taken),
        tokens_per_expert: load,
        importance,
    }
}

fn probabilities(args: &Route<'_>, token: &Token) -> Vec<f64> {
    match (args.config.selection, args.config.score) {
        (Selection::Hierarchical { .. }, _) => token.scores.clone(),
        (_, ScoreFunction::Logit | ScoreFunction::Softmax) => softmax(&token.logits),
        (_, ScoreFunction::Sigmoid | ScoreFunction::SqrtSoftplus) => {
            let sum: f64 = token.scores.iter().sum();
            token.scores.iter().map(|s| ratio(*s, sum)).collect()
        }
    }
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let finite = || x.iter().copied().filter(|x| !x.is_nan());
    let max = finite().fold(f64::NEG_INFINITY, f64::max);
    if max.is_finite() { max + finite().map(|x| (x - max).exp()).sum::<f64>().ln() } else { 0.0 }
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
