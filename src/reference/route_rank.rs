//! The oracle of routing, steps 1 to 4: logits, scores, choice, groups.

use std::cmp::Ordering;

use super::route::Route;
use crate::routing::noise::{self, Stream};
use crate::routing::{GroupLimit, GroupScore, NoiseKind, RouterConfig, ScoreFunction, Selection};

/// One token's view of all experts.
pub(super) struct Token {
    pub(super) logits: Vec<f64>,
    pub(super) group_logits: Vec<f64>,
    pub(super) scores: Vec<f64>,
    pub(super) choice: Vec<f64>,
    /// Every expert that may be chosen, best first.
    pub(super) ranked: Vec<usize>,
}

pub(super) fn rank(args: &Route<'_>, t: usize, row: &[f64], sinkhorn: &[f64]) -> Token {
    let config = args.config;
    let (group_logits, row) = row.split_at(config.num_group_logits());
    let group_logits: Vec<f64> = group_logits.iter().map(|&x| transform(config, x)).collect();
    let logits: Vec<f64> = row.iter().enumerate().map(|(e, &x)| logit(args, t, e, x)).collect();
    let scores = match config.selection {
        Selection::Hierarchical { .. } => level_scores(&group_logits, &logits),
        _ => score(config.score, &logits),
    };
    let value = |by: &[f64], e: usize| match args.selection_bias {
        _ if logits[e].is_nan() => f64::NEG_INFINITY,
        None => nan_last(by[e] + sinkhorn[e]),
        Some(bias) => nan_last(by[e] + bias[e]),
    };
    let by = if args.selection_bias.is_some() || config.is_ragged() { &scores } else { &logits };
    let choice: Vec<f64> = (0..logits.len()).map(|e| value(by, e)).collect();
    let mut ranked: Vec<usize> = (0..choice.len()).collect();
    if let Some(groups) = config.groups {
        let group_choice: Vec<f64> = match groups.score {
            GroupScore::Max => choice.clone(),
            GroupScore::SumTop2 => (0..choice.len()).map(|e| value(&scores, e)).collect(),
        };
        let allowed = allowed_by_groups(groups, &group_choice);
        ranked.retain(|&e| allowed[e]);
    }
    ranked.retain(|&e| !config.is_disabled(e));
    ranked.sort_by(|&a, &b| descending(choice[a], choice[b]));
    Token { logits, group_logits, scores, choice, ranked }
}

/// Step 1.
fn logit(args: &Route<'_>, t: usize, e: usize, x: f64) -> f64 {
    let config = args.config;
    if config.is_disabled(e) {
        return f64::NAN;
    }
    let x = transform(config, x);
    let Some(noise) = config.noise else { return x };
    let normal = || f64::from(noise::normal(noise.seed, Stream::Logit, t as u32, e as u32));
    match (noise.kind, args.noise_logits) {
        (NoiseKind::NormalSoftplus, Some(noise_logits)) => {
            x + normal() * softplus(noise_logits[t * args.num_choices + e])
        }
        (NoiseKind::Normal { std }, _) => x + normal() * f64::from(std),
        _ => x,
    }
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

/// A group's probability times the expert's within it.
fn level_scores(group_logits: &[f64], logits: &[f64]) -> Vec<f64> {
    let groups = softmax(group_logits);
    let within = logits.chunks_exact(logits.len() / group_logits.len()).map(softmax);
    groups.iter().zip(within).flat_map(|(g, within)| within.into_iter().map(move |p| g * p)).collect()
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

/// For each expert, the logarithm of the factor that Sinkhorn's iteration gives it; zeros for other selections.
///
/// `e^logits` is scaled by rows to 1/T and by columns to 1/E, in turn. A row's factor is the same for all its experts
/// and so does not enter the choice.
pub(super) fn sinkhorn_offsets(args: &Route<'_>) -> Vec<f64> {
    let num_experts = args.num_choices;
    let Selection::Sinkhorn { tolerance, max_iterations } = args.config.selection else {
        return vec![0.0; num_experts];
    };
    let rows = args.router_logits.chunks_exact(num_experts).enumerate();
    let cost: Vec<Vec<f64>> = rows
        .map(|(t, row)| {
            let logits: Vec<f64> = row.iter().enumerate().map(|(e, &x)| logit(args, t, e, x)).collect();
            softmax(&logits)
        })
        .collect();
    let mut factors = vec![1.0; num_experts];
    for _ in 0..max_iterations {
        let mut sums = vec![0.0; num_experts];
        for row in &cost {
            let sum: f64 = row.iter().zip(&factors).map(|(c, f)| c * f).sum();
            if sum > 0.0 {
                sums.iter_mut().zip(row).for_each(|(s, c)| *s += c / (sum * cost.len() as f64));
            }
        }
        let next: Vec<f64> = sums.iter().map(|&s| if s > 0.0 { 1.0 / (s * num_experts as f64) } else { 1.0 }).collect();
        let change: f64 = next.iter().zip(&factors).map(|(a, b)| (a - b).abs()).sum();
        let total: f64 = next.iter().sum();
        factors = next;
        if change <= f64::from(tolerance) * total {
            break;
        }
    }
    factors.into_iter().map(f64::ln).collect()
}

pub(super) fn nan_last(x: f64) -> f64 {
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
pub(super) fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| if v.is_nan() { 0.0 } else { (v - max).exp() }).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|v| if sum > 0.0 { v / sum } else { 0.0 }).collect()
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
