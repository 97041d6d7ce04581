//! How tokens choose experts: every rule as plain data.
//!
//! The rule of a token-choice router, per token, all in f32 (f64 in the reference):
//!
//! 1. `scores = score(router_logits)` over all experts, zero experts included;
//! 2. `choice = scores + selection_bias` — the bias picks and never weighs (DeepSeek-V3);
//! 3. with groups, every expert outside the best `topk_groups` groups leaves the choice (−inf);
//! 4. `topk_ids` = the `top_k` largest of `choice`, largest first, ties to the lowest id, NaN below everything;
//! 5. `topk_weights = weight(ids)`, from scores or from the chosen logits;
//! 6. renormalised to sum 1 if asked, then times `scaling_factor`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The id of a slot that no expert takes: masked by the caller, dropped for capacity, or on another rank.
pub const MASKED: u32 = u32::MAX;

/// How tokens choose experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// k: experts per token.
    pub top_k: usize,
    /// Logits to scores, by which experts are chosen.
    pub score: ScoreFunction,
    /// Where the weights of the chosen experts come from.
    #[serde(default)]
    pub weight: WeightFunction,
    /// Restricts a token to its best groups of experts (DeepSeek-V2/V3).
    #[serde(default)]
    pub groups: Option<GroupLimit>,
    /// Makes a token's weights sum to 1 (`norm_topk_prob`).
    #[serde(default)]
    pub renormalize: Option<Renormalize>,
    /// Multiplies the weights last (`routed_scaling_factor`).
    #[serde(default = "one")]
    pub scaling_factor: f32,
    /// Whether a weight scales its expert's output or its input.
    #[serde(default)]
    pub weights_on: WeightsOn,
    /// Identity experts after the real ones: ids `E..E + num_zero_experts` return the token itself (LongCat-Flash).
    #[serde(default)]
    pub num_zero_experts: usize,
    /// The way the k experts are picked.
    #[serde(default)]
    pub selection: Selection,
}

fn one() -> f32 {
    1.0
}

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

/// What ranks a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// Its best choice score (DeepSeek-V2 `group_limited_greedy`).
    Max,
    /// The sum of its two best (DeepSeek-V3 `noaux_tc`).
    SumTop2,
}

/// The denominator of renormalised weights: `max(sum + add, min)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Renormalize {
    /// Added to the sum (DeepSeek-V3: 1e-20).
    pub add: f32,
    /// Lower bound of the sum (ERNIE 4.5 `norm_min`: 1e-12).
    pub min: f32,
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
}

impl RouterConfig {
    /// Softmax top-k without renormalisation, the start of most routers.
    pub fn softmax_top_k(top_k: usize) -> Self {
        Self {
            top_k,
            score: ScoreFunction::Softmax,
            weight: WeightFunction::Score,
            groups: None,
            renormalize: None,
            scaling_factor: 1.0,
            weights_on: WeightsOn::Output,
            num_zero_experts: 0,
            selection: Selection::TopK,
        }
    }

    /// Columns of `router_logits`: experts with weights, then zero experts.
    pub fn num_choices(&self, num_experts: usize) -> usize {
        num_experts + self.num_zero_experts
    }

    /// The most slots that `num_tokens` tokens can take.
    pub fn max_slots(&self, num_tokens: usize) -> usize {
        num_tokens * self.top_k
    }

    /// Checks that the rule can run over `num_experts` experts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field that does not fit.
    pub fn validate(&self, num_experts: usize) -> Result<()> {
        let choices = self.num_choices(num_experts);
        if self.top_k == 0 || self.top_k > choices {
            return Err(Error::invalid("router.top_k", format!("1 to {choices}"), self.top_k));
        }
        if let Some(GroupLimit { num_groups, topk_groups, .. }) = self.groups {
            if num_groups == 0 || !choices.is_multiple_of(num_groups) {
                return Err(Error::invalid("router.groups.num_groups", format!("a divisor of {choices}"), num_groups));
            }
            let enough = self.top_k.div_ceil(choices / num_groups);
            if !(enough..=num_groups).contains(&topk_groups) {
                return Err(Error::invalid(
                    "router.groups.topk_groups",
                    format!("{enough} to {num_groups}"),
                    topk_groups,
                ));
            }
        }
        if !self.scaling_factor.is_finite() {
            return Err(Error::invalid("router.scaling_factor", "a finite number", self.scaling_factor));
        }
        Ok(())
    }
}
