//! The steps of a rule: scores, groups, selection, weights.

use serde::{Deserialize, Serialize};

use super::capacity::CapacityLimit;

/// Logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreFunction {
    /// The logits themselves.
    Logit,
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each logit (DeepSeek-V3).
    Sigmoid,
    /// `sqrt(softplus(logit))` (DeepSeek-V4).
    SqrtSoftplus,
}

/// Where the weights of the chosen experts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFunction {
    /// The scores, without the selection bias.
    #[default]
    Score,
    /// Softmax over the chosen logits only (Granite, gpt-oss).
    SoftmaxOverSelected,
    /// Sigmoid of the chosen logits (Llama 4).
    Sigmoid,
    /// 1: hard gating.
    One,
}

/// Limits a token to its best groups: experts `g·E/n .. (g+1)·E/n` are group `g`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupLimit {
    /// Groups the experts are cut into; divides the number of experts.
    pub num_groups: usize,
    /// Groups a token may use.
    pub topk_groups: usize,
    /// What ranks a group.
    pub score: GroupScore,
}

/// What ranks a group of experts. A NaN in it counts as −inf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// Its best choice score (DeepSeek-V2 `group_limited_greedy`).
    Max,
    /// The sum of its two best (DeepSeek-V3 `noaux_tc`).
    #[serde(rename = "sum_top2")]
    SumTop2,
}

/// The denominator of renormalised weights: `max((Σ|w|^p)^(1/p) + add, min)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Renormalize {
    /// Added to the sum (DeepSeek-V3: 1e-20).
    pub add: f32,
    /// Lower bound of the sum (ERNIE 4.5 `norm_min`: 1e-12).
    pub min: f32,
    /// The norm (DBRX `moe_normalize_expert_weights`); 1 is the sum.
    pub p: f32,
}

impl Default for Renormalize {
    fn default() -> Self {
        Self { add: 0.0, min: 0.0, p: 1.0 }
    }
}

/// Whether a weight scales its expert's output or its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsOn {
    /// `Σ w·expert(x)`.
    #[default]
    Output,
    /// `Σ expert(w·x)` (Llama 4).
    Input,
}

/// The way the k experts are picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// The k largest of the choice scores.
    #[default]
    TopK,
    /// PhiMoE's sparsemixer as it runs at inference, k = 2: the best logit and the second best, each weighed by the
    /// softmax over the logits near it, `(max − l) / max(|l|, max) ≤ 2·jitter`. The weights do not sum to 1.
    SparseMixer {
        /// `router_jitter_noise` (0.01).
        jitter: f32,
    },
    /// By the id of the token, not by its logits (Roller et al. 2021, Hash Layers; DeepSeek-V4's first layers): from
    /// the table in the inputs where there is one, else k different experts drawn with [`noise::bits`] of
    /// (seed, token id). Weights are those of any other rule.
    ///
    /// [`noise::bits`]: super::noise::bits
    Hash {
        /// Of the drawing.
        seed: u64,
    },
    /// Each expert takes its best tokens (Zhou et al. 2022): those with the largest choice score, ties to the lowest
    /// token. A token has 0 to E slots, in the order of the experts.
    ExpertChoice {
        /// c: tokens per expert. `top_k` is k in it: the experts that a token gets on average.
        limit: CapacityLimit,
    },
    /// Balances the experts over the batch first (S-BASE, Clark et al. 2022; Megatron): the choice is made on
    /// `e^logits` scaled by Sinkhorn's iteration to equal sums per token and per expert. Weights are not.
    Sinkhorn {
        /// Stop when an iteration changes the experts' factors by no more than this, relative to their mean.
        tolerance: f32,
        /// Stop after so many.
        max_iterations: usize,
    },
    /// Two levels (Shazeer et al. 2017, appendix B; Jordan and Jacobs 1994): the best groups, and in each its best
    /// experts. The logits are those of the groups, then those of the experts, each group's together; an expert's
    /// score is its group's probability times its own within the group.
    Hierarchical {
        /// Groups the experts are cut into; divides the number of experts.
        num_groups: usize,
        /// Groups a token goes to; divides `top_k`, and `top_k / topk_groups` experts are picked in each.
        topk_groups: usize,
        /// Whether the probabilities of the picked are made to sum to 1 on each level.
        renormalize_levels: bool,
    },
}

/// What may be done with an expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertState {
    /// It is chosen, and may be trained.
    #[default]
    Active,
    /// It is chosen as it is: training leaves it alone (the old experts of Lifelong-MoE).
    Frozen,
    /// It is chosen, and came last (the new experts of Lifelong-MoE).
    Added,
    /// It is never chosen.
    Disabled,
}

impl Renormalize {
    /// What the weights are divided by.
    pub(crate) fn denominator(&self, weights: impl Iterator<Item = f32>) -> f32 {
        let norm = if self.p == 1.0 {
            weights.sum::<f32>()
        } else {
            weights.map(|w| w.abs().powf(self.p)).sum::<f32>().powf(self.p.recip())
        };
        (norm + self.add).max(self.min)
    }
}
