//! The oracle of routing, step 5: the selections.

use super::route::{Route, Slots};
use super::route_rank::{Token, descending, nan_last, softmax};
use crate::routing::noise::{self, Stream};
use crate::routing::{CapacityLimit, Noise, NoiseKind, RouterConfig};

/// The best by the choice score, or by that with noise after the first.
pub(super) fn by_score(config: &RouterConfig, t: usize, token: &Token) -> Slots {
    let mut ranked = token.ranked.clone();
    if let Some(Noise { seed, kind: NoiseKind::GumbelSecond }) = config.noise {
        let noisy = |e: usize| token.choice[e] + f64::from(noise::gumbel(seed, Stream::Gumbel, t as u32, e as u32));
        // Back to the order of the ids, which is what breaks ties.
        ranked[1..].sort_unstable();
        ranked[1..].sort_by(|&a, &b| descending(noisy(a), noisy(b)));
    }
    ranked.truncate(config.top_k);
    Slots::of(ranked)
}

/// Drops choices after the first by chance, the likelier the smaller their share of the scores.
pub(super) fn keep_at_random(config: &RouterConfig, t: usize, token: &Token, mut slots: Slots) -> Slots {
    let Some(Noise { seed, kind: NoiseKind::RandomSecond { scale } }) = config.noise else { return slots };
    let sum: f64 = slots.picked.iter().map(|&e| token.scores[e]).sum();
    for (i, kept) in slots.kept.iter_mut().enumerate().skip(1) {
        let share = token.scores[slots.picked[i]] / sum;
        let draw = f64::from(noise::uniform(seed, Stream::Keep, t as u32, i as u32));
        if draw >= nan_last(share * f64::from(scale)) {
            *kept = None;
        }
    }
    slots
}

/// From the table, or drawn: the i-th expert of an id is one of those it does not have yet.
pub(super) fn by_hash(args: &Route<'_>, seed: u64, t: usize, token: &Token) -> Slots {
    let top_k = args.config.top_k;
    let token_id = args.token_ids.map_or(t as u32, |ids| ids[t]);
    if let Some(table) = args.hash_table {
        let row = table.chunks_exact(top_k).nth(token_id as usize);
        let wanted = |i: usize| row.map(|row| row[i] as usize).filter(|e| token.ranked.contains(e));
        let kept: Vec<Option<usize>> = (0..top_k).map(wanted).collect();
        return Slots { picked: kept.iter().copied().flatten().collect(), kept, weights: None };
    }
    let mut left = token.ranked.clone();
    left.sort_unstable();
    let mut draw = |i: u32| left.remove(noise::below(seed, Stream::Hash, token_id, i, left.len() as u32) as usize);
    Slots::of((0..top_k as u32).map(&mut draw).collect())
}

/// The best groups, in each its best experts, weighed by the product of both levels; the largest weight first.
pub(super) fn by_level(
    config: &RouterConfig,
    token: &Token,
    num_groups: usize,
    topk_groups: usize,
    renormalize_levels: bool,
) -> Slots {
    let size = token.logits.len() / num_groups;
    let groups = softmax(&token.group_logits);
    let mut best: Vec<usize> = (0..num_groups).collect();
    best.sort_by(|&a, &b| descending(nan_last(token.group_logits[a]), nan_last(token.group_logits[b])));
    best.truncate(topk_groups);
    let groups_sum: f64 = if renormalize_levels { best.iter().map(|&g| groups[g]).sum() } else { 1.0 };
    let mut picked: Vec<(usize, f64)> = Vec::new();
    for &g in &best {
        let within = softmax(&token.logits[g * size..][..size]);
        let members: Vec<usize> =
            token.ranked.iter().copied().filter(|e| e / size == g).take(config.top_k / topk_groups).collect();
        let sum: f64 = if renormalize_levels { members.iter().map(|e| within[e % size]).sum() } else { 1.0 };
        picked.extend(members.into_iter().map(|e| (e, groups[g] / groups_sum * within[e % size] / sum)));
    }
    picked.sort_by(|a, b| descending(nan_last(a.1), nan_last(b.1)).then(a.0.cmp(&b.0)));
    let (ids, weights) = picked.into_iter().unzip();
    Slots { weights: Some(weights), ..Slots::of(ids) }
}

/// Each expert takes its best tokens.
pub(super) fn by_experts(args: &Route<'_>, limit: CapacityLimit, tokens: &[Token]) -> Vec<Slots> {
    let mut picked = vec![Vec::new(); tokens.len()];
    let count = limit.slots(tokens.len(), args.config.top_k, args.num_choices);
    for e in (0..args.num_choices).filter(|&e| !args.config.is_disabled(e)) {
        let mut best: Vec<usize> = (0..tokens.len()).collect();
        best.sort_by(|&a, &b| descending(tokens[a].choice[e], tokens[b].choice[e]));
        best[..count].iter().for_each(|&t| picked[t].push(e));
    }
    picked.into_iter().map(Slots::of).collect()
}
