//! The steps of a rule: scores, groups, selection, weights.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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
}

impl GroupLimit {
    pub(super) fn validate(&self, top_k: usize, choices: usize) -> Result<()> {
        let Self { num_groups, topk_groups, .. } = *self;
        if num_groups == 0 || !choices.is_multiple_of(num_groups) {
            return Err(Error::invalid("router.groups.num_groups", format!("a divisor of {choices}"), num_groups));
        }
        let enough = top_k.div_ceil(choices / num_groups);
        if !(enough..=num_groups).contains(&topk_groups) {
            return Err(Error::invalid("router.groups.topk_groups", format!("{enough} to {num_groups}"), topk_groups));
        }
        Ok(())
    }
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

    pub(super) fn validate(&self) -> Result<()> {
        for (name, value, least) in [("add", self.add, 0.0), ("min", self.min, 0.0), ("p", self.p, f32::MIN_POSITIVE)] {
            if !(value.is_finite() && value >= least) {
                let expected = if least > 0.0 { "a finite number > 0" } else { "a finite number ≥ 0" };
                return Err(Error::invalid(format!("router.renormalize.{name}"), expected, value));
            }
        }
        Ok(())
    }
}
