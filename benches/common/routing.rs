//! Which experts the tokens of a bench go to: drawn from a named distribution by a fixed seed, never left to chance.

use std::fmt;

use fused_moe::MoeConfig;

use super::data::splitmix64;

/// How popular experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// All alike. At T = 1 calls walk through a shuffled deck of the experts, so none comes again before all did.
    Uniform,
    /// The expert of rank r is chosen in proportion to 1/(r + 1).
    Zipf,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        })
    }
}

/// A stream of uniform numbers in (0, 1).
#[derive(Debug)]
pub struct Uniform(u64);

impl Uniform {
    pub fn new(seed: u64) -> Self {
        Self(splitmix64(seed) << 20)
    }

    pub fn draw(&mut self) -> f64 {
        self.0 += 1;
        ((splitmix64(self.0) >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut keyed: Vec<_> = (0..n).map(|i| (self.draw(), i)).collect();
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
        keyed.into_iter().map(|(_, i)| i).collect()
    }
}

/// `[T, k]` ids for call number `call` on layer number `layer`.
pub fn draw(config: &MoeConfig, distribution: Distribution, num_tokens: usize, layer: usize, call: usize) -> Vec<u32> {
    let (num_experts, top_k) = (config.num_experts, config.router.top_k);
    // One seed per layer: its ranks and its deck stay the same from call to call.
    let ranks = Uniform::new(layer as u64).shuffled(num_experts);
    let decks = num_experts / top_k;
    if num_tokens == 1 && distribution == Distribution::Uniform && config.router.groups.is_none() {
        return ranks[call % decks * top_k..][..top_k].iter().map(|&id| id as u32).collect();
    }
    let mut random = Uniform::new(((layer as u64) << 32) + call as u64 + 1);
    let mut ids = Vec::with_capacity(num_tokens * top_k);
    for _ in 0..num_tokens {
        ids.extend(draw_token(config, distribution, &ranks, &mut random));
    }
    ids
}

/// k of the allowed experts without replacement: those with the largest log-popularity plus Gumbel noise.
fn draw_token(config: &MoeConfig, distribution: Distribution, ranks: &[usize], random: &mut Uniform) -> Vec<u32> {
    let num_experts = config.num_experts;
    let allowed: Vec<usize> = match config.router.groups {
        None => (0..num_experts).collect(),
        Some(groups) => {
            let size = num_experts / groups.num_groups;
            let best = random.shuffled(groups.num_groups);
            best[..groups.topk_groups].iter().flat_map(|g| g * size..(g + 1) * size).collect()
        }
    };
    let mut keyed: Vec<(f64, usize)> = allowed
        .into_iter()
        .map(|e| {
            let log_popularity = match distribution {
                Distribution::Uniform => 0.0,
                Distribution::Zipf => -((ranks[e] + 1) as f64).ln(),
            };
            (log_popularity - (-random.draw().ln()).ln(), e)
        })
        .collect();
    keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
    keyed[..config.router.top_k].iter().map(|&(_, e)| e as u32).collect()
}

/// Tokens per expert.
pub fn count(topk_ids: &[u32], num_experts: usize) -> Vec<usize> {
    let mut counts = vec![0; num_experts];
    topk_ids.iter().for_each(|&id| counts[id as usize] += 1);
    counts
}

/// Experts that any token goes to.
pub fn hit_experts(topk_ids: &[u32], num_experts: usize) -> usize {
    count(topk_ids, num_experts).iter().filter(|&&n| n > 0).count()
}

/// `512 slots: 125 of 128 experts hit, 1 to 11 slots each`.
pub fn describe(topk_ids: &[u32], num_experts: usize) -> String {
    let hit: Vec<usize> = count(topk_ids, num_experts).into_iter().filter(|&n| n > 0).collect();
    let (least, most) = (hit.iter().min().unwrap_or(&0), hit.iter().max().unwrap_or(&0));
    format!("{} slots: {} of {num_experts} experts hit, {least} to {most} slots each", topk_ids.len(), hit.len())
}
